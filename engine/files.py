"""Files that are written whole or not at all, and folders for one process at a time."""

import fcntl
import glob
import os
import secrets
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import RunError, UseError


def write_proved(path, write, same):
    """`write_atomic` of what is read back before it gets its name.

    same: function of the temporary path that tells whether it holds what was to be written.
    Raises:
        RunError: it does not, or see `write_atomic`.
    """

    def proved(temporary):
        write(temporary)
        if not same(temporary):
            raise OSError("it was read back otherwise than it was written")

    write_atomic(path, proved)


def write_atomic(path, write):
    """Call write(temporary path), then rename it to path; a failure leaves no temporary file.

    What a killed process had begun to write of the file goes.

    Raises:
        RunError: the disk is full, or the folder cannot be written to.
    """
    # two that write the same file do not write into each other's; containers share numbers
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_left(path)
        with open(temporary, "wb") as file:
            # the lock tells others that it is not left behind, if the file system has any
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
            write(temporary)
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


def _remove_left(path):
    """Remove the temporary files of killed processes: nobody holds their locks."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with suppress(OSError), open(left, "rb+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left.unlink()


def write_text(path, text):
    """Write a text file, in UTF-8 whatever the locale, as `write_atomic` does."""
    write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


@contextmanager
def in_turn(folder, notice):
    """Processes that come here with the same `folder`, which is made if it is not there, wait for
    one another.

    notice: called where another one is there already.
    Raises:
        OSError: the folder cannot be made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        # some file systems of clusters have no locks
        with suppress(OSError):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                notice()
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def lock(file, folder):
    """Lock the open file of a folder for as long as it is open, or until the process ends.

    Raises:
        BlockingIOError: another process holds it.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        # some file systems of clusters have no locks
        print(
            f"warning: {folder} cannot be locked ({error.strerror}): see to it that no other "
            "process works there",
            flush=True,
        )


@contextmanager
def locked(folder, otherwise):
    """Only one process works in `folder`, which is made if it is not there.

    Yields the lock's descriptor. The lock ends with the process, however it ends, and, where it is
    passed on to a script that is started, with that script.

    Args:
        otherwise: what to do instead of waiting.
    Raises:
        UseError: another process works there, or there is a file in the folder's place.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UseError(
            f"{folder} cannot be a folder, there is a file in its way: {otherwise}"
        ) from None

    # appended to, since whoever holds the lock has written into it
    with open(folder / "lock", "a+") as file:
        # a worker process may outlive this one by some seconds
        os.register_at_fork(after_in_child=file.close)
        try:
            lock(file, folder)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "?"
            raise UseError(
                f"{folder} is in use by process {holder} or a script that it started: "
                f"wait for it, or {otherwise}"
            ) from None
        # whom the next one finds here
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield file.fileno()
