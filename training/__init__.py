"""Training, evaluation and prediction of HAM10000 models."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("ham10000")
except PackageNotFoundError:  # a copy of the modules without the installed package, as in a Space
    __version__ = "unknown"
