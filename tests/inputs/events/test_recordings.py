"""Event recordings: coding against golden numbers, loader, VGGSNN's scripts, what a user gets wrong."""

import hashlib
import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import energy
import reproduce
import snn_ddp
from engine import checkpoint
from engine.dist import World
from engine.loop import Trainer
from inputs import images as data
from inputs.events import coding
from inputs.events import recordings as dvs
from inputs.events.coding import Coding
from neuromorphic_tasks import main_test
from neuromorphic_tasks import main_training_parallel as training
from tests.helpers import GOLDEN, ROOT, command
from tests.models.test_vggsnn import state

NUMBERS = np.load(GOLDEN / "C_dvs_pack.npz")
FRAMES = torch.from_numpy(NUMBERS["frames"])[None]  # one recording, packed
TAGS = [k.removesuffix("_before_shape") for k in NUMBERS.files if k.endswith("_before_shape")]
SMALL = "--width_mult 0.0625 --device cpu --batch_size 4 --T_prime 10 --multi_channel 1 --num_channels 3 "


def digest(array):
    return hashlib.sha256(np.ascontiguousarray(array)).hexdigest()


def write_prepared(folder, counts=(10, 5), split="first900", classes=10):
    """A prepared folder of random recordings, each class denser than the one before."""
    rng, manifest = (
        np.random.default_rng(0),
        {"format": "mlif-dvs-1", "split": split, "source": "noise", "frames": 80},
    )
    folder.mkdir(parents=True)
    for part, count in zip(("train", "test"), counts):
        density = 0.02 + 0.02 * (np.arange(count) % classes)
        bits = (
            rng.random((count, 80, 2, 128, 128), dtype=np.float32)
            < density[:, None, None, None, None]
        )
        frames = np.packbits(bits, axis=-1)
        np.save(folder / f"{part}.npy", frames)
        manifest[part] = [
            {
                "file": f"{part}/{i}.aedat",
                "label": i % classes,
                "events": 8000,
                "sha256": digest(row),
            }
            for i, row in enumerate(frames)
        ]
    manifest |= {
        "sensor": [128, 128],
        "classes": [f"class{i}" for i in range(classes)],
        "versions": {},
        "skipped": [],
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return write_prepared(tmp_path_factory.mktemp("dvs") / "prepared")


def parsed(words):
    return training.get_parser().parse(shlex.split(words))


def loaders(prepared, words="", world=None):
    args = parsed(f"{SMALL} {words} --prepared {prepared}")
    return data.loaders(dvs.load(args), args, world or World(), dvs.EventLoader)


# ---- coding ----


def lanes_of(frames, lanes, count):
    frames = coding.unpack(coding.merge_frames(frames, count))
    return coding.split_lanes(coding.count(frames, lanes), lanes)[0]


@pytest.mark.parametrize("tag", TAGS)
def test_golden_lanes_and_resize(tag):
    """Lanes and the published resize are the published ones; of the plain resize polarity 1, which that one leaves alone."""
    lanes = lanes_of(FRAMES, int(tag[1]), int(tag.partition("Tp")[2]))
    assert lanes.shape == tuple(NUMBERS[f"{tag}_before_shape"])
    assert digest(np.packbits(lanes)) == NUMBERS[f"{tag}_before_sha256"]
    published = coding.resize(lanes, published=True)
    if f"{tag}_after_u8" in NUMBERS:
        assert np.array_equal(published, NUMBERS[f"{tag}_after_u8"])
    else:
        assert digest(published.to(torch.uint8)) == NUMBERS[f"{tag}_after_sha256"]
    assert (coding.resize(lanes)[:, :, 1] - published[:, :, 1]).abs().max() <= 1


def test_golden_plain_lif():
    first = coding.resize(coding.unpack(FRAMES[0, :4]), published=True)
    assert np.array_equal(first, NUMBERS["mc0_Tp0_after_u8"])
    assert digest(coding.encode(FRAMES, Coding(1, 10, True))[0]) == NUMBERS["mc0_Tp10_after_sha256"]


def test_resize_is_pillows():
    images = (
        np.random.default_rng(0).random((20, 2, 128, 128))
        < np.linspace(0.01, 0.9, 20)[:, None, None, None]
    )
    resized = coding.resize(torch.from_numpy(images))
    for got, pair in zip(resized, images):
        for polarity in (0, 1):
            want = Image.fromarray(pair[polarity] * np.uint8(255)).resize(
                (48, 48), Image.Resampling.BILINEAR
            )
            assert np.array_equal(got[polarity], want)


def test_counts_become_the_nearest_power():
    counts = torch.arange(9, dtype=torch.uint8).view(1, 9, 1, 1, 1)
    lanes = coding.split_lanes(counts, 4)[0, :, :, 0, 0, 0]
    assert (lanes.long() * torch.tensor([1, 2, 4, 8])).sum(1).tolist() == [
        0,
        1,
        2,
        4,
        4,
        4,
        8,
        8,
        8,
    ]
    assert lanes.sum(1).max() == 1


@pytest.mark.parametrize(
    ("lanes", "frames", "steps"),
    [
        (4, 80, 10),
        (3, 40, 10),
        (4, 40, 5),
        (3, 20, 5),
        (4, 20, 3),
        (3, 10, 3),
        (1, 80, 80),
        (1, 10, 10),
        (3, 9, 3),
        (4, 10, 2),
    ],
)
def test_steps(lanes, frames, steps):
    assert Coding(lanes, frames).steps == steps == len(lanes_of(FRAMES, lanes, frames))
    assert coding.encode(FRAMES, Coding(lanes, frames)).shape == (1, steps, 2, 48, 48)


def test_codes_merge_the_lanes():
    """Input of a step by hand: sum over the lanes of 2^k times the resized lane; the last group is filled up with zeros."""
    codes = coding.encode(FRAMES, Coding(4, 20))
    lanes = lanes_of(FRAMES, 4, 20)
    want = sum(2**k * coding.resize(lanes[:, k]) for k in range(4))
    assert codes.dtype == torch.int16 and torch.equal(codes[0].double(), want)
    frames = coding.unpack(coding.merge_frames(FRAMES, 20))[0]
    assert torch.equal(
        frames[0], coding.unpack(FRAMES[0, 0] | FRAMES[0, 1] | FRAMES[0, 2] | FRAMES[0, 3])
    )
    last = frames[16:].sum(0)
    assert torch.equal(
        lanes[2].long().mul(torch.tensor([1, 2, 4, 8]).view(4, 1, 1, 1)).sum(0),
        torch.where(last == 3, 4, last),
    )


def test_augmentation_is_flip_then_roll():
    codes = torch.arange(3 * 2 * 2 * 48 * 48).view(3, 2, 2, 48, 48)
    out = coding.augment(
        codes, torch.tensor([False, True, True]), torch.tensor([[5, 0, -3], [-2, 0, 4]])
    )
    assert torch.equal(out[0], codes[0].roll((5, -2), (-2, -1)))
    assert torch.equal(out[1], codes[1].flip(-2))  # y: the last axis of the published [p, x, y]
    assert torch.equal(out[2], codes[2].flip(-2).roll((-3, 4), (-2, -1)))


# ---- loader ----


def test_batches(prepared):
    """Evaluation shows every recording once as it was coded; later epochs, and no memory for codes, give the same."""
    train, choose, test = loaders(prepared)
    assert choose is test and (train.images, len(train), len(test)) == (10, 3, 2)
    seen = torch.cat([labels for _, labels, _ in test.epoch(0)])
    assert sorted(seen.tolist()) == [0, 1, 2, 3, 4]
    frames, labels, n = next(test.epoch(1))
    packed = torch.from_numpy(np.load(prepared / "test.npy"))
    assert frames.dtype == torch.float32 and n == 4
    assert torch.equal(frames, coding.encode(packed[labels], Coding(3, 10)).float() / 255)
    anew = loaders(prepared, "--cache_gb 0")[0]
    for _ in range(2):
        for (x, a, _), (y, b, _) in zip(train.epoch(3), anew.epoch(3), strict=True):
            assert torch.equal(x, y) and torch.equal(a, b)
    assert train.ready.all() and not len(anew.store)


def test_augmentation_depends_on_epoch_and_step_alone(prepared):
    train, packed = loaders(prepared)[0], torch.from_numpy(np.load(prepared / "train.npy"))
    epochs = {
        key: list(train.epoch(epoch)) for key, epoch in (("one", 1), ("again", 1), ("two", 2))
    }
    assert all(torch.equal(a[0], b[0]) for a, b in zip(epochs["one"], epochs["again"], strict=True))
    assert torch.equal(next(train.epoch(1, start=1))[0], epochs["one"][1][0])

    def moves(frames, labels, _):
        """(flip, roll in y, roll in x) of each recording, the same at all its steps."""
        found = []
        for got, codes in zip(frames, coding.encode(packed[labels], Coding(3, 10)), strict=True):
            found += [
                (flip, y, x)
                for flip in (0, 1)
                for y in range(-5, 6)
                for x in range(-5, 6)
                if torch.equal(
                    got, (codes.flip(-2) if flip else codes).roll((y, x), (-2, -1)).float() / 255
                )
            ]
        assert len(found) == len(frames)
        return found

    batches = [epochs["one"][0], epochs["one"][1], epochs["two"][0]]
    assert len({tuple(moves(*batch)) for batch in batches}) == 3


def test_shares_of_two_processes_are_the_batch_of_one(prepared):
    alone = list(loaders(prepared)[0].epoch(1))
    pair = [list(loaders(prepared, world=World(rank, 2))[0].epoch(1)) for rank in (0, 1)]
    for (x, labels, n), (a, b) in zip(alone, zip(*pair, strict=True), strict=True):
        assert (
            torch.equal(x, torch.cat([a[0], b[0]]))
            and torch.equal(labels, torch.cat([a[1], b[1]]))
            and a[2] == n
        )


def test_held_back_recordings_are_not_trained_on(prepared):
    train, choose, test = loaders(prepared, "--val_fraction 0.3")
    rows = [set(part.part.rows.tolist()) for part in (train, choose)]
    assert (
        len(rows[0]) == 7
        and len(rows[1]) == 3
        and not rows[0] & rows[1]
        and len(test.part.labels) == 5
    )
    assert train.part.labels.tolist() == [i % 10 for i in train.part.rows.tolist()]


# ---- scripts ----

README = [
    line
    for line in (ROOT / "README.md").read_text().splitlines()
    if "main_training_parallel.py --" in line
]


@pytest.mark.parametrize(("line", "steps"), zip(README, (10, 10, 5, 5, 3, 3, 10), strict=True))
def test_readme_commands(line, steps, prepared, tmp_path):
    """As written, at the true width: one epoch of two batches of one recording."""
    words = shlex.split(line)[2:]
    summary = training.main(
        [
            *words,
            *shlex.split(
                f"--prepared {prepared} --epochs 1 -b 1 --limit_train_batches 2 --device cpu "
                f"--limit_eval_batches 1 --output_dir {tmp_path}"
            ),
        ]
    )
    assert summary["Q_F"] == steps and summary["network"]["width_mult"] == 1
    lanes = f"C{summary['S']}" if "--multi_channel 1" in line else "LIF"
    assert (
        Path(summary["checkpoint"]).name
        == f"vggsnn_dvscifar10_first900_T{summary['T_F']}_{lanes}.pth"
    )
    assert checkpoint.load(summary["checkpoint"])["data"]["split"] == "first900"


def test_train_and_test_in_their_folder(prepared, scripts):
    """The scripts as a user starts them; the test finds what the training wrote, and measures the same accuracy."""
    options = f"{SMALL} --prepared {prepared} --output_dir {scripts}/out"
    done = command(
        f"python3 main_training_parallel.py {options} --epochs 1 --energy && python3 main_test.py {options}",
        ROOT / "neuromorphic_tasks",
        path=scripts,
    )
    assert done.returncode == 0, done.stderr
    stem = scripts / "out" / "vggsnn_dvscifar10_first900_T10_C3_w0.0625"
    summary = json.loads(next(stem.parent.glob("*/summary.json")).read_text())
    measured = json.loads(stem.with_name(f"{stem.name}_test.json").read_text())
    assert (
        f"accuracy {summary['best_accuracy']:.2%} on 5 images" in done.stdout
        and summary["Q_F"] == 3
    )
    assert (
        summary["energy_uj"] == pytest.approx(measured["total_uj"]) and len(measured["layers"]) == 9
    )
    assert stem.with_name(f"{stem.name}_test.png").is_file()


def test_a_row_of_the_table(prepared, tmp_path, capsys):
    argv = f"--schedule smoke --width_mult 0.0625 --data_root {prepared} --device cpu --output_dir {tmp_path}".split()
    for _ in range(2):
        reproduce.main(["dvscifar10-vggsnn-s3-q3", *argv])
        said = capsys.readouterr().out
        assert (
            "dvscifar10-vggsnn-s3-q3: DVS-CIFAR10, split first900, width x0.0625, smoke" in said
            and "79.80" in said
        )
    assert (
        "s3_q3: done before" in said
        and (tmp_path / "results" / "dvscifar10-vggsnn-s3-q3.w0.0625.smoke.json").is_file()
    )


def test_a_recording_is_drawn(prepared, tmp_path):
    dvs.main(
        shlex.split(
            f"--prepared {prepared} --part test --index 1 --num_channels 4 --output {tmp_path}/x.png"
        )
    )
    assert (
        Image.open(tmp_path / "x.png").size[0] > 400
        and "<svg" in (tmp_path / "x.svg").read_text()[:400]
    )


def test_simulated_recordings_have_checkpoints_of_their_own(prepared):
    args = parsed("--T_prime 0 --multi_channel 1 --num_channels 4")
    assert args.T_prime == 80
    assert (
        training.result(args, {"split": "random-1", "simulated": True}).name
        == "vggsnn_simulated_random-1_T80_C4.pth"
    )
    assert (
        training.result(args, {"split": "first900"}).name == "vggsnn_dvscifar10_first900_T80_C4.pth"
    )
    about = dvs.load(parsed(f"--prepared {prepared}")).about
    assert not about["simulated"] and about["split"] == "first900"


@pytest.mark.parametrize("words", ["", "--multi_channel 0 --TET false"])
def test_resume(words, prepared, tmp_path):
    """Cut off inside the second epoch and resumed, a run ends bit for bit as the uninterrupted one."""
    options = f"{SMALL.replace('--multi_channel 1 --num_channels 3', words or '--multi_channel 1 --num_channels 3')} "
    options += f"--prepared {prepared} --epochs 3 --limit_eval_batches 1 --save_freq 1 --debug"
    whole = training.main(shlex.split(f"{options} --output_dir {tmp_path}/a"))

    class Stop(Exception):
        pass

    kept = Trainer.save_last
    try:

        def stop(self):
            kept(self)
            if (self.epoch, self.step) == (2, 2):
                raise Stop

        Trainer.save_last = stop
        with pytest.raises(Stop):
            training.main(shlex.split(f"{options} --output_dir {tmp_path}/b"))
    finally:
        Trainer.save_last = kept
    (run,) = (p for p in (tmp_path / "b").iterdir() if p.is_dir())
    training.main(["--resume", str(run)])
    first, second = (checkpoint.load(Path(p) / "last.pth") for p in (whole["run"], run))
    assert all(torch.equal(v, second["model"][k]) for k, v in first["model"].items())
    assert first["training"]["optimizer"]["state"][0]["exp_avg"].equal(
        second["training"]["optimizer"]["state"][0]["exp_avg"]
    )


def test_compiled_steps_learn_the_same(prepared, tmp_path, monkeypatch):
    """With --compile whole batches go through the traced step (here by its eager backend), the last, smaller one does not."""
    original, calls = torch.compile, []

    def traced(net, **_):
        fast = original(net, backend="eager")
        monkeypatch.setattr(
            fast, "forward", lambda x, inner=fast.forward: calls.append(len(x)) or inner(x)
        )
        return fast

    options = f"{SMALL} --prepared {prepared} --epochs 1 --limit_eval_batches 1 --amp none"
    plain = training.main(shlex.split(f"{options} --output_dir {tmp_path}/a"))
    monkeypatch.setattr(torch, "compile", traced)
    compiled = training.main(shlex.split(f"{options} --output_dir {tmp_path}/b --compile"))
    first, second = (
        checkpoint.load(Path(s["run"]) / "last.pth")["model"] for s in (plain, compiled)
    )
    assert calls == [4, 4] and all(
        torch.allclose(v, second[k], atol=1e-5) for k, v in first.items()
    )


def test_published_weights_are_measured(prepared, tmp_path):
    torch.save(state("mc1_S3"), tmp_path / "published.pth")
    options = f"{SMALL.replace('0.0625', '0.125')} --prepared {prepared}"
    measured = main_test.main(shlex.split(f"{options} --checkpoint {tmp_path}/published.pth"))
    tested = training.main(
        shlex.split(f"{options} --test_only --pretrained_snn {tmp_path}/published.pth")
    )
    assert (
        measured["test_loss"] == pytest.approx(tested["test_loss"]) and measured["test_images"] == 5
    )
    assert (tmp_path / "published_test.csv").is_file()


def test_a_checkpoints_settings_hold_in_every_test(prepared, tmp_path):
    """Its lanes, frames and width need not be given again; the folder of its recordings may have another name."""
    summary = training.main(
        shlex.split(
            f"{SMALL} --prepared {prepared} --epochs 1 --output_dir {tmp_path} --val_fraction 0.3"
        )
    )
    shutil.copytree(prepared, tmp_path / "moved")
    here = f"--device cpu --batch_size 4 --prepared {tmp_path}/moved "
    tested = training.main(
        shlex.split(f"{here} --test_only --pretrained_snn {summary['checkpoint']}")
    )
    measured = main_test.main(shlex.split(f"{here} --seed 3 --checkpoint {summary['run']}"))
    named = json.loads((Path(summary["run"]) / "best_test.json").read_text())
    assert named["test"]["images"] == 5 and named["test_accuracy"] == tested["test_accuracy"]
    assert tested["test_loss"] == pytest.approx(measured["test_loss"])
    assert (
        measured["test_accuracy"]
        == tested["test_accuracy"]
        == pytest.approx(summary["test_accuracy"])
    )


def test_recipe_by_hand():
    """Adam without AMSGrad; the rate is a cosine from lr to 0, stepped after every epoch."""
    recipe, net = training.TETRecipe(parsed("--epochs 300")), torch.nn.Linear(2, 2)
    optimizer = recipe.optimizer(net)
    rates = [recipe.set_rate(optimizer, epoch) for epoch in (1, 76, 151, 300)]
    assert rates == pytest.approx([1e-3, 8.5355e-4, 5e-4, 2.7415e-8], rel=1e-4)
    assert optimizer.defaults["weight_decay"] == 0 and not optimizer.defaults["amsgrad"]
    out, labels = torch.randn(3, 4, 10), torch.tensor([1, 2, 3, 4])
    plain = training.TETRecipe(parsed("--TET false")).loss(out, labels)
    assert plain.item() == pytest.approx(
        4 * torch.nn.functional.cross_entropy(out.mean(0), labels).item()
    )


def test_published_defaults():
    args = parsed("--TET True -j 4 -b 128 --lr 0.001")
    assert (args.epochs, args.batch_size, args.seed, args.lamb, args.means) == (
        300,
        128,
        1000,
        1e-3,
        1.0,
    )
    assert (args.multi_channel, args.num_channels, args.T_prime, args.learning_rate, args.TET) == (
        0,
        1,
        10,
        1e-3,
        True,
    )
    args = main_test.get_parser().parse([])
    assert (args.multi_channel, args.num_channels, args.T_prime) == (1, 2, 5)


# ---- mistakes ----


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--prepared {d}/absent", ("no prepared recordings in {d}/absent", "dvscifar_prepare.py")),
        ("--split other", ("prepared/other", "manifest.json")),
        ("--prepared {p} --split other", ("holds the split 'first900'", "'other'")),
        ("--prepared {p} --T_prime 81", ("--T_prime", "<= 80")),
        ("--prepared {p} --width_mult inf", ("--width_mult", "<= 16")),
        ("--prepared {p} --means nan", ("--means", "finite")),
        ("--prepared {p} --seed 99999999999", ("--seed", "<= 2147483647")),
        (
            "--prepared {p} --multi_channel 1 --num_channels 5 --T_prime 10",
            ("16 frames", "at most 4 lanes"),
        ),
        ("--prepared {p} --num_channels 3", ("--num_channels does nothing here",)),
        ("--prepared {p} --TET false --lamb 0.1", ("--lamb does nothing here",)),
        ("--prepared {p} --start_epoch 3", ("--start_epoch does nothing here", "--resume")),
        ("--prepared {p} --test_only", ("--pretrained_snn",)),
        ("--prepared {p} --pretrained_snn {d}/absent.pth", ("no checkpoint at",)),
        ("--prepared {p} --neuron_backend cupy", ("--neuron_backend cupy",)),
        (
            "--prepared {p} --val_fraction 0.01",
            ("--val_fraction 0.01 of 10 training images holds back 0",),
        ),
    ],
)
def test_command_line_mistakes(words, expected, prepared, tmp_path, fails):
    fails(
        training.main,
        (words + " --device cpu").format(p=prepared, d=tmp_path),
        *(e.format(d=tmp_path) for e in expected),
        keep=prepared,
    )


def spoil(folder, key, value):
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest[key] = value
    (folder / "manifest.json").write_text(
        json.dumps({k: v for k, v in manifest.items() if v is not None})
    )


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda d: (d / "manifest.json").unlink(), ("no prepared recordings", "no manifest.json")),
        (
            lambda d: (d / "manifest.json").write_text("{"),
            ("manifest.json is not a whole manifest",),
        ),
        (
            lambda d: spoil(d, "format", "mlif-dvs-9"),
            ("format 'mlif-dvs-9', expected 'mlif-dvs-1'",),
        ),
        (lambda d: spoil(d, "test", None), ("not a whole manifest", "test")),
        (lambda d: spoil(d, "test", []), ("must list training and test recordings",)),
        (
            lambda d: spoil(d, "train", [{"label": "1", "sha256": ""}]),
            ("not a whole manifest", "str"),
        ),
        (lambda d: spoil(d, "classes", ["a"]), ("labels from 0 to 0",)),
        (
            lambda d: spoil(d, "train", [{"label": 0, "sha256": ""}]),
            ("train.npy holds uint8 (2, 80", "(1, 80"),
        ),
        (lambda d: (d / "train.npy").unlink(), ("train.npy is missing or truncated",)),
        (
            lambda d: (d / "train.npy").write_bytes((d / "train.npy").read_bytes()[: 10**5]),
            ("train.npy is missing or truncated",),
        ),
        (
            lambda d: np.save(d / "test.npy", np.zeros((2, 80, 2, 128, 128), bool)),
            ("test.npy holds bool",),
        ),
        (lambda d: np.save(d / "test.npy", np.array([{}])), ("test.npy is missing or truncated",)),
    ],
)
def test_damaged_recordings(damage, words, tmp_path, fails):
    folder = write_prepared(tmp_path / "prepared", (2, 2), classes=2)
    damage(folder)
    fails(training.main, f"{SMALL} --prepared {folder}", *words)
    fails(dvs.main, f"--prepared {folder}", *words)


def test_checkpoints_that_do_not_fit(prepared, tmp_path, fails):
    folder = write_prepared(tmp_path / "three", (3, 3), "other", classes=3)
    options = f"{SMALL} --prepared {prepared} --output_dir {tmp_path}"
    path = training.main(shlex.split(f"{options} --epochs 1 --limit_train_batches 1"))["checkpoint"]
    test = f"--device cpu --prepared {prepared} --checkpoint {path} "
    fails(main_test.main, test + "--T_prime 20", "was trained with --T_prime 10, not 20")
    fails(main_test.main, test + "--multi_channel 0", "was trained with --multi_channel 1, not 0")
    fails(main_test.main, test + "--split other", "was trained with --split first900, not other")
    fails(
        main_test.main,
        f"--device cpu --prepared {folder} --checkpoint {path}",
        "holds the split 'other'",
    )
    fails(
        main_test.main,
        f"--device cpu --prepared {folder} --output_dir {tmp_path}",
        "vggsnn_dvscifar10_other_T5_C2.pth",
    )
    tested = f"--device cpu --prepared {prepared} --test_only --pretrained_snn {path} "
    fails(
        training.main,
        tested + "--T_prime 20",
        "was trained with --T_prime 10, not 20",
        "another --pretrained_snn",
    )
    fails(
        training.main,
        tested + "--multi_channel 1 --num_channels 2",
        "was trained with --num_channels 3, not 2",
    )
    swapped = write_prepared(tmp_path / "swapped", (5, 10))  # of other recordings in either part
    for main, words in ((main_test.main, test), (training.main, tested)):
        fails(
            main,
            words.replace(str(prepared), str(swapped)),
            f"{path} has 5 test recordings, {swapped} holds 10 others",
        )
    fails(
        main_test.main, test + "--limit_train_batches 2", "--limit_train_batches does nothing here"
    )
    fails(training.main, f"{options} --width_mult 0.125 --pretrained_snn {path}", "of another size")
    fails(
        training.main,
        f"{SMALL} --prepared {folder} --pretrained_snn {path}",
        "of another class count",
    )
    fails(dvs.main, f"--prepared {prepared} --index 10", "recordings 0 to 9")
    fails(
        dvs.main, f"--prepared {prepared} --output {tmp_path}/x.jpg", "x.jpg", "as .png and as .svg"
    )
    run = next(p for p in tmp_path.glob("vggsnn*") if p.is_dir())
    fails(
        training.main,
        f"--resume {run} --prepared {folder}",
        "the train images are not those of the interrupted run",
    )
    fails(energy.main, path, "holds a vggsnn: measure it with neuromorphic_tasks/main_test.py")
    fails(
        snn_ddp.main,
        f"--dataset DIGITS --device cpu --pretrained_snn {path}",
        "holds a vggsnn, expected a vgg16",
    )
