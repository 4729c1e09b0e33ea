"""export.py: networks in other forms, compared on what images there are; what is refused."""

import errno
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import export
import models
from engine import checkpoint, integer_file, integer_onnx, nir_file, onnx_file
from engine.errors import guard
from inputs.cifar import read_cifar
from inputs.table import TABLE, DataOptions
from models import NeuronConfig, Spiking, integer, vggsnn
from models.neuron.backends import exported
from models.transformer import activation
from tests.zoo import network

CIFAR = {"name": "CIFAR10", "num_classes": 10, "image_size": 32, "source": "CIFAR-10"}


def write(
    path,
    act=None,
    data=CIFAR,
    name="resnet20",
    kind="snn",
    settings=None,
    bn=False,
    sizes=None,
    **more,
):
    """A checkpoint of a small network; returns its path."""
    sizes = sizes or {"width_mult": 1 / 16, "bn": bn}
    net = models.build(name, act or Spiking(NeuronConfig.vgg(3)), **sizes)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.dim() == 2:
                parameter.mul_(20)
    settings = settings or {"dataset": data["name"]}
    checkpoint.save(path, checkpoint.content(net, kind, data, settings, **more))
    return path


def last_line(capsys):
    return capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("name", models.CNNS)
def test_the_last_line_says_what_was_found(name, steps, cifar, tmp_path, capsys):
    """On all test images; the file computes what the line says."""
    act = Spiking(NeuronConfig.vgg(3), steps, theta=0.3)
    path = write(tmp_path / "snn.pth", act, name=name)
    found = export.main([str(path), "--to", "integer", "--data_root", str(cifar)])
    assert found == {"output": str(tmp_path / "snn_integer.npz")}
    line = last_line(capsys)
    assert line.startswith("integer network, on 12 test images of CIFAR-10 (JPEG copy")
    assert "of the predictions and, by layer," in line
    assert line.endswith(f"are equal; written to {tmp_path}/snn_integer.npz")

    whole, header = integer_file.load(found["output"])
    assert header["source"] == str(path) and header["data"]["num_classes"] == 10
    assert header["data"]["classes"][3] == "cat"
    data = read_cifar(TABLE["CIFAR10"], DataOptions(data_root=cifar), 32, None)
    hits = whole(data.test.images.permute(0, 3, 1, 2)).argmax(1) == data.test.labels
    assert f"accuracy {hits.float().mean():.2%} (the SNN: " in line


def test_statistics_of_the_data_set_are_used(tmp_path, capsys):
    """Those of scikit-learn's digits are measured on its training images."""
    digits = {"name": "DIGITS", "num_classes": 10, "image_size": 32}
    path = write(tmp_path / "snn.pth", data=digits)
    export.main([str(path), "--images", "70", "--output", str(tmp_path / "a/net.npz")])
    assert "on 70 test images of scikit-learn digits: accuracy" in last_line(capsys)
    _, header = integer_file.load(tmp_path / "a/net.npz")
    assert len(set(header["mean"])) == 1 and 0.2 < header["mean"][0] < 0.4


def test_random_images_where_the_data_is_missing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    imagenet = {"name": "IMAGENET", "num_classes": 10, "image_size": 32}
    path = write(tmp_path / "snn.pth", data=imagenet)
    export.main([str(path), "--batch_size", "48"])
    out = capsys.readouterr().out
    assert "note: expected an image folder data/train" in out
    assert "random images take their place" in out
    line = out.splitlines()[-1]
    assert line.startswith("integer network, on 64 random images: ") and "accuracy" not in line
    _, header = integer_file.load("snn_integer.npz")
    assert header["mean"] == [0.485, 0.456, 0.406]


def test_so_many_images_are_taken():
    batches = [(torch.zeros(64, 3, 1, 1), torch.zeros(64), 64)] * 3
    assert [len(labels) for _, labels in export.take(batches, 70, 64)] == [64, 6]
    assert [len(images) for images, _ in export.take(batches, 64, 64)] == [64]


def test_random_images_are_normalised_pixels():
    mean, std = (0.2, 0.4, 0.6), (0.1, 0.2, 0.3)
    (images, _), (rest, _) = export.random_images(6, 32, mean, std, 4)
    assert (len(images), len(rest)) == (4, 2)
    pixels = integer.pixels(images, mean, std).double()
    assert (pixels.min(), pixels.max()) == (0, 255)
    assert pixels.mean((0, 2, 3)).tolist() == pytest.approx([127.5] * 3, abs=5)
    assert images.mean((0, 2, 3)).tolist() == pytest.approx([3, 0.5, -1 / 3], abs=0.2)


def test_a_run_folder_is_taken(cifar, tmp_path):
    (tmp_path / "run").mkdir()
    write(tmp_path / "run/best.pth")
    found = export.main([str(tmp_path / "run"), "--data_root", str(cifar)])
    assert found["output"] == f"{tmp_path}/run/best_integer.npz"


def test_fine_tuning_is_told_before_and_after(cifar, tmp_path, capsys):
    """Of the same network; the checkpoint stays."""
    path = tmp_path / "snn.pth"
    checkpoint.save(path, checkpoint.content(network(), "snn", CIFAR, {"dataset": "CIFAR10"}))
    content = path.read_bytes()
    common = [str(path), "--data_root", str(cifar), "--output"]
    export.main([*common, f"{tmp_path}/net.npz", "--qat_epochs", "1", "--learning_rate", "1e-3"])
    before, *_, last = capsys.readouterr().out.splitlines()
    assert before.startswith("before fine-tuning: accuracy ")
    assert "on 12 test images of CIFAR-10 (JPEG copy): accuracy" in last
    accuracy = r"\(the SNN: ([\d.]+%)\)"
    assert re.search(accuracy, before)[1] == re.search(accuracy, last)[1]
    assert path.read_bytes() == content

    plain = tmp_path / "plain.npz"
    export.main([*common, str(plain)])
    tuned, untuned = (integer_file.load(each)[0] for each in (tmp_path / "net.npz", plain))
    assert not torch.equal(tuned.head.weight, untuned.head.weight)


@pytest.mark.parametrize("settings, mirrors", [({}, True), ({"flip": "none"}, False)])
def test_fine_tuning_mirrors_no_image_that_the_training_did_not(
    settings, mirrors, cifar, tmp_path, monkeypatch
):
    path = write(tmp_path / "snn.pth", settings={"dataset": "CIFAR10", **settings})
    seen = []
    monkeypatch.setattr(export, "make_loaders", lambda data, *_: seen.append(data.flip))
    words = [str(path), "--qat_epochs", "1", "--data_root", str(cifar)]
    export.read_source(export.get_parser().parse(words))
    assert seen == [mirrors]


# ---- ONNX


def lq(path):
    net = models.build("vgg16", models.LogQuant(2), width_mult=1 / 16, bn=True)
    models.calibrate(net, [torch.randn(4, 3, 32, 32)])
    checkpoint.save(path, checkpoint.content(net, "lq", CIFAR, {"dataset": "CIFAR10"}))
    return path


SNN = {steps: Spiking(NeuronConfig.vgg(3), steps, theta=0.3, backend="cpp") for steps in (1, 2)}
DRAWN = {
    "ANN": lambda path: write(path, models.ReLU(), name="vgg16", kind="ann", bn=True),
    "LQ-ANN": lq,
    "SNN T=1": lambda path: write(path, SNN[1]),
    "SNN T=2": lambda path: write(path, SNN[2], name="vgg16"),
}
# toys of the others are held by tests/engine/test_onnx_file.py
EVERYDAY = ("ANN", "SNN T=1")
DRAWN_CASES = [
    pytest.param(make, id=name, marks=() if name in EVERYDAY else pytest.mark.long)
    for name, make in DRAWN.items()
]


@pytest.mark.parametrize("make", DRAWN_CASES)
def test_onnx_runtime_computes_what_torch_does(make, cifar, tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    path = make(tmp_path / "net.pth")
    found = export.main(f"{path} --to onnx --data_root {cifar}".split())
    assert found == {"output": str(tmp_path / "net.onnx")}
    line = last_line(capsys)
    assert line.startswith("onnx network, on 12 test images of CIFAR-10 (JPEG copy")
    assert "opset 18, accuracy " in line and "100.00% of the predictions" in line
    spikes = "and, by layer, 100.00% (stages.0.act) to 100.00% of the outputs are equal"
    assert (spikes in line) == (checkpoint.load(path)["kind"] == "snn")
    assert float(re.search(r"logits differ by up to (\S+); written to", line)[1]) < 1e-4

    session = onnx_file.session(found["output"])
    net, images = checkpoint.rebuild(checkpoint.load(path)).eval(), torch.randn(5, 3, 32, 32)
    (logits,) = session.run(None, {"images": images.numpy()})
    want = net(images).detach()
    difference = (torch.from_numpy(logits) - want).abs().max()
    assert 0 <= difference < 1e-4 * want.abs().max()
    header = session.get_modelmeta().custom_metadata_map
    assert json.loads(header["mean"]) == list(TABLE["CIFAR10"].mean)
    assert json.loads(header["activation"])["kind"] == net.act.kind


def transformer(path):
    sizes = {"dim": 8, "depth": 1, "num_heads": 1, "tet": True}
    write(path, activation(steps=1), name="sdt", kind="sdt", sizes=sizes)


def recordings(path):
    write(path, vggsnn.activation(2, 2), name="vggsnn", kind="vggsnn", sizes={"width_mult": 1 / 32})


@pytest.mark.parametrize("make", [transformer, recordings])
def test_networks_of_other_data_are_compared_on_random_images(make, fails, tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    make(tmp_path / "net.pth")
    line = f"{tmp_path}/net.pth --to onnx"
    fails(export.main, f"{line} --data_root d", "--data_root does nothing here", "random images")
    export.main([*line.split(), "--images", "5"])
    line = last_line(capsys)
    assert line.startswith("onnx network, on 5 random images: opset 18, 100.00% of the predictions")
    assert "100.00% of the outputs are equal" in line
    # events have no normalisation
    session = onnx_file.session(next(tmp_path.glob("*.onnx")))
    mean = json.loads(session.get_modelmeta().custom_metadata_map["mean"])
    assert mean == (list(TABLE["CIFAR10"].mean) if make is transformer else None)


def test_a_graph_that_computes_something_else_is_not_written(cifar, fails, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")

    def silent(u, unit, config):
        return torch.zeros_like(u, dtype=torch.uint8)

    monkeypatch.setattr(exported, "fire", silent)
    path = write(tmp_path / "snn.pth", SNN[1], name="vgg16")
    words = "ONNX Runtime computes something else than torch: ", "logits differ by", "not written"
    fails(export.main, f"{path} --to onnx --data_root {cifar}", *words, status=1, keep=tmp_path)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", models.CNNS)
def test_nir(name, cifar, tmp_path, capsys):
    """The last line says what was compared; the file computes what the line says."""
    nir = pytest.importorskip("nir")
    path = write(tmp_path / "snn.pth", Spiking(NeuronConfig.vgg(3), theta=0.3), name=name)
    found = export.main([str(path), "--to", "nir", "--data_root", str(cifar)])
    assert found == {"output": str(tmp_path / "snn.nir")}
    line = last_line(capsys)
    assert line.startswith("nir network, on 12 test images of CIFAR-10 (JPEG copy")
    assert "read back and run by Norse, accuracy" in line
    assert "100.00% of the predictions and, by layer, 100.00%" in line
    assert line.endswith(f"of the outputs are equal; written to {tmp_path}/snn.nir")

    graph = nir.read(found["output"])
    assert graph.metadata["source"] == str(path)
    assert graph.metadata["mean"].tolist() == [0.4914, 0.4822, 0.4465]
    assert json.loads(graph.metadata["data"])["classes"][:2] == ["airplane", "automobile"]
    assert sorted(tmp_path.iterdir()) == [tmp_path / "snn.nir", path]


def test_nir_is_compared_on_a_thousand_images():
    images = torch.zeros(3000, 3, 1, 1)
    asked = export.get_parser().parse(["snn.pth", "--to", "nir"])
    assert export.wanted(asked, len(images)) == 1000
    assert export.wanted(asked, 12) == 12
    asked = export.get_parser().parse(["snn.pth", "--to", "nir", "--images", "2000"])
    assert export.wanted(asked, len(images)) == 2000
    asked = export.get_parser().parse(["snn.pth"])
    assert export.wanted(asked, len(images)) == 3000


# ---- integers in ONNX


@pytest.mark.parametrize("steps", [1, 2])
def test_the_integer_network_of_onnx_runtime_is_equal_bit_for_bit(steps, cifar, tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    act = Spiking(NeuronConfig.vgg(3), steps, theta=0.3)
    path = write(tmp_path / "snn.pth", act)
    found = export.main(f"{path} --to integer-onnx --data_root {cifar}".split())
    assert found == {"output": str(tmp_path / "snn_integer.onnx")}
    line = last_line(capsys)
    assert line.startswith("integer-onnx network, on 12 test images of CIFAR-10 (JPEG copy")
    told = "every spike of 19 layers and every logit are those of models/integer.py, bit for bit"
    assert "opset 18, accuracy " in line and told in line

    session = onnx_file.session(found["output"])
    header = {k: json.loads(v) for k, v in session.get_modelmeta().custom_metadata_map.items()}
    net = checkpoint.rebuild(checkpoint.load(path))
    whole = integer.to_integer(net, header["mean"], header["std"])
    images = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    (logits,) = session.run(None, {"images": images.numpy()})
    assert torch.equal(torch.from_numpy(logits), whole(images))
    assert header["scale"] == whole.scale and header["fine_tuned"] is None
    about = header["data"]
    assert (about["shorter"], about["interpolation"], about["classes"][9]) == (
        *(32, "bilinear"),
        "truck",
    )


def test_an_integer_network_that_differs_is_not_written(cifar, fails, tmp_path, monkeypatch):
    """The scale of a requantisation that is a thousandth too large."""
    pytest.importorskip("onnxruntime")
    rounding = integer_onnx.Count.rounding

    def wrong(count):
        bias, scale = rounding(count)
        return bias, scale * np.float32(1.001)

    monkeypatch.setattr(integer_onnx.Count, "rounding", wrong)
    monkeypatch.setattr(integer_onnx.Count, "fits", lambda count: True)
    path = write(tmp_path / "snn.pth", SNN[1], name="vgg16")
    words = "ONNX Runtime computes something else: ", "of the outputs are equal; not written"
    argv = f"{path} --to integer-onnx --data_root {cifar}"
    fails(export.main, argv, *words, status=1, keep=tmp_path)
    assert list(tmp_path.iterdir()) == [path]


def test_lanes_that_bytes_do_not_hold_are_refused(cifar, fails, tmp_path):
    pytest.importorskip("onnxruntime")
    path = write(tmp_path / "snn.pth", Spiking(NeuronConfig.vgg(7)), name="vgg16")
    words = "snn.pth has no integer network in bytes: its pooled spikes reach 256"
    fails(export.main, f"{path} --to integer-onnx --data_root {cifar}", words, keep=tmp_path)


@pytest.mark.parametrize("form", ["integer", "integer-onnx"])
def test_what_cannot_be_written_is_not_fine_tuned(form, cifar, fails, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "fine_tune", lambda *_, **__: pytest.fail("was trained"))
    path = write(tmp_path / "snn.pth", LEAKY)
    argv = f"{path} --to {form} --qat_epochs 1 --data_root {cifar}"
    fails(export.main, argv, "stages.0 has the leak 0.9", keep=tmp_path)


# ---- what is refused


@pytest.mark.parametrize(
    ("node", "number"), [("stages.11.act.lane0", "v_threshold"), ("head.x1", "bias")]
)
def test_a_nir_graph_of_something_else(node, number, cifar, fails, tmp_path, monkeypatch):
    pytest.importorskip("nir")
    path = write(tmp_path / "snn.pth", Spiking(NeuronConfig.vgg(3), theta=0.3))
    build = nir_file.build

    def other(net, **metadata):
        graph = build(net, **metadata)
        getattr(graph.nodes[node], number)[0] += 100
        return graph

    monkeypatch.setattr(nir_file, "build", other)
    argv = f"{path} --to nir --data_root {cifar}"
    words = "snn.nir is not written", "by Norse", "%", "expected all"
    fails(export.main, argv, *words, status=1, keep=tmp_path)
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_is_there_is_replaced_when_asked_for(cifar, fails, tmp_path):
    path = write(tmp_path / "snn.pth")
    (tmp_path / "snn_integer.npz").write_text("mine")
    words = f"{tmp_path}/snn_integer.npz is there already", "--replace", "--output"
    fails(export.main, f"{path} --data_root {cifar}", *words, keep=tmp_path)
    guard(export.main, f"{path} --data_root {cifar} --replace".split())
    integer_file.load(tmp_path / "snn_integer.npz")


def test_a_full_disk_leaves_nothing(cifar, fails, tmp_path, monkeypatch):
    path = write(tmp_path / "snn.pth")

    def full(file, **arrays):
        file.write(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    words = "cannot write", "No space left on device", "the disk's space"
    fails(export.main, f"{path} --data_root {cifar}", *words, status=1, keep=tmp_path)
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_no_half_of_an_onnx_file(cifar, fails, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    path = write(tmp_path / "ann.pth", models.ReLU(), name="vgg16", kind="ann")

    def full(self, content):
        self.open("wb").write(content[:1000])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    words = "cannot write", "No space left on device", "the disk's space"
    fails(export.main, f"{path} --to onnx --data_root {cifar}", *words, status=1, keep=tmp_path)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("module", ["nir", "norse.torch.utils.import_nir"])
def test_a_package_is_missing(module, cifar, fails, tmp_path, monkeypatch):
    pytest.importorskip("nir")
    path = write(tmp_path / "snn.pth")
    monkeypatch.setitem(sys.modules, module, None)
    words = f"{module} is missing", "pip install -r requirements-export.txt"
    fails(export.main, f"{path} --to nir --data_root {cifar}", *words, keep=tmp_path)


def nan(path):
    content = checkpoint.load(write(path))
    content["model"]["head.weight"][0] = torch.nan
    checkpoint.save(path, content)


FOLDER = {"name": "FOLDER", "num_classes": 10, "image_size": 32}
AT = {"dataset": "FOLDER", "dataset_dir": "none", "image_size": 32}
STEPS = Spiking(NeuronConfig.vgg(3), 2)
LEAKY = Spiking(NeuronConfig.vgg(3), 2, leak=0.9)
SCALED = Spiking(NeuronConfig.vgg(3), scale=True)
RATE = Spiking(NeuronConfig.vgg(3), 2, encoding="rate")
CASES = {  # what writes the file, arguments ({c}: --data_root with CIFAR), words of the line
    "ANN": (
        lambda path: write(path, models.ReLU(), kind="ann"),
        "",
        "snn.pth holds a network of kind ann, --to integer takes snn",
        "give a checkpoint of snn_ddp.py",
    ),
    "ANN to NIR": (
        lambda path: write(path, models.ReLU(), kind="ann"),
        "--to nir",
        "kind ann, --to nir takes snn (NIR's neurons are spiking)",
        "give a checkpoint of snn_ddp.py",
    ),
    "attention": (
        lambda path: write(path, kind="sdt"),
        "--to nir",
        "snn (NIR has no product of two signals, which attention needs)",
    ),
    "VGGSNN": (
        lambda path: write(path, kind="vggsnn"),
        "--to nir",
        "snn (its lanes share a potential over its steps",
    ),
    "steps": (
        lambda path: write(path, STEPS),
        "--to nir --data_root {c}",
        "snn.pth has no NIR graph: it runs 2 steps",
        "train with --timesteps 1",
    ),
    "unfused": (
        lambda path: write(path, bn=True),
        "--to nir --data_root {c}",
        "snn.pth has no NIR graph: it has batch norm: fuse it first",
    ),
    "published": (
        lambda path: torch.save({"features.0.weight": torch.zeros(4, 3, 3, 3)}, path),
        "",
        "snn.pth is a file of the published code: an ANN with batch norm goes to absorb_bn.py",
    ),
    "training": (
        lambda path: write(path, training={}),
        "",
        "snn.pth is the state of a training",
        "give its run folder",
    ),
    "NaN": (nan, "", "snn.pth holds weights that are not finite numbers"),
    "damaged": (lambda path: path.write_bytes(b"?"), "", "truncated or not a checkpoint"),
    "missing": (lambda path: None, "", "no checkpoint at snn.pth"),
    "batch norm": (
        lambda path: write(path, bn=True),
        "--data_root {c}",
        "snn.pth has no integer network: it has batch norm",
    ),
    "scales": (
        lambda path: write(path, SCALED),
        "--data_root {c}",
        "its output scales are not folded",
    ),
    "leak": (
        lambda path: write(path, LEAKY),
        "--data_root {c}",
        "snn.pth has no integer network: stages.0 has the leak 0.9: with 2 steps",
        "--fixed_leak",
    ),
    "training data is missing": (
        lambda path: write(path, data=CIFAR | {"name": "IMAGENET"}),
        "--qat_epochs 1",
        "expected an image folder data/train",
    ),
    "no fine-tuning": (write, "--learning_rate 1e-3", "--learning_rate does nothing here"),
    "named data is missing": (
        write,
        "--dataset FOLDER --dataset_dir none --image_size 32",
        "expected an image folder none/train",
    ),
    "own data is missing": (
        lambda path: write(path, data=FOLDER, settings=AT),
        "",
        "expected an image folder none/train",
    ),
    "other data": (
        lambda path: write(path, data=CIFAR | {"num_classes": 7}),
        "--data_root {c}",
        "snn.pth was trained for 7 classes",
    ),
    "rate": (
        lambda path: write(path, RATE),
        "--to onnx --data_root {c}",
        "snn.pth draws the spikes of its images by chance (--input_encoding 0)",
    ),
    "old opset": (write, "--to onnx --opset 17", "--opset", "expected a number >= 18 and <= 25"),
    "new opset": (write, "--to onnx --opset 26", "--opset", "expected a number >= 18 and <= 25"),
    "idle opset": (write, "--opset 18", "--opset does nothing here: give --to onnx"),
    "form": (write, "--to onxx", "--to", "integer"),
    "idle": (write, "--image_size 64", "--image_size does nothing here"),
}


@pytest.mark.parametrize(
    "make, argv, words", [(c[0], c[1], c[2:]) for c in CASES.values()], ids=CASES
)
def test_one_line(make, argv, words, cifar, fails, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "snn.pth")
    line = fails(export.main, f"snn.pth {argv.format(c=cifar)}", *words, keep=tmp_path)
    assert line.startswith(f"{sys.argv[0]}: error: ")  # behind no progress bar
    assert [path.name for path in tmp_path.iterdir() if path.name != "snn.pth"] == []


def test_a_missing_package_is_named(cifar, fails, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    path = write(tmp_path / "snn.pth")
    words = "onnx is missing", "pip install -r requirements-export.txt"
    fails(export.main, f"{path} --to onnx --data_root {cifar}", *words, keep=tmp_path)


def test_no_checkpoint(fails):
    fails(export.main, "", "give the checkpoint of the network")
