"""Names that the published code gives its weights, and the strict loading of weights of any origin.

`weights` finds a published state_dict in what a file holds, `rename` puts it under the names of a
network, and `fit` loads what fits exactly.
"""

import re
from collections import Counter

from torch import Tensor, nn

from .layers import Synapse


class Misfit(ValueError):
    """The tensors are not those of the network.

    Fields:
        missing, unknown: names that only the network has, or only the weights have.
        resized: what is wrong, "name is (...), expected (...)", of tensors of another size.
    """

    def __init__(
        self,
        net,
        missing,
        unknown,
        resized,
    ):
        self.missing = missing
        self.unknown = unknown
        self.resized = resized
        # the message names the first
        problems = [
            *(f"no {name}" for name in missing),
            *(f"an unknown {name}" for name in unknown),
            *resized,
        ]
        super().__init__(
            f"the weights do not fit this {type(net).__name__} ({len(missing)} missing, "
            f"{len(unknown)} unknown, {len(resized)} of another size): {problems[0]}; "
            "check its size and number of classes"
        )


def fit(
    net,
    state,
    new=(),
    dropped=(),
):
    """Load `state` into `net`, strictly: each tensor must be there, known, and of the right size.

    Args:
        state: {name: tensor}, under the names of `net`.
        new: last parts of the names that only `net` may have ("theta"); these tensors stay.
        dropped: last parts of the names that only `state` may have ("lo").
    Raises:
        Misfit: they do not fit; the network is as it was.
    """
    own = net.state_dict()
    # batch norm's counter, which nothing reads, is not in every file
    new = (*new, "num_batches_tracked")
    missing = [name for name in own if name not in state and _last(name) not in new]
    unknown = [name for name in state if name not in own and _last(name) not in dropped]
    resized = [
        f"{name} is {tuple(value.shape)}, expected {tuple(own[name].shape)}"
        for name, value in state.items()
        if name in own and value.shape != own[name].shape
    ]
    if missing or unknown or resized:
        raise Misfit(net, missing, unknown, resized)

    net.load_state_dict({name: state.get(name, value) for name, value in own.items()})


def _last(name):
    return name.rpartition(".")[2]


# Keys under which files hold weights. timm's average stands before the last weights, as in timm:
# the metric of its file is the average's.
HOLDERS = ("state_dict_ema", "model_ema", "state_dict", "model", "net", "model_state_dict")

DEPTH = 4  # of holders in holders

# What DistributedDataParallel, torch.compile or a class around a network puts before its names;
# torch.compile of a part of it, inside of them.
WRAPPERS = re.compile(r"^((module|model|net|_orig_mod)\.)+|(?<=\.)_orig_mod\.")


def weights(content):
    """Weights of what a file holds, without the prefixes of wrappers.

    Returns:
        ({name: tensor}, the key that they were under, such as "state_dict", or "").
    Raises:
        ValueError: there are none, or they are of two networks.
    """
    taken = []
    # not without end: a dictionary may hold itself
    for _ in range(DEPTH):
        held = [key for key in HOLDERS if isinstance(content.get(key), dict)]
        if not held:
            break
        taken.append(held[0])
        content = content[held[0]]
    named = all(isinstance(key, str) for key in content)
    if not (content and named and all(isinstance(value, Tensor) for value in content.values())):
        held = ", ".join(map(str, [*content][:5])) or "nothing"
        raise ValueError(f"neither this project's nor a published state_dict: it holds {held}")

    names = [WRAPPERS.sub("", key) for key in content]
    name, times = Counter(names).most_common(1)[0]
    if times > 1:
        raise ValueError(f"it holds two networks: {name} is there {times} times")
    return dict(zip(names, content.values())), ".".join(taken)


# What only the names of one kind of network begin with.
FAMILIES = {
    "sdt": re.compile(r"patch_embed\."),
    "vggsnn": re.compile(r"features\.\d+\.fwd\."),
    "cnn": re.compile(r"(features|pre_process)\.\d+\.(weight|running_mean)"),
}


def family(state):
    """Key of `FAMILIES` that published names belong to; None: of none of them."""
    kinds = (kind for kind, mark in FAMILIES.items() if any(map(mark.match, state)))
    return next(kinds, None)


def rename(net, state):
    """Weights of the published code, {key: tensor}, under the names of `net`.

    Those of VGGSNN are turned, see `upright`. Keys that have no name in `net` are kept as they are,
    for `fit` to report. Dimensions of size 1 follow the network: a published threshold is [1], and
    a 1x1 convolution may have one dimension.

    Raises:
        ValueError: `state` has no weights by the names of the published code, or another network's.
    """
    network = net.built["name"]
    expected = network if network in FAMILIES else "cnn"
    held = family(state)
    if held not in (None, expected):
        raise ValueError(f"it holds a {held}")
    if network == "sdt":
        modules = _transformer(net.built["depth"])
    elif network == "vggsnn":
        modules = _vggsnn()
    else:
        modules = _by_position(net, state)

    own = net.state_dict()
    renamed = {}
    for key, value in state.items():
        if UNUSED.fullmatch(key):
            continue
        path, _, field = key.rpartition(".")
        if key in modules:
            name = modules[key]
        elif path in modules:
            name = f"{modules[path]}.{FIELDS.get(field, field)}"
        else:
            name = key

        if name in own and value.squeeze().shape == own[name].squeeze().shape:
            value = value.reshape(own[name].shape)
            if held == "vggsnn":
                value = upright(value, net.built["image_size"] // 16)
        renamed[name] = value
    return renamed


def upright(value, side):
    """A weight of VGGSNN, which learned frames [polarity, x, y], for ours, [polarity, y, x].

    side: of its last map, pixels. All maps are square, so that the network of the turned weights
    computes the same of the turned frames. It is its own inverse.
    """
    if value.dim() == 4:
        return value.transpose(2, 3)
    if value.dim() == 2:
        # of the head, which sees the last map, flattened
        maps = value.unflatten(1, (-1, side, side))
        return maps.transpose(2, 3).flatten(1)
    return value


# Fields that have another name here: the range of a quantiser.
FIELDS = {"minimum": "lo", "maximum": "hi"}

# What files store and nobody needs: the spikes that the published code counted (features.3.ops,
# classifier_ops), modules that it builds and never runs (block.0.attn.talking_heads.weight), and
# the counter of torch's AveragedModel.
UNUSED = re.compile(
    r"features\.\d+\.ops|classifier_ops|n_averaged|block\.\d+\.attn\.(talking_heads|attn_lif).*"
)


# In the functions below, `modules` is {published module or key: own module or name}.


def _synapses(parts, convolution, norm):
    """`modules` of synapses, each a convolution and a batch norm, told apart at the star."""
    modules = {}
    for published, own in parts.items():
        modules[published.replace("*", convolution)] = f"{own}.map"
        modules[published.replace("*", norm)] = f"{own}.norm"
    return modules


def _vggsnn():
    # features.3.fwd.module.0.weight, features.3.fwd.module.1.running_mean, classifier.module.bias
    parts = {f"features.{i}.fwd.module.*": f"stages.{i}.synapse" for i in range(8)}
    return _synapses(parts, "0", "1") | {"classifier.module": "head"}


ATTENTION = {"q": "q.synapse", "k": "k.synapse", "v": "v.synapse", "proj": "out"}
MLP = {"fc1": "wide.synapse", "fc2": "out"}


def _transformer(depth):
    # patch_embed.proj_conv.weight, patch_embed.proj_bn3.bias: four embedding stages, with a pooling
    # between each two; patch_embed.rpe_conv.weight
    parts = {f"patch_embed.proj_*{i or ''}": f"stages.{2 * i}.synapse" for i in range(4)}
    parts["patch_embed.rpe_*"] = "stages.6.position"

    # block.0.attn.q_conv.weight, block.0.mlp.fc1_bn.running_var
    for block in range(depth):
        stage = 7 + 2 * block
        for part, own in ATTENTION.items():
            parts[f"block.{block}.attn.{part}_*"] = f"stages.{stage}.{own}"
        for part, own in MLP.items():
            parts[f"block.{block}.mlp.{part}_*"] = f"stages.{stage + 1}.{own}"

    return _synapses(parts, "conv", "bn") | {"head": "head"}


# features.4.weight: block features, no branch; layer2.0.identity.1.running_mean: block layer2.0
PLACE = re.compile(r"(?P<block>layer\d+\.\d+|[^.]*)(\.(?P<branch>residual|identity|quantizer))?.*")
BRANCHES = ("residual", "identity", "quantizer")  # in the order of the signal


def _numbers(name):
    return [int(digits) for digits in re.findall(r"\d+", name)]


def _in_signal_order(paths):
    """Published modules of VGG16 and ResNet20 in the order of the signal, as blocks are stored."""
    places = {path: PLACE.fullmatch(path) for path in paths}
    blocks = list(dict.fromkeys(place["block"] for place in places.values()))

    def order(path):
        branch = places[path]["branch"] or BRANCHES[0]
        return blocks.index(places[path]["block"]), BRANCHES.index(branch), _numbers(path)

    return sorted(paths, key=order)


def _kinds(net, state):
    """Yield (kind, published modules or keys, own modules or names), in the order of the signal."""
    paths = _in_signal_order(dict.fromkeys(key.rpartition(".")[0] for key in state))
    names = {module: name for name, module in net.named_modules()}
    synapses = [module for module in names if isinstance(module, Synapse)]
    sites = [names[site] for site in net.sites()]

    norms = [path for path in paths if f"{path}.running_mean" in state]
    weighted = [path for path in paths if f"{path}.weight" in state and path not in norms]
    if not weighted:
        raise ValueError("neither this project's nor the published code's names of weights")
    yield "weighted layers", weighted, [*(f"{names[s]}.map" for s in synapses), "head"]
    convolutions = [names[s] for s in synapses if isinstance(s.map, nn.Conv2d)]
    yield "batch norms", norms, [f"{name}.norm" for name in convolutions]
    yield "quantisers", [path for path in paths if f"{path}.maximum" in state], sites

    # threshold.t0, threshold.t3, leak.le10
    for kind, prefix, field in (("thresholds", "threshold.", "theta"), ("leaks", "leak.", "leak")):
        keys = [key for key in state if key.startswith(prefix)]
        yield kind, sorted(keys, key=_numbers), [f"{site}.{field}" for site in sites]


def _by_position(net, state):
    """`modules` of VGG16 and ResNet20, whose published numbers depend on what is built between.

    The n-th published part of a kind is the n-th own one. What the file has too much of a kind is
    named after the kind.
    """
    modules = {}
    for kind, published, own in _kinds(net, state):
        modules |= zip(published, own)
        surplus = set(published[len(own) :])
        for key in state:
            if key in surplus or key.rpartition(".")[0] in surplus:
                modules[key] = f"({kind})"
    return modules
