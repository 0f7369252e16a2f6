"""What the command lines share: a mistake of the user's is one message, a mistake of ours is a traceback."""

import argparse
import errno
import functools
import sys
from collections.abc import Callable, Sequence

from ham10000.training.interruption import Interrupted

DISCLAIMER = "Research software, not a medical device: never for diagnosis or for decisions about a patient."


def add_debug_argument(parser: argparse.ArgumentParser) -> None:
    """Adds `--debug`, which `run_cli` obeys."""
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error in the input")


def run_cli(main: Callable[[Sequence[str]], None]) -> Callable[..., int]:
    """Turns `main(argv)` into an entry point that returns an exit code.

    Args:
        main: Takes the arguments without the program's name.

    Returns:
        A function of an optional `argv` (by default `sys.argv[1:]`). It returns 0; 2 for input the user can correct or
        a machine that refuses, with one message on stderr (the traceback with `--debug`); 130 when interrupted by
        Ctrl-C, 143 by SIGTERM.

    Example:
        >>> @run_cli
        ... def main(argv):
        ...     print(parser.parse_args(argv))
    """

    @functools.wraps(main)
    def entry_point(argv: Sequence[str] | None = None) -> int:
        arguments = list(sys.argv[1:] if argv is None else argv)
        try:
            main(arguments)
        except Interrupted as error:
            if str(error):
                print(error, file=sys.stderr)
            return 128 + error.signum
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130
        except Exception as error:
            message = None if "--debug" in arguments else _message(error)
            if message is None:
                raise
            print(f"error: {message}", file=sys.stderr)
            return 2
        return 0

    return entry_point


def _message(error: Exception) -> str | None:
    """The message about an error the user can correct; None for a mistake of ours."""
    # Late: these import torch, which takes seconds that `--help` need not wait for.
    from huggingface_hub.errors import StrictDataclassError

    from ham10000.modeling.configuration_ham10000 import Ham10000Error

    if isinstance(error, (Ham10000Error, StrictDataclassError)):
        return str(error)
    # Without a number it is a library's own; with one the machine refused: no permission, no room, no file.
    if isinstance(error, OSError) and error.errno not in (None, errno.EPIPE):
        where = "" if error.filename is None else f": {str(error.filename)!r}"
        return f"{error.strerror or error}{where}."
    return None


__all__ = ["DISCLAIMER", "add_debug_argument", "run_cli"]
