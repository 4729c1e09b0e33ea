"""Checkpoints that rebuild themselves: tensors and plain values alone, written whole or not at all.

A checkpoint holds `format`, `kind` ('ann', 'lq', 'snn', 'sdt', 'vggsnn'), `fused`, `network` and
`activation` (how to build it), `data`, `settings`, `accuracy` (fraction), `epoch`, `model` (the
weights) and `versions`; `last.pth` also `training` (see `loop.py`). Files of the published code and
of timm (a `state_dict` with its own key names) are read too.
"""

import hashlib
import re
import warnings
from argparse import Namespace
from numbers import Real
from pathlib import Path

import numpy as np
import torch

import models
from models import published

from . import zoo
from .errors import MALFORMED, UseError, reason
from .files import write_atomic
from .log import versions
from .plain import check_archive, check_plain

FORMAT = zoo.FORMAT
PUBLISHED = "published"
FIELDS = {
    "kind": str,
    "fused": bool,
    "network": dict,
    "activation": dict,
    "data": dict,
    "settings": dict,
    "model": dict,
}
# arguments of a network on which the sizes of its weights depend, and what sets them
SIZES = {
    "width_mult": "--width_mult",
    "kernel_size": "--kernel_size",
    "image_size": "--image_size",
    "num_classes": "the data set",
}
EXPORTED = (".onnx", ".npz", ".nir")
# of data that a file says nothing of
UNKNOWN = {"name": "unknown", "source": "unknown", "num_classes": None, "image_size": None}


def save(path, content):
    """Write a checkpoint atomically."""
    write_atomic(path, lambda temporary: torch.save(content, temporary))


def named(path):
    """The checkpoint that a path names: of a run folder its best one; or a name of the zoo.

    Raises:
        UseError: the file of the name is not here, or another one is.
    """
    path = Path(path)
    if path.is_dir():
        return path / "best.pth"
    if path.exists() or str(path) not in zoo.table():
        return path
    return zoo.find(str(path))


def bare(path):
    """Path of a checkpoint without its suffix; other dots are part of a name (ann_w0.125)."""
    # timm writes .pth.tar
    return re.sub(r"(\.(pth|pt|ckpt))?(\.tar)?$", "", str(Path(path)))


def beside(path, suffix, output=""):
    """Path without suffix of what is written of the checkpoint that `path` names.

    It lies beside the checkpoint, in the folder `output`, or where `output` says.
    """
    return placed(bare(named(path)) + suffix, output)


def placed(stem, output):
    """The path `stem`, in the folder `output`, or where `output` says."""
    if output.endswith("/") or (output and Path(output).is_dir()):
        return str(Path(output) / Path(stem).name)
    return output or stem


def digest(weights):
    """Digest of {name: tensor}."""
    found = hashlib.sha256()
    for name in sorted(weights):
        found.update(name.encode())
        # bytes, since NumPy does not know every type of number
        content = weights[name].cpu().contiguous().flatten().view(torch.uint8)
        found.update(content.numpy().tobytes())
    return found.hexdigest()[:16]


# ---- reading


def load(path):
    """Read a checkpoint, the best one of a run folder, or one of the zoo by its name, onto the CPU.

    Returns:
        What it holds: plain values and tensors only. Of a published file, `format` is 'published',
        `kind` is the family of its names (see `published.FAMILIES`), and there are `model` (weights
        by their published names), `taken` (the key that they were under) and `accuracy`.
    Raises:
        UseError: no such file, truncated, or not a checkpoint.
    """
    path = named(path)
    _check_exists(path)
    if path.suffix in EXPORTED:
        raise UseError(f"{path} was written by export.py: give the checkpoint that it was made of")
    content = _read(path)
    if not isinstance(content, dict):
        raise UseError(f"{path} is not a checkpoint: it holds a {type(content).__name__}")

    if content.get("format") == FORMAT:
        return _whole(path, content)
    if content.get("format") == zoo.PACKED:
        return zoo.unpacked(_whole_packed(path, content))

    # a published file: a state_dict, alone or beside accuracy and optimizer
    try:
        state, taken = published.weights(content)
    except ValueError as error:
        raise UseError(f"{path} is not a checkpoint: {error}") from None
    _check_weights(path, state)
    accuracy = content.get("accuracy")
    # some have several, of the first and the first five classes
    known = isinstance(accuracy, Real) or (torch.is_tensor(accuracy) and accuracy.numel() == 1)
    steps = content.get("timesteps")
    return {
        "format": PUBLISHED,
        "kind": published.family(state),
        "model": state,
        "taken": taken,
        "accuracy": float(accuracy) if known else None,
        "steps": steps if isinstance(steps, int) else None,
    }


# What takes a file of the published code, by its family.
TAKERS = {
    "sdt": "measure it with firing_num.py -c, or give it to train.py as --initial_checkpoint",
    "vggsnn": "measure it with main_test.py",
    "cnn": "an ANN with batch norm goes to absorb_bn.py, another to ann_ddp.py --pretrained_ann, "
    "an SNN to snn_ddp.py --pretrained_snn",
}


def check_own(content, path, way=None):
    """Refuse a file of the published code, which says nothing of its network.

    content: what `load(path)` returned. way: what to do, None: what takes such a file.
    """
    if content["format"] == PUBLISHED:
        way = way or TAKERS[content["kind"] or "cnn"]
        raise UseError(f"{path} is a file of the published code: {way}")


def holds(path, weights):
    """Whether a file is there and holds these weights, {name: tensor}."""
    if not Path(path).is_file():
        return False
    try:
        found = load(path)["model"]
    except UseError:
        # another file has the name
        return False
    if found.keys() != weights.keys():
        return False
    return all(
        value.dtype == weights[name].dtype and torch.equal(value, weights[name])
        for name, value in found.items()
    )


def _whole(path, content):
    """The content of a checkpoint of this project once its parts are what they must be."""
    for name, kind in FIELDS.items():
        if name not in content:
            raise UseError(f"{path} is not a whole checkpoint: it has no {name!r}")
        if not isinstance(content[name], kind):
            held = type(content[name]).__name__
            raise UseError(
                f"{path} is not a whole checkpoint: {name!r} is a {held}, expected a "
                f"{kind.__name__}"
            )
        if kind is dict and name != "model":
            try:
                check_plain(content[name])
            except ValueError as error:
                raise UseError(f"{path} is not a whole checkpoint: {name!r}: {error}") from None
    _check_weights(path, content["model"])
    try:
        network = content["network"]
        network = {**models.options(network["name"]), **network}
        models.from_description(content["activation"])
    except MALFORMED as error:
        words = f"{type(error).__name__}: {reason(error)}"
        raise UseError(f"{path} holds no network that is known ({words})") from None
    return content | {"network": network, "data": UNKNOWN | content["data"]}


def _whole_packed(path, content):
    """The same of a file of the zoo: each scale belongs to a weight."""
    content = _whole(path, content)
    scales, weights = content.get("scales"), content["model"]
    if not isinstance(scales, dict) or not scales.keys() <= weights.keys():
        raise UseError(f"{path} is not a whole checkpoint: its scales are not those of its weights")
    _check_weights(path, scales)
    for name, scale in scales.items():
        shape = list(weights[name].shape)
        expected = [*shape[:1], *[1] * (len(shape) - 1)]  # one for each output channel
        if list(scale.shape) != expected:
            raise UseError(
                f"{path} is not a whole checkpoint: the scales of {name} are {list(scale.shape)}, "
                f"expected {expected}"
            )
    return content


def _check_weights(path, state):
    """Refuse tensors that weights cannot be made of without loss."""
    for name, value in state.items():
        dense = isinstance(value, torch.Tensor) and value.layout == torch.strided
        if not isinstance(name, str) or not dense:
            raise UseError(f"{path} is not a checkpoint: {name!r} is no dense tensor")
        if value.is_complex() or value.is_quantized or value.device.type != "cpu":
            raise UseError(
                f"{path}: {name} is a {value.dtype} tensor on {value.device}, expected real numbers"
            )


def told(content, path):
    """What is said of the weights that were taken: `content` is what `load(path)` returned."""
    taken = content.get("taken")
    return f"weights from {path}" + (f", its {taken}" if taken else "")


def _check_exists(path):
    if path.is_file():
        return
    # a mistyped name is likely one of the others there
    near = sorted(str(p) for p in path.parent.glob("*.pth"))[:3]
    if near:
        way = f"; {path.parent} holds {', '.join(near)}"
    else:
        way = f": train one first, or check the folder {path.parent}"
    # a word without folder and suffix may have been meant as a name
    if bare(path) == path.name:
        way += f"; networks that have names are {', '.join(zoo.table())}"
    raise UseError(f"no checkpoint at {path}{way}")


class _NumberType:
    """Stands for numpy.dtype in a file: a name, which makes nothing that NumPy would run."""

    def __init__(self, name, *_):
        self.name = name

    def __setstate__(self, state):
        _, order, *_ = state
        self.name = order + self.name


def _number(kind, data):
    """The plain value of a NumPy scalar in a file."""
    return np.frombuffer(data, kind.name).item()


# The only foreign types in files of timm: its arguments, and metrics.
HARMLESS = [
    Namespace,
    (_NumberType, "numpy.dtype"),
    (_number, "numpy.core.multiarray.scalar"),
    (_number, "numpy._core.multiarray.scalar"),
]


def _read(path):
    """What torch.save wrote to a file, if that is tensors, plain values and HARMLESS."""
    try:
        check_archive(path)
        with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals(HARMLESS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what is no pickle fails in the unpickler, in any way
        text = str(error).strip() or type(error).__name__
        # the unpickler names the first class that it does not load
        foreign = re.search(r"GLOBAL (\S+) (?:was not|whose module)", text)
        if foreign:
            raise UseError(
                f"{path} holds an object of {foreign[1]}: "
                "only files of tensors and plain values are read"
            ) from None

        # torch's own advice is to load without checks, and many lines long
        reason = text.splitlines()[0][:120]
        if reason.startswith("Weights only"):
            reason = "not written by torch.save"
        raise UseError(
            f"{path} is truncated or not a checkpoint ({reason}): "
            "give another file, or write it anew"
        ) from None


# ---- from a network and back


def content(
    net,
    kind,
    data,
    settings,
    **more,
):
    """What a checkpoint of `net` holds, beside `more`.

    Raises:
        ValueError: `models.build` did not make it, or not with these weights, or not all that the
            file says is plain, so that it could not be read.
    """
    built = models.how_built(net)
    state = net.state_dict()
    held, made = _sizes(state), _built_sizes(built, net.act)
    # the network's own are told first
    wrong = sorted(held - made) or sorted(made - held)
    if wrong:
        name, shape = wrong[0]
        raise ValueError(
            f"{name} {list(shape)} is not what models.build made: build the network with the sizes "
            "that it shall have (num_classes and so on), and load the weights into it"
        )
    plain = {
        "network": built,
        "activation": models.describe(net.act),
        "data": data,
        "settings": settings,
    }
    for part, value in plain.items():
        try:
            check_plain(value)
        except ValueError as error:
            raise ValueError(f"{part!r} of a checkpoint takes plain values: {error}") from None
    return {
        "format": FORMAT,
        "kind": kind,
        "fused": not built.get("bn", True),
        **plain,
        # on the CPU, so that any machine can read it
        "model": {name: value.detach().cpu() for name, value in state.items()},
        "versions": versions(),
        **more,
    }


def rebuild(checkpoint, path="the checkpoint"):
    """The network of a checkpoint of this project, with its weights.

    checkpoint: what `load(path)` returned.
    Raises:
        UseError: it describes no network, or one of other weights.
    """
    built, state = dict(checkpoint["network"]), checkpoint["model"]
    try:
        act = models.from_description(checkpoint["activation"])
        name = built.pop("name")
        # each block of a transformer has weights
        if built.get("depth", 0) > len(state):
            raise ValueError(f"{len(state)} tensors, depth {built['depth']}")
        wrong = sorted(_built_sizes({"name": name, **built}, act) ^ _sizes(state))
        if wrong:
            raise ValueError(f"{len(wrong)} sizes differ, {wrong[0][0]} {list(wrong[0][1])}")
        net = models.build(name, act, **built)
        net.load_state_dict(state)
    except MALFORMED as error:
        raise UseError(
            f"{path} does not hold the network that it describes ({type(error).__name__}: "
            f"{reason(error)}): give another file, or write it anew"
        ) from None
    return net


def _sizes(state):
    """{(name, shape)} of weights."""
    return {(name, value.shape) for name, value in state.items()}


def _built_sizes(built, act):
    """`_sizes` of what `models.build` makes; without memory, since they may be anything."""
    with torch.device("meta"):
        return _sizes(models.build(act=act, **built).state_dict())


# ---- weights into a network that is there


def load_into(
    net,
    checkpoint,
    path,
    new=(),
    dropped=(),
    new_head=None,
):
    """Copy the weights of a checkpoint into the CNN `net`, strictly.

    Args:
        checkpoint: what `load(path)` returned.
        new, dropped: what only the network, or only the file, may have, see `published.fit`.
        new_head: leave the last layer as it is, so that the file may have other classes; None where
            the command has no such option.
    Raises:
        UseError: another network, width, class count, or fused against unfused weights.
    """
    if checkpoint["format"] == PUBLISHED:
        state = _renamed(net, checkpoint, path)
    else:
        state = checkpoint["model"]
        # thresholds that may be missing will come from a conversion: the file is an ANN's
        spiking = net.act.kind == "spiking" and "theta" not in new
        _check_network(net, checkpoint, path, spiking)

    _check_norm(net, state, path)
    if new_head:
        state = _with_own_head(net, state)
    try:
        published.fit(net, state, new, dropped)
    except published.Misfit as misfit:
        held = checkpoint.get("network", {})
        raise UseError(f"{path} {_explained(net, misfit, held, new_head is False)}") from None


def _with_own_head(net, state):
    """The weights `state` with the last layer of `net` in the place of theirs."""
    own = {name: value for name, value in net.state_dict().items() if _of_head(name)}
    return {name: value for name, value in state.items() if not _of_head(name)} | own


def _of_head(name):
    return name.startswith("head.")


def load_named(net, checkpoint, path, new_head=None):
    """Copy the weights of a checkpoint into a transformer or a VGGSNN, strictly.

    Their neurons' theta and leak are settings and not weights: the file may have them or not, as
    M-LIF stores them and SpikingJelly's LIF does not.

    checkpoint: what `load(path)` returned. new_head: see `load_into`.
    Raises:
        UseError: its weights do not fit.
    """
    settings = ("theta", "leak")
    if checkpoint["format"] != PUBLISHED:
        load_into(net, checkpoint, path, settings, settings, new_head)
        return
    state = _renamed(net, checkpoint, path)
    if new_head:
        state = _with_own_head(net, state)
    try:
        published.fit(net, state, new=settings)
    except published.Misfit as misfit:
        raise UseError(f"{path}: {misfit}{_head_hint(misfit, new_head is False)}") from None


def _renamed(net, checkpoint, path):
    """The weights of a published file under the names of `net`."""
    name = net.built["name"]
    try:
        return published.rename(net, checkpoint["model"])
    except ValueError as error:
        raise UseError(f"{path} does not fit a {name}: {error}; {_way(name)}") from None


def _way(wanted):
    """Way out of a file of another network than the one that is wanted."""
    return "check --architecture" if wanted in models.CNNS else f"give weights of a {wanted}"


def _check_network(
    net,
    checkpoint,
    path,
    spiking,
):
    """Raise UseError for the checkpoint of another network, or if it is an SNN and must not be."""
    held = checkpoint["network"]["name"]
    wanted = net.built["name"]
    if held != wanted:
        raise UseError(f"{path} holds a {held}, expected a {wanted}: {_way(wanted)}")

    if spiking and checkpoint["kind"] != "snn":
        raise UseError(
            f"{path} holds an ANN, expected an SNN: fused, it can be converted as --pretrained_ann"
        )
    if checkpoint["kind"] == "snn" and not spiking:
        raise UseError(
            f"{path} holds an SNN, expected an ANN: only --pretrained_snn of snn_ddp.py takes it"
        )


def _check_norm(net, state, path):
    """Raise UseError if only one of the file and the network has batch norm."""
    in_file = any("running_mean" in name for name in state)
    in_network = any("running_mean" in name for name in net.state_dict())
    if in_file and not in_network:
        raise UseError(
            f"{path} holds unfused batch norm: "
            "run absorb_bn.py on it first and give its ..._bn_fused.pth, or give --bn"
        )
    if in_network and not in_file:
        raise UseError(
            f"{path} holds no batch norm (a fused file, or trained without --bn), "
            "but --bn asks for it"
        )


def _head_hint(misfit, offer):
    """The way out where all but the last layer fits; offer: whether there is --new_head."""
    head = misfit.resized and all(map(_of_head, misfit.resized))
    return "; --new_head trains it for others" if offer and head else ""


def _explained(net, misfit, held, offer):
    """What is wrong with weights that do not fit, and the option that may be the cause.

    held: how the file's network was built, as far as it says so. offer: whether to name --new_head.
    """
    # sizes first: with another width, some tensors are missing or surplus as well
    wrong = misfit.resized
    differ = f"{len(wrong)} of {len(net.state_dict())} tensors differ"
    hint = _head_hint(misfit, offer)
    for name, option in SIZES.items():
        here, there = net.built.get(name), held.get(name)
        if wrong and None not in (here, there) and here != there:
            return f"was built with {name} {there}, here {here} ({differ}): check {option}{hint}"
    if wrong and _of_head(wrong[0]):
        return f"is of another class count or width: {wrong[-1]} ({differ}){hint}"
    if wrong:
        return f"is of another size: {wrong[0]} ({differ}; check --width_mult)"

    names = misfit.missing + misfit.unknown
    option = "--bias" if all(name.endswith("bias") for name in names) else "--architecture"
    return (
        f"does not fit this {net.built['name']}: "
        f"{len(misfit.missing)} tensors missing {misfit.missing[:2]}, "
        f"{len(misfit.unknown)} unexpected {misfit.unknown[:2]}; check {option}"
    )
