"""Damaged checkpoints: each is refused in one line, or read as weights of a network."""

import pytest
import torch

import models
from engine import checkpoint
from tests.engine.test_checkpoint import METADATA, recorded, resnet, same
from tests.mutated import OTHER, SAME, counts, mutated, try_out


def files(folder):
    """{name: bytes} of the layouts of this project, the published code and timm."""
    net = models.build("resnet20", models.ReLU(), width_mult=1 / 32)
    own = checkpoint.content(net, "ann", {"name": "CIFAR10"}, {"epochs": 1})
    contents = {"own": own, "bare": recorded()}
    contents |= {kind: {"state_dict": recorded(), **more} for kind, more in METADATA.items()}
    made = {}
    for name, content in contents.items():
        for legacy in (False, True):
            path = folder / f"{name}{legacy:d}.pth"
            torch.save(content, path, _use_new_zipfile_serialization=not legacy)
            made[path.name] = path.read_bytes()
    return made


@pytest.mark.filterwarnings("ignore")  # torch's
@counts
def test_damaged_checkpoints_are_refused_or_read(count, tmp_path, capsys):
    path, contents, net = tmp_path / "x.pth", files(tmp_path), resnet()
    whole = {name: checkpoint.load(tmp_path / name)["model"] for name in contents}

    def attempt(rng):
        name = str(rng.choice(sorted(contents)))
        # names and types lie in the first part and, of a zip file, in the last one
        content = contents[name]
        head = int(rng.integers(1, 4000))
        place = rng.random()
        if place < 0.2:
            middle = bytearray(content)
            middle[len(middle) // 2] ^= 1 << int(rng.integers(8))
            content = bytes(middle)
        elif place < 0.4:
            content = content[:-head] + mutated(rng, content[-head:])
        else:
            content = mutated(rng, content[:head]) + content[head:]
        path.write_bytes(content)
        read = checkpoint.load(path)
        if same(read["model"], whole[name]):
            return SAME
        if read["format"] == checkpoint.PUBLISHED:
            checkpoint.load_into(net, read, path)
        else:
            checkpoint.rebuild(read)
        return OTHER

    try_out("checkpoints", count, attempt, capsys)
