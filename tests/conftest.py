import logging
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from fork_server import ForkServer
from skin import knows_skin
from transformers.utils import logging as transformers_logging

from ham10000.modeling import MODALITIES, Ham10000Config, create_model, create_processor
from ham10000.training.data.__main__ import write_official_layout
from ham10000.training.data.sources import load_data


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder with the real HAM10000; tests that ask for it carry the marker `shared`."""
    folder = Path(os.environ.get("HAM10000_SHARED", Path(__file__).parents[2] / "shared"))
    if not (folder / "ham10000" / "HAM10000_metadata.csv").is_file():
        pytest.skip(f"no real HAM10000 in {folder} (set HAM10000_SHARED)")
    return folder


@pytest.fixture(scope="session")
def synthetic_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """220 synthetic photographs in the official layout; read-only for tests."""
    return write_official_layout(tmp_path_factory.mktemp("data") / "official", load_data("synthetic:220")[0])


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    """Starts command lines within a second each, and kills them at chosen moments."""
    server = ForkServer(tmp_path_factory.mktemp("output"))
    yield server
    server.close()


@pytest.fixture(scope="session")
def tiny_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint of each variant with random weights, by modality; read-only for tests."""
    parent = tmp_path_factory.mktemp("checkpoints")
    folders = {modality: parent / modality for modality in MODALITIES}
    for modality, folder in folders.items():
        torch.manual_seed(0)
        config = Ham10000Config(modality=modality, backbone="test_efficientnet", backbone_kwargs={})
        model = create_model(config)
        # Random heads answer almost the same to everything; larger weights make differences that can be seen.
        model.classifier.weight.data.mul_(8)
        model.save_pretrained(folder)
        knows_skin(create_processor(config, image_size=64)).save_pretrained(folder)
    return folders


def pytest_configure(config: pytest.Config) -> None:
    """Marks of transformers' own tests, which test_transformers_mixins.py runs where their sources are at hand."""
    attention = ("flash_attn_test", "flash_attn_3_test", "flash_attn_4_test")
    for name in ("accelerate_tests", "torch_compile_test", *attention, "is_pipeline_test"):
        config.addinivalue_line("markers", f"{name}: used by transformers' tests")


def pytest_terminal_summary(terminalreporter: "pytest.TerminalReporter") -> None:  # not in pytest 8.0
    """The bad-input corpus: how much of it was run, by category and by how it ended."""
    counts: Counter[tuple[str, str, str]] = Counter()
    for status in ("passed", "failed"):
        for report in terminalreporter.stats.get(status, []):
            if found := dict(getattr(report, "user_properties", [])).get("bad_input"):
                counts[(*found, status)] += 1
    if counts:
        terminalreporter.section(f"bad-input corpus: {counts.total()} cases")
        for (category, outcome, status), count in sorted(counts.items()):
            terminalreporter.write_line(f"{category:<20} {count:>4} to be {outcome} {status}")


@pytest.fixture
def said_by_transformers() -> Iterator[list[str]]:
    """The warnings that transformers and this package's modeling log, once each.

    Not caplog: which of these loggers it listens to depends on its version and on the variable CI.
    """
    said: list[str] = []
    listener = logging.Handler(logging.WARNING)
    listener.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    library = transformers_logging.get_logger("transformers")
    library.addHandler(listener)
    yield said
    library.removeHandler(listener)


@pytest.fixture(autouse=True, scope="module")
def fresh_verbosity() -> Iterator[None]:
    """No module of tests inherits that command lines have silenced transformers, which lasts for a process."""
    verbosity = transformers_logging.get_verbosity()
    yield
    transformers_logging.set_verbosity(verbosity)
    transformers_logging.enable_progress_bar()


@pytest.fixture(autouse=True)
def fresh_accelerator() -> Iterator[None]:
    """Accelerate keeps its precision for the whole process; every test starts without it."""
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)
