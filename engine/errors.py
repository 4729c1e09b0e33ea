"""Errors that a user meets: one line on stderr, no traceback unless --debug."""

import _thread
import re
import sys
import threading
from textwrap import shorten

# what Python, NumPy and torch raise on content that is not what it should be
MALFORMED = (
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
)
# what torch has no types of its own for: words of its RuntimeErrors
LACK = re.compile("out of memory|allocate memory|not enough memory")
OWN = re.compile("this process has [0-9.]+ [A-Za-z]+ memory in use")  # of a GPU's
WORKER = re.compile(r"DataLoader worker \(pid|shared memory|Too many open files")
SOON = 0.1  # seconds
PEER = re.compile("Connection (?:closed|reset) by peer|Broken pipe|NCCL [^,.]*|Timed out waiting")


class UseError(Exception):
    """The command cannot be carried out as asked: exit status 2."""

    status = 2


class RunError(Exception):
    """The run failed on the way: exit status 1."""

    status = 1


def reason(error):
    """What a decoder says of a damaged file, in one short line; some say nothing."""
    return shorten(str(error), 120, placeholder=" ...") or type(error).__name__


def _end(error):
    """End the process with one line."""
    print(f"{sys.argv[0]}: error: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(error.status)


def _of_machine(error):
    """What is said of an error that is no fault of the program; None if it is one."""
    text = str(error).strip()
    *_, last = text.splitlines() or [""]
    if isinstance(error, BrokenPipeError):
        return f"{text}: what read the output has ended, as `| head` does; write it to a file"
    if isinstance(error, OSError):
        return (
            f"{text}: check the disk's space, the folder's permissions and the limit of open files "
            "(ulimit -n); what was written before is whole"
        )
    if isinstance(error, MemoryError) or LACK.search(text):
        own = OWN.search(text)
        said = f"{reason(error)}; {own[0]}" if own else reason(error)
        return (
            f"out of memory ({said}): lower --batch_size, in evaluation --val_batch_size, or "
            "--width_mult"
        )
    if WORKER.search(text):
        return (
            f"a process that decodes images was lost ({last}): give fewer --workers, or raise the "
            "memory, the space of /dev/shm or the limit of open files (ulimit -n); the run goes on "
            "with --resume <its run folder>"
        )
    lost = PEER.search(text)
    if lost:
        return (
            f"another process of this run was lost ({lost[0]}; out of memory?): the run goes on "
            "with --resume <its run folder>"
        )
    # torch's handler of a worker's end raises wherever the main thread is, in Python's code, too
    if isinstance(error.__context__, RuntimeError):
        return _of_machine(error.__context__)
    return None


def _in_thread(failed):
    """What the system refuses a thread is told once, by who waits for its work."""
    if not issubclass(failed.exc_type, OSError):
        threading.__excepthook__(failed)


def _in_cleaning(failed):
    """An object that could not be made has nothing to clean up, and what hindered it is told.

    An interrupt that came where Python cannot raise it, as in a fork, comes again.
    """
    if failed.exc_type is KeyboardInterrupt:
        threading.Timer(SOON, _thread.interrupt_main).start()
    elif failed.exc_type is not AttributeError:
        sys.__unraisablehook__(failed)


def guard(main, argv=None):
    """Run main(argv) as a command line.

    UseError, RunError, a lack of memory and what the system refuses are reported in one line, and
    end the process with their status.
    """
    argv = sys.argv[1:] if argv is None else argv
    # before argv is parsed, since a wrong option is such an error, too
    debug = bool({"--debug", "-debug"} & set(argv))
    if not debug:
        threading.excepthook = _in_thread
        sys.unraisablehook = _in_cleaning
    try:
        main(argv)
    except (UseError, RunError) as error:
        if debug:
            raise
        _end(error)
    except Exception as error:
        told = _of_machine(error)
        if debug or not told:
            raise
        _end(RunError(told))
    except KeyboardInterrupt:
        print(
            f"{sys.argv[0]}: interrupted; a training run goes on with --resume <its run folder>, "
            "a chain or a preparation with the same command",
            file=sys.stderr,
        )
        sys.exit(130)  # as a shell reports SIGINT
