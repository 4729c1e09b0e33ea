"""Damaged files of integer networks: each is refused in one line, or read as it was."""

import json

import numpy as np
import pytest
import torch

from engine import integer_file
from models import integer
from tests.engine.test_checkpoint import same
from tests.engine.test_integer_file import MEAN, STD, network
from tests.mutated import ODD, OTHER, SAME, counts, damaged, mutated, try_out


def integer_files(folder, monkeypatch):
    """Bytes of the archives, their arrays and their headers."""
    path, net = folder / "x.npz", network()
    integer_file.save(path, integer.to_integer(net, MEAN, STD), net, MEAN, STD, source="snn.pth")
    content, (whole, header) = path.read_bytes(), integer_file.load(path)
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    images = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)

    def write(rng):
        how = rng.integers(3)
        if how == 0:
            head = int(rng.integers(1, 4000))
            place = rng.integers(len(content))
            middle = mutated(rng, content[place : place + head])
            path.write_bytes(content[:place] + middle + content[place + head :])
            return True
        given = dict(arrays)
        if how == 1:
            text = json.dumps(damaged(rng, header, ODD[:-1]), default=repr, skipkeys=True)
            given["header"] = np.array(text.encode("utf-8", "replace").decode())
        else:
            name = str(rng.choice(sorted(set(arrays) - {"header"})))
            odd = (arrays[name].astype(np.int64), arrays[name].T, arrays[name][:1], np.array("x"))
            given[name] = odd[rng.integers(len(odd))]
        with open(path, "wb") as file:
            np.savez(file, **given)
        return False

    def attempt(rng):
        bytes_alone = write(rng)
        read, said = integer_file.load(path)
        assert read(images).shape == (1, 10)
        if same(read.state_dict(), whole.state_dict()):
            return SAME if said == header else OTHER
        # the archive has checksums
        assert not bytes_alone
        return OTHER

    return attempt


@pytest.mark.filterwarnings("ignore")  # NumPy's
@counts
def test_damaged_integer_files_are_refused_or_read(count, tmp_path, monkeypatch, capsys):
    try_out("integer_files", count, integer_files(tmp_path, monkeypatch), capsys)
