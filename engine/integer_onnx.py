"""The integer network (`models.integer`) as an ONNX graph that ONNX Runtime executes in int8.

Feature maps are bytes. With one step, a convolution and its neurons are a `QLinearConv`, which
rounds its int32 sums to the number of thetas that they pass, and a few operations on bytes, which
pick the lanes; docs/method.md section 9 says why this is exact. What bytes do not hold (membrane
potentials, linear layers) is compared in int32.
"""

from dataclasses import dataclass, replace

import numpy as np

from models import integer

from .extras import need

OPSET = 18
IR_VERSION = 9  # of the first release with this opset that ONNX Runtime took
BYTE = 255


@dataclass(frozen=True)
class Wire:
    """A feature map of the graph, of uint8 codes.

    highest: the largest integer that a code means. negative: the code is `highest` less the
    integer, else the integer. channels: None of features [N, F].
    """

    name: str
    highest: int
    negative: bool
    channels: int | None

    @property
    def zero(self):
        """The code of 0."""
        return self.highest if self.negative else 0

    @property
    def sign(self):
        return -1 if self.negative else 1


class Graph:
    """An ONNX graph that grows; spikes: the `Wire` of each layer of neurons, in order."""

    def __init__(self):
        self.onnx = need("onnx")
        self.nodes = []
        self.constants = []
        self.spikes = []

    def constant(self, numbers, kind=np.int32):
        """The name of a constant of the NumPy type `kind`."""
        name = f"constant{len(self.constants)}"
        array = np.asarray(numbers).astype(kind)
        self.constants.append(self.onnx.numpy_helper.from_array(array, name))
        return name

    def byte(self, number):
        return self.constant(number, np.uint8)

    def add(self, operator, *inputs, outputs=1, **attributes):
        """Add a node; returns the name of its output, a list of names where there are several."""
        names = [f"{operator}{len(self.nodes)}.{i}" for i in range(outputs)]
        node = self.onnx.helper.make_node(operator, inputs, names, **attributes)
        self.nodes.append(node)
        return names[0] if outputs == 1 else names

    def cast(self, name, kind):
        to = self.onnx.helper.np_dtype_to_tensor_dtype(np.dtype(kind))
        return self.add("Cast", name, to=to)

    def split(self, name, steps):
        """The names of the steps of folded time."""
        return self.add("Split", name, outputs=steps, num_outputs=steps, axis=0)

    def model(self, shape, classes, outputs):
        """The model of uint8 "images" [B, *shape] -> int32 outputs {name: name in the graph}.

        The first of these is [B, classes].
        """
        helper, kinds = self.onnx.helper, self.onnx.TensorProto
        images = helper.make_tensor_value_info("images", kinds.UINT8, ["batch", *shape])
        shapes = [["batch", classes], *[None] * (len(outputs) - 1)]
        named = [
            helper.make_tensor_value_info(name, kinds.INT32, shape)
            for name, shape in zip(outputs, shapes)
        ]
        ends = [helper.make_node("Identity", [inner], [name]) for name, inner in outputs.items()]
        nodes = self.nodes + ends
        graph = helper.make_graph(nodes, "mlif", [images], named, self.constants)
        opsets = [helper.make_opsetid("", OPSET)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)


# Sums and neurons in int32.


def geometry(sums):
    """Attributes of a convolution that adds up as `sums` does."""
    # an image has its frame already
    above, left = (0, 0) if isinstance(sums, integer.Products) else sums.padding
    return {"strides": list(sums.stride), "pads": [above, left, above, left]}


def add_up(graph, sums, wire):
    """The int32 sums."""
    weight = sums.weight.numpy() * np.int8(wire.sign)
    zero = graph.byte(wire.zero)
    if wire.channels is None:
        weight = graph.constant(weight[:, :, 0, 0].T, np.int8)
        return graph.add("MatMulInteger", wire.name, weight, zero)
    weight = graph.constant(weight, np.int8)
    return graph.add("ConvInteger", wire.name, weight, zero, **geometry(sums))


def multiply(graph, shortcut, wire):
    """The int32 sums of a shortcut without weights."""
    factor = shortcut.factor.numpy()[:, None, None] * wire.sign
    x = graph.cast(wire.name, np.int32)
    x = graph.add("Sub", x, graph.constant(wire.zero))
    return graph.add("Mul", x, graph.constant(factor))


def weighted(graph, lanes, jumps):
    """The sum of lanes times jumps, each the double of the one before or the same."""
    total, last = lanes[-1], jumps[-1]
    for lane, jump in zip(lanes[-2::-1], jumps[-2::-1]):
        if jump < last:
            total = graph.add("Add", total, total)
        total, last = graph.add("Add", total, lane), jump
    return total


def compare(graph, neurons, sums, wide):
    """The `Wire` of neurons that see int32 sums, of feature maps (wide) or of features."""

    def each(numbers):
        """A number for each channel."""
        return graph.constant(numbers.numpy()[:, None, None] if wide else numbers.numpy())

    def fire(u):
        """(what the lowest lane passes, the codes)"""
        passed = [graph.add("Greater", u, edge) for edge in edges]
        lanes = [graph.cast(lane, np.uint8) for lane in passed]
        return passed[0], weighted(graph, lanes, jumps)

    edges = [each(edge) for edge in neurons.edges]
    jumps = [1 << shift for shift in neurons.shifts]
    if not isinstance(neurons, integer.Membranes):
        _, codes = fire(sums)
        return Wire(codes, sum(jumps), False, neurons.edges.shape[1] if wide else None)

    bias = each(neurons.bias)
    theta = each(neurons.theta)
    nothing = graph.constant(0)
    steps = neurons.steps
    currents = [sums] * steps if neurons.constant else graph.split(sums, steps)
    v, fired = nothing, []
    for current in currents:
        current = graph.add("Add", current, bias)
        u = graph.add("Add", v, current)
        lowest, codes = fire(u)
        fired.append(codes)
        if neurons.hard:
            v = graph.add("Where", lowest, nothing, u)
        else:
            o = graph.cast(codes, np.int32)
            v = graph.add("Sub", u, graph.add("Mul", o, theta))
    codes = graph.add("Concat", *fired, axis=0)
    return Wire(codes, sum(jumps), False, neurons.edges.shape[1] if wide else None)


# Sums and neurons of one step in bytes.


@dataclass(frozen=True)
class Count:
    """A sum as a byte: `top` less the number of steps that it passes, 0 to `top`.

    Step i is passed above start + i * unit (int64, [C] or one number).
    """

    start: np.ndarray
    unit: np.ndarray
    top: int

    def rounding(self):
        """(bias, scale): the number is (sum - bias) * scale, rounded."""
        # Half a unit up. Of an even unit that is a tie, which the scale, a little less than
        # 1 / unit, leaves below.
        bias = self.start + (self.unit + 1) // 2
        return bias, np.float32(1 / (self.unit + 1 / (3 * self.top)))

    def fits(self):
        """Whether a byte holds it and float32 numbers are right at each edge and just above."""
        bias, scale = self.rounding()
        step = np.arange(1, self.top + 1)[:, None]
        edge = self.start + step * self.unit

        def passed(sums):
            return np.rint((sums - bias).astype(np.float32) * scale)

        right = (passed(edge) < step) & (passed(edge + 1) >= step)
        return self.top <= BYTE and right.all()


def thresholds(neurons):
    """(start, theta) of neurons, int64 [C]: lane k passes above start + 2^k * theta. Or None."""
    edges = neurons.edges.numpy().astype(np.int64)
    theta = np.diff(edges, axis=0, append=edges[-1:] + 1)[0]  # a single lane takes any
    doubled = 2 ** np.arange(len(edges))[:, None]
    start = edges[0] - theta
    if isinstance(neurons, integer.Membranes) or (start + doubled * theta != edges).any():
        return None
    return start, theta


def top_output(neurons):
    """The number of thetas that the top lane takes."""
    return 1 << len(neurons.shifts) - 1


def convolve(graph, sums, weight, wire, count):
    """The bytes of a `Count`, of int8 weights [O, I, k, k] with the geometry of `sums`."""
    bias, scale = count.rounding()
    one = graph.constant(1, np.float32)
    return graph.add(
        "QLinearConv",
        wire.name,
        one,
        graph.byte(wire.zero),
        graph.constant(weight * np.int8(-wire.sign), np.int8),
        graph.constant(scale, np.float32),
        graph.constant(np.zeros(len(weight)), np.int8),
        one,
        graph.byte(count.top),
        graph.constant(bias),
        **geometry(sums),
    )


def pick(graph, count, neurons):
    """The `Wire` of the lanes that pass, of bytes: the top output less the thetas passed."""
    jumps = [1 << shift for shift in neurons.shifts]
    highest = sum(jumps)
    # a lane passes up to the byte `low` and is silent from the next one on
    low = [top_output(neurons) - (1 << lane) for lane in range(len(jumps))]
    high = [byte + 1 for byte in low]
    if jumps[:2] == [1, 1]:
        # the two lowest lanes in one
        del low[0], high[1], jumps[0]
    silent = []
    for least, most in zip(low, high):
        bounds = graph.byte(least), graph.byte(most)
        silent.append(graph.add("Clip", count, *bounds))
    codes = silent[-1]
    if len(jumps) > 1:
        # where the top lane passes, all do
        rest = weighted(graph, silent[:-1], jumps[:-1])
        least = [jump * byte for jump, byte in zip(jumps, low)]
        surplus = sum(least) - jumps[-1]
        if surplus:
            rest = graph.add("Sub", rest, graph.byte(surplus))  # modulo 256
        codes = graph.add("Mul", rest, codes)
    return Wire(codes, highest, True, neurons.edges.shape[1])


def plain(graph, sums, weight, neurons, wire):
    """The `Wire` of neurons that see one convolution, or None where bytes do not do."""
    found = thresholds(neurons)
    if found is None:
        return None
    count = Count(*found, top_output(neurons))
    if not count.fits():
        return None
    return pick(graph, convolve(graph, sums, weight, wire, count), neurons)


def lifted(graph, stage, inner, wire):
    """The same of neurons that also see a shortcut without weights.

    Theta and the shortcut's factor are multiples of a unit, n and m times. The convolution's sum
    becomes a number of units; to it come m for each integer of the shortcut, and n make a theta.
    """
    neurons = stage.neurons
    found = thresholds(neurons)
    factor = stage.shortcut.factor.numpy().astype(np.int64)
    if found is None or factor.min() < 1:
        return None
    start, theta = found
    if len(neurons.shifts) == 1:
        # one lane may have any theta: that of the factor makes n and m 1
        start, theta = start + theta - factor, factor
    unit = np.gcd(theta, factor)
    n = int(theta[0] // unit[0])
    m = int(factor[0] // unit[0])
    top = top_output(neurons)
    # its first step is the lowest that the shortcut can lift over the first theta
    lift = m * wire.highest
    first = start + theta - (lift + 1) * unit
    units = Count(first, unit, n * (top - 1) + lift + 1)
    bias, scale = Count(-1, n, top).rounding()
    zero = n * top - bias
    alike = (unit * n == theta).all() and (unit * m == factor).all()
    if not (alike and units.fits() and zero <= BYTE):
        return None

    weight = stage.sums.weight.numpy()
    passed = convolve(graph, stage.sums, weight, inner, units)
    worth = graph.constant(scale, np.float32)
    lifts = graph.constant(-wire.sign * m * scale, np.float32)
    one = graph.constant(1, np.float32)
    passed = graph.add("DequantizeLinear", passed, worth, graph.byte(zero))
    lift = graph.add("DequantizeLinear", wire.name, lifts, graph.byte(wire.zero))
    total = graph.add("Add", passed, lift)
    count = graph.add("QuantizeLinear", total, one, graph.byte(top))
    return pick(graph, count, neurons)


# Stages.


def framed(graph, sums, side):
    """The `Wire` of the images in their frame: a convolution would pad all channels alike."""
    above, left = sums.padding
    height, width = side + 2 * above, side + 2 * left
    frame = sums.mean.numpy()[:, None, None]
    frame = frame.repeat(height, 1).repeat(width, 2)
    frame[:, above : above + side, left : left + side] = 0
    pads = graph.constant([0, 0, above, left, 0, 0, above, left], np.int64)
    images = graph.add("Pad", "images", pads, graph.byte(0))
    images = graph.add("Add", images, graph.byte(frame))
    return Wire(images, integer.WHITE, False, len(frame))


def layer(graph, stage, wire):
    """Sums and neurons."""
    sums, neurons = stage.sums, stage.neurons
    wide = wire.channels is not None
    out = plain(graph, sums, sums.weight.numpy(), neurons, wire) if wide else None
    out = out or compare(graph, neurons, add_up(graph, sums, wire), wide)
    graph.spikes.append(out)
    return out


def residual(graph, stage, wire):
    """Basic block."""
    inner = layer(graph, stage.inner, wire)
    sums, shortcut, neurons = stage.sums, stage.shortcut, stage.neurons
    free = isinstance(shortcut, integer.Factor)
    out = lifted(graph, stage, inner, wire) if free else None
    if out is None:
        both = joined(graph, sums, shortcut, inner, wire)
        out = both and plain(graph, sums, both[1], neurons, both[0])
    if out is None:
        direct = multiply(graph, shortcut, wire) if free else add_up(graph, shortcut, wire)
        total = graph.add("Add", add_up(graph, sums, inner), direct)
        out = compare(graph, neurons, total, wide=True)
    graph.spikes.append(out)
    return out


def pointwise(shortcut):
    """(int8 weights [O, I, 1, 1], power of 2, stride): a shortcut as a 1x1 convolution. Or None."""
    if isinstance(shortcut, integer.Sum):
        return shortcut.weight.numpy(), 1, shortcut.stride
    factor = shortcut.factor.numpy()
    power = 1
    while factor.max() > integer.TOP * power:
        power *= 2
    if (factor % power).any():
        return None
    weight = np.diag(factor // power).astype(np.int8)
    return weight[:, :, None, None], power, (1, 1)


def joined(graph, sums, shortcut, inner, wire):
    """(`Wire`, weights) of one convolution that adds up what `sums` and a shortcut do, or None."""
    found = pointwise(shortcut)
    if found is None or wire.negative != inner.negative:
        return None
    direct, power, stride = found
    if wire.highest * power > BYTE:
        return None
    name = wire.name
    if stride != (1, 1):
        begin, end, axes = [0, 0], [integer.LIMIT] * 2, [2, 3]
        bounds = [graph.constant(each) for each in (begin, end, axes, stride)]
        name = graph.add("Slice", name, *bounds)
    if power > 1:
        name = graph.add("Mul", name, graph.byte(power))
    parts = [inner, replace(wire, name=name, highest=wire.highest * power)]
    # one code of 0 for both
    highest = max(part.highest for part in parts)
    names = [
        graph.add("Add", part.name, graph.byte(highest - part.highest))
        if part.negative and part.highest < highest
        else part.name
        for part in parts
    ]
    both = graph.add("Concat", *names, axis=1)
    above, left = sums.padding
    around = (0, 0), (0, 0), (above, above), (left, left)
    direct = np.pad(direct, around)
    weight = np.concatenate([sums.weight.numpy(), direct], 1)
    return replace(inner, name=both, highest=highest), weight


def pool(graph, stage, wire):
    """The sum of each square, by a convolution of each channel with ones."""
    pooled = replace(wire, highest=wire.highest * stage.size**2)
    if pooled.highest > BYTE:
        raise ValueError(f"its pooled spikes reach {pooled.highest}, more than a byte holds")
    one = graph.constant(1, np.float32)
    size = [stage.size] * 2
    codes = graph.add(
        "QLinearConv",
        wire.name,
        one,
        graph.byte(wire.zero),
        graph.constant(np.ones((wire.channels, 1, *size)), np.int8),
        one,
        graph.constant(0, np.int8),
        one,
        graph.byte(pooled.zero),
        strides=size,
        group=wire.channels,
    )
    return replace(pooled, name=codes)


def flatten(graph, stage, wire):
    """Feature maps become features."""
    return replace(wire, name=graph.add("Flatten", wire.name), channels=None)


STAGES = {
    integer.IntegerLayer: layer,
    integer.IntegerResidual: residual,
    integer.PoolSum: pool,
    integer.Flatten: flatten,
}


def build(whole, side):
    """Two ONNX models of an `IntegerNetwork`, of uint8 "images" [B, C, side, side].

    The first gives int32 "logits" [B, classes], as `whole` does; the second also the outputs of
    each layer's neurons, int32 [T*B, ...], in order.

    Raises:
        UseError: onnx is missing.
        ValueError: bytes do not hold its numbers.
    """
    graph = Graph()
    wire = framed(graph, whole.stages[0].sums, side)
    shape = wire.channels, side, side
    for stage in whole.stages:
        wire = STAGES[type(stage)](graph, stage, wire)
    logits = add_up(graph, whole.head, wire)
    if whole.steps > 1:
        logits, *more = graph.split(logits, whole.steps)
        for readout in more:
            logits = graph.add("Add", logits, readout)
    outputs = {"logits": logits}
    classes = len(whole.head.weight)
    model = graph.model(shape, classes, outputs)

    for number, wire in enumerate(graph.spikes):
        spikes = graph.cast(wire.name, np.int32)
        if wire.negative:
            spikes = graph.add("Sub", graph.constant(wire.highest), spikes)
        outputs[f"spikes{number}"] = spikes
    return model, graph.model(shape, classes, outputs)
