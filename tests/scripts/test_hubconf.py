"""hubconf.py: a network through torch.hub, from anywhere."""

import subprocess
import sys

import torch

from tests.helpers import ROOT, environment
from tests.zoo import MEAN, NAME


def test_a_network_comes_through_torch_hub(small_zoo):
    net = torch.hub.load(str(ROOT), "mlif", NAME, source="local")
    assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert net.mean == MEAN and len(net.classes) == 10


def test_in_a_process_of_its_own(tmp_path):
    """Started elsewhere, where nothing of this repository can be imported; the name is wrong."""
    code = f"import torch; torch.hub.load({str(ROOT)!r}, 'mlif', 'resnet21', source='local')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert "no checkpoint at resnet21" in done.stderr and "resnet20_cifar10" in done.stderr
