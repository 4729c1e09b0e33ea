"""How the kernels are compiled and launched: g++, NVRTC and nvcc, CuPy, Triton, torch.compile."""

import atexit
import contextlib
import ctypes
import itertools
import os
import shlex
import subprocess
import sys
import types

import numpy as np
import pytest
import torch

import models
from models import MLIF, NeuronConfig
from models.layers import Layer, Network, Synapse
from models.neuron import __main__ as doctor
from models.neuron.backends import cpp, cupy, source
from tests.helpers import ROOT
from tests.models.neuron.parity import (
    GPU_SHAPE,
    ONE_STEP,
    SAMPLE,
    THREE_STEPS,
    both,
    launched,
    prepare,
)


class FakeModule:
    """cupy.RawModule that runs what it is given on the CPU."""

    streams = ()
    variants = ()  # that may be asked for; all are compiled

    def __init__(self, code, options, backend):
        assert code == source.text()
        assert backend == "nvrtc"
        self.flags = [option for option in options if option.startswith("-D")]

    def get_function(self, name):
        def launch(grid, block, arguments, stream):
            assert all(isinstance(each, np.int64) for each in arguments)
            assert block == (cupy.BLOCK,)
            variant = next(each for each in self.variants if each.options() == self.flags)
            threads = grid[0] * block[0]
            values = [int(each) for each in arguments]
            GPU_SHAPE.launch(variant, name.removeprefix("mlif_"), threads, values, None)
            self.streams.append(stream)

        return launch


@pytest.mark.compiler
def test_cupy_launches_on_torchs_stream(monkeypatch):
    """Names, flags, grid, arguments and stream of a launch are those of CUDA."""
    streams = types.SimpleNamespace(ExternalStream=lambda pointer: ("stream", pointer))
    fake = types.SimpleNamespace(RawModule=FakeModule, cuda=streams)
    current = types.SimpleNamespace(cuda_stream=42)
    variants = prepare(cupy._launcher, SAMPLE, torch.float32, [ONE_STEP, THREE_STEPS])
    monkeypatch.setattr(FakeModule, "variants", variants)
    monkeypatch.setattr(FakeModule, "streams", [])
    monkeypatch.setitem(sys.modules, "cupy", fake)
    monkeypatch.setattr(cupy.CuPy, "warp", 1)  # of the shim
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: current)
    cupy._kernel.cache_clear()
    try:
        both(launched(cupy._launcher), SAMPLE, torch.float32, size=(5, 1000), tolerance=5e-5)
    finally:
        cupy._kernel.cache_clear()
    assert set(FakeModule.streams) == {("stream", 42)}


@pytest.mark.parametrize(
    "arch", [90, *(pytest.param(arch, marks=pytest.mark.long) for arch in (75, 80, 100))]
)
def test_cuda_source_compiles_for_gpus_without_spills(arch):
    assert arch in doctor.ARCHITECTURES
    found = doctor.compilers()
    if not found:
        pytest.skip("no CUDA compiler here: neither NVRTC (cuda-bindings) nor nvcc")
    cases = [
        (NeuronConfig.vgg(3), 1, torch.float32),
        (NeuronConfig.transformer(3), 4, torch.float16),
        (NeuronConfig.vgg(8, 2), 16, torch.bfloat16),
    ]
    for compile_one, (config, steps, dtype) in itertools.product(found.values(), cases):
        counts = doctor.registers(compile_one, arch, config, steps, dtype)
        assert set(counts) == {"forward", "backward"}
        for used, spilled in counts.values():
            assert used <= 128 and spilled == 0, (arch, config, counts)


def test_a_compiler_of_cuda_is_quoted():
    """Its error is told with the architecture that was asked for."""
    found = doctor.compilers()
    if not found:
        pytest.skip("no CUDA compiler here: neither NVRTC (cuda-bindings) nor nvcc")
    for name, compile_one in found.items():
        with pytest.raises(RuntimeError, match=rf"(?i){name} cannot compile mlif.cu for sm_80: .+"):
            compile_one(["-DSURROGATE=99"], 80)


# Run by a Python of its own, in which Triton is not interpreted.
PTX = r"""
import re, torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from models import NeuronConfig
from models.neuron.backends import triton as kernels

STEPS = 3
NARROW = ("x_ptr", "o_ptr", "g_ptr", "gx_ptr")
H100 = GPUTarget("cuda", 90, 32)
fast = NeuronConfig.transformer(3, fast=True, soft=True, detach_reset=False)

def compiled(kernel, config):
    names = kernel.arg_names
    fixed = kernels.fixed(kernel, config, STEPS)
    kinds = {name: "constexpr" if name in fixed else "i32" if name in ("n", "stride")
             else "*bf16" if name in NARROW else "*fp32" for name in names}
    places = {(names.index(name),): value for name, value in fixed.items()}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if name not in fixed}
    program = ASTSource(fn=kernel, signature=kinds, constexprs=places, attrs=aligned)
    return triton.compile(program, target=H100, options={"enable_fp_fusion": False}).asm

for config in (NeuronConfig.vgg(3), fast):
    for kernel in (kernels._forward, kernels._backward):
        text = compiled(kernel, config)
        ptx = text["ptx"]
        assert not re.search(r"arith.muli .*i32", text["ttir"])  # t * n may not fit
        assert re.search(r"ld.global\S*.v4", ptx)
        assert ".target sm_90" in ptx and "fma.rn.f32" not in ptx.replace("div", "")
        print(kernel.fn.__name__, len(ptx))
"""


def test_triton_compiles_to_ptx_without_a_gpu(tmp_path):
    """Wide accesses, 64-bit offsets, and no product fused with a sum."""
    pytest.importorskip("triton")
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    env["TRITON_CACHE_DIR"] = str(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", PTX], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("_forward") == 2
    assert done.stdout.count("_backward") == 2


def small_network(act):
    """Two convolutions with their neurons, and a head."""
    torch.manual_seed(0)
    stages = [
        Layer(Synapse(torch.nn.Conv2d(3, 8, 3, padding=1)), act.layer(first=True)),
        Layer(Synapse(torch.nn.Conv2d(8, 8, 3, padding=1)), act.layer()),
        torch.nn.Flatten(),
    ]
    return Network(act, stages, torch.nn.Linear(512, 10))


@pytest.mark.compiler
def test_network_compiles_as_one_graph():
    """The neuron is traced into the network: no graph break, the same spikes and gradients."""
    torch._dynamo.reset()
    act = models.Spiking(NeuronConfig.vgg(3), 2, theta=0.2)
    x = torch.randn(4, 3, 8, 8)
    results = []
    for compile in (False, True):
        net = small_network(act)
        run = torch.compile(net, fullgraph=True) if compile else net
        out = run(x)
        out.square().sum().backward()
        grads = [p.grad for p in net.parameters() if p.grad is not None]
        results.append([out.detach(), *grads])
    for a, b in zip(*results, strict=True):
        assert (a - b).abs().max() <= 1e-4 * b.abs().max()


@pytest.mark.compiler
def test_a_second_derivative_of_a_compiled_network_is_refused():
    """By torch itself."""
    torch._dynamo.reset()
    net = torch.compile(MLIF(NeuronConfig.vgg(3), theta=0.8), fullgraph=True)
    x = torch.randn(1, 3, requires_grad=True)
    out = net(x).sum() + x.square().sum()
    (gx,) = torch.autograd.grad(out, x, create_graph=True)
    with pytest.raises(RuntimeError, match="does not currently support double backward"):
        gx.sum().backward()


@pytest.fixture
def fresh():
    """What is known of this machine's compiler and cache folder is asked for again."""
    cached = (cpp._machine, cpp.cache_folder)
    for function in cached:
        function.cache_clear()
    yield
    for function in cached:
        function.cache_clear()


def test_a_broken_compiler_is_quoted(monkeypatch, tmp_path, fresh):
    fake = tmp_path / "cc"
    fake.write_text('#!/bin/sh\necho "mlif.cpp:1: error: no space left" >&2\nexit 1\n')
    fake.chmod(0o755)
    monkeypatch.setenv("CXX", str(fake))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(
        RuntimeError, match=r"cannot compile .*mlif\.cu: mlif\.cpp:1: error: no space left"
    ):
        cpp.compile_library([])
    assert not list((tmp_path / "mlif").iterdir())


@pytest.fixture
def cache(monkeypatch, tmp_path, fresh):
    """A new folder of libraries."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return cpp.cache_folder()


@pytest.mark.compiler
def test_a_compiler_may_be_several_words(cache, monkeypatch):
    words = cpp.compiler()
    monkeypatch.setenv("CXX", f"env {' '.join(words)}")
    assert cpp.compiler()[1:] == words
    assert cpp.compile_library([]).exists()


@pytest.mark.compiler
def test_a_compiler_without_float16_compiles_the_rest(cache, monkeypatch, tmp_path):
    """As g++ before version 12."""
    fake = tmp_path / "cc"
    fake.write_text(f"""#!/bin/sh
for word; do
    case $word in *.cpp) grep -q HALF$ $word && echo "error: no _Float16" >&2 && exit 1; esac
done
exec {shlex.join(cpp.compiler())} "$@"
""")
    fake.chmod(0o755)
    monkeypatch.setenv("CXX", str(fake))
    cpp._broken.cache_clear()
    try:
        device = torch.device("cpu")
        assert cpp.why_not(device, torch.bfloat16) is None
        assert "no _Float16" in cpp.why_not(device, torch.float16)
    finally:
        cpp._broken.cache_clear()


@pytest.mark.compiler
@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b[:4000] + b"?" + b[4001:]])
def test_a_damaged_library_is_built_again(cache, damage):
    path = cpp.compile_library([])
    damaged = damage(path.read_bytes())
    path.write_bytes(damaged)
    assert cpp.compile_library([]) == path
    assert path.read_bytes() != damaged
    ctypes.CDLL(str(path))


@pytest.mark.compiler
def test_what_a_killed_compiler_left_is_removed(cache):
    """But not the folder of one that may be at work."""
    left = cache / "tmpleft"
    busy = cache / "tmpbusy"
    for folder in (left, busy):
        folder.mkdir()
        (folder / "mlif.cpp").touch()
    os.utime(left, (0, 0))
    path = cpp.compile_library([])
    assert set(cache.iterdir()) == {path, busy}


@pytest.mark.compiler
def test_libraries_are_built_where_the_cache_cannot_be_written(monkeypatch, tmp_path, fresh):
    """In a folder that ends with the process."""
    at_exit = []
    monkeypatch.setattr(atexit, "register", lambda *call, **more: at_exit.append((*call, more)))
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert cpp.cache_folder().is_dir()
    assert "mlif-" in cpp.cache_folder().name
    assert cpp.compile_library([]).exists()
    for function, folder, more in at_exit:
        function(folder, **more)
    assert not cpp.cache_folder().exists()


@pytest.mark.compiler
def test_doctor_says_what_runs(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["models.neuron"])
    doctor.main()
    out = capsys.readouterr().out
    assert "auto takes cpp" in out
    assert "  cpp       runs: float32, bfloat16, float16, float64" in out
    assert "  cupy      no: it runs on a CUDA GPU" in out
