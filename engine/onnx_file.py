"""Networks as ONNX files for float32 images, and ONNX Runtime behind the face of a network.

torch.onnx draws the graph: of a spiking neuron its steps one after the other, whatever its backend
(`models.neuron.backends.exported`); of all else what the network computes in eval mode.
"""

import json
import warnings

import torch
from torch import nn

from .errors import RunError
from .extras import need
from .files import write_proved

OPSET = 18  # the exporter's own, which the most tools read
OPSETS = range(OPSET, 26)  # those that it brings its graphs to


def draw(net, images, opset=OPSET):
    """The ONNX model (a ModelProto) of a module in eval mode.

    Its input `images` has the shape of the example `images` [B, ...] but for B, which is free (and
    more than 1 in the example); outputs are the module's tensors, the first of them `logits`.

    Raises:
        UseError: a package of requirements-export.txt is missing.
        RunError: the exporter cannot write this opset.
    """
    for name in ("onnx", "onnxscript", "onnxruntime"):
        need(name)
    with warnings.catch_warnings(action="ignore"):
        program = torch.onnx.export(
            net,
            (images,),
            dynamo=True,
            opset_version=opset,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            input_names=["images"],
            output_names=["logits"],
            verbose=False,
        )
    model = program.model_proto
    (got,) = (each.version for each in model.opset_import)  # what it cannot bring there, it leaves
    if got != opset:
        raise RunError(f"the exporter of torch {torch.__version__} wrote opset {got}, not {opset}")
    _forget(model)
    return model


def _forget(model):
    """Drop the exporter's notes on its own work: they are long, and name folders of this machine.

    With them it writes down each line of code that a node comes from.
    """
    graph = model.graph
    parts = (graph.node, graph.initializer, graph.value_info, graph.input, graph.output)
    for part in (model, graph, *(each for several in parts for each in several)):
        del part.metadata_props[:]


def session(model, threads=None):
    """An ONNX Runtime session on the CPU; model: path, or bytes of a file.

    threads: torch's number of threads where it is None.
    """
    runtime = need("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.log_severity_level = 3  # errors
    # products of int8 saturate in 16 bits on processors without VNNI
    options.add_session_config_entry("session.x64quantprecision", "1")
    # else its threads would go on for a while, beside torch's
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


class OnnxNetwork(nn.Module):
    """An ONNX file as a network: images [B, ...] -> readout [B, classes].

    Args:
        model: its bytes. watched: those of the same graph with further outputs, which its `sites`
            give one after the other, for whoever watches the layers of neurons; None: it has none.
    """

    def __init__(self, model, watched=None):
        super().__init__()
        self.session = session(model)
        self.watched = watched and session(watched)
        more = len(self.watched.get_outputs()) - 1 if watched else 0
        self.layers = nn.ModuleList(nn.Identity() for _ in range(more))

    def sites(self):
        return list(self.layers)

    def forward(self, x):
        feed = {"images": x.numpy()}
        if self.watched:
            _, *outputs = self.watched.run(None, feed)
            for site, output in zip(self.layers, outputs, strict=True):
                site(torch.from_numpy(output))
        (readout,) = self.session.run(None, feed)
        return torch.from_numpy(readout)


def stamped(model, header):
    """Bytes of the model with a header {name: what JSON holds}, which becomes its metadata."""
    texts = {name: json.dumps(value) for name, value in header.items()}
    need("onnx").helper.set_model_props(model, texts)
    return model.SerializeToString()


def save(path, content):
    """Write the bytes of a model to a file, once ONNX Runtime has loaded it.

    Raises:
        RunError: the file cannot be written, or does not hold what was written to it.
    """

    def write(temporary):
        temporary.write_bytes(content)

    def same(temporary):
        if temporary.read_bytes() != content:
            return False
        session(temporary)  # refuses what ONNX Runtime cannot load
        return True

    write_proved(path, write, same)
