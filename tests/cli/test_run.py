"""What the training commands share: settings with --resume, network, teacher, notes, names."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch

import ann_ddp
import models
import snn_ddp
from cli import run
from cli.options import NetworkOptions, TrainingSettings
from cli.parser import Parser
from engine import checkpoint, log, settings
from engine.dist import World
from engine.errors import UseError
from engine.loop import ComputeOptions
from engine.settings import group
from inputs.loader import padded
from inputs.table import DataOptions
from models.neuron.backends import compiled
from tests.inputs.noise import marked

ABOUT = {"name": "CIFAR10", "source": "noise", "num_classes": 10, "image_size": 32}


@dataclass(frozen=True)
class ToySettings(TrainingSettings):
    """A training command of the test's own."""

    network: NetworkOptions = group(only=("width_mult", "dropout"))
    data: DataOptions = group()


def toy():
    return models.build("resnet20", models.ReLU(), width_mult=1 / 32)


def read(argv, rules=lambda asked: []):
    return run.read_settings(Parser("toy.py", "A toy.", ToySettings), argv.split(), rules)


def store(path, stored):
    """A last.pth with the given settings."""
    content = checkpoint.content(toy(), "ann", ABOUT, stored, training={"epoch": 2})
    checkpoint.save(path, content)


@pytest.fixture
def interrupted(tmp_path):
    """Folder of a run with settings that differ from the defaults."""
    asked, _ = read("--batch_size 7 --width_mult 0.5 --print_freq 3 --device cpu")
    store(tmp_path / "last.pth", settings.flat(asked) | {"local_rank": 3})
    return tmp_path


# ---- settings


@pytest.mark.parametrize(
    "job, restarts, goes_on",
    [("7", "0", True), ("8", "0", False), ("none", "1", False), (None, "0", False)],
)
def test_a_restart_by_torchrun_goes_on_with_its_own_run(
    job, restarts, goes_on, tmp_path, monkeypatch
):
    argv = f"--batch_size 7 --device cpu --output_dir {tmp_path}"
    asked, _ = read(argv)
    folder = tmp_path / "toy" / "run"
    store(folder / "last.pth", settings.flat(asked))
    log.write_json(folder / "config.json", {"settings": settings.flat(asked), "job": "7"})
    if job:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", job)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", restarts)
    again, saved = read(argv)
    assert (again.run.resume == str(folder)) == (saved is not None) == goes_on
    # the launcher numbers the processes of a node
    second, _ = read(f"{argv} --local-rank=1")
    assert (second.run.resume == str(folder)) == goes_on
    # of other settings, or finished, it is another run
    assert read(argv.replace("7 ", "8 "))[1] is None
    log.write_json(folder / "summary.json", {})
    assert read(argv)[1] is None


def test_without_resume_the_command_line_counts():
    asked, saved = read("--batch_size 7")
    assert asked.batches.batch_size == 7
    assert saved is None


def test_without_resume_the_rules_hold():
    rules = [(["seed"], False, "nothing is random")]
    with pytest.raises(UseError, match="--seed does nothing here: nothing is random"):
        read("--seed 3", lambda asked: rules)


@pytest.mark.parametrize("name", ["", "/last.pth"], ids=["folder", "file"])
def test_resume_takes_the_settings_of_the_run(interrupted, name):
    asked, saved = read(f"--resume {interrupted}{name}")
    assert (asked.batches.batch_size, asked.network.width_mult) == (7, 0.5)
    assert asked.run.print_freq == 3
    assert asked.run.resume == str(interrupted)
    assert saved["training"] == {"epoch": 2}


def test_what_a_run_may_change_is_changed(interrupted):
    """Options of this machine, and what is shown or stored."""
    asked, _ = read(f"--resume {interrupted} --print_freq 5 --data_root other --device cuda:1")
    assert asked.run.print_freq == 5
    assert asked.data.data_root == "other"
    assert asked.device.device == "cuda:1"


def test_what_repeats_the_runs_setting_is_accepted(interrupted):
    asked, _ = read(f"--resume {interrupted} -b 7")
    assert asked.batches.batch_size == 7


def test_what_changes_the_result_is_refused(interrupted):
    with pytest.raises(UseError) as error:
        read(f"--resume {interrupted} --batch_size 8")
    assert "--batch_size 8 differs from the interrupted run's 7" in str(error.value)
    assert "leave it out, or start a new run" in str(error.value)


def test_the_local_rank_is_that_of_this_launch(interrupted):
    assert read(f"--resume {interrupted}")[0].device.local_rank is None
    assert read(f"--resume {interrupted} --local-rank 1")[0].device.local_rank == 1


def test_the_processes_are_those_of_this_launch(tmp_path):
    asked, _ = read("--device cpu")
    there = {"world_size": 2, "rank": 1, "dist_url": "tcp://10.0.0.1:1", "gpu": 3}
    store(tmp_path / "last.pth", settings.flat(asked) | there)
    now = read(f"--resume {tmp_path}")[0].device
    assert (now.world_size, now.rank, now.dist_url, now.gpu) == (-1, -1, "env://", 3)
    assert read(f"--resume {tmp_path} --device cpu")[0].device.gpu is None
    # energy.py and others have the second alone
    both = Parser("toy.py", "A toy.", ToySettings).parse(["--gpu", "0", "--device", "cpu"])
    for start in (
        lambda: read(f"--resume {tmp_path} --gpu 0 --device cpu"),
        lambda: run.in_processes(None, both),
    ):
        with pytest.raises(UseError, match="--gpu and --device both name the device"):
            start()


def test_settings_of_older_names_are_understood(tmp_path):
    """data_dir, img_size and torch/cifar10, as the published transformer has them."""
    store(tmp_path / "last.pth", {"data_dir": "mine", "img_size": 32, "dataset": "torch/cifar10"})
    asked, _ = read(f"--resume {tmp_path}")
    assert (asked.data.data_root, asked.data.image_size) == ("mine", 32)
    assert asked.data.dataset == "CIFAR10"


def test_what_an_older_run_did_not_store_is_at_its_default(tmp_path):
    store(tmp_path / "last.pth", {"batch_size": 7})
    asked, _ = read(f"--resume {tmp_path}")
    assert asked.batches.batch_size == 7
    assert asked.compute.seed == 0


def test_a_run_of_another_script_is_refused(interrupted):
    store(interrupted / "last.pth", {"batch_size": 7, "act_bits": 3, "timesteps": 1})
    with pytest.raises(
        UseError, match=r"a run of another script: it has --act_bits, which toy\.py"
    ):
        read(f"--resume {interrupted}")


def test_a_checkpoint_is_not_a_run(tmp_path):
    content = checkpoint.content(toy(), "ann", ABOUT, {})
    checkpoint.save(tmp_path / "best.pth", content)
    with pytest.raises(UseError, match=r"best\.pth is not the last\.pth of a run: --resume takes"):
        read(f"--resume {tmp_path}/best.pth")


# ---- notes


@pytest.mark.parametrize(
    "argv, words",
    [
        ("--optimizer Adam --momentum 0.9", "note: --momentum is not used by Adam"),
        ("--dataset_dir here", "note: --dataset_dir is not used by CIFAR10"),
    ],
)
def test_published_options_without_effect_are_told(argv, words, capsys):
    asked = ann_ddp.get_parser().parse(argv.split())
    run.note_unused(asked, World())
    assert words in capsys.readouterr().out


@pytest.mark.parametrize("argv", ["--momentum 0.9", "--dataset IMAGENET --dataset_dir here"])
def test_options_with_effect_are_not(argv, capsys):
    run.note_unused(ann_ddp.get_parser().parse(argv.split()), World())
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "here, words",
    [
        (models.Spiking(models.NeuronConfig.vgg(3), 4), "steps 2, here 4"),
        (models.Spiking(models.NeuronConfig.vgg(2), 2), "levels 3, here 2"),
    ],
)
def test_another_activation_than_the_checkpoints_is_told(here, words, capsys):
    trained = models.describe(models.Spiking(models.NeuronConfig.vgg(3), 2))
    content = {"format": checkpoint.FORMAT, "activation": trained}
    run.note_activation(content, here, "snn.pth", World())
    said = capsys.readouterr().out
    assert said.startswith("note: snn.pth was trained with ")
    assert words in said


@pytest.mark.parametrize("scale", [False, True])
def test_the_same_activation_is_not_told(scale, capsys):
    """Nor an output scale, which is folded into weights."""
    trained = models.Spiking(models.NeuronConfig.vgg(3), 2)
    content = {"format": checkpoint.FORMAT, "activation": models.describe(trained)}
    here = models.Spiking(models.NeuronConfig.vgg(3), 2, scale=scale)
    run.note_activation(content, here, "snn.pth", World())
    assert capsys.readouterr().out == ""


def test_a_published_file_says_nothing_of_its_activation(capsys):
    run.note_activation({"format": "published"}, models.ReLU(), "published.pth", World())
    assert capsys.readouterr().out == ""


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


# ---- teacher


@pytest.fixture
def teacher(tmp_path):
    """File of a trained network."""
    net = models.build("resnet20", models.ReLU(), width_mult=0.0625)
    path = tmp_path / "teacher.pth"
    checkpoint.save(path, checkpoint.content(net, "ann", ABOUT, {}))
    return path


def test_without_distill_there_is_no_teacher():
    assert run.teacher("", ABOUT, World()) is None


def test_a_teacher_is_not_trained(teacher):
    net = run.teacher(str(teacher), ABOUT, World())
    assert not net.training
    assert not any(p.requires_grad for p in net.parameters())


@pytest.mark.parametrize(
    "other", [{"name": "DIGITS"}, {"num_classes": 7}, {"image_size": 64}], ids=str
)
def test_a_teacher_of_other_images_is_refused(teacher, other):
    with pytest.raises(UseError, match="was trained on noise, not on other"):
        run.teacher(str(teacher), ABOUT | {"source": "other"} | other, World())


OTHER = {"mean": [0.1, 0.2, 0.4], "std": [0.1, 0.2, 0.4], "classes": ["a", "c"]}


@pytest.mark.parametrize("name", OTHER)
def test_a_teacher_of_images_that_mean_something_else_is_refused(name, tmp_path):
    """Numbers of another machine may be rounded otherwise, and a file of the zoo has tuples."""
    net = models.build("resnet20", models.ReLU(), width_mult=0.0625)
    path = tmp_path / "teacher.pth"
    known = {"mean": (0.1, 0.2, 0.3), "std": (0.1, 0.2, 0.3), "classes": ["a", "b"]}
    checkpoint.save(path, checkpoint.content(net, "ann", ABOUT | known, {}))
    here = {"mean": [0.1, 0.2, 0.30000000000000004], "std": [0.1, 0.2, 0.3], "classes": ["a", "b"]}
    run.teacher(str(path), ABOUT | here, World())
    run.teacher(str(path), ABOUT, World())
    with pytest.raises(UseError, match=f"was trained with other {name} of its images"):
        run.teacher(str(path), ABOUT | here | {name: OTHER[name]}, World())


def test_a_test_on_images_that_mean_something_else_says_so(tmp_path, capsys, monkeypatch):
    path = tmp_path / "net.pth"
    known = {"mean": [0.1, 0.2, 0.3], "std": [0.1, 0.2, 0.3]}
    checkpoint.save(path, checkpoint.content(toy(), "ann", ABOUT | known, {}))
    monkeypatch.setattr(run, "_measure", lambda *_: lambda net: {"test_accuracy": 0.5})
    for mean, said in (([0.1, 0.2, 0.3], ""), ([0.1, 0.2, 0.4], "note: ")):
        data = SimpleNamespace(about=ABOUT | known | {"mean": mean})
        asked = SimpleNamespace(compute=SimpleNamespace(amp="none"))
        run.test_only(toy(), run.Task(asked, None, World(), data, ()), str(path), "--weights")
        assert capsys.readouterr().out.startswith(said or "noise: test accuracy 50.00%")


def test_a_network_of_other_classes_is_refused():
    trained = ABOUT | {"classes": ["cat", "dog"]}
    run.check_shape({"data": trained}, trained, "x.pth")
    run.check_shape({"data": ABOUT}, trained, "x.pth")
    with pytest.raises(
        UseError, match=r"trained on the classes \['cat', 'dog'\], here has the classes \['apple'"
    ):
        here = trained | {"classes": ["apple", "pear"], "where": "here"}
        run.check_shape({"data": trained}, here, "x.pth")


def test_a_published_teacher_is_refused(tmp_path):
    torch.save({"layer.weight": torch.zeros(1)}, tmp_path / "published.pth")
    with pytest.raises(UseError, match=r"file of the published code: run absorb_bn\.py on it"):
        run.teacher(str(tmp_path / "published.pth"), ABOUT, World())


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


def test_a_setting_that_cannot_be_is_refused_with_its_file():
    content = {"settings": {"dataset": True}, "data": {}}
    with pytest.raises(UseError, match=r"x\.pth holds --dataset True"):
        run.trained_data(content, DataOptions(), frozenset(), "x.pth")


def test_a_published_network_that_was_fused_is_measured_on_the_images_that_it_takes():
    content = {"settings": {}, "data": {"name": "CIFAR100"}}
    options = run.trained_data(content, DataOptions(), frozenset(), "x.pth")
    assert options.dataset == "CIFAR100"
    options = run.trained_data(content, DataOptions(), {"dataset"}, "x.pth")
    assert options.dataset == "CIFAR10"


def test_another_number_of_steps_than_a_published_file_s_is_told(tmp_path, capsys):
    weights = {"features.0.weight": torch.zeros(1)}
    torch.save({"state_dict": weights, "timesteps": 1, "accuracy": 0.9}, tmp_path / "x.pth")
    content = checkpoint.load(tmp_path / "x.pth")
    for steps in (1, 20):
        act = models.Spiking(models.NeuronConfig.vgg(3), steps=steps, theta=0.3)
        run.note_activation(content, act, "x.pth", World())
    assert capsys.readouterr().out == "note: x.pth was trained with steps 1, here 20\n"


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
