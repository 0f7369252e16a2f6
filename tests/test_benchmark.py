"""The benchmark runs, and its ratios do not fall below what any change to the fast paths must keep.

The margins are wide, and only ratios within one run are looked at: test machines are busy.
"""

import json
from pathlib import Path

import pytest
import torch

from ham10000.training.allocator import keep_freed_memory
from ham10000.training.benchmark import main, summarize, take_turns
from ham10000.training.benchmark_report import render_benchmark

TINY = ["--backbone", "test_efficientnet", "--backbone_kwargs", "{}", "--image_size", "64", "--device", "cpu"]


def test_turns_are_taken_and_the_first_does_not_count() -> None:
    calls: list[str] = []
    values = iter(range(100))

    def side(name: str) -> float:
        calls.append(name)
        return float(next(values))

    rates = take_turns({"a": lambda: side("a"), "b": lambda: side("b")}, 3, progress=False)
    assert calls == ["a", "b"] * 4
    assert rates == {"a": [2.0, 4.0, 6.0], "b": [3.0, 5.0, 7.0]}
    summary = summarize({"ours": [10.0, 30.0, 20.0], "other": [10.0, 10.0, 10.0]}, "ours", "other")
    assert (summary["ours"], summary["other"], summary["ratio"]) == (20.0, 10.0, 2.0)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict:
    path = tmp_path_factory.mktemp("benchmark") / "benchmark.json"
    size = ["--images", "110", "--pictures", "32", "--batch_size", "16", "--repetitions", "3"]
    assert main([*TINY, *size, "--cases", "inference", "cache", "--output", str(path)]) == 0
    return json.loads(path.read_text())


def test_the_table_says_what_was_reached(results: dict, capsys: pytest.CaptureFixture[str]) -> None:
    table = render_benchmark(results)
    rows = [line for line in table.splitlines() if line.startswith("|")][2:]
    assert len(rows) == len(results["cases"]) == 2
    for case, row in zip(("inference", "cache"), rows, strict=True):
        assert f"| {results['cases'][case]['ratio']:.2f} (" in row
    slow = json.loads(json.dumps(results))
    slow["cases"]["inference"]["ratio"] = 1.5
    slow["cases"]["cache"]["ratio"] = 1.5
    first, second = [line for line in render_benchmark(slow).splitlines() if line.startswith("|")][2:]
    assert first.endswith("| 3.00 | 50% short |")
    assert second.endswith("| 1.00 | reached |")
    assert main(["--render", "nowhere.json"]) == 2
    assert "nowhere.json" in capsys.readouterr().err


def test_inference_is_faster_than_the_snippet(results: dict) -> None:
    """Here a tiny network against EfficientNetV2-S: what is left is decoding, which must not have become slow."""
    assert results["cases"]["inference"]["ratio"] > 1.5


def test_the_cache_is_built_at_a_decent_rate(results: dict) -> None:
    assert results["cases"]["cache"]["ours"] > 20  # a core decodes some 200 a second; this is one that thrashes


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="page faults are counted on Linux")
def test_freed_memory_is_kept() -> None:
    """Large tensors made again and again must not be new pages every time."""
    import resource

    if not keep_freed_memory():
        pytest.skip("the C library is not glibc")

    def faults() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(20):
            torch.ones(8_000_000)  # 32 MB, 7,800 pages
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    faults()
    assert faults() < 7800
