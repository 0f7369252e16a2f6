"""Evaluates a checkpoint: `python -m ham10000.training.evaluation`."""

import sys

from ham10000.training.evaluation.evaluator import main

if __name__ == "__main__":
    sys.exit(main())
