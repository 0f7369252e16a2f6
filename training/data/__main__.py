"""Checks a source: `python -m ham10000.training.data --data DIR`."""

import sys

from ham10000.training.data.report import main

if __name__ == "__main__":
    sys.exit(main())
