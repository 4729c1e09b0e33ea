"""The simulated camera: what it records of an image, and the recordings of a data set."""

import shutil

import numpy as np
import pytest

from engine.errors import UseError, guard
from inputs.events import simulate
from inputs.events.formats import Events, read, write
from inputs.events.simulate import CameraOptions
from neuromorphic_tasks.data import simulate as script
from tests.conftest import digests
from tests.inputs.events.made import columns, manifest_of, prepare


def image(seed=0):
    return np.random.default_rng(seed).integers(0, 256, (32, 32, 3), np.uint8)


def record(image, seed=0, **options):
    """Columns (t, x, y, p) of a recording."""
    return simulate.record(image, CameraOptions(**options), np.random.default_rng(seed))


# ---- the camera ----


def test_recordings_are_read_back_exactly(tmp_path):
    made = Events(tmp_path / "a.aedat", *record(image(), 3, events=5000, noise=1.0))
    write(made.path, made)
    events = read(made.path)
    assert columns(events) == columns(made)
    assert len(events) == 5000 and events.steps_back == 0


def test_a_recording_depends_on_the_generator_alone():
    first, again, other = (
        columns(Events("", *record(image(), seed, events=5000, noise=1.0))) for seed in (3, 3, 4)
    )
    assert first == again != other


def test_the_camera_follows_the_intensity():
    """The events of every pixel add up to the change of the log intensity, at any time.

    To within a threshold, and the first level is random by one half of it.
    """
    threshold, seen = 0.15, simulate.scenes(image(1))
    t, x, y, p = record(image(1), events=400_000, threshold=threshold, noise=0.0)
    for step in (1, 7, 24, 47):
        until = t < step * simulate.LOOP // simulate.STEPS
        assert until.sum() > 100 and not until.all()
        total = np.zeros((128, 128))
        np.add.at(total, (x[until], 127 - y[until]), threshold * (2.0 * p[until] - 1))
        assert np.abs(total - (seen[step] - seen[0])).max() < 1.5 * threshold + 1e-4


def test_crossing_times_are_interpolated(monkeypatch):
    ramp = np.zeros((simulate.STEPS, 128, 128), np.float32)
    ramp[1:, 3, 5] = 1  # one pixel: 0 -> 1 within the first step
    monkeypatch.setattr(simulate, "scenes", lambda _: ramp)
    t, x, y, p = record(None, events=4, threshold=0.25, noise=0.0)
    assert set(x) == {3} and set(y) == {127 - 5}
    assert p.tolist()[:3] == [1, 1, 1]
    width = simulate.LOOP / simulate.STEPS
    assert np.abs(np.diff(t[:3]) - width / 4).max() <= 1
    assert 0 < t[0] < 1.5 / 4 * width


BLANK = np.full((8, 8, 3), 90, np.uint8)


def test_a_blank_image_without_noise_is_refused():
    with pytest.raises(UseError, match=r"^0 events, and no more by further rounds"):
        record(BLANK, events=100, noise=0.0)


def test_a_picture_that_falls_silent_is_refused():
    """Its square is too faint for the threshold; where a pixel starts may be near enough."""
    faint = BLANK.copy()
    faint[2:6, 2:6] += 20
    with pytest.raises(UseError, match=r"^\d\d+ events, and no more by further rounds"):
        record(faint, events=100_000, noise=0.0, threshold=0.15)


def test_a_blank_image_gives_noise_alone():
    t, x, _, p = record(BLANK, events=20_000, noise=2.0)
    rate = 20_000 / (t[-1] / 1e6) / 128**2  # per pixel and second
    assert rate == pytest.approx(2.0, rel=0.05)
    assert abs(p.mean() - 0.5) < 0.02
    assert len(set(x)) == 128


# ---- the data set ----


SMALL = "--per_class 2 --events 500 --workers 2"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two recordings of each digit."""
    folder = tmp_path_factory.mktemp("made")
    guard(script.main, f"--output {folder} {SMALL}".split())
    return folder


def test_an_interrupted_run_goes_on(made, tmp_path):
    shutil.copytree(made, tmp_path / "made")
    (tmp_path / "made/dog/cifar10_dog_1.aedat").unlink()
    argv = f"--output {tmp_path}/made {SMALL}".replace("--workers 2", "--workers 1")
    guard(script.main, argv.split())

    def below(folder):
        return {path.replace(str(folder), ""): digest for path, digest in digests(folder).items()}

    assert below(tmp_path / "made") == below(made)
    assert len(below(made)) == 21


def test_recordings_of_other_settings_are_kept(made, fails):
    words = "were not made with these settings"
    fails(script.main, f"--output {made} {SMALL} --seed 1", words, keep=made)


def test_more_recordings_than_images(fails, tmp_path):
    words = "--per_class 999: scikit-learn digits has 178 images"
    fails(script.main, f"--output {tmp_path}/x --per_class 999", words)


def test_digits_need_no_folder(fails, tmp_path):
    argv = f"--output {tmp_path}/x {SMALL} --data_root x"
    fails(script.main, argv, "--data_root does nothing here")


def test_the_output_must_be_named(fails):
    fails(script.main, SMALL, "the following arguments are required: --output")


def test_they_are_prepared_and_said_to_be_simulated(made, tmp_path, capsys):
    prepare(made, tmp_path)
    assert "note:" not in capsys.readouterr().out
    manifest = manifest_of(tmp_path)
    assert manifest["simulated"]["images"] == "scikit-learn digits"
    assert manifest["simulated"]["events"] == 500
    assert [entry["label"] for entry in manifest["train"]] == list(range(10))
    assert manifest["train"][0]["events"] == 500


def test_the_seed_changes_every_recording(made, tmp_path):
    guard(script.main, f"--output {tmp_path} --per_class 1 --events 500 --seed 1".split())
    name = "cat/cifar10_cat_0.aedat"
    assert not np.array_equal(read(tmp_path / name).t, read(made / name).t)


def test_cifar10_is_recorded(cifar, tmp_path, capsys):
    argv = f"--dataset CIFAR10 --data_root {cifar} --output {tmp_path} --per_class 1 --events 300"
    guard(script.main, argv.split())
    assert len(list(tmp_path.glob("*/*.aedat"))) == 10
    assert "CIFAR-10 (JPEG copy)" in capsys.readouterr().out
