"""What a run meets when one of its other processes dies, said as one error."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from torch.distributed import DistError

from ham10000.modeling import Ham10000Error

# Parts of what gloo and NCCL say when the other end of a connection is gone.
_LOST_CONNECTION = ("connection closed by peer", "connection reset by peer", "broken pipe", "connect timeout")
_SOURCE_LINE = re.compile(r"^\[\S+:\d+\]\s*")


@contextmanager
def lost_processes_explained(output_dir: str) -> Iterator[None]:
    """Turns the errors of torch for a dead DataLoader worker or a dead process of the run into one of ours.

    They reach the main thread anywhere, not only where a batch is asked for: torch raises the first from the handler
    of SIGCHLD.

    Args:
        output_dir: The run's folder, which the message names.

    Raises:
        Ham10000Error: For either; the last saved state is untouched.
    """
    try:
        yield
    except RuntimeError as error:
        go_on = f"The last saved state is untouched; continue with --resume --output_dir {output_dir}"
        text = str(error)
        # gloo begins with the line of its source and ends with general advice.
        cause = _SOURCE_LINE.sub("", text).split("\n")[0].partition(". ")[0].rstrip(". ") or type(error).__name__
        if isinstance(error, DistError) or any(part in text.lower() for part in _LOST_CONNECTION):
            raise Ham10000Error(
                f"Another process of this run ended ({cause}); its own message, if it left one, says why. {go_on}, "
                "with the same number of processes or another one."
            ) from error
        raise


__all__ = ["lost_processes_explained"]
