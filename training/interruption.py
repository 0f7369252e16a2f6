"""Ending a run between two steps when it is told to: pre-emption sends SIGTERM, Ctrl-C is SIGINT."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Ctrl-C and many schedulers signal every process of a job, and the launcher, being one, passes the signal on: the same
# wish a second time, within milliseconds, which must not kill the run while it saves.
_ECHO_SECONDS = 2.0


class Interrupted(Exception):
    """A run ended early, on request, with its state saved.

    Attributes:
        signum: The signal; a command line exits with 128 plus this. The message is empty on all processes of a run
            but the main one, which speaks for them.
    """

    def __init__(self, message: str, signum: int):
        super().__init__(message)
        self.signum = signum


@contextmanager
def noted_signals() -> Iterator[Callable[[], int]]:
    """Notes the first SIGTERM or SIGINT instead of dying of it; one that comes two seconds later acts as always.

    Only the main thread of a process can do this; elsewhere nothing changes.

    Yields:
        A function that returns the number of the signal that has come, 0 for none.
    """
    received: list[int] = []
    first = 0.0
    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return
    before: dict[signal.Signals, Any] = {}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(signum: int, _: Any) -> None:
        nonlocal first
        if not received:
            first = time.monotonic()
            received.append(signum)
        elif time.monotonic() - first > _ECHO_SECONDS:
            restore()
            signal.raise_signal(signum)

    for number in _SIGNALS:
        before[number] = signal.signal(number, note)
    try:
        yield lambda: received[0] if received else 0
    finally:
        restore()


__all__ = ["Interrupted", "noted_signals"]
