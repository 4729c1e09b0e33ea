"""Damaged checkpoints: each is refused in one line, or read as weights of a network."""

import copy

import pytest
import torch

import absorb_bn
import ann_ddp
import models
from cli import events, provenance, resume
from engine import checkpoint, settings, zoo
from engine.dist import World
from engine.errors import UseError
from inputs import pretrained
from inputs.table import DataOptions
from models import transformer, vggsnn
from neuromorphic_tasks import main_test
from tests.engine.test_checkpoint import METADATA, published_networks, recorded, resnet, same
from tests.engine.test_loop import Noting, noise, trainer
from tests.mutated import OTHER, SAME, TENSORS, counts, damaged, mutated, try_out

QUIET = World(rank=1)
ABOUT = {"name": "CIFAR10", "source": "CIFAR10", "num_classes": 10, "image_size": 32}
ABOUT |= {"where": "here", "classes": ["a", "b"], "mean": [0.5] * 3, "std": [0.5] * 3}


def networks():
    """{kind: a small network} of every kind of checkpoint."""
    spiking = models.Spiking(models.NeuronConfig.vgg(3), 2)
    return {
        "ann": models.build("resnet20", models.ReLU(), width_mult=1 / 32),
        "snn": models.build("resnet20", spiking, width_mult=1 / 32, bn=False),
        "sdt": models.build("sdt", transformer.activation("lif", 1, 1), depth=1, dim=16),
        "vggsnn": models.build("vggsnn", vggsnn.activation(1, 1), width_mult=1 / 32),
    }


def files(folder):
    """{name: bytes} of the layouts of this project, its zoo, the published code and timm."""
    own = checkpoint.content(networks()["ann"], "ann", {"name": "CIFAR10"}, {"epochs": 1})
    contents = {"own": own, "zoo": zoo.packed(own), "bare": recorded()}
    contents |= {kind: {"state_dict": recorded(), **more} for kind, more in METADATA.items()}
    made = {}
    for name, content in contents.items():
        for legacy in (False, True):
            path = folder / f"{name}{legacy:d}.pth"
            torch.save(content, path, _use_new_zipfile_serialization=not legacy)
            made[path.name] = path.read_bytes()
    return made


def checkpoints(folder, monkeypatch):
    """Bytes of checkpoints."""
    path, contents, net = folder / "x.pth", files(folder), resnet()
    whole = {name: checkpoint.load(folder / name)["model"] for name in contents}

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
            checkpoint.rebuild(read, path)
        return OTHER

    return attempt


def classified(path):
    """What becomes of a picture in the network of a checkpoint."""
    net = pretrained.from_pretrained(str(path))
    net.transform(torch.zeros(8, 8, 3, dtype=torch.uint8).numpy())
    assert len(net.classes) == net.head.out_features


def use(read, path):
    """What the commands do with a checkpoint of this project; returns the network."""
    words = ["--pretrained_ann", str(path), "--dataset", "CIFAR10", "--width_mult", "0.5", "--bias"]
    asked = absorb_bn.get_parser().parse(words)
    event_words = ["--checkpoint", str(path)]
    for do in (
        lambda: absorb_bn.read(asked),
        lambda: provenance.trained_data(read, DataOptions(), frozenset(), path),
        lambda: provenance.check_shape(read, ABOUT, path),
        lambda: pretrained.normalisation(read, path),
        lambda: provenance.teacher(str(path), ABOUT, QUIET),
        lambda: provenance.note_activation(read, models.ReLU(), path, QUIET),
        lambda: classified(path),
        lambda: events.settled(main_test.get_parser().parse(event_words)),
    ):
        # one that refuses names the file; the others are asked all the same
        try:
            do()
        except UseError as error:
            assert str(path) in str(error)
    return checkpoint.rebuild(read, path)


def structures(folder, monkeypatch, form=dict):
    """What checkpoints of this project hold: other types, sizes that lie, absent parts."""
    path = folder / "x.pth"
    stored = {"dataset": "CIFAR10", "data_root": "data", **dict.fromkeys(events.MEANING, 1)}
    parts = {part: {"images": 3, "sha256": "a"} for part in ("train", "test")}
    contents, whole = {}, {}
    for kind, net in networks().items():
        about = ABOUT | parts | {"split": "first900"}
        contents[kind] = form(checkpoint.content(net, kind, about, stored))
        torch.save(contents[kind], path)
        whole[kind] = checkpoint.load(path)["model"]

    def attempt(rng):
        kind = str(rng.choice(sorted(contents)))
        torch.save(damaged(rng, contents[kind]), path)
        read = checkpoint.load(path)
        if read["format"] == checkpoint.PUBLISHED:
            # one whose mark is gone
            checkpoint.load_into(resnet(), read, path)
        net = use(read, path)
        # what was not refused is a network of the same weights, or of others
        assert net.state_dict().keys() == whole[kind].keys()
        return SAME if same(net.state_dict(), whole[kind]) else OTHER

    return attempt


def zoo_structures(folder, monkeypatch):
    """The same of the files of the zoo: weights of eight bits, and their scales."""
    return structures(folder, monkeypatch, zoo.packed)


def published(folder, monkeypatch):
    """State dictionaries of the published code: other names, types, sizes, absent tensors."""
    path, made = folder / "x.pth", published_networks()
    odd = [*TENSORS, torch.ones(8, dtype=torch.int64), torch.ones(8, dtype=torch.float64)]

    def fill(net):
        cnn = net.built["name"] in models.CNNS
        load = checkpoint.load_into if cnn else checkpoint.load_named
        load(net, checkpoint.load(path), path)
        return net.state_dict()

    def attempt(rng):
        net, weights = made[str(rng.choice(sorted(made)))]
        holder = dict(METADATA["timm"], state_dict=damaged(rng, dict(weights), odd))
        torch.save(holder, path)
        before = copy.deepcopy(net.state_dict())
        try:
            after = fill(net)
        except UseError:
            # nothing is half read
            assert same(net.state_dict(), before)
            raise
        after = copy.deepcopy(after)
        torch.save(weights, path)
        return SAME if same(after, fill(net)) else OTHER

    return attempt


def interrupted(folder, monkeypatch):
    """What last.pth holds beside the weights: state of the optimizer, generators, settings."""
    path, parser = folder / "last.pth", ann_ddp.get_parser()

    def fresh():
        return trainer(networks()["ann"], Noting(2), noise(3))

    one = fresh()
    one.record.folder, one.record.kind = folder, "ann"
    one.record.settings = settings.flat(parser.parse([]))
    one.save_last()
    content = torch.load(path, weights_only=True)

    def attempt(rng):
        parts = [str(part) for part in rng.permutation(["training", "settings", "data"])]
        torch.save(content | {parts[0]: damaged(rng, content[parts[0]])}, path)
        _, saved = resume.read_settings(parser, ["--resume", str(folder)], lambda asked: [])
        again = fresh()
        again.record.folder = folder
        again.restore(saved)
        assert same(again.net.state_dict(), content["model"])
        return SAME if again.step == one.step and again.best == one.best else OTHER

    return attempt


READERS = (checkpoints, structures, zoo_structures, published, interrupted)


@pytest.mark.filterwarnings("ignore")  # torch's
@counts
@pytest.mark.parametrize("reader", READERS, ids=[reader.__name__ for reader in READERS])
def test_damaged_checkpoints_are_refused_or_read(reader, count, tmp_path, monkeypatch, capsys):
    try_out(reader.__name__, count, reader(tmp_path, monkeypatch), capsys)
