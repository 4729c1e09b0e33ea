"""What the training commands share: names, network, images, run folder."""

from types import SimpleNamespace

import pytest
import torch

import ann_ddp
import models
import snn_ddp
from cli import run
from cli.options import NetworkOptions
from engine import checkpoint
from engine.dist import World
from engine.errors import UseError
from engine.loop import ComputeOptions
from inputs.loader import loaders as make_loaders
from inputs.loader import padded
from inputs.table import DataOptions
from models.neuron.backends import compiled
from tests.cli.toys import ABOUT, toy
from tests.inputs.noise import marked


def test_the_backend_is_told_to_rank_0(capsys):
    run.say_backend("torch", World())
    run.say_backend("torch", World(rank=1, size=2))
    assert capsys.readouterr().out == "neuron backend: torch\n"


def test_a_backend_that_cannot_run_is_refused():
    with pytest.raises(UseError, match=r"--neuron_backend cupy: .*it runs on a CUDA GPU"):
        run.say_backend("cupy", World())


# ---- names


@pytest.mark.parametrize("width, name", [(1.0, ""), (0.125, "_w0.125"), (2.0, "_w2")])
def test_a_scaled_width_is_part_of_a_name(width, name):
    assert run.width_suffix(width) == name


def test_an_own_image_folder_is_part_of_a_name(tmp_path):
    data = DataOptions(dataset="FOLDER", dataset_dir=str(tmp_path / "Birds"))
    assert run.suffix(NetworkOptions(width_mult=0.5), data) == "_birds_w0.5"
    assert run.suffix(NetworkOptions(), DataOptions()) == ""


# ---- network


def test_a_network_has_the_arguments_that_it_takes():
    """ResNet20 has no kernel_size; what is given comes before the options."""
    options = NetworkOptions(architecture="RESNET20", width_mult=0.125, bias=True, kernel_size=5)
    net = run.build(options, ABOUT, models.ReLU(), bn=True, dropout=0.4)
    built = net.built
    assert built["name"] == "resnet20"
    assert (built["num_classes"], built["width_mult"]) == (10, 0.125)
    assert (built["bn"], built["bias"], built["dropout"]) == (True, True, 0.4)


def test_a_network_that_cannot_be_built_is_refused():
    with pytest.raises(UseError, match="kernel_size must be odd, got 4"):
        run.build(NetworkOptions(kernel_size=4), ABOUT, models.ReLU(), bn=False, head_dropout=0.5)


def test_a_network_is_placed_in_channels_last():
    net = World().place(models.build("vgg16", models.ReLU(), width_mult=0.125))
    weights = [p for p in net.parameters() if p.dim() == 4]
    assert all(w.is_contiguous(memory_format=torch.channels_last) for w in weights)


@pytest.mark.parametrize(
    "mode, why, words",
    [
        ("reduce-overhead", None, "--compile reduce-overhead: .*CUDA graphs, which need a GPU"),
        ("default", "no compiler here", "--compile default: no compiler here"),
    ],
)
def test_a_compilation_that_cannot_run_is_refused(mode, why, words, monkeypatch):
    monkeypatch.setattr(compiled, "why_not", lambda device, dtype: why)
    with pytest.raises(UseError, match=words):
        run.prepare_compile(ComputeOptions(compile=mode), World())
    run.prepare_compile(ComputeOptions(recompute=True), World())


# ---- batches


def one_image(side):
    """A loader of batches of which a process may get a single image."""
    images = torch.randn(4, 3, side, side)
    return SimpleNamespace(share_sizes=lambda: {1, 4}, epoch=lambda epoch: iter([(images,)]))


def test_a_compiled_step_cannot_be_recomputed():
    with pytest.raises(UseError, match="--recompute cannot run in a step of --compile"):
        run.prepare_compile(ComputeOptions(compile="default", recompute=True), World())


@pytest.mark.parametrize("act", [models.ReLU(), models.LogQuant(2)], ids=["ann", "lq"])
def test_a_single_value_is_too_little_for_batch_norm(act):
    """The last feature maps of a 16-pixel image are one pixel wide."""
    net = models.build("resnet20", act, image_size=16, width_mult=0.0625)
    with pytest.raises(UseError, match=r"batch norm needs .* give another --batch_size"):
        run.check_shares(net, one_image(16))


@pytest.mark.parametrize("side, bn, steps", [(32, True, 1), (16, False, 1), (16, True, 2)])
def test_a_single_image_may_be_enough(side, bn, steps):
    """Of more pixels, without batch norm, or over several timesteps; the network stays as it is."""
    act = models.Spiking(models.NeuronConfig.vgg(3), steps)
    net = models.build("resnet20", act, image_size=side, width_mult=0.0625, bn=bn).eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    run.check_shares(net, one_image(side))
    assert not net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


# ---- images of a conversion


def test_augmentation_that_is_asked_for_reaches_the_loader(cifar):
    words = f"--data_root {cifar} --padding reflect --cutout 8 --flip alternating --batch_size 8"
    task = run.start(ann_ddp.get_parser().parse(words.split()), None, World())
    training, *_ = task.loaders
    data = training.data
    assert (data.reflect, data.cutout, data.alternate) == (True, 8, True)
    images = task.data.train.images
    assert torch.equal(training.store, padded(images, data.crop, reflect=True))


@pytest.mark.parametrize("asked", [True, False])
def test_recomputation_that_is_asked_for_reaches_the_network(asked, cifar, monkeypatch):
    trained = []
    monkeypatch.setattr(run, "train", lambda net, *_: trained.append(net))
    words = f"--data_root {cifar} --architecture RESNET20 --width_mult 0.0625 --batch_size 8"
    snn_ddp.main([*words.split(), *(["--recompute"] if asked else [])])
    (net,) = trained
    assert net.recompute is asked


def test_calibration_images_do_not_depend_on_the_processes():
    asked, data = ann_ddp.get_parser().parse(["--batch_size", "8"]), marked(40)
    alone = run.calibration_images(data, asked, World(), 20)
    assert alone.shape == (20, 3, 32, 32)
    assert torch.equal(run.calibration_images(data, asked, World(1, 4), 20), alone)


def test_calibration_images_are_those_of_the_limited_training():
    asked = ann_ddp.get_parser().parse(["--batch_size", "8", "--limit_train_batches", "2"])
    assert len(run.calibration_images(marked(40), asked, World(), 20)) == 16


def test_ranges_are_set_by_the_same_images_whatever_the_processes():
    line = "--quant_act --quant_num_batches 2 --batch_size 8"
    asked, data = ann_ddp.get_parser().parse(line.split()), marked(40)

    def drawn(world):
        loaders = make_loaders(data, asked.batches, asked.compute.seed, world)
        batches = ann_ddp.calibration_batches(run.Task(asked, None, world, data, loaders))
        return torch.cat(list(batches(5)))

    alone = drawn(World())
    assert len(alone) == 16
    assert torch.equal(drawn(World(0, 4)), alone)


def test_weights_of_images_that_mean_something_else_say_so(tmp_path, capsys):
    path = tmp_path / "net.pth"
    known = {"mean": [0.1, 0.2, 0.3], "std": [0.1, 0.2, 0.3]}
    checkpoint.save(path, checkpoint.content(toy(), "ann", ABOUT | known, {}))
    content = checkpoint.load(path)
    for mean, notes in (([0.1, 0.2, 0.3], 0), ([0.1, 0.2, 0.4], 1)):
        data = SimpleNamespace(about=ABOUT | known | {"mean": mean})
        run.say_weights(content, path, run.Task(None, None, World(), data, ()))
        assert capsys.readouterr().out.count("note: ") == notes


@pytest.mark.compiler
@pytest.mark.long
def test_neurons_of_different_numbers_compile_in_one_process():
    torch._dynamo.reset()
    run.prepare_compile(ComputeOptions(compile="default"), World())
    images = torch.randn(2, 3, 32, 32)
    for gamma in (0.3, 1.0, 0.7):
        act = models.Spiking(models.NeuronConfig.vgg(3, gamma=gamma), theta=0.3)
        net = models.build("resnet20", act, bn=False, width_mult=0.03)
        torch.compile(net, backend="eager")(images).sum().backward()
        compiled = [parameter.grad for parameter in net.parameters()]
        net.zero_grad()
        net(images).sum().backward()
        for parameter, gradient in zip(net.parameters(), compiled, strict=True):
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-5)


def test_a_result_without_a_run_folder_gets_another_name(tmp_path):
    """Whoever put it there would lose it to the first epoch of a new run."""
    stable = tmp_path / "ann_x.pth"
    net = models.build("resnet20", models.ReLU(), width_mult=1 / 16)
    content = checkpoint.content(net, "ann", {}, {})
    checkpoint.save(stable, content)
    own = tmp_path / "ann_x_20260101-000000" / "best.pth"
    checkpoint.save(own, content)
    new = tmp_path / "ann_x_20260102-000000"
    assert run._keep_former(stable, new) == own
    assert stable.is_file()

    own.unlink()
    before = stable.read_bytes()
    kept = tmp_path / f"{new.name}_before.pth"
    assert run._keep_former(stable, new) == kept
    assert kept.read_bytes() == before
    assert not stable.exists()


def test_half_a_result_gets_another_name_too(tmp_path):
    stable = tmp_path / "ann_x.pth"
    stable.write_bytes(b"half")
    run._keep_former(stable, tmp_path / "ann_x_20260102-000000")
    assert (tmp_path / "ann_x_20260102-000000_before.pth").read_bytes() == b"half"


def test_a_file_of_export_is_no_checkpoint(tmp_path):
    (tmp_path / "net_integer.npz").write_bytes(b"PK")
    with pytest.raises(UseError, match=r"was written by export.py: give the checkpoint"):
        checkpoint.load(tmp_path / "net_integer.npz")
