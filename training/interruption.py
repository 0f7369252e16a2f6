"""Ending a run between two steps when it is told to: pre-emption sends SIGTERM, Ctrl-C is SIGINT."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(Exception):
    """A run ended early, on request, with its state saved.

    Attributes:
        signum: The signal; a command line exits with 128 plus this.
    """

    def __init__(self, message: str, signum: int):
        super().__init__(message)
        self.signum = signum


@contextmanager
def noted_signals() -> Iterator[Callable[[], int]]:
    """Notes the first SIGTERM or SIGINT instead of dying of it; the second acts as always.

    Only the main thread of a process can do this; elsewhere nothing changes.

    Yields:
        A function that returns the number of the signal that has come, 0 for none.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return
    before: dict[signal.Signals, Any] = {}

    def note(signum: int, _: Any) -> None:
        received.append(signum)
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in _SIGNALS:
        before[number] = signal.signal(number, note)
    try:
        yield lambda: received[0] if received else 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


__all__ = ["Interrupted", "noted_signals"]
