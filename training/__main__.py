"""Trains one variant: `accelerate launch -m ham10000.training`, and `ham10000-train`."""

import sys
from collections.abc import Sequence

from ham10000.training.config import parse_arguments
from ham10000.training.utils.cli import run_cli


@run_cli
def main(argv: Sequence[str]) -> None:
    """Command line of `ham10000-train`."""
    config = parse_arguments(argv)
    from ham10000.training.train import run  # torch, for which --help need not wait

    run(config)


if __name__ == "__main__":
    sys.exit(main())
