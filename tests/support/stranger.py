"""Programs as they run where a package is not installed, installed or not."""


def without(*packages: str) -> str:
    """The beginning of a program in which every import of these packages fails."""
    return f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {packages}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
"""
