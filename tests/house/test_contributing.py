"""The walks of CONTRIBUTING.md, carried out as written in a copy of the repository."""

import re
import shlex
import shutil

import pytest

from tests.helpers import ROOT, listed, read

PAGE = (ROOT / "CONTRIBUTING.md").read_text()
BLOCK = re.compile(r"^```\w+ (file=[^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ANN = "ann_ddp.py --bn --bias --epochs 1 --limit_train_batches 2 --device cpu --batch_size 16"
RECIPE = """
import torch, models
from engine.dist import World
from engine.loop import ComputeOptions, Record, RunOptions, Trainer
from engine.recipes.toy import ToyRecipe
from inputs.loader import BatchOptions, loaders
from inputs.table import DataOptions, load

world = World()
data = load(DataOptions(dataset="DIGITS"), world)
batches = loaders(data, BatchOptions(limit_train_batches=2, limit_eval_batches=1), 0, world)
net = models.build("resnet20", models.ReLU(), width_mult=0.03)
record = Record("ann", data.about, {}, "toy.pth", None)
trainer = Trainer(net, ToyRecipe(1), batches, record, RunOptions(), ComputeOptions(), world)
print("best", trainer.fit()["best_accuracy"])
"""
PARITY = """
import torch
from models import NeuronConfig
from models.neuron.backends import compiled, dispatch

config = NeuronConfig(surrogate="rectangle")
x = torch.linspace(-1, 5, 400).view(2, 200).double()
found = {}
for backend in ("reference", "torch", "cpp", "triton"):
    dtype = torch.float32 if backend == "triton" else torch.float64
    inputs = [x.to(dtype), torch.tensor(0.7, dtype=dtype), torch.tensor(0.9, dtype=dtype)]
    inputs = [value.clone().requires_grad_() for value in inputs]
    o, _ = dispatch.mlif(*inputs, config, backend=backend)
    found[backend] = [g.double() for g in torch.autograd.grad(o.square().sum(), inputs)]
plain = torch.tensor(0.7).double(), torch.tensor(0.9).double()
o, _ = compiled._forward(x, *plain, None, config, False)
gx, _, *rest = compiled._backward(x, 2 * o, *plain, None, None, config)
found["compiled"] = [gx, *rest]
for backend, gradients in found.items():
    for got, want in zip(gradients, found["reference"]):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
assert found["reference"][0].count_nonzero() > 20
print("equal on", *found)
"""


def walk(title):
    """[(how, content)] of the blocks under the heading that begins with `title`."""
    _, _, rest = PAGE.partition(f"\n## {title}")
    section = rest.split("\n## ")[0]
    found = []
    for words, content in BLOCK.findall(section):
        how = dict(word.partition("=")[::2] for word in shlex.split(words))
        found.append((how, content))
    assert found, f"CONTRIBUTING.md has no walk {title!r}"
    return found


def carry_out(blocks, folder):
    """Edit the copy in `folder` as the blocks say; returns {file: lines that were added}."""
    touched = {}
    for how, content in blocks:
        path = folder / how["file"]
        added = content.count("\n")
        touched[how["file"]] = touched.get(how["file"], 0) + added
        if "end" in how:
            path.write_text(path.read_text() + content)
        elif "before" in how or "replace" in how:
            text = path.read_text()
            place = (how.get("before") or how["replace"]).replace("\\n", "\n")
            assert text.count(place) == 1, f"{how['file']} has no one place {place!r}"
            new = content + place if "before" in how else content.rstrip("\n")
            path.write_text(text.replace(place, new))
        else:
            assert not path.exists()
            path.write_text(content)
    return touched


@pytest.fixture
def copy(tmp_path):
    """A copy of the product and of its tests."""
    for path in listed():
        name = path.relative_to(ROOT)
        if name.parts[0] not in ("results", "docs"):
            target = tmp_path / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    return tmp_path


def test_a_network(copy):
    touched = carry_out(walk("A network"), copy)
    assert set(touched) == {"models/toy.py", "models/__init__.py"}
    assert touched["models/__init__.py"] == 1
    said = read(["-m", "pytest", "tests/models/test_registry.py", "-k", "toy"], copy)
    assert "passed" in said and "failed" not in said
    read(f"{ANN} -a TOY --dataset DIGITS".split(), copy)
    ann = "trained_models/ann/ann_toy_digits"
    read(f"absorb_bn.py --pretrained_ann {ann}.pth".split(), copy)
    snn = "snn_ddp.py -a TOY --dataset DIGITS --bias -multi_channel 1 -num_channels 3 --timesteps 1"
    more = "--epochs 1 --limit_train_batches 2 --device cpu --conversion matched --energy"
    said = read(f"{snn} {more} --pretrained_ann {ann}_bn_fused.pth".split(), copy)
    assert "right after the matched conversion" in said and "firing rate per lane" in said


@pytest.mark.compiler
def test_a_surrogate(copy):
    touched = carry_out(walk("A surrogate"), copy)
    assert len(touched) <= 4
    said = read(["-c", PARITY], copy, TRITON_INTERPRET=1)
    assert "equal on reference torch cpp triton compiled" in said


def test_a_data_set(copy):
    touched = carry_out(walk("A data set"), copy)
    assert len(touched) <= 2
    said = read(f"{ANN} -a RESNET20 --width_mult 0.03 --dataset STRIPES".split(), copy)
    assert "stripes: 64 training, 32 test images" in said


def test_a_recipe(copy):
    assert len(carry_out(walk("A training recipe"), copy)) == 1
    assert "best" in read(["-c", RECIPE], copy)


def test_a_row(copy):
    (path, lines), *others = carry_out(walk("A row"), copy).items()
    assert (path, lines, others) == ("experiments/rows.csv", 1, [])
    said = read(["reproduce.py", "cifar10-resnet20-mlif-t2", "--dry-run"], copy)
    assert "--timesteps 2" in said
