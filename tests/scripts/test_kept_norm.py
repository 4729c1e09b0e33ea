"""A spiking network trained with the batch norm of its ANN, by the scripts."""

import pytest

import ann_ddp
import snn_ddp
from engine import checkpoint
from engine.errors import UseError

COMMON = (
    "--dataset DIGITS --architecture RESNET20 --width_mult 0.0625 --bn --bias --dropout 0 "
    "--batch_size 32 --limit_train_batches 8 --device cpu"
)
SNN = f"{COMMON} --multi_channel 1 --num_channels 3 --timesteps 1 --optimizer Adam"
ANN = "trained_models/ann/ann_resnet20_digits_w0.0625.pth"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where an unfused ANN was trained."""
    folder = tmp_path_factory.mktemp("kept")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        ann_ddp.main(f"{COMMON} --epochs 2 --learning_rate 0.05".split())
    return folder


@pytest.mark.parametrize("conversion", ["matched", "published"])
def test_the_stored_network_is_fused_and_computes_the_same(conversion, folder, monkeypatch):
    monkeypatch.chdir(folder)
    line = f"{SNN} --epochs 1 --learning_rate 0.001 --conversion {conversion}"
    trained = snn_ddp.main([*line.split(), "--pretrained_ann", ANN])
    stored = checkpoint.load(trained["checkpoint"])
    assert stored["fused"]
    assert not any("norm" in key or "scale" in key for key in stored["model"])

    line = SNN.replace("--bn ", "")
    again = snn_ddp.main([*line.split(), "--test_only", "--pretrained_snn", trained["checkpoint"]])
    assert again["test_accuracy"] == pytest.approx(trained["best_accuracy"], abs=0.01)


def test_a_stored_spiking_network_has_no_batch_norm(folder, monkeypatch):
    monkeypatch.chdir(folder)
    with pytest.raises(UseError, match=r"--bn .* a stored spiking network has no batch norm"):
        snn_ddp.main([*SNN.split(), "--pretrained_snn", "any.pth"])
