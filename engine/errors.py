"""Errors that a user meets: one line on stderr, no traceback unless --debug."""

import re
import sys

LACK = re.compile("out of memory|allocate memory|not enough memory")  # of torch


class UseError(Exception):
    """The command cannot be carried out as asked: exit status 2."""

    status = 2


class RunError(Exception):
    """The run failed on the way: exit status 1."""

    status = 1


def reason(error):
    """What a decoder says of a damaged file, in one short line; some say nothing."""
    words = " ".join(str(error).split())
    return words[:120] or type(error).__name__


def _end(error):
    """End the process with one line."""
    print(f"{sys.argv[0]}: error: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(error.status)


def guard(main, argv=None):
    """Run main(argv) as a command line.

    UseError, RunError and a lack of memory are reported in one line, and end the process with their
    status.
    """
    argv = sys.argv[1:] if argv is None else argv
    # before argv is parsed, since a wrong option is such an error, too
    debug = bool({"--debug", "-debug"} & set(argv))
    try:
        main(argv)
    except (UseError, RunError) as error:
        if debug:
            raise
        _end(error)
    except (MemoryError, RuntimeError) as error:
        # torch has no type of its own for a lack of memory on a CPU
        if debug or not (isinstance(error, MemoryError) or LACK.search(str(error))):
            raise
        _end(RunError(f"out of memory ({reason(error)}): lower --batch_size or --width_mult"))
    except KeyboardInterrupt:
        print(
            f"{sys.argv[0]}: interrupted; a training run goes on with --resume <its run folder>, "
            "a preparation with the same command",
            file=sys.stderr,
        )
        sys.exit(130)  # as a shell reports SIGINT
