"""Files of integer networks (`models.integer`): plain NumPy arrays, never a pickle.

An .npz holds the arrays of the network by the names of its `state_dict`, and `header`, a JSON text:
`format`, `network` and `activation` (how to build it), `mean` and `std` (of the normalisation that
its first layer has inside), `scale` (what an integer of the readout is worth), `data`, `source`
(the checkpoint that it was made of), `fine_tuned` (how, or null) and `versions`.
"""

import json
import zipfile
import zlib
from dataclasses import replace

import numpy as np
import torch

import models
from models import integer

from .errors import MALFORMED, UseError, reason
from .files import write_proved
from .log import versions
from .plain import check_archive

FORMAT = "mlif-integer-1"
# what NumPy, zipfile, json and torch raise on files that are damaged or something else
DAMAGE = (*MALFORMED, EOFError, OSError, zipfile.BadZipFile, zlib.error)


def save(path, whole, net, mean, std, **more):
    """Write the integer network `whole` of the spiking network `net`, once it was read back.

    mean, std: as `to_integer` took them. more: of the header.
    Raises:
        RunError: the file cannot be written, or does not hold what was written to it.
    """
    header = {
        "format": FORMAT,
        "network": net.built,
        "activation": models.describe(net.act),
        "mean": list(mean),
        "std": list(std),
        "scale": whole.scale,
        "versions": versions(),
        **more,
    }
    arrays = {name: value.numpy() for name, value in whole.state_dict().items()}

    def write(temporary):
        # an open file, since NumPy would add a suffix to a name
        with open(temporary, "wb") as file:
            np.savez(file, header=json.dumps(header), **arrays)

    def same(temporary):
        again = load(temporary)[0].state_dict()
        written = whole.state_dict()
        return all(torch.equal(again[name], value) for name, value in written.items())

    write_proved(path, write, same)


def load(path):
    """(the integer network, header) of a file that `save` wrote.

    Raises:
        UseError: no such file, or damaged.
    """
    try:
        check_archive(path)
        # NumPy would leave a damaged file open
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        header = json.loads(str(arrays.pop("header")))
        if header["format"] != FORMAT:
            raise ValueError(f"format {header['format']}")
        built = dict(header["network"])
        # where there are several steps, the leaks of an integer network have come to be 1
        act = replace(models.from_description(header["activation"]), leak=1.0)
        name = built.pop("name")
        # at first without memory, since its sizes may be anything; all weights are in the file
        with torch.device("meta"):
            claimed = sum(p.numel() for p in models.build(name, act, **built).parameters())
        held = sum(array.size for array in arrays.values())
        if claimed > held:
            raise ValueError(f"{held} numbers, for a network of {claimed} weights")
        net = models.build(name, act, **built)
        whole = integer.to_integer(net, header["mean"], header["std"])
        state = {name: torch.from_numpy(array) for name, array in arrays.items()}
        wrong = [k for k, v in whole.state_dict().items() if state[k].dtype != v.dtype]
        if wrong:
            raise ValueError(f"{wrong[0]} holds numbers of another type")
        whole.load_state_dict(state)
        # files of earlier versions do not say it
        whole.scale = header.get("scale")
    except FileNotFoundError:
        raise UseError(f"no integer network at {path}: write one with export.py") from None
    except DAMAGE as error:
        raise UseError(
            f"{path} is damaged or no integer network ({reason(error)}): write it anew with "
            "export.py"
        ) from None
    return whole, header
