"""Settings of the transformer's scripts: configurations, sizes by name, and mistakes in either."""

import shlex

import pytest
import timm
import yaml

from cli import resume
from cli.transformer import TransformerSettings, build, folder_of
from engine import settings
from engine.errors import UseError
from spike_driven_transformer import train
from tests.helpers import ROOT

FOLDER = ROOT / "spike_driven_transformer"
CONFS = sorted(FOLDER.glob("conf/*/*.yml"))
EVERY = pytest.mark.parametrize("path", CONFS, ids=lambda path: f"{path.parent.name}/{path.stem}")

# names that files of settings had before options were typed
OLD_NAMES = shlex.split(
    "config model layer dim num_heads mlp_ratio pooling_stat img_size drop_path spike_mode "
    "mlif_channels time_steps scaled surrogate_edge neuron_backend dataset data_dir batch_size "
    "val_batch_size workers mean std val_fraction limit_train_batches limit_eval_batches no_aug "
    "scale ratio pad_crop hflip vflip color_jitter aa reprob remode recount interpolation "
    "train_interpolation crop_pct aug_repeats mixup cutmix cutmix_minmax mixup_prob "
    "mixup_switch_prob mixup_mode mixup_off_epoch smoothing epochs cooldown_epochs warmup_epochs "
    "opt opt_eps opt_betas momentum weight_decay clip_grad clip_mode sched lr warmup_lr min_lr "
    "decay_epochs decay_rate TET TET_means TET_lamb sync_bn model_ema model_ema_decay recompute "
    "initial_checkpoint seed amp compile output_dir print_freq save_freq resume test_only energy "
    "dont_save debug experiment device gpu multiprocessing_distributed world_size rank dist_url "
    "dist_backend local_rank"
)


def parsed(words):
    return train.get_parser().parse(shlex.split(words))


# ---- configurations


def test_every_configuration_is_here():
    assert len(CONFS) == 14
    assert (ROOT / "spike-driven-transformer").resolve() == FOLDER


@EVERY
def test_a_configuration_means_what_it_says(path):
    content = yaml.safe_load(path.read_text())
    names = settings.stored_name(TransformerSettings)
    wanted = settings.make(TransformerSettings, {names[k]: v for k, v in content.items()})
    asked = parsed(f"-c {path}")
    wanted, found = settings.flat(wanted), settings.flat(asked)
    assert found == wanted | {"config": str(path)}
    assert {names[key] for key in content} < asked.given


@EVERY
def test_a_configuration_tells_command_result_and_cost(path):
    head = path.read_text().partition("\n\n")[0]
    assert path.name in head
    for word in ("command", "published", "cost"):
        assert word in head
    script = "firing_num.py" if "evaluation" in head else "train.py"
    assert f" {script} " in head


@EVERY
def test_a_configuration_is_named_by_steps_and_lanes(path):
    asked = parsed(f"-c {path}")
    network = asked.network
    assert f"_t{network.time_steps}" in path.name
    assert network.mlif_channels == (3 if "_c3" in path.name else 1)
    net = build(asked, {"num_classes": 10, "image_size": asked.data.image_size})
    assert net.act.steps == network.time_steps
    assert (net.built["depth"], net.built["pooling"]) == (network.layer, network.pooling_stat)


def test_the_command_line_overrides_the_configuration():
    path = FOLDER / "conf/cifar10/2_512_300E_t4_c3.yml"
    asked = parsed(f"--lr 0.5 -c {path} --time-steps 7")
    assert asked.training.learning_rate == 0.5
    assert asked.network.time_steps == 7
    assert asked.training.epochs == 300


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("layr: 2", "unknown key 'layr'; did you mean layer?"),
        ("attn_mode: sdsa", "unknown key 'attn_mode'; there is one attention"),
        ("drop: 0", "unknown key 'drop'; it had no effect in the published code"),
        ("drop: 0\ngp: avg", "in the published code, unknown key 'gp'; it had no effect"),
        ("local_rank: 0", "unknown key 'local_rank'; a launcher gives it"),
        ("model-ema: maybe", "model-ema must be true or false, got 'maybe'"),
        ("- a", "must hold lines of `key: value`"),
        ("lr: fast", "expected float, got 'fast'"),
        ("a: [", "is not a readable YAML file"),
        ("spike_mode: alif", "alif"),
    ],
)
def test_configuration_mistakes(text, words, tmp_path, fails):
    (tmp_path / "c.yml").write_text(text)
    line = fails(train.main, f"-c {tmp_path}/c.yml")
    assert words in line
    assert str(tmp_path) in line or "--" in line


@pytest.mark.parametrize("value, amp", [("True", "fp16"), ("False", "none"), ("bf16", "bf16")])
def test_a_configuration_says_whether_there_is_an_autocast(value, amp, tmp_path):
    (tmp_path / "c.yml").write_text(f"amp: {value}")
    assert parsed(f"-c {tmp_path}/c.yml").compute.amp == amp


# ---- names and sizes


def test_old_names_of_stored_settings_are_known():
    names = settings.stored_name(TransformerSettings)
    assert [name for name in OLD_NAMES if name not in names] == []
    old = {"dataset": "torch/cifar100", "lr": 0.2, "data_dir": "here", "TET_lamb": 0.3}
    asked = settings.make(TransformerSettings, {names[key]: old[key] for key in old})
    assert (asked.data.dataset, asked.data.data_root) == ("CIFAR100", "here")
    assert (asked.training.learning_rate, asked.loss.lamb) == (0.2, 0.3)


def test_defaults_are_the_published_ones():
    asked = parsed("")
    assert asked.data.dataset == "CIFAR10"
    assert folder_of(asked.data) == str(ROOT / "data")
    assert asked.data.data_root == ""  # as a checkpoint keeps it
    assert asked.run.output_dir == "./output"
    assert (asked.batches.batch_size, asked.batches.val_batch_size) == (32, 64)
    assert (asked.training.epochs, asked.training.learning_rate) == (200, 0.01)
    assert (asked.training.weight_decay, asked.training.label_smoothing) == (1e-4, 0.1)
    assert (asked.loss.TET, asked.loss.lamb, asked.compute.seed) == (False, 0.0, 42)


def test_help_texts_stand_alone():
    for name, option in settings.options(TransformerSettings).items():
        # one option is not shown
        text = (option.help or "").lower()
        words = set(text.replace(",", " ").replace(";", " ").split())
        assert not words & {"it", "its", "they", "their"}, name
        assert "the same" not in text, name


@pytest.mark.parametrize(
    ("words", "sizes"),
    [
        ("--layer 3 --dim 64", (3, 64, "1111")),
        ("--model sdt_2_512_cifar", (2, 512, "0011")),
        ("--model sdt_8_512_imagenet --dim 512", (8, 512, "1111")),
    ],
)
def test_a_model_may_name_the_sizes(words, sizes):
    asked = parsed(words)
    network = asked.network
    assert (network.layer, network.dim, network.pooling_stat) == sizes
    assert f"sdt_{sizes[0]}_{sizes[1]}_cifar10" in str(train.result(asked))


@pytest.mark.parametrize("model", ["sdt_2_512_cifar", "sdt_8_512_imagenet"])
def test_a_model_with_a_name_has_the_neuron_that_timm_gives_it(model):
    """Unless an option names one."""
    theirs = timm.create_model(model, dim=16, num_classes=10)
    about = {"num_classes": 10, "image_size": 32}
    assert build(parsed(f"--model {model}"), about).act == theirs.act
    mode = parsed(f"--model {model}").network.spike_mode
    assert build(parsed(f"--model {model} --spike_mode {mode}"), about).act == theirs.act
    network = parsed(f"--model {model} --spike_mode lif").network
    assert (network.mlif_channels, network.scaled) == (1, False)
    assert network.time_steps == theirs.act.steps
    assert parsed(f"--model {model} --time_steps 2").network.time_steps == 2


def test_a_size_beside_another_is_refused():
    with pytest.raises(UseError, match="--dim 64 contradicts --model sdt_2_512_cifar"):
        parsed("--model sdt_2_512_cifar --dim 64")


@pytest.mark.parametrize("words", ["--sched step", "--dataset digits --image_size 32 --sched step"])
def test_the_command_line_overrides_a_file(words):
    """What the file says of the schedule then does nothing, and is no mistake of the user."""
    path = ROOT / "spike_driven_transformer/conf/cifar10/2_512_300E_t1_c3.yml"
    argv = ["-c", str(path), *words.split()]
    asked, _ = resume.read_settings(train.get_parser(), argv, train.rules)
    assert asked.schedule.sched == "step" and asked.schedule.cooldown_epochs == 10


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("", "output/sdt_4_512_cifar10_t4_lif.pth"),
        (
            "-d torch/cifar100 --spike_mode fast_mlif --mlif_channels 3 --time_steps 1 --output o",
            "o/sdt_4_512_cifar100_t1_fast_mlif_c3.pth",
        ),
        ("--experiment mine", "output/mine.pth"),
    ],
)
def test_the_result_is_named_by_what_it_is(words, name):
    assert str(train.result(parsed(words))) == name
