"""The tables of the benchmarks: what was measured in which unit, beside what, and by how much an aim was missed."""

import statistics
from dataclasses import dataclass
from typing import Any

from ham10000.training.utils.markdown_text import interval, join, table


@dataclass(frozen=True)
class Case:
    """What a case measures.

    Attributes:
        what: The work.
        unit: Of both sides.
        beside: What it is measured against.
        on_cpu: The least ratio that is aimed at on a CPU.
        on_gpu: The same on a data-centre GPU.
    """

    what: str
    unit: str
    beside: str
    on_cpu: float
    on_gpu: float


# The ratio is how many times better ours is: of rates ours over theirs, of memory theirs over ours.
CASES = {
    "training": Case("training", "images/s", "the baseline's pipeline", 2.5, 8.0),
    "ceiling": Case("training", "images/s", "the same step on batches that are there already", 0.95, 0.90),
    "inference": Case("JPEG files to probabilities", "images/s", "the baseline card's snippet", 4.0, 10.0),
    "cache": Case("building the training cache", "images/s a core", "an aim", 1.0, 1.0),
    "memory": Case("peak memory of training on 10,015 images", "GiB", "a limit", 1.0, 1.0),
}


def machine(facts: dict[str, Any], device: str | None = None) -> str:
    """The hardware and software of an `environment()`, and the commit with what differed from it.

    Args:
        facts: The environment.
        device: What computed, as the benchmark's `--device`; by default the GPU where there is one.
    """
    on_gpu = facts["gpu"] and device != "cpu"
    hardware = facts["gpu"]["model"] if on_gpu else f"{facts['cpu']['count']} cores of {facts['cpu']['model']}"
    git = facts["git"] or {"commit": "unknown", "dirty": False}
    # Older files say only whether something had changed.
    changed = f" in {', '.join(git['changed'])}" if git.get("changed") else ""
    changes = f", with changes{changed} that were not committed" if git["dirty"] else ""
    return f"{hardware}; torch {facts['versions']['torch']}, commit `{git['commit'][:10]}`{changes}"


def render_benchmark(results: dict[str, Any], *, targets: bool = True) -> str:
    """The results of `benchmark.py` as a Markdown table.

    Args:
        results: What `--output` holds.
        targets: Whether each row has its target.

    Returns:
        Markdown: one row a case, then the settings and the machine.
    """
    settings = results["settings"]
    on_gpu = settings["device"] != "cpu"
    header = ["what", "unit", "ours", "compared with", "that", "ratio (lowest and highest turn)"]
    header += ["target", "gap"] if targets else []
    rows = []
    for name, case in CASES.items():
        if name not in results["cases"]:
            continue
        found, target = results["cases"][name], case.on_gpu if on_gpu else case.on_cpu
        ratio, ratios = found["ratio"], found["ratios"]
        verdict = "reached" if ratio >= target else f"{1 - ratio / target:.0%} short"
        turns = f"{ratio:.2f} ({min(ratios):.2f} to {max(ratios):.2f})" if len(ratios) > 1 else f"{ratio:.2f}"
        row = [case.what, case.unit, f"{found['ours']:.2f}", case.beside, f"{found['other']:.2f}", turns]
        rows.append([*row, f"{target:.2f}", verdict] if targets else row)
    memory = ""
    if "memory" in results["cases"]:
        # The committed file is from before the case said what it trains.
        memory = f" Memory with {results['cases']['memory'].get('trains', 'EfficientNetV2-B0')}."
    precision = settings["precision"].replace("no", "fp32")
    return join(
        table(header, rows, align="llrlrrrl"[: len(header)]),
        f"{settings['backbone']} at {settings['image_size']} px, batch {settings['batch_size']}, "
        f"{precision}, predictions by {settings['backend']}, {settings['repetitions']} turns of "
        f"{settings['steps']} training steps and {settings['images_a_turn']} images, medians, on "
        f"{machine(results['environment'], settings['device'])}.{memory}",
    )


def render_latency(results: dict[str, Any]) -> str:
    """The results of `latency.py` as a Markdown table.

    Args:
        results: What `--output` holds.

    Returns:
        Markdown: one row a wait, then the machine.
    """
    rows = []
    for wait in results["waits"]:
        row = [wait["what"], f"{statistics.median(wait['seconds']):.2f}"]
        if wait["beside"]:
            pairs = list(zip(wait["seconds"], wait["beside_seconds"], strict=True))
            more = statistics.median(a - b for a, b in pairs)
            times = statistics.median(a / b for a, b in pairs)
            row += [wait["beside"], f"{statistics.median(wait['beside_seconds']):.2f}", f"{more:.2f}", f"{times:.2f}"]
        else:
            row += [""] * 4
        rows.append([*row, wait["aim"]])
    header = ["what", "s", "compared with", "s", "s more", "times", "aim"]
    turns = len(results["waits"][0]["seconds"])
    return join(
        table(header, rows, align="lrlrrrl"),
        f"Medians of {turns} turns, differences and ratios within a turn, on {machine(results['environment'])}.",
    )


def render_prediction(results: dict[str, Any]) -> str:
    """The results of `prediction.py` as a Markdown table.

    Args:
        results: What `--output` holds.

    Returns:
        Markdown: a row for each way of predicting, then the settings and the machine.
    """
    first, settings = next(iter(results["median"])), results["settings"]
    ratios = results["ratio_to_first"]
    rows = [[name, f"{rate:.1f}", f"{ratios[name]:.2f}"] for name, rate in results["median"].items()]
    return join(
        table(["what predicts", "images/s", f"times {first}"], rows, align="lrr"),
        f"{settings['backbone']} at {settings['image_size']} px, batches of {settings['batch_size']}, "
        f"{settings['images']} images a turn, medians of {len(results['images_per_second'][first])} turns, on "
        f"{machine(results['environment'], 'cpu')}.",
    )


def render_quality(results: dict[str, Any]) -> str:
    """The results of `time_to_quality.py` as a Markdown table.

    Args:
        results: What `report --output` holds.

    Returns:
        Markdown: a row for the baseline and for each seed of ours, the ratios, then the machine.
    """

    def row(name: str, times: dict[str, Any], *rest: str) -> list[str]:
        waits = ["never" if times[key] is None else f"{times[key] / 60:.1f}" for key in ("by_loss", "by_macro_f1")]
        return [name, str(times["epochs"]), f"{times['total'] / 60:.1f}", *waits, *rest]

    bar, baseline = results["bar"], results["baseline"]
    epochs = baseline["best_epochs"]
    compared = {epoch: measure for measure, epoch in epochs.items()}  # one column, where one epoch is best in both
    tests = " and ".join(f"{baseline['test_macro_f1'][measure]:.3f}" for measure in compared.values())
    rows = [row("baseline", baseline["times"], tests, *[""] * len(compared))]
    for name, ours in results["ours"].items():
        title = name.replace("ours-seed", "ours, seed ")
        differences = [interval(ours["differences"][measure], signed=True) for measure in compared.values()]
        rows.append(row(title, ours["times"], f"{ours['test_macro_f1']:.3f}", *differences))
    ratios = []
    for measure, found in results["ratio_of_seconds"].items():
        name = measure.removeprefix("by_").replace("macro_f1", "macro-F1")
        plain, cached = found["without_cache"], found["with_cache"]
        if plain is None:
            ratios.append(f"the {name} not with every seed")
        else:
            ratios.append(f"**the {name} {plain:.1f} times as fast** ({cached:.1f} with the cache built first)")
    header = ["who", "epochs", "min in all", "min to the loss", "min to the macro-F1", "test macro-F1"]
    header += [f"above its epoch {epoch}" for epoch in compared]
    facts = results["facts"]
    return join(
        f"The bars are the baseline's best of {baseline['times']['epochs']} epochs: the validation loss "
        f"{bar['validation_loss']:.3f} of epoch {epochs['by_loss']} and the macro-F1 "
        f"{bar['validation_macro_f1']:.3f} of epoch {epochs['by_macro_f1']}. Building the cache, once: "
        f"{results['cache_seconds'] / 60:.1f} min. Ours reaches {' and '.join(ratios)}.",
        table(header, rows, align="lrrrrr" + "l" * len(compared)),
        f"{facts['backbone']}, baseline at 224 px; ours by `{results['config']}`; split "
        f"`{facts['split_sha256'][:12]}`, on {machine(facts['environment'])} (baseline) and commit "
        f"`{results['ours_environment']['git']['commit'][:10]}` (ours).",
    )


__all__ = ["CASES", "machine", "render_benchmark", "render_latency", "render_prediction", "render_quality"]
