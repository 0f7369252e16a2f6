"""The model card: valid metadata, the run's own numbers, no residue, and code that runs as it stands."""

import itertools
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from card_runs import (
    PARSER,
    cell,
    change_json,
    find_table,
    read_json,
    split_summary,
    tables,
    training_summary,
    write_checkpoint,
    write_json,
    write_run,
)
from huggingface_hub import ModelCard
from skin import skin_image
from strangers import run_alone

from ham10000.hub_upload.model_card import Stated, render_model_card, reproduce_command
from ham10000.hub_upload.run_files import Sibling, read_run
from ham10000.modeling import LABELS, MODALITIES, Ham10000Error
from ham10000.training.config import parse_arguments
from ham10000.training.evaluation.comparison import compare_predictions
from ham10000.training.evaluation.metrics import HEADLINE_METRICS
from ham10000.training.evaluation.report import METRIC_TITLES, published_baseline
from ham10000.training.inference.prediction import load_checkpoint
from ham10000.training.run_folder import portable_training
from ham10000.training.utils.markdown_text import code, escape, fence, table

CONVERSION = dict.fromkeys(("source_file", "source_sha256", "format", "architecture"), "copied")


def render(folder: Path, **options: Any) -> str:
    return render_model_card(read_run(folder), repo_id="user/ham10000-x", revision="v1.0", **options)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One folder of every kind that may be published."""
    base = tmp_path_factory.mktemp("runs")
    folders = {name: write_run(base / name, name, seed=seed) for seed, name in enumerate(MODALITIES)}
    folders["unevaluated"] = write_run(base / "unevaluated", "image", evaluated=False)
    folders["synthetic"] = write_run(base / "synthetic", "fusion", prefix="SYN")  # its data have an innocent name
    for name in ("converted", "converted, evaluated"):
        folders[name] = write_checkpoint(base / name, "image")
        write_json(folders[name] / "conversion.json", CONVERSION)
    shutil.copy(folders["image"] / "eval_results.json", folders["converted, evaluated"])
    return folders


def compare(runs: dict[str, Path], name: str) -> dict[str, Any]:
    """The fusion run minus another."""
    return compare_predictions(*(runs[one] / "predictions.csv" for one in ("fusion", name)), n_resamples=50)


@pytest.fixture(scope="module")
def cards(runs: dict[str, Path]) -> dict[str, str]:
    cards = {name: render(folder) for name, folder in runs.items() if name != "fusion"}
    others = ("image", "metadata")
    siblings = [Sibling(read_run(runs[name]), f"user/ham10000-{name}", compare(runs, name)) for name in others]
    return cards | {"fusion": render(runs["fusion"], siblings=siblings, has_onnx=True)}


def body_of(card: str) -> str:
    return ModelCard(card, ignore_metadata_errors=False).text


def assert_tables_are_whole(text: str) -> None:
    parsed = list(tables(text))
    # Each delimiter row makes a table: none is left as text.
    assert len(parsed) == len(re.findall(r"^\| :?---", text, flags=re.MULTILINE)) > 0
    for rows in parsed:
        assert len(rows) > 1
        assert {len(row) for row in rows} == {len(rows[0])}
        assert all(cell.strip() for row in rows for cell in row), rows
    # A parser fills short rows and cuts long ones; the source must have neither.
    for block in re.findall(r"(?:^\|.*\n?)+", text, flags=re.MULTILINE):
        assert len({line.count("|") for line in block.strip().splitlines()}) == 1


KINDS = (*MODALITIES, "unevaluated", "converted", "converted, evaluated", "synthetic")


@pytest.mark.parametrize("kind", KINDS)
def test_no_residue_no_empty_section_and_no_broken_table(kind: str, cards: dict[str, str]) -> None:
    text = body_of(cards[kind])
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    for residue in (r"\bnan\b", r"[{}]", r"\bTODO\b", r"\[\]", r"\(\)", r" \.", r"\.\.", r" ,", r"\S  +\S"):
        assert not re.search(residue, prose), residue
    assert "None" not in prose.replace("`None`", "").replace("None of the scored images", "")
    assert "/home/anna" not in cards[kind]
    tokens = PARSER.parse(text)
    starts = [index for index, token in enumerate(tokens) if token.type == "heading_open"]
    # A heading is three tokens: it opens, has words, and closes.
    assert not any(tokens[index + 3].type == "heading_open" for index in starts)
    assert len({tokens[index + 1].content for index in starts}) == len(starts)
    levels = [int(tokens[index].tag[1]) for index in starts]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert text.count("<details>") == text.count("</details>")
    assert_tables_are_whole(text)


@pytest.mark.parametrize("kind", [*MODALITIES, "synthetic", "converted, evaluated"])
def test_front_matter_round_trips_the_results(kind: str, cards: dict[str, str], runs: dict[str, Path]) -> None:
    data = ModelCard(cards[kind]).data
    metrics = read_json(runs[kind] / "eval_results.json")["metrics"]
    by_name = {result.metric_name: result for result in data.eval_results}
    found = {name: result.metric_value for name, result in by_name.items()}
    assert found == {METRIC_TITLES[name]: metrics[name] for name in HEADLINE_METRICS}
    assert by_name["weighted F1"].metric_args == {"average": "weighted"}
    assert {result.dataset_split for result in data.eval_results} == {"test"}
    assert (data.library_name, data.language, data.model_name) == ("transformers", "en", "ham10000-x")
    assert data.pipeline_tag == ("tabular-classification" if kind == "metadata" else "image-classification")
    assert ("timm" in data.tags) == (kind != "metadata")
    assert "research-only" in data.tags


def test_front_matter_without_results(cards: dict[str, str]) -> None:
    for card in (cards["unevaluated"], cards["converted"]):
        data = ModelCard(card).data
        assert set(data.to_dict()) & {"model-index", "model_name", "metrics"} == set()
        assert data.license == "cc-by-nc-4.0"
        assert "has not been evaluated" in card
        assert "## Results" not in card


def test_base_model(tmp_path: Path, cards: dict[str, str]) -> None:
    bases = {name: ModelCard(cards[name]).data.base_model for name in ("fusion", "metadata", "converted")}
    # timm's own tag for a name without one.
    assert bases == {"fusion": "timm/test_efficientnet.r160_in1k", "metadata": None, "converted": None}
    local = write_run(tmp_path / "run", "image", evaluated=False, pretrained="/home/anna/weights/b0.safetensors")
    assert ModelCard(render(local)).data.base_model is None
    assert "`b0.safetensors`" in render(local)
    assert ModelCard(render(local, stated=Stated(base_model="timm/b0.in1k"))).data.base_model == "timm/b0.in1k"


@pytest.mark.parametrize("kind", MODALITIES)
def test_tables_hold_the_runs_numbers(kind: str, cards: dict[str, str], runs: dict[str, Path]) -> None:
    text, results = body_of(cards[kind]), read_json(runs[kind] / "eval_results.json")
    metrics, intervals = results["metrics"], results["intervals"]
    headline = {title: row[0] for title, row in find_table(text, "metric", "value", "meaning").items()}
    assert headline == {METRIC_TITLES[name]: cell(intervals[name]) for name in HEADLINE_METRICS}

    per_class = find_table(text, "class", "precision")
    for name, (title, row) in zip(LABELS, per_class.items(), strict=True):
        values, bounds = metrics["per_class"][name], intervals["per_class"][name]
        assert title.startswith(f"{name}: ")
        precision, auroc = f"{values['precision']:.3f}", f"{values['auroc']:.3f}"
        assert row == [str(values["support"]), cell(bounds["recall"]), precision, cell(bounds["f1"]), auroc]

    matrix = find_table(text, "true class (row), predicted class (column)")
    for name, row in zip(LABELS, metrics["confusion_matrix"], strict=True):
        assert matrix[name] == [*map(str, row), str(sum(row))]

    titles = {"age": "age band", "sex": "sex", "site": "anatomical site", "photographs": "photographs of the lesion"}
    for field, title in titles.items():
        rows = find_table(text, title, "malignant sensitivity")
        groups = results["subgroups"]["fields"][field]
        assert list(rows) == [group["group"] for group in groups]
        for group in groups:
            assert rows[group["group"]] == [
                f"{group['n_images']} ({group['n_lesions']})",
                f"{group['n_malignant']} ({group['n_malignant_lesions']})",
                cell(group["accuracy"]),
                "too few to say" if group["too_few"] else cell(group["malignant_sensitivity"]),
                cell(group["malignant_specificity"]),
            ]
    assert "too few to say" in find_table(text, "age band", "malignant sensitivity")["under 30"]
    gap = results["subgroups"]["largest_gaps"]["age"]
    assert f"a gap of {cell(gap['difference'])}" in text.replace("\u00a0", " ")


def test_words_about_confusions_count_right(cards: dict[str, str], runs: dict[str, Path]) -> None:
    # From the predictions themselves, not from the confusion matrix the card reads.
    frame = pd.read_csv(runs["fusion"] / "predictions.csv")
    malignant, called = (frame[name].isin(["mel", "bcc", "akiec"]) for name in ("dx", "predicted"))
    text = body_of(cards["fusion"]).replace("\u00a0", " ")
    missed, alarms = (malignant & ~called).sum(), (~malignant & called).sum()
    assert f"{missed} ({100 * (missed / malignant.sum()):.0f} %) are assigned to a benign class" in text
    assert f"Of {(~malignant).sum()} benign images, {alarms} (" in text
    found = ((frame["dx"] == "mel") & (frame["predicted"] == "mel")).sum()
    assert f"Of {(frame['dx'] == 'mel').sum()} melanoma images it calls {found} melanoma." in text


def test_comparison(cards: dict[str, str], runs: dict[str, Path]) -> None:
    text = body_of(cards["fusion"]).replace("\u00a0", " ")
    rows, baseline = find_table(text, "model", "protocol", "leak"), published_baseline()
    assert len(rows) == 4
    assert rows[baseline["name"]][:3] == ["image-stratified", "39.8 %", cell(baseline["intervals"]["macro_f1"])]
    image = read_json(runs["image"] / "eval_results.json")["intervals"]
    assert rows["image, test_efficientnet, 64 px"][2] == cell(image["macro_f1"])
    assert "](https://huggingface.co/user/ham10000-image)" in text
    differences, table = compare(runs, "image")["differences"], find_table(text, "fusion minus image", "reading")
    for title, metric in (("macro-F1", "macro_f1"), ("ECE (15 bins)", "ece"), ("accuracy", "accuracy")):
        estimate, low, high = (differences[metric][name] for name in ("estimate", "low", "high"))
        assert table[title][0] == f"{estimate:+.3f} [{low:+.3f}, {high:+.3f}]"
        assert ("no significant difference" in table[title][1]) == (low <= 0 <= high)
    assert "Numbers of different protocols do not compare." in text


def test_reading_of_a_difference(runs: dict[str, Path]) -> None:
    better, worse, none = "fusion is better", "fusion is worse", "no significant difference"
    for low, high, f1, ece in ((0.01, 0.05, better, worse), (-0.05, -0.01, worse, better), (-0.01, 0.05, none, none)):
        difference = {"estimate": (low + high) / 2, "low": low, "high": high}
        comparison = {"n_images": 9, "n_lesions": 9, "differences": {"macro_f1": difference, "ece": difference}}
        text = render(runs["fusion"], siblings=[Sibling(read_run(runs["image"]), None, comparison)])
        assert [row[1] for row in find_table(body_of(text), "reading").values()] == [f1, ece]


def test_protocol_and_leak_are_said(tmp_path: Path) -> None:
    run, leaky = write_run(tmp_path / "run", "image"), split_summary("image-stratified", leak=0.398)
    assert "None of the scored images shows a lesion that the model was trained on" in render(run)
    change_json(run / "train_config.json", split=leaky)
    for scored, said in (
        (leaky | {"name": "test"}, "39.8\u00a0% of the scored images show a lesion that another photograph shows"),
        (leaky | {"name": "test", "sha256": "ef" * 32}, "it may have seen some of these images"),
        ({"name": "all", "n_images": 240}, "whether the model was trained on any of them is not recorded"),
        (leaky | {"name": "train"}, "These are the images it was trained on"),
    ):
        change_json(run / "eval_results.json", split=scored)
        assert said in render(run)


def with_base(run: Path, data: str | None) -> Path:
    """The run as one that was fine-tuned from a checkpoint trained on `data`; None where that is not known."""
    base = {"name": "start", "labels": list(LABELS), "data": data, "head": True}
    change_json(run / "train_config.json", base_model=base)
    return run


def test_what_a_base_model_has_seen_is_not_known(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "image")
    name = "this model: image, test_efficientnet, 64 px"
    for data in ("HAM10000", "own.csv", None, "synthetic"):
        text, known = render(with_base(run, data)), data == "synthetic"
        scope = "the model" if known else "this run"
        assert f"None of the scored images shows a lesion that {scope} was trained on." in text
        assert ("may have seen" in text) != known
        assert known or "its base model was trained on, so **it may have seen some of them**" in text
        assert ("; – where that is not known" in text) != known
        assert find_table(body_of(text), "model", "protocol", "leak")[name][1] == ("0.0 %" if known else "–")


@pytest.mark.parametrize(
    ("prefix", "base", "stated", "licence", "words"),
    [
        ("ISIC", (), "apache-2.0", "apache-2.0", "and so are the **weights**"),
        ("ISIC", (None,), None, None, "and so are the **weights**"),
        ("ISIC", ("synthetic",), None, "cc-by-nc-4.0", "and so are the **weights**"),
        ("SYN", ("HAM10000",), None, "cc-by-nc-4.0", "and so are the **weights**"),
        ("SYN", ("synthetic",), None, "apache-2.0", "No image of HAM10000 went into the **weights**"),
        ("SYN", (), "mit", "mit", "No image of HAM10000 went into the **weights**"),
        ("SYN", (None,), None, None, "The licence of the **weights** is **not stated**"),
        ("OWN", ("HAM10000",), None, None, "which derives from HAM10000"),
    ],
)
def test_the_licence_follows_the_images(prefix: str, base: tuple, stated, licence, words: str, tmp_path: Path) -> None:
    """`base` has the data of the checkpoint that the run was fine-tuned from, if there was one."""
    run = write_run(tmp_path / "run", "image", evaluated=False, prefix=prefix)
    for data in base:
        with_base(run, data)
    card = render(run, stated=Stated(license=stated))
    assert ModelCard(card).data.license == licence
    section = card.split("## Licence")[1]
    assert words in section
    assert ("No image of HAM10000" in section) == words.startswith("No image")
    assert ("from `start`" in section) == bool(base)


def test_use_follows_the_config(tmp_path: Path) -> None:
    """The vocabulary of its example, and no missing state is claimed that was not trained."""
    run = write_run(tmp_path / "run", "fusion", evaluated=False)
    words = {"sex_vocabulary": ["f", "m"], "localization_vocabulary": ["arm", "back"]}
    change_json(run / "config.json", metadata_dropout=0, metadata_field_dropout=0.2, **words)
    text = render(run)
    assert 'metadata={"age": 60, "sex": "f", "localization": "back"})' in text
    assert "or all of them: missing is a state the model was trained with." in text
    assert "each field is hidden with probability 0.2 and the whole row with 0, so that" in text
    change_json(run / "config.json", metadata_field_dropout=0.0)
    text = render(run)
    assert "may be left out or `None`, or all of them.\n" in text
    assert "In training no field was hidden" in text


def test_a_frozen_backbone_is_said_and_has_no_learning_rate(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "fusion", evaluated=False, freeze_backbone=True)
    for text in (render(run), render(with_base(run, "HAM10000"))):
        assert re.search(r"^- Start: from .*, the backbone frozen, seed 3\.$", text, flags=re.MULTILINE)
        assert "AdamW, learning rate 0.002, cosine schedule" in text


def test_training_on_validation_is_said(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "image", train_on_validation=True)
    change_json(run / "train_config.json", best={"epoch": 10, "train_loss": 0.4})
    change_json(run / "config.json", temperature=1.25)
    text = render(run)
    assert "This model was trained on train and validation together." in text
    assert "none was left to choose an epoch by" in text
    assert "temperature 1.250.\nNo image was left to fit it to" in text
    assert "df has 123 training images" in text  # 92 of train, 31 of validation
    assert "best by validation" not in text
    change_json(run / "eval_results.json", split={**split_summary(), "name": "validation"})
    assert "These are the images it was trained on" in render(run)


def test_synthetic_is_loud(tmp_path: Path, cards: dict[str, str]) -> None:
    assert ModelCard(cards["synthetic"]).data.license == "apache-2.0"
    assert "SYNTHETIC data: these numbers mean nothing about skin" in cards["synthetic"]
    assert published_baseline()["name"] not in cards["synthetic"]
    assert "SYNTHETIC" not in cards["fusion"]
    named = write_run(tmp_path / "named", "image", evaluated=False, data="synthetic:220")
    assert ModelCard(render(named)).data.license == "apache-2.0"
    assert "--data synthetic:220" in render(named)
    # Trained on photographs, evaluated on others: the weights stay non-commercial, the numbers are void.
    mixed = write_run(tmp_path / "mixed", "image")
    change_json(mixed / "eval_results.json", data="synthetic:240")
    assert ModelCard(render(mixed)).data.license == "cc-by-nc-4.0"
    assert "SYNTHETIC data: these numbers mean nothing about skin.** It was evaluated on" in render(mixed)


def test_a_class_without_images(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "image")
    results = read_json(run / "eval_results.json")
    results["metrics"] |= {"auroc_macro": None, "undefined": {"auroc_macro": "no images, or no others, of df"}}
    results["metrics"]["per_class"]["df"] |= {"support": 0, "auroc": None}
    undefined = {"estimate": None, "low": None, "high": None, "n_defined": 0}
    results["intervals"]["auroc_macro"] = undefined
    results["intervals"]["per_class"]["df"] = {"recall": undefined, "f1": undefined}
    write_json(run / "eval_results.json", results)
    text = body_of(render(run))
    assert find_table(text, "metric", "value")["AUROC (macro, one-vs-rest)"][0] == "–"
    assert find_table(text, "class", "precision")["df: dermatofibroma"][1] == "–"
    assert "is undefined: no images, or no others, of df." in text
    metrics = {result.metric_type for result in ModelCard(render(run)).data.eval_results or []}
    assert "f1" in metrics
    assert "roc_auc" not in metrics


EVIL = "a|b <script>alert(1)</script>\n\n# Heading\n---\n![x](http://evil/x.png) `t` **b** [l](http://evil) \u2028| c"


def hostile(value: Any) -> Any:
    """The same JSON with every text replaced."""
    if isinstance(value, dict):
        return {name: hostile(item) for name, item in value.items()}
    return [hostile(item) for item in value] if isinstance(value, list) else EVIL if isinstance(value, str) else value


def test_text_from_files_is_never_markup(tmp_path: Path) -> None:
    run, clean = write_run(tmp_path / "run", "fusion", patience=3), write_run(tmp_path / "clean", "fusion")
    training, results = read_json(run / "train_config.json"), read_json(run / "eval_results.json")
    training["environment"]["gpu"] = {"model": ""}
    results["metrics"]["undefined"] = {"macro_f1": ""}
    training, results = hostile(training), hostile(results)
    training["config"]["pretrained"] += "\n```\n# Out\n```"
    training["environment"]["versions"][EVIL] = training["config"][EVIL] = EVIL
    results["split"]["name"] = "test"
    results["metrics"]["n_images"] = EVIL
    write_json(run / "train_config.json", training)
    write_json(run / "eval_results.json", results)
    write_json(run / "conversion.json", hostile(CONVERSION))
    change_json(run / "config.json", label_descriptions=dict.fromkeys(LABELS, EVIL))

    text = body_of(render(run))
    tokens = [token for block in PARSER.parse(text) for token in (block, *(block.children or []))]
    html = {token.content.strip() for token in tokens if token.type in ("html_block", "html_inline")}
    assert all(re.fullmatch(r"(</?(details|summary|code)>|[\w ,])+", re.sub(r"\s+", " ", item)) for item in html), html
    assert not any("evil" in str(token.attrs) for token in tokens)
    found, expected = (re.findall(r"^#+ .*", body, re.MULTILINE) for body in (text, body_of(render(clean))))
    assert [heading for heading in found if heading != "## Source of the weights"] == expected
    assert_tables_are_whole(text)
    per_class = find_table(text, "class", "precision")
    assert any("a|b <script>alert(1)</script> # Heading --- " in name for name in per_class)
    assert "<script" not in re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("image", "metadata")]


@pytest.mark.parametrize("modality", [*SLOW, "fusion"])
def test_the_code_examples_run(modality: str, tiny_checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """In a fresh process that cannot import this package, with a folder in the place of the repository."""
    folder = tiny_checkpoints[modality]
    model, processor = load_checkpoint(folder)
    skin_image(0).save(tmp_path / "lesion.jpg")
    fences = [token for token in PARSER.parse(render(folder)) if token.type == "fence"]
    blocks = [token.content for token in fences if token.info == "python"]
    assert len(blocks) == {"image": 2, "metadata": 2, "fusion": 3}[modality]
    assert all('"v1.0"' in block for block in blocks)
    code = "\nprint('-----')\n".join(block.replace("user/ham10000-x", str(folder)) for block in blocks)
    first, *others = run_alone(code, cwd=tmp_path, HF_HUB_OFFLINE="1").split("-----\n")
    row = {"age": 60, "sex": "male", "localization": "back"}
    images = None if modality == "metadata" else tmp_path / "lesion.jpg"
    with torch.inference_mode():
        inputs = processor(images=images, metadata=None if modality == "image" else row)
        probabilities = model(**inputs).logits.softmax(-1)[0]
    order = probabilities.argsort(descending=True).tolist()
    assert first.splitlines() == [f"{probabilities[index]:.3f}  {LABELS[index]}" for index in order]
    ranked = [re.findall(r"'label': '(\w+)'", output) for output in others]
    assert ranked[0] == [LABELS[index] for index in order]  # of the same inputs as the first example
    assert all(sorted(labels) == sorted(LABELS) for labels in ranked)


def test_markdown_of_untrusted_text() -> None:
    """More of it passes through `tests/test_hostile_values.py`."""
    for text in ("a\\|b", "~~x~~", "&#124;", "![i](u)"):
        assert list(tables(table(["t", "u"], [[escape(text), code(text)]]))) == [[["t", "u"], [text, text]]]
    assert escape("a\nb\u2028c\x00d") == "a b c d"
    assert fence("bash", "x ``` y").startswith("````bash\n")
    assert table(["a", "b"], [["", "x"]]).endswith("\n| – | x |")


def test_local_paths_are_cut() -> None:
    training = training_summary(
        cache_dir="C:\\Users\\anna\\cache", split_file="/home/anna/split.csv", pretrained="weights/b0.safetensors"
    )
    portable = portable_training(training)
    last = {"data": "HAM10000", "output_dir": "run", "cache_dir": "cache", "split_file": "split.csv"}
    assert portable["config"] == training["config"] | last | {"pretrained": "b0.safetensors"}
    assert portable["data_notes"] == ["HAM10000/table.csv: no column lesion_id; every image counts as a lesion"]
    assert training["config"]["data"] == "/home/anna/data/HAM10000"  # the argument is left alone
    assert portable_training(training_summary())["config"]["split_file"] is None
    note = "images/s of /opt/x y/z.csv, C:\\data\\t.csv"
    assert portable_training(training | {"data_notes": [note]})["data_notes"] == ["images/s of x y/z.csv, t.csv"]


def test_reproduce_command_gives_the_same_settings() -> None:
    settings = {"metadata_fields": ["sex", "age"], "augment_flip": False, "image_size": [192, 256]}
    training = portable_training(training_summary(**settings, backbone_kwargs='{"drop_rate": 0.1}'))
    first = reproduce_command(training).replace("\\\n", " ").splitlines()[0]
    program, *arguments = shlex.split(first)
    assert program == "ham10000-train"
    places = {name: training["config"][name] for name in ("data", "output_dir")}
    assert parse_arguments(arguments).to_dict() | places == training["config"]


DAMAGED = [
    (f"{name}.json", content, message)
    for name in ("eval_results", "train_config", "history", "conversion")
    for content, message in (('{"metrics": ', "cannot be read as JSON"), ("3", "must contain a JSON"))
]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        *DAMAGED,
        ("config.json", None, "does not exist"),
        ("processor_config.json", None, "does not exist"),
        ("eval_results.json", '{"metrics": {"n_images": 1}}', r"lacks 'metrics\.confusion_matrix'"),
        ("config.json", '{"model_type": "ham10000", "modality": "sound"}', "modality"),
        ("config.json", '{"model_type": "bert"}', "model_type is 'bert'"),
    ],
)
def test_bad_folders_are_named(name: str, content: str | None, message: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, "image")
    (tmp_path / name).write_text(content or "")
    if content is None:
        (tmp_path / name).unlink()
    with pytest.raises(Ham10000Error, match=rf"{name}'.*{message}"):
        read_run(tmp_path)


def test_the_card_names_the_augmentation(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "image", evaluated=False)
    training = read_json(run / "train_config.json")

    def augmentation(**config: Any) -> str:
        change_json(run / "train_config.json", config=training["config"] | config)
        return re.findall("^- Augmentation: .*", render(run).replace("\u00a0", " "), re.MULTILINE)[0]

    plain = augmentation()
    assert "mixup" not in plain
    text = augmentation(mixup=0.2, cutmix=1.0, train_scales=[0.5, 1.0])
    assert "mixup with alpha 0.2, CutMix with alpha 1 and images of 50 % of the side in the first epoch" in text
    nothing = {"augment_flip": False, "augment_rotation": 0.0, "augment_min_area": 1.0, "augment_color": 0.0}
    assert augmentation(**nothing) == "- Augmentation: none."
    # A run of an earlier version, without these settings.
    for name in ("mixup", "cutmix", "train_scales"):
        del training["config"][name]
    assert augmentation() == plain
