"""Shared by command lines: errors as one message, signals between two steps, and a lost process of a run."""

import argparse
import errno
import functools
import io
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ham10000.training import __version__

if TYPE_CHECKING:
    from tqdm import tqdm

DISCLAIMER = "Research software, not a medical device: never for diagnosis or for decisions about a patient."
# Ctrl-C and many schedulers signal every process of a job, and the launcher, being one, passes the signal on: the same
# wish a second time, within milliseconds, which must not kill the run while it saves.
_ECHO_SECONDS = 2.0
# Parts of what gloo and NCCL say when the other end of a connection is gone.
_LOST_CONNECTION = ("connection closed by peer", "connection reset by peer", "broken pipe", "connect timeout")


class Interrupted(Exception):
    """A run ended early, by signal `signum`, with its state saved: a command line exits with 128 plus this.

    The message is empty on all processes of a run but the main one, which speaks for them.
    """

    def __init__(self, message: str, signum: int):
        super().__init__(message)
        self.signum = signum


def add_debug_argument(parser: argparse.ArgumentParser) -> None:
    """Adds `--debug`, which `run_cli` obeys, and `--version`."""
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error in the input")
    parser.add_argument("--version", action="version", version=f"ham10000 {__version__}")


def run_cli(main: Callable[[Sequence[str]], None]) -> Callable[..., int]:
    """Turns `main(argv)` into an entry point, of `sys.argv[1:]` by default, that returns an exit code.

    It is 0; 2 for input the user can correct or a machine that refuses, with one message on stderr (the traceback with
    `--debug`); 130 when interrupted by Ctrl-C, 143 by SIGTERM.
    """

    @functools.wraps(main)
    def entry_point(argv: Sequence[str] | None = None) -> int:
        arguments = list(sys.argv[1:] if argv is None else argv)
        # A console may have no way to show a character, and a file's name may have none that Unicode knows.
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")
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


def progress_bar(**options: Any) -> "tqdm":
    """Returns the bar of `tqdm.auto.tqdm`; in a log file, which is not redrawn, a line every half minute at most."""
    from tqdm.auto import tqdm

    if not sys.stderr.isatty():
        # tqdm would otherwise draw a bar that has waited for ten seconds.
        options |= {"delay": 30, "mininterval": 30, "maxinterval": 30}
    return tqdm(**options)


@contextmanager
def noted_signals() -> Iterator[Callable[[], int]]:
    """Notes the first SIGTERM or SIGINT instead of dying of it; one that comes two seconds later acts as always.

    Yields a function that returns the number of the signal that has come, 0 for none. Only the main thread of a
    process can do this; elsewhere nothing changes.
    """
    received: list[tuple[int, float]] = []  # with its time
    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return

    def note(signum: int, _: object) -> None:
        if not received:
            received.append((signum, time.monotonic()))
        elif time.monotonic() - received[0][1] > _ECHO_SECONDS:
            signal.signal(signum, before[signal.Signals(signum)])
            signal.raise_signal(signum)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: received[0][0] if received else 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def lost_processes_explained(output_dir: str) -> Iterator[None]:
    """Turns torch's errors for a dead process of a distributed run into a Ham10000Error that says how to go on."""
    try:
        yield
    except RuntimeError as error:
        from torch.distributed import DistError

        from ham10000.modeling.configuration_ham10000 import Ham10000Error

        text = str(error)
        if not isinstance(error, DistError) and not any(part in text.lower() for part in _LOST_CONNECTION):
            raise
        # gloo begins with the line of its source and ends with general advice.
        line = re.sub(r"^\[\S+:\d+\]\s*", "", text).split("\n")[0]
        cause = line.partition(". ")[0].rstrip(". ") or type(error).__name__
        raise Ham10000Error(
            f"Another process of this run ended ({cause}); its own message, if it left one, says why. The last saved "
            f"state is untouched; continue with --resume --output_dir {output_dir}, with the same number of processes "
            "or another one."
        ) from error
