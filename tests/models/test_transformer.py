"""The spike-driven transformer: golden numbers, parts, its scripts and configurations."""

import math
import shlex
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml

import models
from analysis.energy import E_AC, E_MAC, Counter, macs_of
from engine.recipes.timm_parts import TimmRecipe
from models import layers, transformer
from spike_driven_transformer import firing_num, train
from tests.helpers import GOLDEN, ROOT, command, image_folder

NUMBERS = np.load(GOLDEN / "B3_sdt_dim64_L1.npz")
STATE = {k[2:]: torch.from_numpy(NUMBERS[k]) for k in NUMBERS.files if k.startswith("w/")}
FOLDER = ROOT / "spike_driven_transformer"
SMALL = (
    "--dim 16 --layer 1 --pooling_stat 0011 --time_steps 2 --spike_mode mlif --mlif_channels 3 --scaled true "
    "--sched cosine --opt adamw --lr 1e-3 --workers 0 --scale 1 1 --ratio 1 1 --color_jitter 0 --limit_eval_batches 1 "
    "--device cpu "
)


def small(mode="mlif", steps=2, **arguments):
    torch.manual_seed(0)
    act = transformer.neurons(mode, 1 if mode.endswith("lif") and "m" not in mode else 3, steps)
    return models.build("sdt", act, **{"dim": 16, "depth": 1} | arguments)


@pytest.mark.parametrize("mode", ["mlif", "fast_mlif"])
def test_golden(mode):
    """Logits and gradients in both modes, and the nonzero rate of every counted layer at each step."""
    net = timm.create_model(
        "sdt", spike_mode=mode, mlif_channels=3, time_steps=2, scaled=True, dim=64, depth=1
    )
    net.load_state_dict(transformer.from_published(STATE, net))
    tag, x = f"{mode}_T2_S3_sc1", torch.from_numpy(NUMBERS["x"])
    with torch.no_grad(), Counter(net.eval()) as counter:
        assert (net(x) - torch.from_numpy(NUMBERS[f"{tag}_eval_logits"])).abs().max() <= 1e-5
    layers = counter.energy().layers
    rows = [layers[0], *layers[1:5], layers[5], *layers[8:]]  # q, k and v share one counted input
    hooks = [k.rpartition("/")[2] for k in NUMBERS.files if k.startswith(f"{tag}_hooknztrue/")]
    assert len(rows) == len(hooks)
    for row, hook in zip(rows, hooks):
        assert row.step_rates == pytest.approx(
            NUMBERS[f"{tag}_hooknztrue/{hook}"].tolist(), abs=1e-6
        )
        assert (
            row.macs * (3 if "kqv_conv" in hook and "after" not in hook else 1)
            == NUMBERS[f"hookflops/{hook}"]
        )
    net.train()
    out = net(x)
    assert (out - torch.from_numpy(NUMBERS[f"{tag}_train_logits"])).abs().max() <= 1e-5
    torch.nn.functional.cross_entropy(out, torch.from_numpy(NUMBERS["target"]).long()).backward()
    grads = {name: p.grad for name, p in net.named_parameters()}
    for key in (k for k in NUMBERS.files if k.startswith(f"{tag}_grad/")):
        marks = {
            k: torch.full(v.shape, float(k == key.partition("/")[2])) for k, v in STATE.items()
        }
        (name,) = (
            k
            for k, v in transformer.from_published(marks, net).items()
            if k in grads and v.min() == 1
        )
        want = torch.from_numpy(NUMBERS[key])
        assert (grads[name] - want).abs().max() <= 1e-4 * want.abs().max(), key


def test_golden_readout_of_every_step():
    net = timm.create_model(
        "sdt",
        spike_mode="mlif",
        mlif_channels=3,
        time_steps=2,
        scaled=True,
        dim=64,
        depth=1,
        tet=True,
    )
    net.load_state_dict(transformer.from_published(STATE, net))
    with torch.no_grad():
        out = net.eval()(torch.from_numpy(NUMBERS["x"]))
    assert (out - torch.from_numpy(NUMBERS["mlif_T2_S3_sc1_eval_TET_logits"])).abs().max() <= 1e-5


@pytest.mark.parametrize(
    ("name", "macs", "key"),
    [
        ("sdt_2_512_cifar", 1_234_899_968, "sdt_2_512_cifar10"),
        ("sdt_8_512_imagenet", 8_256_671_744, "sdt_8_512_imagenet"),
    ],
)
def test_published_macs(name, macs, key):
    rows = []
    net = timm.create_model(name, time_steps=1).to("meta").eval()
    for m in net.modules():
        if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear)):
            m.register_forward_hook(lambda m, i, o: rows.append(macs_of(m, o)))
        elif isinstance(m, models.SpikingLayer):
            m.forward = lambda x: x
    size = 32 if "cifar" in name else 224
    net(torch.empty(1, 3, size, size, device="meta"))
    assert sum(rows) == macs
    golden = np.load(GOLDEN / "D_macs.npz")[f"{key}_flops_i64"]
    assert sum(rows) == golden.sum()


def test_energy_is_billed_as_published():
    """The stem at 4.6 pJ by the image's own nonzero rate at every step, all else at 0.9 pJ by the spikes' rate."""
    net, x = small(steps=3).eval(), torch.randn(2, 3, 32, 32)
    x[:, :, :16] = 0
    with torch.no_grad(), Counter(net) as counter:
        net(x)
    energy = counter.energy()
    first, *rest = energy.layers
    assert first.step_rates == [0.5] * 3 and first.energy_uj == pytest.approx(
        E_MAC * 1.5 * first.macs * 1e-6
    )
    assert energy.total_uj == pytest.approx(
        first.energy_uj + sum(E_AC * r.rate * r.macs for r in rest) * 1e-6
    )


def test_one_lane_agrees_with_spikingjelly():
    """The same weights with our neuron of one lane and with SpikingJelly's LIF: the same spikes, so the same logits."""
    config = models.NeuronConfig.transformer(1, fast=True)
    ours = models.build(
        "sdt", models.Spiking(config, 3, theta=1.0, leak=0.5, learn=False), dim=16, depth=1
    )
    theirs = models.build("sdt", models.LIF(3), dim=16, depth=1)
    for m in ours.modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(m.weight, 2.0, 0.5)
    theirs.load_state_dict({k: v for k, v in ours.state_dict().items() if k in theirs.state_dict()})
    x = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(ours(x), theirs(x))


@pytest.mark.parametrize("mode", transformer.MODES)
def test_every_parameter_learns(mode):
    net = small(mode)
    for m in net.modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            torch.nn.init.constant_(m.weight, 3.0)
    net(torch.randn(8, 3, 32, 32)).square().sum().backward()
    assert [n for n, p in net.named_parameters() if p.grad is None] == []


def test_drop_path_drops_whole_images_at_all_steps():
    drop = layers.HeldDropout(0.5, 3, whole=True)
    y = drop(torch.ones(3 * 40, 2, 1, 1)).view(3, 40, 2)
    assert set(y.unique().tolist()) == {0.0, 2.0} and (y == y[:1, :, :1]).all()
    assert small(drop_path=0.2, depth=3).stages[-3].drop.p == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"dim": 20}, "dim 20, num_heads 8"),
        ({"pooling": "012"}, "four digits"),
        ({"img_size": 34}, "multiple of 4, got 34"),
    ],
)
def test_network_refuses(arguments, words):
    with pytest.raises(ValueError, match=words):
        small(**arguments)


def test_neurons_refuse():
    with pytest.raises(ValueError, match="lif has one lane, got mlif_channels 3"):
        transformer.neurons("lif", 3)
    with pytest.raises(
        ValueError, match="spike_mode must be one of lif, plif, mlif, fast_mlif, got 'alif'"
    ):
        transformer.neurons("alif")


def test_weights_of_another_size_are_refused():
    net = small()
    with pytest.raises(ValueError, match=r"of another size\): .* is .*expected"):
        transformer.from_published(STATE, net)
    state = {k: v for k, v in STATE.items() if "q_conv" not in k}
    net = models.build("sdt", transformer.neurons("mlif", 3, 2), dim=64, depth=1)
    with pytest.raises(ValueError, match=r"1 missing.* no stages\.7\.q\.synapse\.map\.weight"):
        transformer.from_published(state, net)


# ---- recipe ----


def parsed(words):
    parser = train.get_parser()
    return parser.parse(train.with_config(parser, shlex.split(words)))


def test_schedule_is_the_published_one():
    """Linear to epoch 20, cosine on the unshifted epoch, cool-down at the minimum; published values, epochs from 0."""
    args = parsed(f"-c {FOLDER}/conf/cifar10/2_512_300E_t4_c3.yml")
    net = torch.nn.Linear(2, 2)
    recipe = TimmRecipe(args, 10, net)
    optimizer = recipe.optimizer(net)
    rates = [recipe.set_rate(optimizer, epoch) for epoch in range(1, recipe.epochs + 1)]
    assert len(rates) == 310
    for epoch, rate in {
        0: 1e-6,
        10: 1.505e-4,
        19: 2.8505e-4,
        20: 2.9683e-4,
        150: 1.55e-4,
        200: 8.25e-5,
        300: 1e-5,
    }.items():
        assert rates[epoch] == pytest.approx(rate, rel=1e-4)
    assert {g["weight_decay"] for g in optimizer.param_groups} == {0.0, 0.06}


def test_tet_loss_by_hand():
    args = parsed("--TET --TET_lamb 0.1 --smoothing 0")
    out, labels = torch.randn(3, 2, 5), torch.tensor([1, 4])
    entropy = torch.stack([torch.nn.functional.cross_entropy(y, labels) for y in out]).mean()
    want = 0.9 * entropy + 0.1 * (out - 1).square().mean()
    assert TimmRecipe(args, 5, torch.nn.Linear(1, 1)).loss(out, labels).item() == pytest.approx(
        2 * want.item(), rel=1e-5
    )


def test_mixing_ends_when_it_is_told_to():
    recipe = TimmRecipe(
        parsed("--mixup 0.5 --mixup_off_epoch 3 --smoothing 0"), 4, torch.nn.Linear(1, 1)
    )
    images, labels = torch.randn(6, 3, 4, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    mixed = [recipe.targets(images.clone(), labels, epoch)[0] for epoch in (3, 4)]
    assert not torch.equal(mixed[0], images) and torch.equal(mixed[1], images)
    assert recipe.loss(
        torch.zeros(6, 4), recipe.targets(images, labels, 4)[1]
    ).item() == pytest.approx(6 * math.log(4))


# ---- configurations and scripts ----

CONFS = sorted(FOLDER.glob("conf/*/*.yml"))


@pytest.mark.parametrize("path", CONFS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_every_configuration_is_parsed_and_says_what_it_is(path):
    assert len(CONFS) == 14
    args = parsed(f"-c {path}")
    for key, value in yaml.safe_load(path.read_text()).items():
        assert str(getattr(args, key)).lower() == str(value).lower() or float(
            getattr(args, key)
        ) == float(value), key
    head = path.read_text().partition("\n\n")[0]
    assert all(word in head for word in ("command", "published", "cost")) and path.name in head
    steps, lanes = args.time_steps, args.mlif_channels
    assert f"_t{steps}" in path.name and lanes == (3 if "_c3" in path.name else 1)
    net = train.build(args, {"num_classes": 10, "image_size": args.img_size})
    assert net.act.steps == steps


def test_dashed_folder_is_the_same():
    assert (ROOT / "spike-driven-transformer").resolve() == FOLDER


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("layr: 2", "unknown key 'layr'; did you mean layer?"),
        ("attn_mode: sdsa", "unknown key 'attn_mode'; there is one attention"),
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
    assert words in line and (str(tmp_path) in line or "--" in line)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("-c {d}/absent.yml", ("no configuration at {d}/absent.yml",)),
        ("--dataset digits --spike_mode lif --mlif_channels 3", ("lif has one lane", "use mlif")),
        ("--dataset digits --dim 20", ("dim 20",)),
        ("--dataset digits --img_size 30", ("--img_size 30", "32 pixels")),
        ("--dataset digits --pooling_stat 01", ("four digits",)),
        ("--dataset imagenet --data_dir {d}", ("{d}",)),
        ("--dataset digits --sync_bn --pooling_stat 0011", ("--sync_bn needs GPUs",)),
        ("--dataset digits --TET_lamb 0.1", ("--TET_lamb does nothing here",)),
        (
            "--dataset digits --cooldown_epochs 3",
            ("--cooldown_epochs does nothing here", "no cool-down"),
        ),
        *(
            (f"--dataset digits {idle}", (f"{idle.split()[0]} does nothing here", way))
            for idle, way in (
                ("--clip_mode agc", "--clip_grad"),
                ("--model_ema_decay 0.9", "--model_ema"),
                ("--decay_rate 0.5 --sched cosine", "cosine"),
                ("--decay_epochs 3 --sched tanh", "tanh"),
                ("--mixup_mode elem", "--mixup"),
                ("--recount 2", "--reprob"),
                ("--color_jitter 1 --aa rand-m9", "--aa"),
                ("--pad_crop 2 --no_aug", "--no_aug"),
                ("--crop_pct 0.9", "64 pixels"),
            )
        ),
        ("--dataset digits --pad_crop 4 --aa rand-m9", ("--pad_crop does nothing here",)),
        ("--dataset folder --data_dir {d}", ("--img_size",)),
        ("--dataset digits --test_only", ("--initial_checkpoint",)),
        (
            "--dataset digits --pooling_stat 0011 --initial_checkpoint {d}/absent.pth",
            ("no checkpoint at",),
        ),
        ("--dataset digits --model sdt_2_512_cifar --dim 64", ("contradicts --model",)),
        (
            "--dataset digits --spike_mode mlif --neuron_backend cupy",
            ("--neuron_backend cupy", "it runs on a CUDA GPU"),
        ),
        ("--dataset digits --spike_modus lif", ("did you mean --spike_mode?",)),
    ],
)
def test_command_line_mistakes(words, expected, tmp_path, fails):
    fails(
        train.main,
        (words + " --device cpu").format(d=tmp_path),
        *(e.format(d=tmp_path) for e in expected),
    )


def test_train_resume_and_measure(tmp_path, fails):
    """Three epochs, and one of them, killed by its limit and resumed, give the same weights; then firing_num."""
    options = (
        SMALL
        + "--dataset digits -b 64 --epochs 2 --cooldown_epochs 1 --warmup_epochs 1 --mixup 0.5 --model_ema "
    )
    options += "--limit_train_batches 3 --model_ema_decay 0.5 --TET --TET_lamb 0.001"
    whole = train.main(shlex.split(f"{options} --output {tmp_path}/a"))
    first = torch.load(Path(whole["run"]) / "last.pth", weights_only=True)

    class Stop(Exception):
        pass

    kept, count = TimmRecipe.after_step, []
    try:

        def stop(self, net):
            kept(self, net)
            count.append(1)
            if len(count) == 5:
                raise Stop

        TimmRecipe.after_step = stop
        with pytest.raises(Stop):
            train.main(shlex.split(f"{options} --output {tmp_path}/b --save_freq 1 --debug"))
    finally:
        TimmRecipe.after_step = kept
    (run,) = (p for p in (tmp_path / "b").iterdir() if p.is_dir())
    train.main(["--resume", str(run)])
    second = torch.load(run / "last.pth", weights_only=True)
    for part in (first["model"], first["training"]["recipe"]["average"]):
        other = (
            second["model"] if part is first["model"] else second["training"]["recipe"]["average"]
        )
        assert all(torch.equal(part[k], other[k]) for k in part)
    measured = firing_num.main(
        ["--resume", whole["checkpoint"], "--device", "cpu", "--limit_eval_batches", "1"]
    )
    assert measured["test_accuracy"] == pytest.approx(whole["best_accuracy"])
    assert len(measured["energy"].layers[3].step_rates) == 2
    assert (
        Path(whole["checkpoint"]).with_name(Path(whole["checkpoint"]).stem + "_firing.png").exists()
    )
    fails(
        firing_num.main,
        ["--resume", whole["checkpoint"], "--mixup", "0.5"],
        "--mixup does nothing here",
    )


def test_published_weights_are_measured(tmp_path):
    torch.save({"state_dict": STATE}, tmp_path / "weights.pth.tar")
    options = " --dim 64 --layer 1 --pooling_stat 0011 --time_steps 2 --spike_mode mlif --mlif_channels 3 --scaled true"
    lines = (
        options.replace("--", "\n")
        .replace(" 0011", ' "0011"')
        .replace(" ", ": ")
        .replace(": \n", "\n")
    )
    (tmp_path / "c.yml").write_text(f"dataset: digits{lines}\n")
    measured = firing_num.main(
        shlex.split(f"-c {tmp_path}/c.yml --resume {tmp_path}/weights.pth.tar --device cpu")
    )
    assert measured["test_images"] == 360
    tested = train.main(
        shlex.split(
            f"--dataset digits {options} --test_only --initial_checkpoint {tmp_path}/weights.pth.tar "
            "--device cpu"
        )
    )
    assert tested["test_accuracy"] == measured["test_accuracy"]


def test_augmented_images_are_the_same_for_any_number_of_workers(tmp_path):
    from argparse import Namespace

    from engine.dist import World

    batches = []
    for workers in (0, 2):
        args = parsed(
            f"--dataset digits --aa rand-m9-n1-mstd0.4-inc1 --reprob 0.5 --aug_repeats 2 -b 8 -j {workers} "
            "--limit_train_batches 2"
        )
        content, (loader, *_) = train.load_data(Namespace(**vars(args)), World())
        batches.append([images for images, _, _ in loader.epoch(1)])
        assert content.repeats == 2
    assert all(torch.equal(a, b) for a, b in zip(*batches, strict=True))
    images = batches[0][0]
    assert not torch.equal(images[0], images[1])  # the same image, augmented anew
    order = next(iter(loader.shares(1)))[1]
    assert order[0] == order[1]


README = [
    line for line in (ROOT / "README.md").read_text().splitlines() if "train.py -c conf/" in line
]
QUICK = "--dim 16 --epochs 1 --cooldown_epochs 0 --warmup_epochs 0 --limit_train_batches 2 --limit_eval_batches 1 --workers 0 "


@pytest.mark.parametrize("line", README[:6])
def test_readme_commands(line, scripts, cifar):
    """As written, in the dashed folder, on stand-in images; one epoch of two batches at a small width."""
    assert len(README) == 8
    if "cifar100" in line and not (cifar / "cifar100-jpeg").exists():
        for part, count in (("train", 200), ("test", 100)):
            image_folder(cifar / "cifar100-jpeg" / part, 100, count)
    done = command(
        f"{line} {QUICK} --data_dir {cifar} --batch_size 8 --device cpu --output {scripts}/out",
        ROOT / "spike-driven-transformer",
        path=scripts,
    )
    assert done.returncode == 0, done.stderr
    assert "best" in done.stdout and list((scripts / "out").glob("*.pth"))


def test_readme_commands_of_two_nodes(scripts, tmp_path):
    """Both commands at once, one process each, without srun: two gloo processes on this machine stand in for the nodes."""
    for part, count in (("train", 8), ("val", 4)):
        image_folder(tmp_path / "data" / part, 4, count, (240, 230), "jpg")
    both = [
        line.rstrip(" &")
        .replace("srun --exclusive -N 1 ", "")
        .replace("--nproc_per_node=2", "--nproc_per_node=1")
        .replace("CUDA_VISIBLE_DEVICES=0,1 ", "")
        for line in README[6:]
    ]
    both = [
        f"{line} {QUICK} --layer 1 --data_dir {tmp_path}/data --batch_size 2 --device cpu --output {scripts}/out"
        for line in both
    ]
    done = command(
        f"{both[0]} & first=$!; {both[1]}; second=$?; wait $first && exit $second",
        ROOT / "spike-driven-transformer",
        path=scripts,
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=29617,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("best") >= 1 and len(list((scripts / "out").glob("*.pth"))) == 1
