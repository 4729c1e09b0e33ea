"""Files of other hands: what is read of them, under which names, and that nothing in them runs."""

import itertools
import os
from argparse import Namespace
from collections import OrderedDict

import numpy as np
import pytest
import torch

import models
from engine import checkpoint
from engine.errors import UseError
from models import transformer, vggsnn
from tests.models import golden, test_transformer, test_vggsnn

ARGS = Namespace(model="sdt", lr=3e-4, mean=(0.5, 0.5), opt_betas=None, workers=[8], amp=True)
# what timm's and the published scripts put beside the weights
METADATA = {
    "nothing": {},
    "published": {
        "accuracy": 0.75,
        "epoch": 3,
        "optimizer": {
            "state": {0: {"step": torch.ones(())}},
            "param_groups": [{"betas": (0.9, 1)}],
        },
        "thresholds": [torch.ones(1)],
        "activation": "Linear",
    },
    "timm": {
        "epoch": 3,
        "arch": "sdt",
        "version": 2,
        "args": ARGS,
        "amp_scaler": {"scale": 65536.0, "_growth_tracker": 7},
        "metric": np.float64(95.9),
        "saver": {"checkpoint_files": [("checkpoint-3.pth.tar", 95.9)], "pending": (3, None)},
    },
}
NUMBERS = [
    np.float64(0.75),
    np.float32(0.75),
    np.float16(0.75),
    np.int64(-3),
    np.uint8(200),
    np.bool_(True),
    np.array(0.75, ">f8")[()],
    np.str_("0.75"),
]
HOLDERS = ["state_dict", "model", "net", "model_state_dict", "state_dict_ema", "model_ema"]
PREFIXES = ["module.", "module.module.", "_orig_mod.", "module._orig_mod.", "model.", "net."]


class Foreign:
    """An object whose unpickling calls a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.fixture
def read(tmp_path):
    """read(content): what is read of a file that holds it."""

    def run(content):
        torch.save(content, tmp_path / "x.pth.tar")
        return checkpoint.load(tmp_path / "x.pth.tar")

    return run


def resnet(act=None):
    return models.build("resnet20", act or models.ReLU(), width_mult=1 / 8)


def recorded():
    return golden.group("resnet20", "ann_w/")


def same(state, other):
    return state.keys() == other.keys() and all(torch.equal(state[k], other[k]) for k in state)


# ---- metadata


@pytest.mark.parametrize("kind", METADATA)
def test_metadata_of_every_script_do_no_harm(kind, read):
    state = recorded()
    assert same(read({"state_dict": state, **METADATA[kind]})["model"], state)


@pytest.mark.parametrize("number", NUMBERS, ids=lambda number: number.dtype.str)
def test_numpys_scalars_become_plain_values(number, tmp_path):
    torch.save({"metric": number}, tmp_path / "x.pth")
    metric = checkpoint._read(tmp_path / "x.pth")["metric"]
    assert metric == number
    assert type(metric) is type(number.item())


def test_scalars_of_an_older_numpy_are_read(tmp_path):
    path = tmp_path / "x.pth"
    content = {"accuracy": np.float64(0.75), "state_dict": recorded()}
    # a stream without lengths: the name of NumPy 1 fits into it
    torch.save(content, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes().replace(b"numpy._core.multi", b"numpy.core.multi"))
    assert b"cnumpy.core.multiarray" in path.read_bytes()
    assert checkpoint.load(path)["accuracy"] == 0.75


@pytest.mark.parametrize("accuracy", [np.float32(0.75), torch.tensor(0.75), 0.75], ids=repr)
def test_the_accuracy_is_a_plain_number(accuracy, read):
    found = read({"accuracy": accuracy, "state_dict": recorded()})["accuracy"]
    assert (found, type(found)) == (0.75, float)


def test_several_accuracies_are_none(read):
    """Of the first and of the first five classes, as some published files have."""
    assert (
        read({"accuracy": torch.tensor([0.7, 0.9]), "state_dict": recorded()})["accuracy"] is None
    )


def carriers(content):
    """Places in which a file may hold an object."""
    yield content
    yield {"state_dict": recorded(), "metric": content}
    yield {"state_dict": recorded(), "args": Namespace(lr=content)}
    yield {"state_dict": recorded() | {"head.weight": content}}
    yield {"state_dict": recorded(), "optimizer": {"state": {0: [(content,)]}}}


@pytest.mark.parametrize("place", range(5))
@pytest.mark.parametrize(
    "function, arguments",
    [
        (os.mkdir, ("{mark}",)),
        (exec, ("import os; os.mkdir('{mark}')",)),
        (eval, ("__import__('os').mkdir('{mark}')",)),
        (getattr, (b"", "join")),
        (np.dtype, ("O8",)),
        (np.array(1.0).__reduce__()[0], (np.ndarray, (0,), b"b")),
    ],
    ids=["mkdir", "exec", "eval", "getattr", "object type", "array"],
)
def test_nothing_in_a_file_runs(place, function, arguments, tmp_path, read):
    mark = tmp_path / "mark"
    words = [word.format(mark=mark) if isinstance(word, str) else word for word in arguments]
    content = next(itertools.islice(carriers(Foreign(function, *words)), place, None))
    if function is np.dtype and place:
        # a type alone is a value like others; a number of it cannot be made
        content = {"state_dict": recorded(), "metric": Foreign(NUMBERS[0].__reduce__()[0], content)}
    with pytest.raises(UseError):
        read(content)
    assert not mark.exists()


def test_a_foreign_object_is_named(read):
    with pytest.raises(UseError, match=r"holds an object of posix\.mkdir"):
        read({"state_dict": recorded(), "args": Namespace(lr=Foreign(os.mkdir, "x"))})


# ---- where the weights are, and under which names


@pytest.mark.parametrize("holder", HOLDERS)
def test_weights_are_found_under_their_usual_keys(holder, read):
    content = read({holder: recorded(), "epoch": 3})
    assert same(content["model"], recorded())
    assert content["taken"] == holder


def test_weights_may_be_nested(read):
    content = read({"model": {"state_dict": recorded()}, "epoch": 3})
    assert same(content["model"], recorded())
    assert content["taken"] == "model.state_dict"


def test_a_file_that_holds_itself_is_no_checkpoint(read):
    content = {}
    content["model"] = content
    with pytest.raises(UseError, match="it holds model"):
        read(content)


def test_the_average_is_taken_before_the_last_weights(read):
    """As timm does; the accuracy that its file names is the average's, too."""
    average = {key: value + 1 for key, value in recorded().items()}
    content = read({"state_dict": recorded(), "state_dict_ema": average})
    assert same(content["model"], average)
    assert checkpoint.told(content, "x.pth.tar") == "weights from x.pth.tar, its state_dict_ema"
    assert read({"state_dict": recorded(), "state_dict_ema": None})["taken"] == "state_dict"


def test_weights_alone_are_taken_as_they_are(read):
    content = read(OrderedDict(recorded()))
    assert same(content["model"], recorded())
    assert checkpoint.told(content, "x.pth.tar") == "weights from x.pth.tar"


@pytest.mark.parametrize("prefix", PREFIXES)
def test_the_names_of_wrappers_are_taken_off(prefix, read):
    content = read({"state_dict": {prefix + key: value for key, value in recorded().items()}})
    assert same(content["model"], recorded())


def test_a_module_that_was_compiled_alone_has_its_name(read):
    key = "features.0.fwd.module.0.weight"
    found = read({key.replace("fwd", "fwd._orig_mod"): torch.zeros(1)})["model"]
    assert list(found) == [key]


def test_an_averaging_wrapper_counts(read):
    """torch's AveragedModel."""
    net = torch.optim.swa_utils.AveragedModel(resnet())
    checkpoint.load_into(resnet(), read(net.state_dict()), "x.pth")


def test_two_networks_of_the_same_names_are_refused(read):
    state = {f"{one}.{key}": value for one in ("net", "model") for key, value in recorded().items()}
    with pytest.raises(UseError, match=r"x\.pth\.tar .*two networks: .*pre_process"):
        read({"state_dict": state})


def test_a_file_without_weights_says_what_it_holds(read):
    words = r"neither this project's nor a published state_dict: it holds epoch, optimizer"
    with pytest.raises(UseError, match=words):
        read({"epoch": 3, "optimizer": {}})


def test_a_missing_counter_of_batches_is_no_fault(read):
    state = {k: v for k, v in recorded().items() if "num_batches_tracked" not in k}
    assert len(state) < len(recorded())
    net = resnet()
    checkpoint.load_into(net, read(state), "x.pth")
    assert net.state_dict()["stages.0.synapse.norm.num_batches_tracked"] == 0


# ---- weights of another network


@pytest.mark.parametrize(
    "net, state, words",
    [
        ("resnet20", "sdt", "not fit a resnet20: it holds a sdt; check --architecture"),
        ("vgg16", "vggsnn", "not fit a vgg16: it holds a vggsnn; check --architecture"),
        ("sdt", "vggsnn", "not fit a sdt: it holds a vggsnn; give weights of a sdt"),
        ("vggsnn", "resnet20", "not fit a vggsnn: it holds a cnn; give weights of a vggsnn"),
        ("sdt", "vgg16", "not fit a sdt: it holds a cnn; give weights of a sdt"),
    ],
)
def test_weights_of_another_network_are_named(net, state, words, tmp_path):
    networks = {
        "resnet20": resnet(),
        "vgg16": models.build("vgg16", models.ReLU(), width_mult=1 / 8),
        "sdt": models.build("sdt", transformer.activation("lif", 1, 2), depth=1, dim=16),
        "vggsnn": models.build("vggsnn", vggsnn.activation(1, 2), width_mult=1 / 16),
    }
    states = {
        "resnet20": recorded(),
        "vgg16": golden.group("vgg16", "ann_w/"),
        "sdt": {"patch_embed.proj_conv.weight": torch.zeros(2, 3, 3, 3)},
        "vggsnn": test_vggsnn.state("mc1_S3"),
    }
    path = tmp_path / "x.pth"
    torch.save(states[state], path)
    with pytest.raises(UseError, match=words):
        load = checkpoint.load_into if net in models.CNNS else checkpoint.load_named
        load(networks[net], checkpoint.load(path), path)


# ---- all together


def fill(net, path):
    """The network's tensors, but for counters, once the file's weights have replaced zeros."""
    for parameter in net.parameters():
        parameter.data.zero_()
    cnn = net.built["name"] in models.CNNS
    load = checkpoint.load_into if cnn else checkpoint.load_named
    load(net, checkpoint.load(path), path)
    return {k: v for k, v in net.state_dict().items() if "num_batches" not in k}


def published_networks():
    """{name: (network, its published weights)}"""
    sdt, _ = test_transformer.recorded()
    events, _ = test_vggsnn.recorded("mc1_S3")
    numbers = test_transformer.NUMBERS
    weights = {k[2:]: torch.from_numpy(numbers[k]) for k in numbers.files if k.startswith("w/")}
    return {
        "resnet20": (resnet(), recorded()),
        "sdt": (sdt, weights),
        "vggsnn": (events, test_vggsnn.state("mc1_S3")),
    }


@pytest.mark.long
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("kind", METADATA)
@pytest.mark.parametrize("name", ["resnet20", "sdt", "vggsnn"])
def test_any_layout_is_read_or_refused(name, kind, legacy, tmp_path):
    """Wrappers twice over, holders, metadata, absent counters; then changed bytes, and a cut."""
    rng = np.random.default_rng(0)
    path = tmp_path / "x.pth"
    net, weights = published_networks()[name]
    torch.save(weights, path)
    want = fill(net, path)
    holders = [(), *((key,) for key in HOLDERS), ("model", "net")]
    for prefixes in itertools.product(["", *PREFIXES], repeat=2):
        named = {"".join(prefixes) + key: value for key, value in weights.items()}
        content = {k: v for k, v in named.items() if rng.random() < 0.5 or "num_batches" not in k}
        nested = holders[rng.integers(len(holders))]
        for holder in reversed(nested):
            content = {holder: content}
        if nested:
            content |= METADATA[kind]
        torch.save(content, path, _use_new_zipfile_serialization=not legacy)
        assert same(fill(net, path), want)

        whole = path.read_bytes()
        for length in (len(whole), len(whole), rng.integers(1, len(whole))):
            damaged = bytearray(whole[:length])
            # the names and types are in the first part
            damaged[rng.integers(min(length, 8000))] ^= int(rng.integers(1, 256))
            path.write_bytes(damaged)
            try:
                checkpoint.load(path)
            except UseError as error:
                assert str(path) in str(error)
