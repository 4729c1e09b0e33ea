"""Errors that a user meets: one line on stderr, no traceback unless --debug."""

import sys


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


def guard(main, argv=None):
    """Run main(argv) as a command line.

    UseError and RunError are reported in one line, and end the process with their status.
    """
    argv = sys.argv[1:] if argv is None else argv
    try:
        main(argv)
    except (UseError, RunError) as error:
        # before argv is parsed, since a wrong option is such an error, too
        if {"--debug", "-debug"} & set(argv):
            raise
        print(f"{sys.argv[0]}: error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(error.status)
    except KeyboardInterrupt:
        print(
            f"{sys.argv[0]}: interrupted; a training run goes on with --resume <its run folder>, "
            "a preparation with the same command",
            file=sys.stderr,
        )
        sys.exit(130)  # as a shell reports SIGINT
