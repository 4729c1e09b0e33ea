"""Data: every process count sees the same images, every image has its own reproducible crop and flip."""

import hashlib
import math
import pickle
import time
from argparse import Namespace

import numpy as np
import pytest
import torch
from PIL import Image

import ann_ddp
from engine.dist import World
from engine.errors import UseError
from inputs import images as data
from inputs.loader import MemoryLoader
from tests.helpers import image_folder


def settings(line=""):
    return ann_ddp.get_parser().parse(line.split())


def loaders(content, line="", rank=0, size=1):
    return data.loaders(content, settings(line), World(rank, size))


def batches(loader, epoch=1, start=0):
    return [(images.clone(), labels, n) for images, labels, n in loader.epoch(epoch, start)]


def marked(count, side=32, crop=4, flip=True):
    """A data set in memory whose image i has the label i; its pixels are noise."""
    rng = torch.Generator().manual_seed(count)
    parts = [
        data.Memory(
            torch.randint(0, 256, (n, side, side, 3), generator=rng, dtype=torch.uint8),
            torch.arange(n),
        )
        for n in (count, count - 1)
    ]
    about = {"num_classes": count, "image_size": side}
    return data.Data(*parts, about, *data.STATISTICS["CIFAR10"], crop, flip)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    image_folder(root / "train", 3, 23, (100, 90), "jpg")
    image_folder(root / "val", 3, 11, (90, 100), "png")
    return root


def files(folder, side, workers=0):
    return data.load(
        settings(
            f"--dataset FOLDER --dataset_dir {folder} --image_size {side} --workers {workers}"
        ),
        World(),
    )


def together(content, line, size, part, epoch):
    """The shares of `size` processes put together: [(images, labels, n)]."""
    shares = [batches(loaders(content, line, rank, size)[part], epoch) for rank in range(size)]
    joined = []
    for step in range(max(map(len, shares))):
        present = [share[step] for share in shares if step < len(share)]
        assert len({n for *_, n in present}) == 1
        joined.append(
            (
                torch.cat([x for x, *_ in present]),
                torch.cat([y for _, y, _ in present]),
                present[0][2],
            )
        )
    return joined


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("kind", ["memory", "files"])
def test_the_shares_of_all_processes_make_the_whole_batch(folder, kind, size):
    content = marked(45) if kind == "memory" else files(folder, 80)
    line = "--batch_size 7 --workers 0"
    for part, epoch in ((0, 1), (0, 2), (2, 1)):
        alone, joined = (
            batches(loaders(content, line)[part], epoch),
            together(content, line, size, part, epoch),
        )
        if part == 0 and 0 < len(content.train.labels) % 7 < size:
            alone = alone[:-1]  # a last training batch with fewer images than processes is left out
        assert len(joined) == len(alone)
        for (x, y, n), (all_x, all_y, all_n) in zip(joined, alone, strict=True):
            assert torch.equal(y, all_y) and torch.equal(x, all_x) and n == all_n == len(y)


@pytest.mark.parametrize(
    "count, batch, size", [(12, 5, 1), (12, 5, 3), (12, 5, 4), (13, 4, 4), (3, 8, 3), (10, 10, 10)]
)
def test_evaluation_visits_every_image_once(count, batch, size):
    content = marked(count + 1)
    for part in (1, 2):
        seen = [
            y
            for rank in range(size)
            for _, y, _ in batches(loaders(content, f"--batch_size {batch}", rank, size)[part])
        ]
        assert sorted(torch.cat(seen).tolist()) == list(range(count))
        assert all(len(y) for y in seen)


def test_a_limited_evaluation_is_a_sample_of_all_classes():
    content = marked(100)  # labels in ascending order, as an image folder gives them
    ((_, labels, _),) = batches(loaders(content, "--batch_size 20 --limit_eval_batches 1")[2])
    assert labels.max() > 60 and labels.min() < 40
    ((_, again, _),) = batches(
        loaders(content, "--batch_size 20 --limit_eval_batches 1 --seed 5")[2]
    )
    assert torch.equal(again, labels)


def test_evaluation_of_files_with_more_processes_than_last_images(folder):
    content = files(folder, 80)
    seen = [
        len(y)
        for rank in range(4)
        for _, y, _ in batches(loaders(content, "--batch_size 9 --workers 0", rank, 4)[2])
    ]
    assert sum(seen) == 11


def test_training_visits_every_image_once_in_another_order_each_epoch():
    loader = loaders(marked(40), "--batch_size 16")[0]
    orders = [torch.cat([y for _, y, _ in batches(loader, epoch)]).tolist() for epoch in (1, 2)]
    assert len(loader) == 3 and all(sorted(order) == list(range(40)) for order in orders)
    assert orders[0] != orders[1] != list(range(40))
    assert [
        n for *_, n in batches(loaders(marked(40), "--batch_size 16 --limit_train_batches 2")[0])
    ] == [16, 16]


def test_batches_depend_on_seed_epoch_and_step_alone():
    content = marked(40)
    loader = loaders(content, "--batch_size 16 --seed 5")[0]
    expected = batches(loader, 3)
    torch.manual_seed(99)
    batches(loader, 1)
    again, later = (
        batches(loaders(content, "--batch_size 16 --seed 5")[0], 3),
        batches(loader, 3, start=1),
    )
    for got, want in ((again, expected), (later, expected[1:])):
        assert all(
            torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])
            for a, b in zip(got, want, strict=True)
        )
    for line, epoch in (("--seed 6", 3), ("--seed 5", 4)):
        other = batches(loaders(content, f"--batch_size 16 {line}")[0], epoch)
        assert not torch.equal(other[0][1], expected[0][1]) and not torch.equal(
            other[0][0], expected[0][0]
        )


def test_batches_leave_the_generators_alone(folder):
    """Else dropout masks would depend on how often a loader was started."""
    state = torch.get_rng_state()
    for content in (marked(20), files(folder, 80)):
        for workers in (0, 1):
            for loader in loaders(content, f"--batch_size 8 --workers {workers}"):
                batches(loader)
    assert torch.equal(torch.get_rng_state(), state)


def normalised(images, mean, std):
    """(x / 255 - mean) / std, written out."""
    return (images.float() / 255 - torch.tensor(mean)) / torch.tensor(std)


def test_unaugmented_pixels():
    content = marked(9)
    ((images, labels, _),) = batches(loaders(content, "--batch_size 64")[2])
    expected = normalised(content.test.images, *data.STATISTICS["CIFAR10"]).permute(0, 3, 1, 2)
    torch.testing.assert_close(images, expected[labels], rtol=1e-5, atol=1e-5)
    assert sorted(labels.tolist()) == list(range(8)) and images.is_contiguous(
        memory_format=torch.channels_last
    )


def crop_of(image, original, pad):
    """(top, left, flipped) such that `image` is that crop of the zero-padded `original`, found by trying all."""
    padded = torch.nn.functional.pad(original.permute(2, 0, 1), (pad,) * 4)
    found = []
    for top in range(2 * pad + 1):
        for left in range(2 * pad + 1):
            part = padded[:, top : top + 32, left : left + 32]
            found += [
                (top, left, flip)
                for flip in (False, True)
                if torch.equal(part.flip(2) if flip else part, image)
            ]
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize("pad, flip", [(4, True), (2, False)])
def test_every_image_has_its_own_crop_and_flip(pad, flip):
    content = marked(300, crop=pad, flip=flip)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in data.STATISTICS["CIFAR10"])
    crops = []
    for images, labels, _ in batches(loaders(content, "--batch_size 128")[0]):
        pixels = ((images * std + mean) * 255).round().to(torch.uint8)
        crops += [
            crop_of(image, content.train.images[i], pad)
            for image, i in zip(pixels, labels.tolist(), strict=True)
        ]
    tops, lefts, flips = zip(*crops, strict=True)
    for offsets in (tops, lefts):  # uniform on 0 .. 2 pad, to five standard deviations
        share = 1 / (2 * pad + 1)
        assert set(offsets) == set(range(2 * pad + 1))
        assert all(
            abs(offsets.count(k) - 300 * share) < 5 * math.sqrt(300 * share * (1 - share))
            for k in set(offsets)
        )
    assert abs(sum(flips) - 150) < 5 * math.sqrt(75) if flip else not any(flips)
    assert len(set(crops)) > (50 if flip else 20)


def torchvision_cifar10(root, monkeypatch):
    """CIFAR-10 in torchvision's format, 5 x 4 training and 6 test images; its checksums stand in for the real ones."""
    from torchvision.datasets import CIFAR10

    rng, folder = np.random.default_rng(0), root / CIFAR10.base_folder
    folder.mkdir(parents=True)
    sums = {}
    for name, count in [(f"data_batch_{i}", 4) for i in range(1, 6)] + [("test_batch", 6)]:
        content = pickle.dumps(
            {
                "data": rng.integers(0, 256, (count, 3072), dtype=np.uint8),
                "labels": [int(k) for k in rng.integers(0, 10, count)],
            }
        )
        (folder / name).write_bytes(content)
        sums[name] = hashlib.md5(content).hexdigest()
    meta = pickle.dumps({"label_names": list("abcdefghij")})
    (folder / "batches.meta").write_bytes(meta)
    monkeypatch.setattr(
        CIFAR10, "train_list", [[n, s] for n, s in sums.items() if n != "test_batch"]
    )
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": hashlib.md5(meta).hexdigest()})
    return folder


def test_torchvision_files_come_before_the_image_folder(cifar, monkeypatch, tmp_path):
    copy = data.load(settings(f"--data_root {cifar}"), World())
    assert (
        copy.about["source"] == "CIFAR-10 (JPEG copy)"
        and len(copy.train.labels) == 24
        and len(copy.test.labels) == 12
    )
    path = cifar / "cifar10-jpeg/train/n0003/13.png"
    at = copy.train.labels.tolist().index(3)
    assert np.array_equal(copy.train.images[at].numpy(), np.asarray(Image.open(path)))
    files = torchvision_cifar10(tmp_path, monkeypatch)
    for part in ("train", "test"):
        image_folder(tmp_path / "cifar10-jpeg" / part, 10, 12)
    both = data.load(settings(f"--data_root {tmp_path}"), World())
    assert both.about["source"] == "CIFAR-10 (torchvision files)" and len(both.train.labels) == 20
    raw = pickle.loads((files / "test_batch").read_bytes())
    assert torch.equal(
        both.test.images, torch.from_numpy(raw["data"]).view(-1, 3, 32, 32).permute(0, 2, 3, 1)
    )
    assert both.test.labels.tolist() == raw["labels"]
    (files / "test_batch").write_bytes(b"damaged")
    with pytest.raises(UseError, match="not a complete CIFAR10"):
        data.load(settings(f"--data_root {tmp_path}"), World())


def test_digits_are_shared_out_by_class():
    content = data.load(settings("--dataset DIGITS"), World())
    counts = [torch.bincount(part.labels, minlength=10) for part in (content.train, content.test)]
    assert sum(map(len, (content.train.labels, content.test.labels))) == 1797
    assert ((counts[1] / (counts[0] + counts[1]) - 0.2).abs() < 0.01).all()
    pixels = content.train.images.flatten(0, 2).double() / 255
    assert (
        torch.allclose(pixels.mean(0), torch.tensor(content.mean, dtype=torch.float64))
        and not content.flip
    )


def test_small_images_of_a_folder_are_held_in_memory(folder):
    content = files(folder, 32)
    assert (
        isinstance(content.train, data.Memory)
        and content.train.images.shape == (23, 32, 32, 3)
        and content.crop == 4
    )
    assert content.about["num_classes"] == 3 and content.train.labels.bincount().tolist() == [
        8,
        8,
        7,
    ]
    expected = data.decode(folder / "val/n0000/0.png", 32)
    assert np.array_equal(content.test.images[0].numpy(), expected) and isinstance(
        loaders(content)[0], MemoryLoader
    )


def test_large_images_come_from_any_number_of_workers(folder):
    content = files(folder, 80)
    assert isinstance(content.train, data.Files)
    for part in (0, 2):
        here, elsewhere = (
            batches(loaders(content, f"--batch_size 8 --workers {w}")[part]) for w in (0, 2)
        )
        assert [n for *_, n in here] == ([8, 8, 7] if part == 0 else [8, 3])
        for a, b in zip(here, elsewhere, strict=True):
            assert (
                torch.equal(a[0], b[0])
                and torch.equal(a[1], b[1])
                and a[0].shape[1:] == (3, 80, 80)
            )
    loader = loaders(content, "--batch_size 8 --workers 0")[0]
    first, second, rest = batches(loader, 1), batches(loader, 2), batches(loader, 1, start=1)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(rest, first[1:], strict=True))
    paths = {p: i for i, p in enumerate(content.train.paths)}
    assert len(paths) == 23 and not torch.equal(first[0][0], second[0][0])


def test_every_large_image_has_its_own_crop(tmp_path):
    for part in ("train", "val"):
        image_folder(tmp_path / part, 1, 1, (100, 90))
    content = files(tmp_path, 80)
    copies = data.Data(
        data.Files(content.train.paths * 6, torch.zeros(6, dtype=torch.long)),
        content.test,
        content.about,
        content.mean,
        content.std,
        content.crop,
        content.flip,
    )
    ((images, *_),) = batches(loaders(copies, "--batch_size 6 --workers 0")[0])
    assert all(not torch.equal(images[i], images[j]) for i in range(6) for j in range(i))


def test_large_evaluation_images_are_resized_and_cut(folder):
    """ImageNet's way: shorter side to 256/224 of the size, the centre cut out."""
    from torchvision.transforms import v2

    content = files(folder, 80)
    loader = loaders(content, "--batch_size 2 --workers 0")[2]
    path = content.test.paths[next(loader.shares(0))[1][0]]
    (images, *_), *_ = batches(loader)
    image = torch.from_numpy(np.asarray(Image.open(path).convert("RGB")).copy()).permute(2, 0, 1)
    image = v2.functional.center_crop(v2.functional.resize(image, [91], antialias=True), [80])
    expected = normalised(image.permute(1, 2, 0), *data.STATISTICS["IMAGENET"]).permute(2, 0, 1)
    torch.testing.assert_close(images[0], expected, rtol=1e-5, atol=1e-5)


def test_images_are_held_back_disjointly():
    content = marked(40)
    train, choose, test = loaders(content, "--batch_size 16 --val_fraction 0.25 --seed 1")
    assert len(choose.part.labels) == 10 and len(train.part.labels) == 30
    assert sorted([*train.part.labels.tolist(), *choose.part.labels.tolist()]) == list(range(40))
    assert not choose.training and test.part is content.test
    again = loaders(content, "--batch_size 16 --val_fraction 0.25 --seed 1", rank=1, size=2)
    assert torch.equal(again[1].part.labels, choose.part.labels)
    other = loaders(content, "--batch_size 16 --val_fraction 0.25 --seed 2")
    assert not torch.equal(other[1].part.labels, choose.part.labels)
    none = loaders(content, "--batch_size 16")
    assert none[1] is none[2]


def test_throughput():
    """In memory, augmented: at least 5000 images per second; the best of five epochs, since other work may run here."""
    content = marked(2560)
    loader = data.loaders(
        content,
        Namespace(
            batch_size=128,
            val_fraction=0,
            limit_train_batches=0,
            limit_eval_batches=0,
            seed=0,
            workers=0,
        ),
        World(),
    )[0]
    best = 0
    for epoch in range(5):
        start = time.perf_counter()
        count = sum(len(labels) for _, labels, _ in loader.epoch(epoch))
        best = max(best, count / (time.perf_counter() - start))
    assert best >= 5000, f"{best:.0f} images per second"
