"""Batches: every process count sees the same images, every image has its own reproducible crop and
flip.
"""

import math
import multiprocessing
import os
import random
import signal
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from engine.errors import UseError
from inputs.images import Files
from inputs.loader import FileLoader, MemoryLoader, blanked, drawn_from, padded, seeded
from inputs.table import IMAGENET
from tests.helpers import image_folder
from tests.inputs.noise import batches, files, make, marked, normalised


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images that stay files: 23 for training, 11 for testing."""
    root = tmp_path_factory.mktemp("images")
    image_folder(root / "train", 3, 23, (100, 90), "jpg")
    image_folder(root / "val", 3, 11, (90, 100), "png")
    return root


@pytest.fixture(scope="module")
def large(folder):
    return files(folder, 80)


def same(got, want):
    """Whether the batches are equal, image by image."""
    return len(got) == len(want) and all(
        torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) and a[2] == b[2]
        for a, b in zip(got, want)
    )


# ---- several processes


def together(data, size, part, epoch):
    """The shares of `size` processes put together: [(images, labels, n)]."""
    shares = [batches(make(data, rank, size, batch_size=7)[part], epoch) for rank in range(size)]
    joined = []
    for step in range(max(map(len, shares))):
        present = [share[step] for share in shares if step < len(share)]
        images, labels, sizes = zip(*present)
        (n,) = set(sizes)
        joined.append((torch.cat(images), torch.cat(labels), n))
    return joined


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("kind", ["memory", "files"])
@pytest.mark.parametrize("part, epoch", [(0, 1), (0, 2), (2, 1)])
def test_the_shares_of_all_processes_make_the_whole_batch(large, kind, size, part, epoch):
    data = marked(45) if kind == "memory" else large
    alone = batches(make(data, batch_size=7)[part], epoch)
    if part == 0 and 0 < len(data.train.labels) % 7 < size:
        alone = alone[:-1]  # a last training batch with fewer images than processes is left out
    assert same(together(data, size, part, epoch), alone)
    assert all(n == len(labels) for _, labels, n in alone)


@pytest.mark.parametrize(
    "count, batch, size", [(12, 5, 1), (12, 5, 3), (12, 5, 4), (13, 4, 4), (3, 8, 3), (10, 10, 10)]
)
@pytest.mark.parametrize("part", [1, 2], ids=["choosing", "test"])
def test_evaluation_visits_every_image_once(count, batch, size, part):
    data = marked(count + 1)
    loaders = [make(data, rank, size, batch_size=batch)[part] for rank in range(size)]
    seen = [labels for loader in loaders for _, labels, _ in batches(loader)]
    assert sorted(torch.cat(seen).tolist()) == list(range(count))
    assert all(len(labels) for labels in seen)


def test_evaluation_of_files_with_more_processes_than_last_images(large):
    loaders = [make(large, rank, 4, batch_size=9)[2] for rank in range(4)]
    assert sum(len(labels) for loader in loaders for _, labels, _ in batches(loader)) == 11


@pytest.mark.parametrize(
    "size, batch, words",
    [
        (4, 2, "--batch_size is 2, smaller than the 4 processes"),
        (46, 64, "the part that is trained on is 45, smaller than the 46 processes"),
        (45, 64, "the part that is evaluated is 44, smaller than the 45 processes"),
    ],
)
def test_fewer_images_than_processes(size, batch, words):
    with pytest.raises(UseError, match=f"{words} .* at least {size} images are needed"):
        make(marked(45), size=size, batch_size=batch)


@pytest.mark.parametrize(
    "count, batch, size, expected",
    [(12, 6, 1, {6}), (13, 6, 1, {1, 6}), (12, 7, 2, {2, 3, 4}), (15, 64, 2, {7, 8})],
)
def test_the_shares_that_occur_are_known(count, batch, size, expected):
    shown = set()
    for rank in range(size):
        loader, *_ = make(marked(count), rank, size, batch_size=batch)
        assert loader.share_sizes() == expected
        shown |= {len(labels) for _, labels, _ in batches(loader)}
    assert shown == expected


# ---- order


def test_training_visits_every_image_once_in_another_order_each_epoch():
    loader, *_ = make(marked(40), batch_size=16)
    first, second = (
        torch.cat([labels for _, labels, _ in batches(loader, epoch)]).tolist() for epoch in (1, 2)
    )
    assert len(loader) == 3
    assert sorted(first) == sorted(second) == list(range(40))
    assert first != second
    assert list(range(40)) not in (first, second)


def test_training_is_limited_to_some_batches():
    loader, *_ = make(marked(40), batch_size=16, limit_train_batches=2)
    assert [n for *_, n in batches(loader)] == [16, 16]
    assert loader.images == 32


def test_a_limited_evaluation_is_a_sample_of_all_classes():
    """Labels are in ascending order, as an image folder gives them."""
    *_, test = make(marked(100), batch_size=20, limit_eval_batches=1)
    ((_, labels, _),) = batches(test)
    assert labels.max() > 60
    assert labels.min() < 40


def test_the_order_of_evaluation_does_not_depend_on_the_seed():
    first, second = (batches(make(marked(100), seed=seed, batch_size=20)[2]) for seed in (0, 5))
    assert same(first, second)


def test_batches_depend_on_seed_epoch_and_step_alone():
    data = marked(40)
    loader, *_ = make(data, seed=5, batch_size=16)
    expected = batches(loader, 3)
    torch.manual_seed(99)
    batches(loader, 1)
    assert same(batches(make(data, seed=5, batch_size=16)[0], 3), expected)
    assert same(batches(loader, 3, start=1), expected[1:])


@pytest.mark.parametrize("seed, epoch", [(6, 3), (5, 4)])
def test_another_seed_or_epoch_gives_other_batches(seed, epoch):
    data = marked(40)
    want = batches(make(data, seed=5, batch_size=16)[0], 3)
    got = batches(make(data, seed=seed, batch_size=16)[0], epoch)
    assert not torch.equal(got[0][1], want[0][1])
    assert not torch.equal(got[0][0], want[0][0])


def test_an_epoch_may_show_each_image_several_times():
    """And correspondingly fewer images; every copy is augmented anew."""
    data = replace(marked(40), repeats=2)
    loader, *_ = make(data, batch_size=40)
    ((images, labels, _),) = batches(loader)
    assert sorted(labels.bincount(minlength=40).tolist()) == [0] * 20 + [2] * 20
    at = labels.argsort(stable=True)
    first, second = images[at][::2], images[at][1::2]
    assert not torch.equal(first, second)


def test_a_data_set_may_train_on_whole_batches_alone():
    loader, *_ = make(replace(marked(40), drop_last=True), batch_size=16)
    assert [n for *_, n in batches(loader)] == [16, 16]


# ---- random numbers


@pytest.mark.parametrize("kind", ["memory", "files"])
@pytest.mark.parametrize("workers", [0, 1])
def test_batches_leave_the_generators_alone(kind, workers, large):
    """Else dropout masks would depend on how often a loader was started."""
    data = marked(20) if kind == "memory" else large
    state = torch.get_rng_state()
    for loader in make(data, workers=workers, batch_size=8):
        batches(loader)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_generator_is_that_of_its_whole_key():
    first = torch.rand(3, generator=seeded(1, 2, 3))
    assert torch.equal(torch.rand(3, generator=seeded(1, 2, 3)), first)
    for other in ((1, 3, 2), (1, 2), (1, 2, 3, 0), (1, 2, 4)):
        assert not torch.equal(torch.rand(3, generator=seeded(*other)), first)


def test_transforms_draw_from_one_seed():
    def draws():
        return random.random(), np.random.rand(), torch.rand(1).item()

    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    untouched = draws()
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    with drawn_from(7):
        first = draws()
    with drawn_from(7):
        assert draws() == first
    assert draws() == untouched


# ---- pixels


def test_unaugmented_pixels():
    data = marked(9)
    ((images, labels, _),) = batches(make(data, batch_size=64)[2])
    expected = normalised(data.test.images, data.mean, data.std).permute(0, 3, 1, 2)
    torch.testing.assert_close(images, expected[labels], rtol=1e-5, atol=1e-5)
    assert sorted(labels.tolist()) == list(range(8))
    assert images.is_contiguous(memory_format=torch.channels_last)


def crop_of(image, original, pad):
    """(top, left, flipped) such that `image` is that crop of the zero-padded `original`, found by
    trying all.
    """
    padded = torch.nn.functional.pad(original.permute(2, 0, 1), (pad,) * 4)
    found = []
    for top in range(2 * pad + 1):
        for left in range(2 * pad + 1):
            part = padded[:, top : top + 32, left : left + 32]
            for flip in (False, True):
                if torch.equal(part.flip(2) if flip else part, image):
                    found.append((top, left, flip))
    assert len(found) == 1
    return found[0]


@pytest.fixture(scope="module", params=[(4, True), (2, False)], ids=["flipped", "cropped alone"])
def augmented(request):
    """(padding, whether images are mirrored, the crop of each of 300 images)."""
    pad, flip = request.param
    data = marked(300, crop=pad, flip=flip)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (data.mean, data.std))
    crops = []
    for images, labels, _ in batches(make(data, batch_size=128)[0]):
        pixels = ((images * std + mean) * 255).round().to(torch.uint8)
        originals = data.train.images[labels]
        crops += [crop_of(image, original, pad) for image, original in zip(pixels, originals)]
    return pad, flip, crops


@pytest.mark.parametrize("axis", [0, 1], ids=["top", "left"])
def test_crops_are_uniform(augmented, axis):
    """On 0 .. 2 pad, to five standard deviations."""
    pad, _, crops = augmented
    offsets = [crop[axis] for crop in crops]
    share = 1 / (2 * pad + 1)
    allowed = 5 * math.sqrt(300 * share * (1 - share))
    assert set(offsets) == set(range(2 * pad + 1))
    assert all(abs(offsets.count(k) - 300 * share) < allowed for k in set(offsets))


def test_half_of_the_images_are_mirrored(augmented):
    _, flip, crops = augmented
    mirrored = sum(flipped for *_, flipped in crops)
    if flip:
        assert abs(mirrored - 150) < 5 * math.sqrt(75)
    else:
        assert mirrored == 0


def test_every_image_has_its_own_crop(augmented):
    _, flip, crops = augmented
    assert len(set(crops)) > (50 if flip else 20)


def test_alternating_flips_mirror_an_image_in_every_other_epoch():
    """Whatever the crop; and another image in the other epochs."""
    data = replace(marked(200, crop=0), alternate=True)
    loader = make(data, batch_size=64)[0]
    mirrored = []
    for epoch in (1, 2, 3):
        flips = torch.zeros(200, dtype=torch.bool)
        for images, labels, _ in loader.epoch(epoch):
            upright = normalised(data.train.images[labels], data.mean, data.std)
            same = (images.permute(0, 2, 3, 1) - upright).abs().amax((1, 2, 3)) < 1e-4
            flips[labels] = ~same
        mirrored.append(flips)
    first, second, third = mirrored
    assert torch.equal(first, ~second)
    assert torch.equal(first, third)
    assert abs(first.sum().item() - 100) < 5 * math.sqrt(50)


def test_a_crop_may_reach_into_the_mirrored_image():
    row = torch.arange(4, dtype=torch.uint8)
    images = row.repeat(1, 4, 1).unsqueeze(3).repeat(1, 1, 1, 3)  # [1, 4, 4, 3]
    around = padded(images, 2, reflect=True)
    assert around.shape == (1, 8, 8, 3)
    assert around[0, 0, :, 0].tolist() == [2, 1, 0, 1, 2, 3, 2, 1]
    assert padded(images, 2)[0, :, 0].eq(0).all()


def test_a_square_is_blanked_as_far_as_it_lies_in_the_image():
    images = torch.ones(2, 3, 4, 5)
    blanked(images, torch.tensor([0, 2]), torch.tensor([4, 2]), 2)
    corner = torch.ones(4, 5)
    corner[0, 3:] = 0
    inside = torch.ones(4, 5)
    inside[1:3, 1:3] = 0
    assert torch.equal(images, torch.stack([corner, inside])[:, None].expand(2, 3, 4, 5))


def test_cutout_blanks_training_images_alone_on_any_number_of_processes():
    data = replace(marked(64), cutout=8)
    plain, cut = (batches(make(each, batch_size=32)[0]) for each in (marked(64), data))
    for (before, *_), (after, *_) in zip(plain, cut, strict=True):
        changed = (before != after).any(1)  # [b, H, W]
        assert after.movedim(1, 3)[changed].eq(0).all()
        assert changed.sum((1, 2)).max() <= 64
        assert len(changed.unique(dim=0)) > 20
    share = batches(make(data, 1, 2, batch_size=32)[0])
    halves = [torch.tensor_split(images, 2)[1] for images, *_ in cut]
    assert all(torch.equal(images, half) for (images, *_), half in zip(share, halves, strict=True))
    assert same(batches(make(data)[2]), batches(make(marked(64))[2]))


# ---- images from files


def test_the_loader_fits_the_part(large):
    assert isinstance(make(marked(9))[0], MemoryLoader)
    assert isinstance(make(large)[0], FileLoader)


@pytest.mark.parametrize("part, sizes", [(0, [8, 8, 7]), (2, [8, 3])], ids=["training", "test"])
def test_large_images_come_from_any_number_of_workers(large, part, sizes):
    here, elsewhere = (batches(make(large, workers=n, batch_size=8)[part]) for n in (0, 2))
    assert [n for *_, n in here] == sizes
    assert same(here, elsewhere)
    assert all(images.shape[1:] == (3, 80, 80) for images, *_ in here)


def test_workers_leave_an_interrupt_to_their_parent(large):
    """A terminal sends it to all of them."""
    loader, *_ = make(large, workers=1, batch_size=2)
    seen = 0
    for _ in loader.epoch(1):
        seen += 1
        workers = multiprocessing.active_children()
        # at the last batch it may have ended
        assert workers or seen == len(loader)
        for worker in workers:
            os.kill(worker.pid, signal.SIGINT)
    assert seen == len(loader)


def test_large_images_go_on_inside_an_epoch(large):
    loader, *_ = make(large, batch_size=8)
    assert same(batches(loader, 1, start=1), batches(loader, 1)[1:])


def test_large_images_are_augmented_anew_in_every_epoch(large):
    loader, *_ = make(large, batch_size=8)
    first, second = batches(loader, 1), batches(loader, 2)
    assert not torch.equal(first[0][0], second[0][0])


def test_every_large_image_has_its_own_crop(tmp_path):
    for part in ("train", "val"):
        image_folder(tmp_path / part, 2, 2, (100, 90))
    data = files(tmp_path, 80)
    copies = Files(data.train.paths[:1] * 6, torch.zeros(6, dtype=torch.long))
    ((images, *_),) = batches(make(replace(data, train=copies), batch_size=6)[0])
    assert all(not torch.equal(images[i], images[j]) for i in range(6) for j in range(i))


def test_large_evaluation_images_are_resized_and_cut(large):
    """ImageNet's way: shorter side to 256/224 of the size, the centre cut out."""
    from torchvision.transforms import v2

    *_, loader = make(large, batch_size=2)
    path = large.test.paths[next(loader.shares(0))[1][0]]
    (images, *_), *_ = batches(loader)
    image = torch.from_numpy(np.asarray(Image.open(path).convert("RGB")).copy()).permute(2, 0, 1)
    image = v2.functional.center_crop(v2.functional.resize(image, [91], antialias=True), [80])
    expected = normalised(image.permute(1, 2, 0), IMAGENET.mean, IMAGENET.std).permute(2, 0, 1)
    torch.testing.assert_close(images[0], expected, rtol=1e-5, atol=1e-5)


# ---- images that are held back


@pytest.fixture(scope="module")
def held():
    """(data, its loaders with a quarter of the training images held back)."""
    data = marked(40)
    return data, make(data, seed=1, batch_size=16, val_fraction=0.25)


def test_images_are_held_back_disjointly(held):
    data, (train, choose, test) = held
    labels = [*train.part.labels.tolist(), *choose.part.labels.tolist()]
    assert (len(train.part.labels), len(choose.part.labels)) == (30, 10)
    assert sorted(labels) == list(range(40))
    assert test.part is data.test


def test_held_back_images_are_not_augmented(held):
    _, (train, choose, test) = held
    assert train.training
    assert not choose.training and not test.training


def test_every_process_holds_back_the_same(held):
    data, (_, choose, _) = held
    _, other, _ = make(data, rank=1, size=2, seed=1, batch_size=16, val_fraction=0.25)
    assert torch.equal(other.part.labels, choose.part.labels)


def test_another_seed_holds_back_others(held):
    data, (_, choose, _) = held
    _, other, _ = make(data, seed=2, batch_size=16, val_fraction=0.25)
    assert not torch.equal(other.part.labels, choose.part.labels)


def test_without_held_back_images_the_test_set_chooses():
    _, choose, test = make(marked(40), batch_size=16)
    assert choose is test


def test_a_share_that_holds_back_nothing_is_refused():
    with pytest.raises(UseError, match=r"--val_fraction 0\.01 of 24 training images holds back 0"):
        make(marked(24), val_fraction=0.01)


# ---- speed


def test_throughput():
    """In memory, augmented: at least 5000 images per second of this process, the best of five
    epochs; a busy machine gives a process less of each second.
    """
    loader, *_ = make(marked(2560), batch_size=128)
    best = 0
    for epoch in range(5):
        begin = time.process_time()
        count = sum(len(labels) for _, labels, _ in loader.epoch(epoch))
        best = max(best, count / (time.process_time() - begin))
    assert best >= 5000, f"{best:.0f} images per second"
