"""How two sides are measured fairly: in turns, each where the settings of the other do not reach it."""

import contextlib
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from tqdm.auto import tqdm


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure_seconds(run: Callable[[], Any], device: torch.device) -> float:
    """Wall time of a call, until the device has done its work."""
    _synchronize(device)
    start = time.perf_counter()
    run()
    _synchronize(device)
    return time.perf_counter() - start


def take_turns(
    sides: dict[str, Callable[[], float]], repetitions: int, progress: bool = True
) -> dict[str, list[float]]:
    """Measures every side once a turn, after a turn that does not count.

    Args:
        sides: Name to a function that works once and returns a rate.
        repetitions: Turns that count.
        progress: Whether to show a progress bar.

    Returns:
        Name to the rates of the turns.
    """
    rates: dict[str, list[float]] = {name: [] for name in sides}
    title = ", ".join(sides) if len(sides) < 5 else "Measuring"
    for turn in tqdm(range(repetitions + 1), title, unit="turn", disable=not progress, leave=False):
        for name, work in sides.items():
            rate = work()
            if turn:
                rates[name].append(rate)
    return rates


def summarize(rates: dict[str, list[float]], ours: str, other: str) -> dict[str, Any]:
    """Medians of both sides, and the median of the ratio within each turn."""
    ratios = [a / b for a, b in zip(rates[ours], rates[other], strict=True)]
    return {
        "ours": statistics.median(rates[ours]),
        "other": statistics.median(rates[other]),
        "ratio": statistics.median(ratios),
        "ratios": ratios,
    }


def _serve(connection: Any, build: Callable[..., Callable[[], float]], arguments: tuple[Any, ...]) -> None:
    work = build(*arguments)
    while connection.recv():
        connection.send(work())


@contextlib.contextmanager
def in_own_process(build: Callable[..., Callable[[], float]], *arguments: Any) -> Iterator[Callable[[], float]]:
    """A side that works in a process of its own, out of reach of the settings of this one.

    Args:
        build: Called there once with the arguments; what it returns is called once a turn.
        *arguments: Whatever can be pickled.

    Yields:
        The side, for `take_turns`.
    """
    context = multiprocessing.get_context("spawn")
    connection, remote = context.Pipe()
    process = context.Process(target=_serve, args=(remote, build, arguments))
    process.start()
    remote.close()

    def side() -> float:
        connection.send(True)
        return connection.recv()

    try:
        yield side
    finally:
        if process.is_alive():
            connection.send(False)
        process.join()


__all__ = ["in_own_process", "measure_seconds", "summarize", "take_turns"]
