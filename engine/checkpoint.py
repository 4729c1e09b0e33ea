"""Checkpoints that rebuild themselves; written to a temporary name and renamed, loaded with weights_only.

A checkpoint holds `format`, `kind` ('ann', 'lq', 'snn', 'sdt', 'vggsnn'), `fused`, `network` and `activation` (how to build
it), `data`, `settings`, `accuracy` (fraction), `epoch`, `model` (weights), `versions`; `last.pth` also `training` (see
`loop.py`).
Files of the published code (a `state_dict` with its own key names) are read too.
"""

import re
import warnings
from pathlib import Path

import torch

import models

from .errors import UseError
from .files import write_atomic

FORMAT = "mlif-1"
FIELDS = ("kind", "fused", "network", "activation", "data", "settings", "model")


def save(path, content):
    """Write a checkpoint atomically."""
    write_atomic(path, lambda temporary: torch.save(content, temporary))


def named(path):
    """The checkpoint that a path names: of a run folder its best one."""
    return Path(path) / "best.pth" if Path(path).is_dir() else Path(path)


def beside(path, suffix, output=""):
    """Path without suffix of what is written of the checkpoint that `path` names: beside it, in the folder `output`, or as
    `output` says."""
    stem = re.sub(r"(\.pth)?(\.tar)?$", suffix, str(named(path)), count=1)
    if output.endswith("/") or Path(output or "-").is_dir():
        return str(Path(output) / Path(stem).name)
    return output or stem


def load(path):
    """Read a checkpoint, or the best one of a run folder, onto the CPU: plain values and tensors only.

    Raises:
        UseError: no such file, truncated, or not a checkpoint.
    """
    path = named(path)
    if not path.is_file():
        near = sorted(str(p) for p in path.parent.glob("*.pth"))[:3] if path.parent.is_dir() else []
        raise UseError(
            f"no checkpoint at {path}"
            + (
                f"; {path.parent} holds {', '.join(near)}"
                if near
                else f": train one first, or check the folder {path.parent}"
            )
        )
    try:
        with warnings.catch_warnings(action="ignore"):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what is no pickle fails in the unpickler, in any way
        foreign = re.search(r"GLOBAL (\S+) (?:was not|whose module)", str(error))
        if foreign:
            raise UseError(
                f"{path} holds an object of {foreign[1]}: only files of tensors and plain values are read"
            ) from None
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
        reason = "not written by torch.save" if reason.startswith("Weights only") else reason
        raise UseError(
            f"{path} is truncated or not a checkpoint ({reason}): give another file, or write it anew"
        ) from None
    if not isinstance(content, dict):
        raise UseError(f"{path} is not a checkpoint: it holds a {type(content).__name__}")
    if content.get("format") == FORMAT:
        absent = [name for name in FIELDS if name not in content]
        if absent:
            raise UseError(f"{path} is not a whole checkpoint: it has no {absent[0]!r}")
        return content
    state = content.get("state_dict", content)
    if (
        not isinstance(state, dict)
        or not state
        or not all(isinstance(v, torch.Tensor) for v in state.values())
    ):
        raise UseError(
            f"{path} is not a checkpoint: neither this project's nor a published state_dict"
        )
    return {
        "format": "published",
        "path": str(path),
        "model": {k.removeprefix("module."): v for k, v in state.items()},
        "accuracy": content.get("accuracy"),
    }


def content(net, kind, data, settings, **more):
    """What a checkpoint of `net` holds, beside `more`."""
    from .log import versions

    return {
        "format": FORMAT,
        "kind": kind,
        "fused": not net.built.get("bn", True),
        "network": net.built,
        "activation": models.describe(net.act),
        "data": data,
        "settings": settings,
        "model": {k: v.detach().cpu() for k, v in net.state_dict().items()},
        "versions": versions(),
        **more,
    }


def rebuild(checkpoint):
    """The network of a checkpoint of this project, with its weights."""
    built = dict(checkpoint["network"])
    net = models.build(
        built.pop("name"), models.from_description(checkpoint["activation"]), **built
    )
    net.load_state_dict(checkpoint["model"])
    return net


def _published_modules(state):
    """Keys of a published state_dict grouped by kind, each in the order of the signal: (weighted, norms, ranges, neurons).

    In a block the published order is residual, identity, quantizer.
    """
    paths = {}
    for key in state:
        paths.setdefault(key.rpartition(".")[0], []).append(key)
    blocks = {}
    for path in paths:
        blocks.setdefault(re.match(r"(layer\d+\.\d+|[^.]*)", path)[0], len(blocks))

    def order(path):
        part = next(
            (i for i, name in enumerate(("residual", "identity", "quantizer")) if name in path), 0
        )
        return (
            blocks[re.match(r"(layer\d+\.\d+|[^.]*)", path)[0]],
            part,
            [int(n) for n in re.findall(r"\d+", path)],
        )

    weighted, norms, ranges = [], [], []
    for path in sorted(paths, key=order):
        if f"{path}.running_mean" in state:
            norms.append(path)
        elif f"{path}.weight" in state:
            weighted.append(path)
        elif f"{path}.maximum" in state:
            ranges.append(path)
    number = [
        sorted(
            (k for k in state if k.startswith(name)), key=lambda k: int(re.search(r"\d+$", k)[0])
        )
        for name in ("threshold.", "leak.")
    ]
    return weighted, norms, ranges, number


def from_published(state, net):
    """Rename a published state_dict to the keys of `net`, by position and kind."""
    weighted, norms, ranges, (thetas, leaks) = _published_modules(state)
    synapses = [name for name, m in net.named_modules() if hasattr(m, "map")]
    sites = {id(site): name for name, site in net.named_modules()}
    acts = [sites[id(site)] for site in net.sites()]
    out = {}
    for path, name in zip(weighted, [*(f"{s}.map" for s in synapses), "head"], strict=False):
        out |= {
            f"{name}.{k}": state[f"{path}.{k}"]
            for k in ("weight", "bias")
            if f"{path}.{k}" in state
        }
    normed = [
        s for s, path in zip(synapses, weighted, strict=False) if state[f"{path}.weight"].dim() == 4
    ]
    for path, name in zip(norms, normed, strict=False):
        out |= {
            f"{name}.norm.{k.rpartition('.')[2]}": v
            for k, v in state.items()
            if k.rpartition(".")[0] == path
        }
    for path, name in zip(ranges, acts, strict=False):
        out |= {
            f"{name}.lo": state[f"{path}.minimum"].reshape(()),
            f"{name}.hi": state[f"{path}.maximum"].reshape(()),
        }
    for keys, field in ((thetas, "theta"), (leaks, "leak")):
        out |= {
            f"{name}.{field}": state[key].reshape(()) for key, name in zip(keys, acts, strict=False)
        }
    counts = {
        "weighted layers": (weighted, [*synapses, "head"]),
        "batch norms": (norms, normed),
        "quantisers": (ranges, acts),
        "thresholds": (thetas, acts),
        "leaks": (leaks, acts),
    }
    for name, (found, places) in counts.items():
        if len(found) > len(places):
            out[f"({name})"] = torch.empty(len(found))  # reported as unexpected
    return out


def load_into(net, checkpoint, path, new=(), dropped=()):
    """Copy the weights of a checkpoint into `net`, strictly.

    new: last name parts that only the network may have ('theta'); dropped: those that only the file may have ('lo').
    Raises:
        UseError: another network, width, class count, or fused against unfused weights.
    """
    state, own = checkpoint["model"], net.state_dict()
    if checkpoint["format"] == "published":
        try:
            state = from_published(state, net)
        except (KeyError, RuntimeError, TypeError):
            raise UseError(
                f"{path} does not fit a {net.built['name']}: neither this project's nor the published code's "
                "names of weights; check --architecture"
            ) from None
    elif checkpoint["network"]["name"] != net.built["name"]:
        raise UseError(
            f"{path} holds a {checkpoint['network']['name']}, expected a {net.built['name']}: check --architecture"
        )
    elif (checkpoint["kind"] == "snn") != (
        expected := net.act.kind == "spiking" and "theta" not in new
    ):
        held, way = (
            ("SNN", "only --pretrained_snn of snn_ddp.py takes it")
            if checkpoint["kind"] == "snn"
            else ("ANN", "fused, it can be converted as --pretrained_ann")
        )
        raise UseError(f"{path} holds an {held}, expected an {'SNN' if expected else 'ANN'}: {way}")
    norm_in_file, norm_here = (
        any("running_mean" in k for k in state),
        any("running_mean" in k for k in own),
    )
    if norm_in_file and not norm_here:
        raise UseError(
            f"{path} holds unfused batch norm: run absorb_bn.py on it first and give its ..._bn_fused.pth"
        )
    if norm_here and not norm_in_file:
        raise UseError(
            f"{path} holds no batch norm (a fused file, or trained without --bn), but --bn asks for it"
        )
    wrong = [
        f"{k} is {tuple(state[k].shape)}, expected {tuple(own[k].shape)}"
        for k in state
        if k in own and state[k].shape != own[k].shape
    ]
    if wrong and wrong[0].startswith("head."):
        raise UseError(
            f"{path} is of another class count or width: {wrong[-1]} ({len(wrong)} of {len(own)} tensors differ)"
        )
    if wrong:
        raise UseError(
            f"{path} is of another size: {wrong[0]} ({len(wrong)} of {len(own)} tensors differ; check --width_mult)"
        )
    missing = [k for k in own if k not in state and k.rpartition(".")[2] not in new]
    extra = [k for k in state if k not in own and k.rpartition(".")[2] not in dropped]
    if missing or extra:
        hint = (
            "; check --bias"
            if all(k.endswith("bias") for k in missing + extra)
            else "; check --architecture"
        )
        raise UseError(
            f"{path} does not fit this {net.built['name']}: {len(missing)} tensors missing {missing[:2]}, "
            f"{len(extra)} unexpected {extra[:2]}{hint}"
        )
    net.load_state_dict({k: state.get(k, v) for k, v in own.items()})


def load_named(net, path, rename, **allowed):
    """Copy weights into `net`, strictly: ours (`allowed`: see `load_into`), or published ones by rename(state, net).

    Raises:
        UseError: they do not fit.
    """
    content = load(path)
    if content["format"] != "published":
        return load_into(net, content, path, **allowed)
    try:
        net.load_state_dict(rename(content["model"], net))
    except ValueError as error:
        raise UseError(f"{path}: {error}") from None
