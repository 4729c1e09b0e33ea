"""The neuron alone, forward and backward: our backends, SpikingJelly's neurons, torch.compile.

python -m benchmarks.neuron                   this CPU: 16 million elements, S = 1, 3, T = 1, 4
                                              (part of `make bench`)
python -m benchmarks.neuron --device cuda     a GPU: 64 million elements, T = 1, 4, 8, float32 and
                                              (less compiled) bfloat16

Elements are neurons x steps. Every backend must first agree with the definition; nothing is timed
after a red parity test. `moved` is what must cross the memory bus, 20 bytes of an element in
float32; `of copy` is the speed at which it does, as a share of a copy of the same tensor in the
same run. Writes <out>.json and <out>.png.
"""

from dataclasses import replace
from functools import partial
from itertools import product

import torch

from engine.machine import keep_memory
from models import NeuronConfig
from models.neuron.backends import dispatch
from models.neuron.reference import mlif_reference, surrogate

from .common import alternate, begin, machine, milliseconds, option_parser, ratio, write

THETA = 0.8  # no power of two, so that products round
LEAK = 0.5
PARITY_SIZE = 4099  # neurons: no vector and no tile divides it
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-2}
DEFAULTS = {
    "cpu": {
        "elements": 16_000_000,
        "steps": [1, 4],
        "dtypes": ["float32"],
    },
    "cuda": {
        "elements": 64_000_000,
        "steps": [1, 4, 8],
        "dtypes": ["float32", "bfloat16"],
    },
}


def neuron_of(name, config):
    """(x, theta, leak) -> output, by a backend or, for "definition", by `reference.py`."""
    run = mlif_reference if name == "definition" else partial(dispatch.mlif, backend=name)
    return lambda x, theta, leak: run(x, theta, leak, config)[0]


def trained(neuron, x, g):
    """A function that runs a neuron forward and backward and returns output and gradients."""
    theta = torch.tensor(THETA, device=x.device, requires_grad=True)
    leak = torch.tensor(LEAK, device=x.device, requires_grad=True)
    inputs = [x, theta]
    if x.shape[0] > 1:
        inputs.append(leak)  # a single step has nothing to leak

    def run():
        o = neuron(x, theta, leak)
        return o, *torch.autograd.grad(o, inputs, g)

    return run


def parity(name, config, steps, dtype, device):
    """Compare a backend with the definition: equal spikes, and gradients as exact as the dtype.

    Raises:
        SystemExit: they differ.
    """
    generator = torch.Generator().manual_seed(0)
    # Currents [T, n] around the thresholds of all lanes.
    x = torch.randn(steps, PARITY_SIZE, generator=generator) * 2 + 0.6
    g = torch.randn(steps, PARITY_SIZE, generator=generator).to(device, dtype)
    x = x.to(device, dtype).requires_grad_()
    run = trained(neuron_of("definition", config), x, g)
    o, *want = run()
    run = trained(neuron_of(name, config), x, g)
    got_o, *got = run()

    errors = [((a - b).norm() / b.norm()).item() for a, b in zip(got, want, strict=True)]
    worst = max(errors)
    # an error that is no number is none that is small
    if not torch.equal(o, got_o) or not all(error <= TOLERANCE[dtype] for error in errors):
        raise SystemExit(
            f"parity is red: {name}, {config}, T={steps}, {dtype}: "
            f"{(o != got_o).sum()} spikes differ, gradients by {worst:.1e}; nothing is timed"
        )


def spikingjelly(node, x, g, compiled=False):
    """The same of a SpikingJelly neuron, whose threshold and leak are numbers."""
    from spikingjelly.activation_based import functional

    node = node.to(x.device)
    call = torch.compile(node, dynamic=False) if compiled else node

    def run():
        functional.reset_net(node)  # its potential would be carried on
        torch.autograd.grad(call(x), x, g)

    return run


class _Fire(torch.autograd.Function):
    """The staircase for FlexSN, whose core may capture no tensor."""

    config = None  # set before the core is called

    @staticmethod
    def forward(ctx, r):
        ctx.save_for_backward(r)
        o = torch.zeros_like(r)
        for jump, boundary in zip(_Fire.config.jumps, _Fire.config.boundaries):
            o = o + jump * (r > boundary)
        return o

    @staticmethod
    def backward(ctx, g):
        (r,) = ctx.saved_tensors
        return g * surrogate(r, _Fire.config)


def _core(x, v):
    u = LEAK * v + x
    o = _Fire.apply(u / THETA)
    return o, u - THETA * o.detach()


def peer_nodes():
    """{name: node} of SpikingJelly's neurons with the same leak, threshold and reset.

    They have one lane unless the name says more.
    """
    from spikingjelly.activation_based import neuron
    from spikingjelly.activation_based import surrogate as shapes

    common = {"v_threshold": THETA, "detach_reset": True, "step_mode": "m"}
    lif = {"tau": 2.0, "decay_input": False, "v_reset": None, **common}  # leak 1 - 1/tau
    return {
        "SJ LIF sigmoid": neuron.LIFNode(surrogate_function=shapes.Sigmoid(), **lif),
        "SJ LIF atan": neuron.LIFNode(surrogate_function=shapes.ATan(), **lif),
        "SJ LIF triangle": neuron.LIFNode(surrogate_function=shapes.PiecewiseQuadratic(), **lif),
        "SJ ILIF (0..4)": neuron.ILIFNode(tau=2.0, **common),
        "SJ FlexSN M-LIF": neuron.FlexSN(_core, 1),
    }


def peers(x, g, compiled):
    """{name: run} of the peers that run here; what does not is named."""
    try:
        nodes = peer_nodes()
    except ImportError:
        print("spikingjelly is missing (pip install spikingjelly): its neurons are left out")
        return {}
    runs = {name: spikingjelly(node, x, g) for name, node in nodes.items()}
    if compiled:
        node = nodes["SJ LIF sigmoid"]
        runs["SJ LIF compiled"] = spikingjelly(node, x, g, compiled=True)

    # One run of each tells which of them work on this device and dtype.
    for name in list(runs):
        try:
            runs[name]()
        except Exception as error:  # another project's, of any kind: the table goes on without it
            reason = str(error).splitlines()[0]
            print(
                f"{name} does not run here (T={len(x)}, {x.dtype}): "
                f"{type(error).__name__}: {reason}"
            )
            del runs[name]
    return runs


def measure(config, steps, dtype, device, names, args):
    """Rows [{"name", "S", "T", ...}] of one setting, all timed in the same rounds."""
    n = args.elements // steps  # neurons
    x = torch.randn(steps, n, device=device) * 1.5  # [T, n]
    x = x.to(dtype).requires_grad_()
    g = torch.randn(steps, n, device=device).to(dtype)
    target = torch.empty_like(g)
    source = g.clone()

    runs = {"copy": lambda: target.copy_(source)}
    for name in names:
        runs[f"ours {name}"] = trained(neuron_of(name, config), x, g)
    # Compiling takes minutes; once is enough.
    compiling = not args.no_compile and dtype == torch.float32
    if compiling:
        compiled = torch.compile(neuron_of("definition", config), dynamic=False)
        runs["compiled definition"] = trained(compiled, x, g)
    if not args.no_peers:
        runs |= peers(x, g, compiling)

    seconds = alternate(runs, args.repeats, device, queued=True)
    return [row(name, config, g, seconds) for name in seconds]


def row(name, config, g, seconds):
    """What is written of one contender; g [T, n], seconds {name: [seconds]} of all."""
    taken = seconds[name]
    # A copy reads and writes a tensor. A neuron reads x and writes o; its backward reads x and g
    # and writes the gradient of x.
    passes = 2 if name == "copy" else 5
    faster, *_ = ratio(seconds["copy"], taken)
    return {
        "name": name,
        "S": config.levels,
        "T": g.shape[0],
        "dtype": str(g.dtype).removeprefix("torch."),
        "elements": g.numel(),
        **milliseconds(taken),
        "moved_bytes": float(passes * g.itemsize),
        "of_copy": passes / 2 * faster,
        "seconds": taken,
    }


def title(row):
    """Of the setting that a row belongs to."""
    return f"{row['dtype']}, S = {row['S']}, T = {row['T']}"


def report(rows, names):
    """Print the rows of one setting."""
    print(f"\n{title(rows[0])}; parity green: {', '.join(names)}")
    for r in rows:
        print(
            f"  {r['name']:<20} {r['ms']:8.2f} ms [{r['low_ms']:.2f} to {r['high_ms']:.2f}]  "
            f"{r['moved_bytes']:4.0f} B, {r['of_copy']:6.1%} of copy",
            flush=True,
        )
    best = _fastest(rows, "ours")
    lif = _fastest(rows, "SJ LIF")
    if lif:
        print(
            f"  {best['name']} is {lif['ms'] / best['ms']:.2f}x as fast as "
            f"SpikingJelly's fastest LIF, {lif['name']}"
        )


def _fastest(rows, kind):
    mine = [r for r in rows if r["name"].startswith(kind)]
    return min(mine, key=lambda r: r["ms"], default=None)


def plot(rows, where, path):
    """Horizontal bars, one panel per setting."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    settings = list(dict.fromkeys(map(title, rows)))
    figure, axes = plt.subplots(
        1,
        len(settings),
        figsize=(3 + 3.2 * len(settings), 4),  # inches
        layout="constrained",
        squeeze=False,
    )
    for axis, setting in zip(axes[0], settings, strict=True):
        mine = [r for r in rows if title(r) == setting and r["name"] != "copy"]
        names = [r["name"] for r in mine]
        times = [r["ms"] for r in mine]
        colors = ["C0" if name.startswith("ours") else "0.6" for name in names]
        axis.barh(names, times, color=colors)
        axis.invert_yaxis()  # the first contender on top
        axis.set_title(setting)
        axis.set_xlabel("ms, forward + backward")
        if axis is not axes[0, 0]:  # the panels share the names of the first
            axis.set_yticklabels([])
    figure.suptitle(f"{rows[0]['elements'] / 1e6:.0f} million elements, {where}")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def options():
    """The parsed command line, with the device's defaults."""
    parser = option_parser("neuron", __doc__.splitlines()[0])
    add = parser.add_argument
    add(
        "--elements",
        type=int,
        help="neurons x steps; default 16 million, on a GPU 64 million",
    )
    add("--levels", type=int, nargs="+", default=[1, 3], help="lanes S")
    add("--steps", type=int, nargs="+", help="T; default 1 4, on a GPU 1 4 8")
    add(
        "--dtypes",
        nargs="+",
        choices=("float32", "bfloat16", "float16"),
        help="default float32, on a GPU float32 bfloat16",
    )
    add("--backends", nargs="+", help="default: all that run there")
    add("--no_peers", action="store_true", help="leave out SpikingJelly")
    args = parser.parse_args()

    # What was not given, and 0 elements, are the device's defaults.
    kind = torch.device(args.device).type
    for name, value in DEFAULTS.get(kind, DEFAULTS["cpu"]).items():
        if not getattr(args, name):
            setattr(args, name, value)
    return args


def backends(args, dtype):
    """Names of the backends to compare."""
    if args.backends:
        return args.backends
    names = []
    for name in dispatch.BACKENDS:
        wanted = name != "compiled" or not args.no_compile
        if wanted and dispatch.why_not(name, args.device, dtype) is None:
            names.append(name)
    return names


def main():
    args = options()
    device = begin(args)
    if device is None:
        return
    keep_memory()  # as the training scripts do
    where = machine(device)
    print(
        f"{where['machine']}, torch {where['torch']}, {args.elements / 1e6:g} million elements, "
        f"medians of {args.repeats} [quartiles]"
    )

    rows = []
    for kind, levels, steps in product(args.dtypes, args.levels, args.steps):
        dtype = getattr(torch, kind)
        names = backends(args, dtype)
        # The peers' surrogates are not damped either.
        config = replace(NeuronConfig.vgg(levels), gamma=1.0)
        _Fire.config = config
        for name in names:
            parity(name, config, steps, dtype, device)
        torch.compiler.reset()
        new = measure(config, steps, dtype, device, names, args)
        report(new, names)
        rows += new

    write(f"{args.out}.json", where, rows)
    plot(rows, where["machine"], f"{args.out}.png")
    print(f"\nwritten: {args.out}.json, {args.out}.png")


if __name__ == "__main__":
    main()
