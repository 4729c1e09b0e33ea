"""The neuron alone, forward and backward: our backends beside SpikingJelly's neurons and torch.compile of the definition.

python -m benchmarks.neuron                      this CPU: 16 million elements, S = 1, 3, T = 1, 4   (part of `make bench`)
python -m benchmarks.neuron --device cuda        a GPU: 64 million elements, T = 1, 4, 8, float32 and (less compiled) bfloat16

Elements are neurons x steps. Every backend must first agree with the definition; nothing is timed after a red parity
test. `moved` is what must cross the memory bus, 20 bytes per element in float32; `of copy` is the speed at which it does,
as a share of a copy of the same tensor in the same run. Writes <out>.json and <out>.png.
"""

import argparse
from dataclasses import replace

import torch

from engine.dist import keep_memory
from models import NeuronConfig
from models.neuron.backends import dispatch
from models.neuron.reference import mlif_reference, surrogate

from .common import alternate, machine, ratio, summary, write

THETA, LEAK = 0.8, 0.5


def parity(name, config, steps, dtype, device):
    """Largest relative gradient error against the definition; spikes must be equal.

    Raises:
        SystemExit: they are not, or the error exceeds what the dtype explains.
    """
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(steps, 4099, generator=generator) * 2 + 0.6).to(device, dtype)
    g = torch.randn(steps, 4099, generator=generator).to(device, dtype)
    results = []
    for fn in (
        mlif_reference,
        lambda x, theta, leak, config: dispatch.mlif(x, theta, leak, config, backend=name),
    ):
        inputs = [
            x.clone().requires_grad_(),
            *(torch.tensor(v, device=device, requires_grad=True) for v in (THETA, LEAK)),
        ]
        o = fn(*inputs, config)[0]
        results.append([o.detach(), *torch.autograd.grad(o, inputs[: 2 + (steps > 1)], g)])
    (o, *want), (got_o, *got) = results
    worst = max(((a - b).norm() / b.norm()).item() for a, b in zip(got, want, strict=True))
    if (
        not torch.equal(o, got_o)
        or worst > {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-2}[dtype]
    ):
        raise SystemExit(
            f"parity is red: {name}, {config}, T={steps}, {dtype}: {(o != got_o).sum()} spikes differ, "
            f"gradients by {worst:.1e}; nothing is timed"
        )
    return worst


def ours(name, config, x, g):
    """One forward and backward of a backend."""
    theta, leak = (torch.tensor(v, device=x.device, requires_grad=True) for v in (THETA, LEAK))

    def run():
        o, _ = dispatch.mlif(x, theta, leak, config, backend=name)
        torch.autograd.grad(o, (x, theta, leak) if x.shape[0] > 1 else (x, theta), g)

    return run


def compiled_definition(config, x, g):
    """torch.compile of reference.py, left to itself."""
    theta, leak = (torch.tensor(v, device=x.device, requires_grad=True) for v in (THETA, LEAK))
    fast = torch.compile(
        lambda x, theta, leak: mlif_reference(x, theta, leak, config)[0], dynamic=False
    )

    def run():
        torch.autograd.grad(
            fast(x, theta, leak), (x, theta, leak) if x.shape[0] > 1 else (x, theta), g
        )

    return run


def spikingjelly(make, x, g, compiled=False):
    """One forward and backward of a SpikingJelly neuron; its threshold and leak are numbers, without gradients."""
    from spikingjelly.activation_based import functional

    node = make().to(x.device)
    call = torch.compile(node, dynamic=False) if compiled else node

    def run():
        functional.reset_net(node)
        torch.autograd.grad(call(x), x, g)

    return run


class _Fire(torch.autograd.Function):
    """The staircase for FlexSN, whose core may capture no tensor."""

    config = NeuronConfig.vgg(3)

    @staticmethod
    def forward(ctx, r):
        ctx.save_for_backward(r)
        return sum(
            jump * (r > edge).to(r.dtype)
            for jump, edge in zip(_Fire.config.jumps, _Fire.config.edges)
        )

    @staticmethod
    def backward(ctx, g):
        (r,) = ctx.saved_tensors
        return g * surrogate(r, _Fire.config)


def _core(x, v):
    u = LEAK * v + x
    o = _Fire.apply(u / THETA)
    return o, u - THETA * o.detach()


def peers(x, g, steps, compiled):
    """{name: run} of SpikingJelly's neurons with the same leak, threshold and reset, one lane unless said."""
    try:
        from spikingjelly.activation_based import neuron
        from spikingjelly.activation_based import surrogate as shapes
    except ImportError:
        print("spikingjelly is missing (pip install spikingjelly): its neurons are left out")
        return {}
    kind = {"v_threshold": THETA, "v_reset": None, "detach_reset": True, "step_mode": "m"}
    makers = {
        "SJ LIF sigmoid": lambda: neuron.LIFNode(
            tau=2.0, decay_input=False, surrogate_function=shapes.Sigmoid(), **kind
        ),
        "SJ LIF atan": lambda: neuron.LIFNode(
            tau=2.0, decay_input=False, surrogate_function=shapes.ATan(), **kind
        ),
        "SJ LIF triangle": lambda: neuron.LIFNode(
            tau=2.0, decay_input=False, surrogate_function=shapes.PiecewiseQuadratic(), **kind
        ),
        "SJ ILIF (0..4)": lambda: neuron.ILIFNode(
            tau=2.0, v_threshold=THETA, detach_reset=True, step_mode="m"
        ),
        "SJ FlexSN M-LIF": lambda: neuron.FlexSN(_core, 1),
    }
    runs = {name: spikingjelly(make, x, g) for name, make in makers.items()}
    if compiled:
        runs["SJ LIF compiled"] = spikingjelly(makers["SJ LIF sigmoid"], x, g, compiled=True)
    for name in list(runs):
        try:
            runs[name]()
        except (
            Exception
        ) as error:  # peers may not run everywhere; what is missing from the table is named
            print(
                f"{name} does not run here (T={steps}, {x.dtype}): {type(error).__name__}: {str(error).splitlines()[0]}"
            )
            del runs[name]
    return runs


def measure(config, steps, elements, dtype, device, names, args):
    """Rows [{name, median, low, high, ...}] of one setting, all in the same rounds."""
    n = elements // steps
    x = torch.randn(steps, n, device=device).mul_(1.5).to(dtype).requires_grad_()
    g = torch.randn(steps, n, device=device).to(dtype)
    target, source = torch.empty_like(g), g.clone()
    runs = {"copy": lambda: target.copy_(source)}
    runs |= {f"ours {name}": ours(name, config, x, g) for name in names}
    compiling = (
        not args.no_compile and dtype == torch.float32
    )  # minutes of compilation, once is enough
    if compiling:
        runs["compiled definition"] = compiled_definition(config, x, g)
    if not args.no_peers:
        runs |= peers(x, g, steps, compiling)
    seconds = alternate(runs, args.repeats, device, queued=True)
    rows = []
    copied = 2 * g.numel() * g.itemsize
    for name, taken in seconds.items():
        middle, low, high = summary(taken)
        moved = copied if name == "copy" else 5 * g.numel() * g.itemsize
        rows.append(
            {
                "name": name,
                "S": config.levels,
                "T": steps,
                "dtype": str(dtype).removeprefix("torch."),
                "elements": g.numel(),
                "ms": middle * 1e3,
                "low_ms": low * 1e3,
                "high_ms": high * 1e3,
                "moved_bytes": moved / g.numel(),
                "of_copy": moved / copied * ratio(seconds["copy"], taken)[0],
                "seconds": taken,
            }
        )
    return rows


def plot(rows, where, path):
    """Horizontal bars, one panel per setting."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    settings = list(dict.fromkeys((r["dtype"], r["S"], r["T"]) for r in rows))
    figure, axes = plt.subplots(
        1, len(settings), figsize=(3 + 3.2 * len(settings), 4), layout="constrained", squeeze=False
    )
    axes = axes[0]
    for axis, setting in zip(axes, settings):
        mine = [r for r in rows if (r["dtype"], r["S"], r["T"]) == setting and r["name"] != "copy"]
        names = [r["name"] for r in mine]
        axis.barh(
            names,
            [r["ms"] for r in mine],
            color=["C0" if n.startswith("ours") else "0.6" for n in names],
        )
        axis.invert_yaxis()
        axis.set_title(f"{setting[0]}, S = {setting[1]}, T = {setting[2]}")
        axis.set_xlabel("ms, forward + backward")
        if axis is not axes[0]:
            axis.set_yticklabels([])
    figure.suptitle(f"{rows[0]['elements'] / 1e6:.0f} million elements, {where}")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.neuron", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--elements",
        type=int,
        default=0,
        help="neurons x steps; default 16 million, on a GPU 64 million",
    )
    parser.add_argument("--levels", type=int, nargs="+", default=[1, 3], help="lanes S")
    parser.add_argument(
        "--steps", type=int, nargs="+", default=None, help="T; default 1 4, on a GPU 1 4 8"
    )
    parser.add_argument(
        "--dtypes",
        nargs="+",
        default=None,
        choices=("float32", "bfloat16", "float16"),
        help="default float32, on a GPU float32 bfloat16",
    )
    parser.add_argument("--backends", nargs="+", default=None, help="default: all that run there")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument(
        "--no_compile", action="store_true", help="leave out what torch.compile has to compile"
    )
    parser.add_argument("--no_peers", action="store_true", help="leave out SpikingJelly")
    parser.add_argument(
        "--out", default="runs/bench/neuron", help="stem of the JSON file and the plot"
    )
    args = parser.parse_args()
    device = torch.device(args.device)
    gpu = device.type == "cuda"
    if gpu and not torch.cuda.is_available():
        print("not measured: no CUDA GPU here")
        return
    elements = args.elements or (64_000_000 if gpu else 16_000_000)
    keep_memory()  # as the training scripts do
    where, rows = machine(device), []
    print(
        f"{where['machine']}, torch {where['torch']}, {elements / 1e6:g} million elements, medians of {args.repeats} "
        "[quartiles]"
    )
    for dtype in (
        getattr(torch, name)
        for name in args.dtypes or (["float32", "bfloat16"] if gpu else ["float32"])
    ):
        names = args.backends or [
            n
            for n in dispatch.BACKENDS
            if dispatch.why_not(n, device, dtype) is None
            and not (args.no_compile and n == "compiled")
        ]
        for levels in args.levels:
            config = replace(NeuronConfig.vgg(levels), gamma=1.0)
            _Fire.config = config
            for steps in args.steps or ([1, 4, 8] if gpu else [1, 4]):
                for name in names:
                    parity(name, config, steps, dtype, device)
                torch.compiler.reset()
                new = measure(config, steps, elements, dtype, device, names, args)
                rows += new
                print(
                    f"\n{new[0]['dtype']}, S = {levels}, T = {steps}; parity green: {', '.join(names)}"
                )
                for r in new:
                    print(
                        f"  {r['name']:<20} {r['ms']:8.2f} ms [{r['low_ms']:.2f} to {r['high_ms']:.2f}]  "
                        f"{r['moved_bytes']:4.0f} B, {r['of_copy']:6.1%} of copy",
                        flush=True,
                    )
                best = min((r for r in new if r["name"].startswith("ours")), key=lambda r: r["ms"])
                lif = min(
                    (r for r in new if r["name"].startswith("SJ LIF")),
                    key=lambda r: r["ms"],
                    default=None,
                )
                if lif:
                    print(
                        f"  {best['name']} is {lif['ms'] / best['ms']:.2f}x as fast as SpikingJelly's fastest LIF, "
                        f"{lif['name']}"
                    )
    write(f"{args.out}.json", {**where, "rows": rows})
    plot(rows, where["machine"], f"{args.out}.png")
    print(f"\nwritten: {args.out}.json, {args.out}.png")


if __name__ == "__main__":
    main()
