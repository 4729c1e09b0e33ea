"""Files as timm's trainer and the published scripts write them, metadata and all: each is loaded,
tested, and starts a training.
"""

from argparse import Namespace

import numpy as np
import pytest
import torch
from timm.utils import CheckpointSaver, NativeScaler

import absorb_bn
import ann_ddp
import snn_ddp
from engine import checkpoint
from spike_driven_transformer import firing_num, train
from tests.helpers import GOLDEN, cifar_copy
from tests.models import golden

SDT = np.load(GOLDEN / "B3_sdt_dim64_L1.npz")
ARGS = {
    "model": "sdt",
    "dim": 64,
    "layer": 1,
    "pooling_stat": "0011",
    "time_steps": 2,
    "spike_mode": "mlif",
    "mlif_channels": 3,
    "scaled": True,
}
SIZES = " ".join(f"--{name}={value}" for name, value in ARGS.items())
DIGITS = "-d digits --device cpu --workers 0 -vb 16 --limit_eval_batches 1 "
BRIEF = (
    "-b 16 --epochs 1 --warmup_epochs 0 --lr 0 --limit_train_batches 1 --no_aug --weight-decay 0"
)

CNN = "--dataset CIFAR10 --architecture RESNET20 --width_mult 0.125 --bias --device cpu "
STILL = "--epochs 1 --learning_rate 0 --weight_decay 0 --dropout 0 --batch_size 4 "
SPIKING = "--multi_channel 1 --num_channels 3 --timesteps 1 "


class Named(torch.nn.Module):
    """A network as a saver sees it: published names and tensors, in a distributed wrapper."""

    def __init__(self, state, prefix=""):
        super().__init__()
        self.state = {prefix + name: value for name, value in state.items()}
        trained = [value.clone() for value in state.values() if value.is_floating_point()]
        self.weights = torch.nn.ParameterList(trained)

    def state_dict(self):
        return self.state


def optimizer_of(net, kind=torch.optim.AdamW):
    """An optimizer with the state of one step."""
    optimizer = kind(net.parameters(), 0.1)
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    return optimizer


# ---- timm


def transformer():
    return {key[2:]: torch.from_numpy(SDT[key]) for key in SDT.files if key.startswith("w/")}


def spoiled(state):
    """Weights that no test would call the right ones."""
    return {name: torch.full_like(value, 7) for name, value in state.items()}


@pytest.fixture(params=["last", "average", "recovery"])
def timms(request, tmp_path):
    """A file of timm's `CheckpointSaver`: with an average, its other weights are wrong."""
    kind, state = request.param, transformer()
    average = Named(state) if kind == "average" else None
    net = Named(spoiled(state) if average else state, prefix="module.")
    args = Namespace(**ARGS, lr=3e-4, mean=(0.5, 0.5, 0.5), resume="", opt_betas=None, amp=True)
    scaler = NativeScaler(device="cpu")
    saver = CheckpointSaver(
        net,
        optimizer_of(net),
        args,
        average,
        scaler,
        checkpoint_dir=tmp_path,
        recovery_dir=tmp_path,
    )
    if kind == "recovery":
        saver.save_recovery(1, 20)
        return tmp_path / "recovery-1-20.pth.tar"
    saver.save_checkpoint(3, metric=np.float64(95.9))
    return tmp_path / "model_best.pth.tar"


def test_timms_files_are_tested_measured_and_trained_on(timms, tmp_path, capsys):
    with torch.serialization.safe_globals(checkpoint.HARMLESS):
        held = torch.load(timms, weights_only=True)
    assert {"epoch", "arch", "state_dict", "optimizer", "version", "args"} <= set(held)
    assert {"amp_scaler", "saver"} <= set(held)

    source = f"{SIZES} {DIGITS} --initial_checkpoint {timms}"
    tested = train.main(f"{source} --test_only".split())
    taken = "state_dict_ema" if "state_dict_ema" in held else "state_dict"
    assert f"weights from {timms}, its {taken}\n" in capsys.readouterr().out

    (tmp_path / "c.yml").write_text("\n".join(f"{k}: {v!r}" for k, v in ARGS.items()))
    measured = firing_num.main(f"-c {tmp_path}/c.yml {DIGITS} --resume {timms}".split())
    assert measured["test_accuracy"] == tested["test_accuracy"]

    trained = train.main(f"{source} {BRIEF} --output {tmp_path}/out".split())
    found = checkpoint.load(trained["checkpoint"])["model"]
    assert torch.equal(found["head.weight"], transformer()["head.weight"])


# ---- the published scripts


def ann():
    return golden.group("resnet20", "ann_w/")


def spiking():
    """Published names of an SNN's tensors; each threshold and leak is [1]."""
    state = golden.fused_state("resnet20")
    for kind, field in (("threshold", "threshold"), ("leak", "leak")):
        found = golden.group("resnet20", f"snn_T1_S3_{kind}/")
        state |= {f"{field}.{key}": value.reshape(1) for key, value in found.items()}
    return state


def scripts_file(path, state, prefix="", **more):
    """What the published trainers store beside the weights."""
    net = Named(state, prefix)
    content = {
        "accuracy": np.float64(0.5),
        "epoch": 3,
        "state_dict": net.state_dict(),
        "optimizer": optimizer_of(net, torch.optim.Adam).state_dict(),
        **more,
    }
    torch.save(content, path)
    return path


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The current folder, with images."""
    cifar_copy(tmp_path / "data", train=8, test=5)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def weight(path):
    """The first layer's weights in a checkpoint of ours."""
    return checkpoint.load(path)["model"]["stages.0.synapse.map.weight"]


def test_a_published_ann_is_tested_trained_on_and_fused(here):
    path = scripts_file("ann_resnet20_cifar10_2025_01_01_12_00_00.pth", ann(), "module.")
    tested = ann_ddp.main(f"{CNN} --bn --pretrained_ann {path} --test_only".split())
    trained = ann_ddp.main(f"{CNN} {STILL} --bn --pretrained_ann {path}".split())
    assert tested["test_images"] == 5
    assert torch.equal(weight(trained["checkpoint"]), ann()["pre_process.0.weight"])
    fused = absorb_bn.main(f"{CNN.replace('--device cpu', '--bn')} --pretrained_ann {path}".split())
    content = checkpoint.load(fused["checkpoint"])
    assert (content["fused"], content["accuracy"]) == (True, 0.5)


def test_a_published_fused_file_is_converted(here):
    torch.save({"state_dict": Named(golden.fused_state("resnet20"), "module.").state}, "fused.pth")
    source = f"{CNN} {SPIKING} --balance_steps 1 --pretrained_ann fused.pth"
    tested = snn_ddp.main(f"{source} --test_only".split())
    trained = snn_ddp.main(f"{source} {STILL} --thr_lr 0".split())
    assert tested["test_images"] == 5
    assert torch.equal(
        weight(trained["checkpoint"]), golden.fused_state("resnet20")["pre_process.0.weight"]
    )


def test_a_published_snn_is_tested_and_trained_on(here):
    more = {"thresholds": [torch.ones(1)], "timesteps": 1, "leak": 1.0, "activation": "Linear"}
    path = scripts_file("snn.pth", spiking(), **more)
    source = f"{CNN} {SPIKING} --pretrained_snn {path}"
    tested = snn_ddp.main(f"{source} --test_only".split())
    trained = snn_ddp.main(f"{source} {STILL} --thr_lr 0".split())
    assert tested["test_images"] == 5
    found = checkpoint.load(trained["checkpoint"])["model"]["stages.0.act.theta"]
    assert found == spiking()["threshold.th0"]
