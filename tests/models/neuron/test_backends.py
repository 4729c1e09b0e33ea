"""Every backend against the definition; the CUDA source compiled, launched as on a GPU, and interpreted Triton, on a CPU."""

import contextlib
import itertools
import os
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
from models.neuron.backends import compiled, cpp, cupy, dispatch, source, torch_fused
from models.neuron.reference import mlif_reference
from tests.helpers import ROOT

GRID = [
    NeuronConfig(
        levels=levels,
        one_hot=one_hot,
        inclusive=inclusive,
        reset=reset,
        scaled=scaled,
        surrogate=shape,
        relative=relative,
        edge=edge,
        input_gain=gain,
    )
    for levels, one_hot, inclusive, reset, scaled, (
        shape,
        relative,
    ), edge, gain in itertools.product(
        (1, 4),
        (True, False),
        (True, False),
        ("soft", "soft_theta", "hard"),
        (True, False),
        (("triangle", True), ("sigmoid", True), ("sigmoid", False)),
        ("paper",),
        (1.0, 0.5),
    )
]
GRID += [
    NeuronConfig(levels=8),
    NeuronConfig(levels=8, one_hot=False),
    NeuronConfig.lif(),
    NeuronConfig(detach_reset=False),
    NeuronConfig.transformer(3, True, True, False),
    NeuronConfig(levels=3, one_hot=False, detach_reset=False),
]
SAMPLE = [
    NeuronConfig.vgg(3),
    NeuronConfig.vgg(3, 2),
    NeuronConfig.vgg(1),
    NeuronConfig.transformer(3),
    NeuronConfig.transformer(3, fast=True, soft=True, detach_reset=False),
    NeuronConfig.lif(),
]


class GPUShape(cpp.Cpp):
    """mlif.cu as a GPU runs it: blocks of threads, few neurons per thread, wide accesses where they are aligned."""

    block = cupy.BLOCK
    tile = source.Launcher.tile


GPU_SHAPE = GPUShape()


def on_grid(launcher, configs, dtype, cases=((1, False), (3, True)), **size):
    """Compare a launcher with the definition, all its variants compiled at once."""
    cpp.prepare(
        [
            source.Variant(
                config,
                steps,
                dtype,
                start,
                True,
                launcher.tile(steps, dtype),
                launcher.tile(steps, dtype) * dtype.itemsize <= 16,
            )
            for config in configs
            for steps, start in cases
        ]
    )
    both(launched(launcher), configs, dtype, cases, **size)


def gradients(run, x, grad, grad_last, start, config):
    """(output, potential, gradients of x, theta, leak, v) of run(x, theta, leak, config, v) on copies of the inputs."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    inputs = [
        x.clone(),
        *(
            torch.full(shape, value, dtype=dtype, device=x.device)
            for shape, value in (((), 0.8), ((), 0.9), (x.shape[1:], 0.3))
        ),
    ]
    inputs = [i.requires_grad_() for i in inputs]
    o, last = run(*inputs[:3], config, inputs[3] if start else None)
    wanted = [i for i, need in zip(inputs, (1, 1, len(x) > 1 or start, start)) if need]
    return [
        o.detach(),
        last.detach(),
        *torch.autograd.grad((o.to(last.dtype) * grad).sum() + (last * grad_last).sum(), wanted),
    ]


def both(
    run, configs, dtype, cases=((1, False), (3, True)), size=(2, 3, 7), tolerance=1e-9, device="cpu"
):
    """Compare run with the definition over configurations, steps and given starts."""
    generator = torch.Generator().manual_seed(1)
    for config, (steps, start) in itertools.product(configs, cases):
        x = (torch.randn(steps, *size, generator=generator) * 2 + 0.6).to(device, dtype)
        grad = torch.randn(x.shape, generator=generator).to(
            device, torch.promote_types(dtype, torch.float32)
        )
        got, want = (
            gradients(fn, x, grad, torch.ones_like(grad[0]), start, config)
            for fn in (run, mlif_reference)
        )
        assert torch.equal(got[0], want[0]), (config, steps, start)
        for a, b in zip(got[1:], want[1:]):
            assert (a - b).abs().max() <= tolerance * (1 + b.abs().max()), (
                config,
                steps,
                start,
                a,
                b,
            )


def backend(name):
    return lambda x, theta, leak, config, v: dispatch.mlif(x, theta, leak, config, v, True, name)


def launched(launcher):
    """Run a launcher that is no backend by name."""

    def run(x, theta, leak, config, v):
        from models.neuron.backends.function import Neuron

        return Neuron.apply(x, theta, leak, v, config, True, launcher)

    return run


def test_eager_equals_definition(monkeypatch):
    """float64, the whole grid, with slices that do not divide."""
    monkeypatch.setattr(torch_fused, "SLICE", 17)
    both(backend("torch"), GRID, torch.float64, tuple(itertools.product((1, 3), (False, True))))


def test_cuda_source_equals_definition_on_a_cpu():
    """float64, a fifth of the grid (no option's period divides five): the algebra of mlif.cu."""
    on_grid(cpp._launcher, GRID[::5] + GRID[-6:], torch.float64, ((3, True),))
    on_grid(cpp._launcher, SAMPLE, torch.float64, ((1, False),))


@pytest.mark.long
def test_cuda_source_equals_definition_everywhere():
    on_grid(cpp._launcher, GRID, torch.float64)


@pytest.mark.parametrize("size", [(2, 3, 7), (4, 64)])  # no whole tile fits; all accesses are wide
def test_cuda_source_in_the_shape_of_a_gpu(size):
    for dtype, tolerance in ((torch.float32, 2e-5), (torch.float64, 1e-9), (torch.bfloat16, 2e-2)):
        on_grid(GPU_SHAPE, SAMPLE, dtype, size=size, tolerance=tolerance)


def test_interpreted_triton_equals_definition():
    both(backend("triton"), GRID[::5] + GRID[-6:], torch.float32, tolerance=2e-5)


@pytest.mark.long
def test_interpreted_triton_equals_definition_everywhere():
    both(
        backend("triton"),
        GRID,
        torch.float32,
        tuple(itertools.product((1, 3), (False, True))),
        tolerance=2e-5,
    )


def test_compiled_equals_definition():
    """What is compiled, over the whole grid, not compiled; and a sample through Inductor."""
    plain = types.SimpleNamespace(forward=compiled._forward, backward=compiled._backward)
    both(launched(plain), GRID, torch.float64, tuple(itertools.product((1, 3), (False, True))))
    both(backend("compiled"), SAMPLE[1::2], torch.float64)


@pytest.mark.long
def test_compiled_equals_definition_on_more():
    both(backend("compiled"), GRID[::7] + SAMPLE, torch.float64)


@pytest.mark.parametrize("name", ["torch", "cpp", "triton", "compiled"])
def test_boundaries_and_special_values(name):
    """Spikes beside every edge, for thresholds all over the exponent and mantissa range, NaN, infinities, theta <= 0."""
    config = NeuronConfig.vgg(3)
    for theta in np.float32([0.8, 1.0, 0.1, 1.9999999, 1.0000001, 3.3e-3, 1e-30, 1e30]):
        edges = np.array([theta * 2**k for k in range(3)], np.float32)
        for offset, expected in ((-1, [0, 1, 2]), (0, [0, 1, 2]), (1, [1, 2, 4])):
            at = (
                edges
                if not offset
                else np.nextafter(edges, np.float32(np.inf * offset), dtype=np.float32)
            )
            o, _ = dispatch.mlif(
                torch.from_numpy(at)[None],
                torch.tensor(theta),
                torch.tensor(1.0),
                config,
                None,
                True,
                name,
            )
            assert o.flatten().tolist() == expected, (theta, offset)
    special = torch.tensor([[0.0, -0.0, -1.0, torch.inf, -torch.inf, 1e38, torch.nan]])
    o, v = dispatch.mlif(special, torch.tensor(1.0), torch.tensor(1.0), config, None, True, name)
    assert o[0, :6].tolist() == [0, 0, 0, 4, 0, 4] and o[0, 6].isnan() and v[6].isnan()
    narrow, _ = dispatch.mlif(
        special.bfloat16(), torch.tensor(1.0), torch.tensor(1.0), config, None, True, name
    )
    assert torch.equal(narrow.float().nan_to_num(7), o.nan_to_num(7))
    for theta in (0.0, -1.0, torch.nan):
        o, _ = dispatch.mlif(
            special, torch.tensor(theta), torch.tensor(1.0), config, None, True, name
        )
        assert o.isnan().all()


def test_comparing_needs_no_division():
    """u / edge > 2^i, rounded, exactly where u > edge * 2^i: random edges, and potentials one unit beside each."""
    edge = np.ldexp(
        np.random.default_rng(0).random(20000, dtype=np.float32) + 1, np.arange(20000) % 200 - 100
    )
    for dtype, factor in itertools.product((np.float32, np.float64), (1, 2, 128)):
        e = edge.astype(dtype)
        for u in (
            e * dtype(factor),
            np.nextafter(e * dtype(factor), dtype(0)),
            np.nextafter(e * dtype(factor), dtype(np.inf)),
        ):
            assert np.array_equal(u / e > factor, u > e * dtype(factor))
            assert np.array_equal(u / e >= factor, u >= e * dtype(factor))


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *(
            (name, dtype)
            for name in ("torch", "cpp", "triton")
            for dtype in (torch.float32, torch.bfloat16, torch.float16)
        ),
        ("compiled", torch.bfloat16),
        *(
            pytest.param("compiled", dtype, marks=pytest.mark.long)
            for dtype in (torch.float32, torch.float16)
        ),
    ],
)
def test_gradients_err_at_most_twice_as_much_as_pytorch(name, dtype):
    """Against float64 on the same rounded input; and the membrane is float32: the output is that of the widened input."""
    for config in (NeuronConfig.vgg(3), NeuronConfig.transformer(3, fast=True)):
        generator = torch.Generator().manual_seed(0)
        x = (torch.randn(4, 3000, generator=generator) + 0.6).to(dtype)
        grad, last = torch.randn(x.shape, generator=generator).to(dtype), torch.zeros(3000)
        wide = torch.promote_types(dtype, torch.float32)
        runs = ((mlif_reference, torch.float64), (mlif_reference, dtype), (backend(name), dtype))
        truth, plain, got = (
            gradients(fn, x.to(kind), grad.to(torch.promote_types(kind, wide)), last, False, config)
            for fn, kind in runs
        )
        assert got[0].dtype == dtype and torch.equal(got[0], plain[0])
        same = (plain[0].double() == truth[0]).all(0)  # neurons whose spikes float64 has too
        for a, b, exact in zip(got[2:], plain[2:], truth[2:]):
            a, b, exact = (t[:, same].double() if t.dim() else t.double() for t in (a, b, exact))
            error, allowed = (a - exact).norm(), (b - exact).norm()
            assert error <= 2 * allowed + 1e-6 * exact.norm(), (config, exact.dim(), error, allowed)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [  # Triton's interpreter rounds bfloat16 its own way
        ("torch", torch.bfloat16),
        ("torch", torch.float16),
        ("cpp", torch.bfloat16),
        ("cpp", torch.float16),
        ("triton", torch.float16),
    ],
)
def test_gradients_are_rounded_once_to_nearest(name, dtype):
    """The gradient of a narrow input is that of the widened one, rounded: ties to even, NaN and infinity kept."""
    x = (torch.randn(1, 5000, generator=torch.Generator().manual_seed(0)) + 0.6).to(dtype)
    grad = torch.randint(-512, 512, (1, 5000)).to(dtype)  # steep and exact: many ties
    grad[0, :2] = torch.tensor([torch.nan, torch.inf])
    x[0, :2] = 1.0
    config = NeuronConfig(levels=1, gamma=1.0)
    narrow, wide = (
        gradients(
            backend(name), x.to(kind), grad.to(torch.float32), torch.zeros(5000), False, config
        )[2]
        for kind in (dtype, torch.float32)
    )
    assert narrow.dtype == dtype and torch.equal(
        narrow.nan_to_num(7, 8), wide.to(dtype).nan_to_num(7, 8)
    )


@pytest.mark.parametrize("name", ["torch", "cpp", "triton"])
def test_any_number_of_steps(name):
    """Sequences longer than a kernel unrolls are cut, without a seam."""
    config = NeuronConfig(levels=3)
    both(backend(name), [config], torch.float32, ((40, True), (17, False)), tolerance=1e-4)


@pytest.mark.long
@pytest.mark.parametrize("name", ["torch", "cpp"])
def test_more_elements_than_32_bits_count(name):
    n = 2**31 + 5
    x = torch.zeros(1, n, dtype=torch.bfloat16)
    x[0, -3:] = torch.tensor([1.5, 3.0, 9.0])
    with torch.no_grad():
        o, _ = dispatch.mlif(
            x, torch.tensor(1.0), torch.tensor(1.0), NeuronConfig(levels=3), None, False, name
        )
    assert o[0, -3:].tolist() == [1, 2, 4] and o[0, :1000].sum() == 0


def test_results_do_not_depend_on_the_number_of_threads():
    x, results = torch.randn(1, 300_001, generator=torch.Generator().manual_seed(0)) * 2, []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        try:
            results.append(
                gradients(
                    backend("cpp"),
                    x,
                    torch.ones_like(x),
                    torch.zeros(x.shape[1:]),
                    False,
                    NeuronConfig(),
                )
            )
        finally:
            torch.set_num_threads(1)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other))


def test_cupy_launches_on_torchs_stream(monkeypatch):
    """A stand-in for CuPy runs what it is given on the CPU: names, flags, grid, arguments and stream are those of CUDA."""
    seen = []

    class RawModule:
        def __init__(self, code, options, backend):
            assert code == source.text() and backend == "nvrtc"
            self.flags = [o for o in options if o.startswith("-D")]

        def get_function(self, name):
            def launch(grid, block, arguments, stream):
                variant = next(v for v in variants if v.options() == self.flags)
                assert all(isinstance(a, np.int64) for a in arguments)
                seen.append(stream)
                assert block == (cupy.BLOCK,)
                GPU_SHAPE.launch(
                    variant,
                    name.removeprefix("mlif_"),
                    grid[0] * block[0],
                    [int(a) for a in arguments],
                    None,
                )

            return launch

    streams = types.SimpleNamespace(ExternalStream=lambda pointer: ("stream", pointer))
    fake = types.SimpleNamespace(RawModule=RawModule, cuda=streams)
    monkeypatch.setitem(sys.modules, "cupy", fake)
    monkeypatch.setattr(cupy.CuPy, "warp", 1)  # of the shim
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: types.SimpleNamespace(cuda_stream=42))
    variants = [
        source.Variant(
            c, steps, torch.float32, start, True, cupy._launcher.tile(steps, torch.float32), True
        )
        for c in SAMPLE
        for steps, start in ((1, False), (3, True))
    ]
    cpp.prepare(variants)
    cupy._kernel.cache_clear()
    both(launched(cupy._launcher), SAMPLE, torch.float32, size=(5, 1000), tolerance=5e-5)
    cupy._kernel.cache_clear()
    assert set(seen) == {("stream", 42)}


def test_cuda_source_compiles_for_gpus_without_spills():
    found = doctor.compilers()
    if not found:
        pytest.skip("no CUDA compiler here: neither NVRTC (cuda-bindings) nor nvcc")
    for compile_one, arch in itertools.product(found.values(), doctor.ARCHITECTURES):
        for config, steps, dtype in (
            (NeuronConfig.vgg(3), 1, torch.float32),
            (NeuronConfig.transformer(3), 4, torch.float16),
            (NeuronConfig.vgg(8, 2), 16, torch.bfloat16),
        ):
            counts = doctor.registers(compile_one, arch, config, steps, dtype)
            assert set(counts) == {"forward", "backward"}
            assert all(used <= 128 and spilled == 0 for used, spilled in counts.values()), (
                arch,
                config,
                counts,
            )


PTX = r"""
import re, sys, torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from models import NeuronConfig
from models.neuron.backends import triton as kernels
x = torch.empty(3, 4096)
for config in (NeuronConfig.vgg(3), NeuronConfig.transformer(3, fast=True, soft=True, detach_reset=False)):
    _, sizes = kernels.shape(x, x[0], True)
    for kernel, name in ((kernels._forward, "_forward"), (kernels._backward, "_backward")):
        fixed = sizes | kernels.constants(config, name == "_backward")
        kinds = {a: "constexpr" if a in fixed else "i32" if a in ("n", "stride") else "*bf16" if a in (
            "x_ptr", "o_ptr", "g_ptr", "gx_ptr") else "*fp32" for a in kernel.arg_names}
        places = {(kernel.arg_names.index(a),): value for a, value in fixed.items()}
        aligned = {(i,): [["tt.divisibility", 16]] for i, a in enumerate(kernel.arg_names) if a not in fixed}
        built = triton.compile(ASTSource(fn=kernel, signature=kinds, constexprs=places, attrs=aligned),
                               target=GPUTarget("cuda", 90, 32), options={"enable_fp_fusion": False})
        assert not re.search(r"arith.muli .*i32", built.asm["ttir"])  # t * n may not fit
        assert re.search(r"ld.global\S*.v4", built.asm["ptx"])
        assert ".target sm_90" in built.asm["ptx"] and "fma.rn.f32" not in built.asm["ptx"].replace("div", "")
        print(name, len(built.asm["ptx"]))
"""


def test_triton_compiles_to_ptx_without_a_gpu():
    pytest.importorskip("triton")
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", PTX], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("_forward") == 2 and done.stdout.count("_backward") == 2


def test_network_compiles_as_one_graph():
    """The neuron is traced into the network: no graph break, the same spikes, gradients of theta and leak included."""
    torch._dynamo.reset()
    act = models.Spiking(NeuronConfig.vgg(3), 2, theta=0.2)
    x, results = torch.randn(4, 3, 8, 8), []
    for wrap in (lambda net: net, lambda net: torch.compile(net, fullgraph=True)):
        torch.manual_seed(0)
        stages = [
            Layer(Synapse(torch.nn.Conv2d(i, 8, 3, padding=1)), act.layer(first=i == 3))
            for i in (3, 8)
        ]
        net = Network(act, [*stages, torch.nn.Flatten()], torch.nn.Linear(512, 10))
        out = wrap(net)(x)
        out.square().sum().backward()
        results.append([out.detach(), *(p.grad for p in net.parameters() if p.grad is not None)])
    for a, b in zip(*results, strict=True):
        assert (a - b).abs().max() <= 1e-4 * b.abs().max()


def test_named_backend_never_falls_back(monkeypatch):
    x, one = torch.ones(1, 2), torch.tensor(1.0)
    with pytest.raises(
        ValueError, match="one of auto, torch, compiled, cpp, cupy, triton, reference, got 'cuda'"
    ):
        dispatch.mlif(x, one, one, NeuronConfig(), backend="cuda")
    with pytest.raises(ValueError, match="got 'inductor'"):
        MLIF(backend="inductor")
    with pytest.raises(
        RuntimeError, match="backend cupy cannot run: it runs on a CUDA GPU, the tensor is on cpu"
    ):
        dispatch.mlif(x, one, one, NeuronConfig(), backend="cupy")
    with pytest.raises(RuntimeError, match=r"triton cannot run: it has no torch\.float64 kernel"):
        dispatch.mlif(x.double(), one.double(), one.double(), NeuronConfig(), backend="triton")
    monkeypatch.setenv("CXX", "no-such-compiler")
    cpp._broken.cache_clear()
    with pytest.raises(RuntimeError, match="no C\\+\\+ compiler found: install g\\+\\+"):
        dispatch.mlif(x, one, one, NeuronConfig(), backend="cpp")
    assert dispatch.choose("auto", "cpu") == "torch"  # and still trains
    with pytest.raises(RuntimeError, match="Inductor needs a C\\+\\+ compiler"):
        dispatch.choose("compiled", "cpu")
    cpp._broken.cache_clear()


@pytest.mark.parametrize(
    ("cuda", "module", "reason"),
    [
        (None, None, "built without CUDA"),
        ("12.8", None, "pip install cupy-cuda12x"),
        ("13.0", None, "pip install cupy-cuda13x"),
        ("13.0", 12090, "built for CUDA 12, torch for 13.0: pip install cupy-cuda13x"),
        ("12.8", 13020, "built for CUDA 13, torch for 12.8: pip install cupy-cuda12x"),
    ],
)
def test_cupy_names_the_missing_wheel(monkeypatch, cuda, module, reason):
    monkeypatch.setattr(torch.version, "cuda", cuda)
    runtime = types.SimpleNamespace(runtimeGetVersion=lambda: module)
    fake = types.SimpleNamespace(cuda=types.SimpleNamespace(runtime=runtime))
    monkeypatch.setitem(sys.modules, "cupy", fake if module else None)
    cupy._missing.cache_clear()
    assert reason in cupy.why_not(torch.device("cuda"), torch.float32)
    cupy._missing.cache_clear()


def test_a_broken_compiler_is_quoted(monkeypatch, tmp_path):
    fake = tmp_path / "cc"
    fake.write_text('#!/bin/sh\necho "mlif.cpp:1: error: no space left" >&2\nexit 1\n')
    fake.chmod(0o755)
    monkeypatch.setenv("CXX", str(fake))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cpp._machine.cache_clear()
    cpp.cache_folder.cache_clear()
    with pytest.raises(
        RuntimeError, match=r"cannot compile .*mlif\.cu: mlif\.cpp:1: error: no space left"
    ):
        cpp.compile_library([])
    assert not list((tmp_path / "mlif").iterdir())
    cpp._machine.cache_clear()
    cpp.cache_folder.cache_clear()


def test_libraries_are_built_where_the_cache_cannot_be_written(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    cpp.cache_folder.cache_clear()
    assert (
        cpp.cache_folder().is_dir()
        and "mlif-" in cpp.cache_folder().name
        and cpp.compile_library([]).exists()
    )
    cpp.cache_folder.cache_clear()


def test_doctor_says_what_runs(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["models.neuron"])
    doctor.main()
    out = capsys.readouterr().out
    assert "auto takes cpp" in out and "cupy" in out and "no: it runs on a CUDA GPU" in out
