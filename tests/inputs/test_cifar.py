"""CIFAR in each of its layouts: the same images, and a source that says what they are."""

import hashlib
import pickle
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image

from engine.dist import World
from engine.errors import UseError
from inputs.table import TABLE, DataOptions, load
from tests.helpers import cifar_copy

WANTED = (
    "expected one of cifar-10-batches-py/, cifar-10-batches-bin/, cifar10-png/, cifar10-jpeg/ there"
)


def cifar10(root):
    return load(DataOptions(data_root=str(root)), World())


# ---- torchvision's files


@pytest.fixture
def torchvision_cifar10(tmp_path, monkeypatch):
    """A folder with CIFAR-10 in torchvision's format, 5 x 4 training and 6 test images.

    Their checksums stand in for the real ones.
    """
    from torchvision.datasets import CIFAR10

    rng, folder = np.random.default_rng(0), tmp_path / CIFAR10.base_folder
    folder.mkdir(parents=True)
    sums = {}
    for name, count in [(f"data_batch_{i}", 4) for i in range(1, 6)] + [("test_batch", 6)]:
        pixels = rng.integers(0, 256, (count, 3072), dtype=np.uint8)
        labels = [int(k) for k in rng.integers(0, 10, count)]
        content = pickle.dumps({"data": pixels, "labels": labels})
        (folder / name).write_bytes(content)
        sums[name] = hashlib.md5(content).hexdigest()
    meta = pickle.dumps({"label_names": list("abcdefghij")})
    (folder / "batches.meta").write_bytes(meta)
    train = [[name, digest] for name, digest in sums.items() if name != "test_batch"]
    monkeypatch.setattr(CIFAR10, "train_list", train)
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": hashlib.md5(meta).hexdigest()})
    return tmp_path


def test_torchvision_files_come_before_the_image_copy(torchvision_cifar10):
    cifar_copy(torchvision_cifar10, train=12)
    data = cifar10(torchvision_cifar10)
    assert data.about["source"] == "CIFAR-10"
    assert len(data.train.labels) == 20
    raw = pickle.loads((torchvision_cifar10 / "cifar-10-batches-py/test_batch").read_bytes())
    pixels = torch.from_numpy(raw["data"]).view(-1, 3, 32, 32)
    assert torch.equal(data.test.images, pixels.permute(0, 2, 3, 1))
    assert data.test.labels.tolist() == raw["labels"]


def test_damaged_torchvision_files_are_named(torchvision_cifar10):
    (torchvision_cifar10 / "cifar-10-batches-py/test_batch").write_bytes(b"damaged")
    with pytest.raises(UseError, match="not a complete CIFAR10"):
        cifar10(torchvision_cifar10)


def test_a_download_that_fails_says_what_was_expected(tmp_path, monkeypatch, capsys):
    from torchvision.datasets import CIFAR10

    def refuse(self):
        raise URLError("no route to host")

    monkeypatch.setattr(CIFAR10, "download", refuse)
    with pytest.raises(UseError, match=WANTED):
        cifar10(tmp_path)
    assert f"downloading to {tmp_path}" in capsys.readouterr().out


def test_a_second_run_waits_for_the_download_of_the_first(torchvision_cifar10, monkeypatch):
    from torchvision.datasets import CIFAR10

    whole = torchvision_cifar10 / CIFAR10.base_folder
    empty = torchvision_cifar10 / "empty"
    unpacking = threading.Event()
    downloads = []

    def download(self):
        downloads.append(self.root)
        (empty / CIFAR10.base_folder).mkdir()
        unpacking.set()
        time.sleep(0.3)
        shutil.copytree(whole, empty / CIFAR10.base_folder, dirs_exist_ok=True)

    monkeypatch.setattr(CIFAR10, "download", download)
    with ThreadPoolExecutor() as threads:
        first = threads.submit(cifar10, empty)
        assert unpacking.wait(10)
        second = cifar10(empty)
    assert torch.equal(first.result().train.images, second.train.images)
    assert len(downloads) == 1


# ---- the official binary files

LAYOUTS = {  # folder, files, classes of each label byte, where a record says the class
    "CIFAR10": (
        "cifar-10-batches-bin",
        [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"],
        (10,),
        0,
    ),
    "CIFAR100": ("cifar-100-binary", ["train.bin", "test.bin"], (20, 100), 1),
}


@pytest.fixture(params=LAYOUTS)
def binary(request, tmp_path, monkeypatch):
    """(name, folder, {file: its records}) of a data set of 20 training and 4 test images."""
    name = request.param
    folder, files, classes, _ = LAYOUTS[name]
    monkeypatch.setitem(TABLE, name, replace(TABLE[name], images=20))
    rng, written = np.random.default_rng(0), {}
    (tmp_path / folder).mkdir()
    for file in files:
        count = 4 if file.startswith("test") else 20 // (len(files) - 1)
        labels = rng.integers(0, classes, (count, len(classes)))
        pixels = rng.integers(0, 256, (count, 3072))
        written[file] = np.concatenate([labels, pixels], 1).astype(np.uint8)
        written[file].tofile(tmp_path / folder / file)
    return name, tmp_path / folder, written


def load_binary(name, folder):
    return load(DataOptions(dataset=name, data_root=str(folder.parent)), World())


def test_binary_records_are_label_and_planes(binary):
    name, folder, written = binary
    *_, at = LAYOUTS[name]
    data = load_binary(name, folder)
    *train, test = written.values()
    for part, records in ((data.train, np.concatenate(train)), (data.test, test)):
        assert part.labels.tolist() == records[:, at].tolist()
        heads = records.shape[1] - 3072
        for image, record in zip(part.images, records, strict=True):
            # the pixel in row y and column x: red, green and blue lie a plane apart
            y, x = 5, 30
            planes = record[heads + 32 * y + x :: 1024].tolist()
            assert image[y, x].tolist() == planes
        assert part.images.shape[1:] == (32, 32, 3) and part.images.is_contiguous()


def test_results_on_the_originals_name_them_alone(binary):
    name, folder, _ = binary
    about = load_binary(name, folder).about
    assert about["source"] == {"CIFAR10": "CIFAR-10", "CIFAR100": "CIFAR-100"}[name]
    assert about["where"] == str(folder)


def test_the_digest_is_that_of_torchvisions_files(torchvision_cifar10, monkeypatch):
    """A run on one of them can be resumed on the other."""
    official = cifar10(torchvision_cifar10).about
    monkeypatch.setitem(TABLE, "CIFAR10", replace(TABLE["CIFAR10"], images=20))
    source = torchvision_cifar10 / "cifar-10-batches-py"
    target = torchvision_cifar10 / "cifar-10-batches-bin"
    target.mkdir()
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        raw = pickle.loads((source / name).read_bytes())
        labels = np.array(raw["labels"], np.uint8)[:4, None]
        np.concatenate([labels, raw["data"][:4]], 1).tofile(target / f"{name}.bin")
    source.rename(torchvision_cifar10 / "elsewhere")
    assert cifar10(torchvision_cifar10).about["train"] == official["train"]


@pytest.mark.parametrize("cut", ["empty", "a byte", "a record", "longer"])
def test_a_binary_file_of_another_size_is_named(binary, cut):
    name, folder, written = binary
    path = folder / list(written)[-1]
    whole = path.read_bytes()
    size = {"empty": 0, "a byte": -1, "a record": -len(whole) // 4, "longer": None}[cut]
    path.write_bytes((whole if size is not None else whole + b"0")[:size])
    with pytest.raises(UseError) as error:
        load_binary(name, folder)
    assert f"{path} holds {path.stat().st_size} bytes, expected {len(whole)}, 4 records of" in str(
        error.value
    )
    assert f"unpack {folder.name} anew" in str(error.value)


def test_a_missing_binary_file_is_named(binary):
    name, folder, written = binary
    path = folder / next(iter(written))
    path.unlink()
    with pytest.raises(UseError, match=f"{path} cannot be read .No such file"):
        load_binary(name, folder)


def test_labels_out_of_range_are_named(binary):
    name, folder, written = binary
    file, records = list(written.items())[-1]
    *_, classes, at = LAYOUTS[name]
    records[2, at] = classes[at]
    records.tofile(folder / file)
    words = f"a label of record 2 is {classes[at]}, expected 0 to {classes[at] - 1}: unpack"
    with pytest.raises(UseError, match=words):
        load_binary(name, folder)


# ---- image folders


def test_an_image_copy_is_read(cifar):
    data = cifar10(cifar)
    assert data.about["source"] == "CIFAR-10 (JPEG copy)"
    assert (len(data.train.labels), len(data.test.labels)) == (24, 12)
    path = cifar / "cifar10-jpeg/train/n0003/13.png"
    at = data.train.labels.tolist().index(3)
    assert np.array_equal(data.train.images[at].numpy(), np.asarray(Image.open(path)))


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_copy_says_of_which_kind_it_is(tmp_path, kind):
    cifar_copy(tmp_path, "cifar100", 100, 200, 100, kind.lower())
    about = load(DataOptions(dataset="CIFAR100", data_root=str(tmp_path)), World()).about
    assert about["source"] == f"CIFAR-100 ({kind} copy)"


def test_the_originals_come_before_copies_and_the_lossless_copy_first(binary):
    name, folder, _ = binary
    classes = LAYOUTS[name][2][-1]
    for kind in ("png", "jpeg"):
        cifar_copy(folder.parent, name.lower(), classes, classes, classes, kind)
    assert load_binary(name, folder).about["where"] == str(folder)
    folder.rename(folder.parent / "elsewhere")
    assert load_binary(name, folder).about["where"] == str(folder.parent / f"{name.lower()}-png")


@pytest.mark.parametrize(
    "name, classes, words",
    [
        ("cifar10", "plane car bird cat deer dog frog horse ship truck", "name them as the"),
        ("cifar100", " ".join(map(str, range(100))), "10 comes before 2"),
    ],
)
def test_an_image_copy_by_other_names_is_refused(name, classes, words, tmp_path):
    """Its labels would be others: they are places in the alphabet."""
    names = classes.split()
    cifar_copy(tmp_path, name, len(names), 100, 100, kind="png")
    for part in ("train", "test"):
        for label, word in enumerate(names):
            folder = tmp_path / f"{name}-png" / part / f"n{label:04}"
            folder.rename(folder.with_name(word))
    with pytest.raises(UseError, match=words):
        load(DataOptions(dataset=name.upper(), data_root=str(tmp_path)), World())


def test_an_image_copy_of_other_classes_is_refused(tmp_path):
    cifar_copy(tmp_path, classes=7)
    with pytest.raises(UseError, match="holds 7 classes, CIFAR10 has 10"):
        cifar10(tmp_path)
