"""What somebody at the keyboard waits for: help, a refusal, a first prediction, the app's page.

python examples/benchmarks/latency.py --image LESION.jpg --output examples/results/latency.json

Each wait is measured in turns with the least that such a process needs: `python -c pass`, or the imports that no
prediction can do without. The app is opened in Chromium as a person opens it, with the models of examples/checkpoints;
a change of metadata counts until the page shows another probability.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from benchmark_report import render_latency
from benchmark_turns import measure_seconds, take_turns

from ham10000.modeling import Ham10000Error
from ham10000.training.utils.cli import add_debug_argument, run_cli
from ham10000.training.utils.files import atomic_write_json
from ham10000.training.utils.hardware import environment

EXAMPLES = Path(__file__).parents[1]
_CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
BARE, IMPORTS = "`python -c pass`", "importing timm and transformers' base classes"
# `import transformers` alone is lazy: what a model class inherits from is imported by its name.
_NEEDED = (
    "import timm; from transformers import PreTrainedModel, ProcessorMixin; "
    "from transformers.image_processing_utils import BaseImageProcessor"
)
# What is waited for, what it is compared with, and what is aimed at.
WAITS = {
    "`ham10000-train --help`": (BARE, "0.5 s more"),
    "`ham10000-predict` refuses a mistyped option": (BARE, "0.5 s more"),
    "`ham10000-predict IMAGE` in a new process": (IMPORTS, "1.15 times"),
    "the same with `--backend openvino`, never used before": (IMPORTS, ""),
    "the same with `--backend openvino`, again": (IMPORTS, ""),
    "`make app`: the page in a browser": ("", "5 s"),
    "`make app`: the first answer of three models": ("", ""),
    "another age in the app: the changed answer": ("", "0.5 s"),
}


def _run(*arguments: str, code: int = 0, **variables: str) -> float:
    """Seconds of a Python process that must end with this exit code."""
    command = [sys.executable, *arguments]

    def call() -> None:
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **variables})
        if done.returncode != code:
            raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr}")

    return measure_seconds(call, torch.device("cpu"))


def measure_commands(image: Path, checkpoint: Path, repetitions: int) -> dict[str, list[float]]:
    """Seconds of every command and of the two bare processes, in turns.

    Args:
        image: A photograph.
        checkpoint: A model that reads images alone.
        repetitions: Turns that count.

    Returns:
        Name to the seconds of each turn.
    """
    predicting = ["-m", "ham10000.training.predict", str(image), "--checkpoint", str(checkpoint)]
    openvino = [*predicting, "--backend", "openvino", "--device", "cpu"]  # it computes nowhere else
    help_, refusal, cold, first, again, *_ = WAITS
    with tempfile.TemporaryDirectory() as empty, tempfile.TemporaryDirectory() as kept:

        def convert() -> float:
            shutil.rmtree(Path(empty, "openvino"), ignore_errors=True)
            return _run(*openvino, HAM10000_CACHE=empty)

        return take_turns(
            {
                BARE: lambda: _run("-c", "pass"),
                IMPORTS: lambda: _run("-c", _NEEDED),
                help_: lambda: _run("-m", "ham10000.training", "--help"),
                refusal: lambda: _run("-m", "ham10000.training.predict", "--batch", "many", code=2),
                cold: lambda: _run(*predicting),
                first: convert,
                again: lambda: _run(*openvino, HAM10000_CACHE=kept),
            },
            repetitions,
        )


def _until_address(app: subprocess.Popen[str]) -> Iterator[str]:
    """What the app prints, up to the line with its address."""
    for line in app.stdout or ():
        yield line
        if "http://" in line:
            return


@contextmanager
def _app() -> Iterator[str]:
    """The app in a process of its own; yields the address it says."""
    command = [sys.executable, "-u", str(EXAMPLES / "app.py")]
    offline = os.environ | {"HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=offline) as app:
        try:
            lines = list(_until_address(app))
            if not (found := re.search(r"http://\S+", lines[-1] if lines else "")):
                raise Ham10000Error(f"examples/app.py did not start: {''.join(lines).strip() or 'it printed nothing'}")
            yield found[0]
        finally:
            app.terminate()


def measure_app(repetitions: int) -> dict[str, list[float]]:
    """Seconds from the command to the page, to its first answer, and from a changed age to the changed answer."""
    from playwright.sync_api import sync_playwright

    *_, first_page, first_answer, changed = WAITS
    waits: dict[str, list[float]] = {first_page: [], first_answer: [], changed: []}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=_CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        for _ in range(repetitions):
            start = time.perf_counter()
            with _app() as address:
                page = browser.new_page()
                page.goto(address)
                page.get_by_role("heading", name="HAM10000 models").wait_for(timeout=60_000)
                waits[first_page].append(time.perf_counter() - start)
                shares = page.locator("#ham-model-2 meter").first
                shares.wait_for(timeout=60_000)
                waits[first_answer].append(time.perf_counter() - start)
                page.wait_for_timeout(1000)
                before = shares.get_attribute("value")
                page.get_by_role("combobox", name="Age in years").click()
                option = page.get_by_role("option", name="80", exact=True)
                option.wait_for()
                start = time.perf_counter()
                option.click()
                page.wait_for_function(
                    "before => document.querySelector('#ham-model-2 meter')?.getAttribute('value') !== before",
                    arg=before,
                    timeout=60_000,
                )
                waits[changed].append(time.perf_counter() - start)
                page.close()
        browser.close()
    return waits


@run_cli
def main(argv: Sequence[str]) -> None:
    """Command line of the benchmark."""
    parser = argparse.ArgumentParser(prog="latency.py", description=__doc__.split("\n")[0])
    parser.add_argument("--image", type=Path, required=True, help="a photograph that is predicted")
    parser.add_argument("--checkpoint", type=Path, default=EXAMPLES / "checkpoints" / "ham10000-image")
    parser.add_argument("--repetitions", type=int, default=5, help="turns that count, after one that does not")
    parser.add_argument("--output", type=Path, help="write the results as JSON")
    add_debug_argument(parser)
    options = parser.parse_args(argv)
    if _CHROMIUM is None:
        raise Ham10000Error(
            "The app is measured in Chromium, which this machine does not have: apt-get install chromium."
        )
    seconds = measure_commands(options.image, options.checkpoint, options.repetitions)
    seconds |= measure_app(options.repetitions)
    waits = [
        {"what": what, "seconds": seconds[what], "beside": beside, "beside_seconds": seconds.get(beside), "aim": aim}
        for what, (beside, aim) in WAITS.items()
    ]
    results = {"waits": waits, "environment": environment()}
    print(render_latency(results))
    if options.output:
        atomic_write_json(options.output, results)
        print(f"Saved     {options.output}")


if __name__ == "__main__":
    sys.exit(main())
