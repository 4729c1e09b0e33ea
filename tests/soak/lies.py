"""Small files that claim, unfold or nest to far more than they hold, or that would run something.

Each function writes one into a folder and returns what reads it. What they take is measured in
`tests/soak/test_lies.py` and in the campaign.
"""

import io
import json
import os
import pickle
import struct
import zipfile
import zlib

import numpy as np
import torch
from PIL import Image

import models
from engine import checkpoint, integer_file, log
from engine.dist import World
from experiments import chains
from inputs.events import formats, recordings
from inputs.events.coding import Coding
from inputs.events.options import CodingOptions
from inputs.images import decode
from models import integer, transformer
from spike_driven_transformer import train
from tests.engine.test_integer_file import MEAN, STD, network

GIB = 1 << 30
# bytes that archives unpack to: as little as must be refused, in the campaign GIB
large = 1 << 27


# ---- archives that unpack to a thousand times their size


def zeros(file, count):
    """Write `count` zero bytes."""
    block = bytes(1 << 20)
    for _ in range(count >> 20):
        file.write(block)


def npy_header(shape, dtype="<i8"):
    """Bytes before the numbers of an .npy file."""
    buffer = io.BytesIO()
    head = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, head)
    return buffer.getvalue()


def packed(path, names, count, shape):
    """An archive of arrays of `count` zero bytes, a thousandth of them packed."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                file.write(npy_header(shape))
                zeros(file, count)


def packed_recording(folder):
    """A packed .npz of four columns of zeros."""
    path = folder / "x.npz"
    packed(path, "txyp", large // 4, (large // 32,))
    return lambda: formats.read(path)


def claimed_recording(folder):
    """An .npz whose header claims 2^40 events."""
    path = folder / "x.npz"
    packed(path, "txyp", 0, (1 << 40,))
    return lambda: formats.read(path)


def packed_integer_file(folder):
    """A packed integer network with an array of zeros."""
    path = folder / "x.npz"
    packed(path, ["header"], large, (large // 8,))
    return lambda: integer_file.load(path)


def wide_integer_file(folder):
    """An integer network whose header claims the full width, hundredfold."""
    net, path = network(), folder / "x.npz"
    integer_file.save(path, integer.to_integer(net, MEAN, STD), net, MEAN, STD)
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    header = json.loads(str(arrays["header"]))
    header["network"]["width_mult"] = 16.0
    np.savez(path, **arrays | {"header": json.dumps(header)})
    return lambda: integer_file.load(path)


def deep_integer_file(folder):
    """An integer network whose header is a hundred thousand lists in each other."""
    path = folder / "x.npz"
    np.savez_compressed(path, header="[" * 100_000)
    return lambda: integer_file.load(path)


def packed_checkpoint(folder):
    """A checkpoint whose archive is packed: a tensor of zeros."""
    path, plain = folder / "x.pth", folder / "plain.pth"
    torch.save({"head.weight": torch.zeros(1)}, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as to:
        for name in source.namelist():
            content = source.read(name)
            if name.endswith("data.pkl"):
                # one number becomes many in the storage
                many = b"J" + struct.pack("<i", large // 4)
                content = content.replace(b"K\x01tq", many + b"tq", 1)
            if name.endswith("/data/0"):
                with to.open(name, "w") as file:
                    zeros(file, large)
            else:
                to.writestr(name, content)
    plain.unlink()
    return lambda: checkpoint.load(path)


def packed_matrix(folder):
    """A MATLAB 5 file of zeros that are packed."""
    path, pack = folder / "x.mat", zlib.compressobj(9)
    rows = (large - 64) // 48
    name = struct.pack("<II", 6, 8) + struct.pack("<II", 6, 0)
    shape = struct.pack("<IIii", 5, 8, rows, 6)
    label = struct.pack("<HH4s", 1, 4, b"out1")
    body = name + shape + label + struct.pack("<II", 9, rows * 48)
    parts = [pack.compress(struct.pack("<II", 14, len(body) + rows * 48) + body)]
    parts += [pack.compress(bytes(1 << 20)) for _ in range(large >> 20)]
    content = b"".join([*parts, pack.flush()])
    head = b"MATLAB 5.0".ljust(124) + b"\0\1IM"
    path.write_bytes(head + struct.pack("<II", formats.COMPRESSED, len(content)) + content)
    return lambda: formats.read(path)


def empty_dataset(folder):
    """A MATLAB 7.3 file that stores nothing of a matrix of 48 GB."""
    import h5py

    path = folder / "x.mat"
    with h5py.File(path, "w", userblock_size=512) as file:
        file.create_dataset("out1", (6, 10**9), "f8", chunks=(6, 1 << 20))
    content = bytearray(path.read_bytes())
    content[:128] = b"MATLAB 7.3".ljust(124) + b"\0\2IM"
    path.write_bytes(content)
    return lambda: formats.read(path)


# ---- sizes that lie


def wide_checkpoint(folder):
    """A small network that says it is the widest one."""
    path, net = folder / "x.pth", models.build("vgg16", models.ReLU(), width_mult=1 / 64)
    content = checkpoint.content(net, "ann", {}, {})
    content["network"]["width_mult"] = 16.0
    torch.save(content, path)
    return lambda: checkpoint.rebuild(checkpoint.load(path), path)


def deep_checkpoint(folder):
    """A transformer of one block that says it has ten million."""
    net = models.build("sdt", transformer.activation("lif", 1, 1), depth=1, dim=16)
    content, path = checkpoint.content(net, "sdt", {}, {}), folder / "x.pth"
    content["network"]["depth"] = 10**7
    torch.save(content, path)
    return lambda: checkpoint.rebuild(checkpoint.load(path), path)


def spread_weights(folder):
    """A published file with one number spread over a tensor of 4 TB."""
    path, net = folder / "x.pth", models.build("resnet20", models.ReLU(), width_mult=1 / 32)
    torch.save({"features.0.weight": torch.zeros(1).expand(10**6, 10**6)}, path)
    return lambda: checkpoint.load_into(net, checkpoint.load(path), path)


def many_weights(folder):
    """A published file of ten thousand tensors."""
    path, net = folder / "x.pth", models.build("resnet20", models.ReLU(), width_mult=1 / 32)
    one = torch.zeros(1)
    torch.save({f"features.{n}.weight": one for n in range(10_000)}, path)
    return lambda: checkpoint.load_into(net, checkpoint.load(path), path)


def folded_checkpoint(folder):
    """A checkpoint whose settings are lists that name each other, 2^60 values in all."""
    net = models.build("resnet20", models.ReLU(), width_mult=1 / 32)
    values = [0]
    for _ in range(40):
        values = [values, values]
    path = folder / "x.pth"
    content = checkpoint.content(net, "ann", {}, {})
    content["settings"] = {"mean": values}
    torch.save(content, path)
    return lambda: checkpoint.load(path)


def large_picture(folder):
    """A white picture of 13,000 x 13,000 pixels, packed into some kilobytes."""
    path = folder / "x.png"
    Image.new("1", (13_000, 13_000), 1).save(path)
    return lambda: decode(path, 32)


def claimed_array(folder):
    """Prepared recordings whose array claims 2^40 rows."""
    from tests.inputs.events.made import write_prepared

    target = write_prepared(folder / "prepared", (2, 2), classes=2)
    (target / "train.npy").write_bytes(npy_header((1 << 40, 2), "|u1"))
    options = CodingOptions(prepared=str(target))
    return lambda: recordings.load(options, Coding(1, 10))


# ---- texts that nest or unfold


def laughing(depth=60):
    """YAML whose every line names the one before ten times."""
    lines = ["a0: &a0 [x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, depth)]
    return "\n".join(lines)


def unfolding_configuration(folder):
    """A configuration that unfolds to 10^60 values."""
    path = folder / "x.yml"
    path.write_text(laughing().replace("a59:", "mean:"))
    return lambda: train.get_parser().parse(["-c", str(path)])


def nested_configuration(folder):
    """A configuration of 200,000 lists in each other."""
    path = folder / "x.yml"
    path.write_text("mean: " + "[" * 200_000)
    return lambda: train.get_parser().parse(["-c", str(path)])


def long_configuration(folder):
    """A configuration of 1 MB of short words."""
    path = folder / "x.yml"
    path.write_text("mean: [" + "1," * 500_000 + "1]")
    return lambda: train.get_parser().parse(["-c", str(path)])


def tagged_configuration(folder):
    """A configuration that names a Python function to call."""
    path, mark = folder / "x.yml", folder / "mark"
    path.write_text(f"mean: !!python/object/apply:os.mkdir ['{mark}']")
    return lambda: train.get_parser().parse(["-c", str(path)])


def unfolding_declaration(folder):
    """Declared chains that unfold to 10^60 values."""
    path = folder / "x.yml"
    path.write_text(laughing())
    return lambda: chains.read(path)


def tagged_declaration(folder):
    """Declared chains that name a Python function to call."""
    path, mark = folder / "x.yml", folder / "mark"
    path.write_text(f"x: !!python/object/apply:os.mkdir ['{mark}']")
    return lambda: chains.read(path)


def dated_declaration(folder):
    """Declared chains with a date that no month has."""
    path = folder / "x.yml"
    path.write_text("x: 2001-99-99")
    return lambda: chains.read(path)


def nested_json(folder):
    """A summary of a run of 100,000 lists in each other."""
    path = folder / "summary.json"
    path.write_text("[" * 100_000)
    return lambda: log.read_json(path)


# ---- pickles that would leave a mark


class Marking:
    """An object whose unpickling makes a folder."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return os.mkdir, (self.mark,)


def pickled_checkpoint(folder):
    """torch.save's archive, with an object in it."""
    path = folder / "x.pth"
    torch.save({"state_dict": {}, "what": Marking(folder / "mark")}, path)
    return lambda: checkpoint.load(path)


def pickled_legacy_checkpoint(folder):
    """torch.save's older form, with an object in it."""
    path = folder / "x.pth"
    content = {"state_dict": {}, "what": Marking(folder / "mark")}
    torch.save(content, path, _use_new_zipfile_serialization=False)
    return lambda: checkpoint.load(path)


def bare_pickle(folder):
    """A pickle with the name of a checkpoint."""
    path = folder / "x.pth"
    path.write_bytes(pickle.dumps(Marking(folder / "mark")))
    return lambda: checkpoint.load(path)


def pickled_module(folder):
    """torch.jit's archive: a program in the place of weights."""
    path = folder / "x.pth"
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), path)
    return lambda: checkpoint.load(path)


def objects(folder):
    """An array that holds an object."""
    array = np.empty(1, object)
    array[0] = Marking(folder / "mark")
    return array


def pickled_integer_file(folder):
    """An integer network with an array of objects."""
    path = folder / "x.npz"
    np.savez(path, header=objects(folder))
    return lambda: integer_file.load(path)


def pickled_recording(folder):
    """An .npz recording with an array of objects."""
    path = folder / "x.npz"
    np.savez(path, **dict.fromkeys("txyp", objects(folder)))
    return lambda: formats.read(path)


def pickled_matrix(folder):
    """A pickle with the name of a MATLAB file."""
    path = folder / "x.mat"
    path.write_bytes(pickle.dumps(Marking(folder / "mark")))
    return lambda: formats.read(path)


def pickled_aedat(folder):
    """A pickle with the name of a recording."""
    path = folder / "x.aedat"
    path.write_bytes(pickle.dumps(Marking(folder / "mark")))
    return lambda: formats.read(path)


def pickled_frames(folder):
    """Prepared recordings that are a pickled array of objects."""
    from tests.inputs.events.made import write_prepared

    target = write_prepared(folder / "prepared", (2, 2), classes=2)
    np.save(target / "train.npy", objects(folder))
    options = CodingOptions(prepared=str(target))
    return lambda: recordings.load(options, Coding(1, 10))


def pickled_cifar(folder):
    """CIFAR-10's own pickles, one of which is another."""
    from inputs.table import DataOptions, load

    base = folder / "cifar-10-batches-py"
    base.mkdir()
    for name in ("batches.meta", "test_batch", *(f"data_batch_{n}" for n in range(1, 6))):
        (base / name).write_bytes(pickle.dumps(Marking(folder / "mark")))
    return lambda: load(DataOptions(data_root=str(folder)), World())


def program_picture(folder):
    """A PostScript program with the name of a photograph."""
    path = folder / "x.jpg"
    path.write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"
        + f"({folder}/mark) (w) file closefile showpage\n%%EOF\n".encode()
    )
    return lambda: decode(path, 32)


NO_LIES = ("zeros", "npy_header", "packed", "laughing", "objects")
BY_NAME = {
    name: value
    for name, value in list(globals().items())
    if getattr(value, "__code__", None) and value.__module__ == __name__ and name not in NO_LIES
}
LIES = list(BY_NAME.values())
