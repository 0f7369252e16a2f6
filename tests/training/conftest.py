from collections.abc import Iterator

import pytest
from accelerate.state import AcceleratorState


@pytest.fixture(autouse=True)
def fresh_accelerator() -> Iterator[None]:
    """Accelerate keeps its state for the whole process; every test starts without it."""
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)
