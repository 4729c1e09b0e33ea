"""Decodes an AEDAT 4.0 recording, in a process of its own: on damaged files the package aedat may
end the process that it works in, or take all memory.

python aedat4.py RECORDING     columns t, x, y, on to the standard output, int64 [4, N]
"""

import os
import resource
import sys

import numpy as np

ABSENT = 3  # exit status without the package
MEMORY = 1 << 30, 64  # bytes, and times the size of the file


def decode(path):
    """Decode a recording; returns the exit status."""
    try:
        import aedat
    except ImportError:
        return ABSENT
    most = MEMORY[0] + MEMORY[1] * os.path.getsize(path)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    packets = [packet["events"] for packet in aedat.Decoder(path) if "events" in packet]
    columns = [[events[key] for events in packets] for key in ("t", "x", "y", "on")]
    whole = [np.concatenate(parts or [np.empty(0)]).astype("<i8") for parts in columns]
    sys.stdout.buffer.write(np.stack(whole).tobytes())
    return 0


if __name__ == "__main__":
    sys.exit(decode(sys.argv[1]))
