"""Runs the study: `accelerate launch -m ham10000.training.study`."""

import sys

from ham10000.training.study.command import main

if __name__ == "__main__":
    sys.exit(main())
