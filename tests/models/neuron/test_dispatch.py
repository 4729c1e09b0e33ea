"""Which backend runs: `auto` chooses, a named one never falls back, and wrong input is named."""

import sys
import types

import pytest
import torch

from models import NeuronConfig
from models.neuron.backends import compiled, cpp, cupy, dispatch, triton

ONE = torch.tensor(1.0)
X = torch.ones(1, 2)


def mlif(x=X, theta=ONE, leak=ONE, v=None, backend="auto"):
    return dispatch.mlif(x, theta, leak, NeuronConfig(), v=v, backend=backend)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"x": torch.ones(1, 2, dtype=torch.int64)}, "floating-point current .*got torch.int64"),
        ({"x": torch.ones(0, 2)}, "with T >= 1, got torch.float32"),
        ({"theta": ONE.to("meta")}, "theta is on meta, the input current on cpu"),
        ({"leak": ONE.to("meta")}, "leak is on meta"),
        ({"theta": torch.ones(2)}, r"theta must be 0-dim, one for all neurons, got \(2,\)"),
        ({"v": torch.ones(3)}, r"shape of one step \(2,\), got \(3,\): call reset"),
        (
            {"backend": "cuda"},
            "one of auto, torch, compiled, cpp, cupy, triton, reference, got 'cuda'",
        ),
    ],
)
def test_refuses(arguments, words):
    with pytest.raises(ValueError, match=words):
        mlif(**arguments)


def test_named_backend_says_why_it_cannot_run():
    with pytest.raises(
        RuntimeError, match="backend cupy cannot run: it runs on a CUDA GPU, the tensor is on cpu"
    ):
        mlif(backend="cupy")
    with pytest.raises(RuntimeError, match=r"triton cannot run: it has no torch\.float64 kernel"):
        mlif(X.double(), ONE.double(), ONE.double(), backend="triton")


def test_without_a_compiler(monkeypatch):
    """What needs one says so; `auto` still trains."""
    monkeypatch.setenv("CXX", "no-such-compiler")
    cpp._broken.cache_clear()
    try:
        with pytest.raises(RuntimeError, match=r"no C\+\+ compiler found: install g\+\+"):
            mlif(backend="cpp")
        with pytest.raises(RuntimeError, match=r"Inductor needs a C\+\+ compiler"):
            dispatch.choose("compiled", "cpu")
        assert dispatch.choose("auto", "cpu") == "torch"
    finally:
        cpp._broken.cache_clear()


def test_triton_without_a_compiler_of_its_driver(monkeypatch):
    class Driver:
        @property
        def active(self):
            raise RuntimeError("Failed to find C compiler.")

    runtime = types.SimpleNamespace(driver=Driver())
    monkeypatch.setattr(triton, "triton", types.SimpleNamespace(runtime=runtime))
    monkeypatch.setattr(triton, "INTERPRETED", False)
    triton._broken.cache_clear()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert dispatch.choose("triton", "cuda") == "triton"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(cupy, "why_not", lambda *_: None)
    triton._broken.cache_clear()
    try:
        with pytest.raises(RuntimeError, match=r"cannot start \(Failed to find C compiler\.\)"):
            dispatch.choose("triton", "cuda")
        assert dispatch.choose("auto", "cuda") == "cupy"
    finally:
        triton._broken.cache_clear()


@pytest.mark.parametrize("backend", ["traced", "reference", "torch", "cpp"])
def test_a_narrow_potential_is_widened(backend):
    """0.9 * 1 + 0.1011 is above 1, in bfloat16 below."""
    x, v = torch.full((1, 1), 0.1011), torch.ones(1, dtype=torch.bfloat16, requires_grad=True)
    config = NeuronConfig.vgg(3)
    if backend == "traced":
        o, _ = compiled.traced(x, ONE, 0.9 * ONE, v, config, False)
    else:
        o, _ = dispatch.mlif(x, ONE, 0.9 * ONE, config, v=v, backend=backend)
    assert o.item() == 1
    (gradient,) = torch.autograd.grad(o.sum(), v)
    assert gradient.dtype == torch.bfloat16


def test_only_the_compiled_backend_runs_inside_torch_compile(monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_dynamo_compiling", lambda: True)
    with pytest.raises(RuntimeError, match=r"cpp cannot run inside torch\.compile: use auto or"):
        mlif(backend="cpp")
    for name in ("auto", "compiled"):
        assert mlif(backend=name)[0].tolist() == [[0, 0]]  # a current of 1 is no more than theta


@pytest.mark.parametrize(
    ("cuda", "runtime", "reason"),
    [
        (None, None, "built without CUDA"),
        ("12.8", None, "pip install cupy-cuda12x"),
        ("13.0", None, "pip install cupy-cuda13x"),
        ("13.0", 12090, "built for CUDA 12, torch for 13.0: pip install cupy-cuda13x"),
        ("12.8", 13020, "built for CUDA 13, torch for 12.8: pip install cupy-cuda12x"),
    ],
)
def test_cupy_names_the_missing_wheel(monkeypatch, cuda, runtime, reason):
    """runtime: the CUDA version of an installed CuPy; None: there is no CuPy."""
    fake = types.SimpleNamespace(runtimeGetVersion=lambda: runtime)
    fake = types.SimpleNamespace(cuda=types.SimpleNamespace(runtime=fake))
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setitem(sys.modules, "cupy", fake if runtime else None)
    cupy._missing.cache_clear()
    try:
        assert reason in cupy.why_not(torch.device("cuda"), torch.float32)
    finally:
        cupy._missing.cache_clear()
