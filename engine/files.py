"""Files that are written whole or not at all."""

import os
from contextlib import suppress
from pathlib import Path

from .errors import RunError


def write_atomic(path, write):
    """Call write(temporary path), then rename it to path; a failure leaves no temporary file.

    Raises:
        RunError: the disk is full, or the folder cannot be written to.
    """
    # the process's number: two that write the same file do not write into each other's
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch.save raises RuntimeError on a full disk
        raise RunError(
            f"cannot write {path} ({error}): check the disk's space and the folder's permissions; "
            "a file that was there is as it was"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path, text):
    """Write a text file as `write_atomic` does."""
    write_atomic(path, lambda temporary: temporary.write_text(text))
