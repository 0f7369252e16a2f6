"""The configuration: closed sets, strict names and types, and an exact round trip."""

import csv
import json
from pathlib import Path

import pytest
from huggingface_hub.errors import StrictDataclassError

from ham10000.modeling import (
    FORBIDDEN_FIELDS,
    FUSIONS,
    LABELS,
    LOCALIZATIONS,
    MODALITIES,
    Ham10000Config,
    Ham10000Error,
)

# In the order of every HAM10000 publication's confusion matrices that sort them, and of scikit-learn's LabelEncoder.
PUBLISHED_ORDER = {0: "akiec", 1: "bcc", 2: "bkl", 3: "df", 4: "mel", 5: "nv", 6: "vasc"}


def test_labels_are_the_seven_in_alphabetical_order() -> None:
    config = Ham10000Config()
    assert config.id2label == PUBLISHED_ORDER
    assert config.label2id == {label: index for index, label in PUBLISHED_ORDER.items()}
    assert config.num_labels == 7
    assert set(config.label_descriptions) == set(PUBLISHED_ORDER.values())


def test_default_backbone_is_efficientnetv2_s_with_its_best_weights() -> None:
    config = Ham10000Config()
    assert (config.backbone, config.fusion, config.temperature) == ("tf_efficientnetv2_s.in21k_ft_in1k", "concat", 1.0)


@pytest.mark.shared
def test_vocabularies_are_those_of_the_csv(shared_dir: Path) -> None:
    with (shared_dir / "ham10000" / "HAM10000_metadata.csv").open() as file:
        rows = list(csv.DictReader(file))
    config = Ham10000Config()
    assert config.localization_vocabulary == sorted({row["localization"] for row in rows} - {"unknown"})
    assert config.sex_vocabulary == sorted({row["sex"] for row in rows} - {"unknown"})
    assert list(LABELS) == sorted({row["dx"] for row in rows})
    assert set(config.metadata_fields) | set(FORBIDDEN_FIELDS) == set(rows[0])


@pytest.mark.parametrize(
    "key", ["temprature", "modalities", "back_bone", "class_weights", "image_size", "hidden_size"]
)
def test_an_unknown_key_is_an_error_that_names_it_and_lists_the_known(key: str) -> None:
    with pytest.raises(Ham10000Error, match=f"{key}.*temperature"):
        Ham10000Config(**{key: 1})


@pytest.mark.parametrize(
    "values",
    [
        {"modality": "both"},
        {"modality": None},
        {"fusion": "attention"},
        {"backbone": 3},
        {"backbone_kwargs": None},
        {"backbone_kwargs": [("bn_eps", 1e-3)]},
        {"temperature": "1.0"},
        {"temperature": True},
        {"metadata_fields": "age"},
        {"metadata_fields": ["age", 1]},
        {"metadata_hidden_sizes": [8.5]},
        {"metadata_hidden_sizes": 8},
        {"age_scale": None},
        {"label_descriptions": {"mel": 1}},
    ],
    ids=str,
)
def test_wrong_types_and_values_outside_the_closed_sets(values: dict) -> None:
    with pytest.raises(StrictDataclassError, match=next(iter(values))):
        Ham10000Config(**values)


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": 0},
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"age_scale": 0},
        {"age_scale": -20.0},
        {"metadata_hidden_sizes": []},
        {"metadata_hidden_sizes": [16, 0]},
        {"metadata_hidden_dropout": 1.0},
        {"metadata_field_dropout": -0.1},
        {"metadata_dropout": 1},
        {"classifier_dropout": float("nan")},
        {"metadata_fields": ["age", "age"]},
        {"metadata_fields": []},
        {"sex_vocabulary": []},
        {"sex_vocabulary": ["male", "male"]},
        {"sex_vocabulary": ["Female", "Male"]},
        {"localization_vocabulary": ["back", "unknown"]},
        {"localization_vocabulary": ["back "]},
        {"id2label": {0: "nv"}},
        {"id2label": {0: "mel", 1: "mel"}},
        {"malignant_labels": ["scc"]},
        {"label2id": dict.fromkeys(LABELS, 0)},
        {"label_descriptions": {"mel": "melanoma"}},
    ],
    ids=str,
)
def test_values_out_of_range(values: dict) -> None:
    with pytest.raises(StrictDataclassError, match=next(iter(values))):
        Ham10000Config(**values)


@pytest.mark.parametrize("names", [("a", "b"), ("nv", "mel", "scc"), LABELS[::-1], tuple("abcdefghijk")])
def test_labels_and_their_order_travel(tmp_path: Path, names: tuple[str, ...]) -> None:
    config = Ham10000Config(id2label=dict(enumerate(names)))
    config.save_pretrained(tmp_path)
    loaded = Ham10000Config.from_pretrained(tmp_path)
    assert loaded.label_names == list(names)
    assert loaded.num_labels == len(names)
    assert loaded.malignant_labels == [label for label in ("mel", "bcc", "akiec") if label in names]
    with pytest.raises(Ham10000Error, match="num_labels"):
        Ham10000Config(id2label=dict(enumerate(names)), num_labels=len(names) + 1)


@pytest.mark.parametrize("column", ["dx", "dx_type", "dataset", "lesion_id", "image_id"])
def test_columns_that_give_the_diagnosis_away_cannot_be_inputs(column: str) -> None:
    with pytest.raises(StrictDataclassError, match=f"`{column}` can never be a model input"):
        Ham10000Config(metadata_fields=["age", column])


def test_the_image_variant_needs_no_metadata_fields() -> None:
    assert Ham10000Config(modality="image", metadata_fields=[]).metadata_fields == []


def test_a_later_assignment_is_checked_too() -> None:
    config = Ham10000Config()
    with pytest.raises(StrictDataclassError, match="fusion"):
        config.fusion = "sum"


def test_an_unknown_field_lists_the_known() -> None:
    with pytest.raises(StrictDataclassError, match=r"'site'; expected some of \['age', 'sex', 'localization'\]"):
        Ham10000Config(metadata_fields=["age", "site"])


def test_positional_arguments_are_refused() -> None:
    with pytest.raises((TypeError, ValueError), match="keyword"):
        Ham10000Config("image")


OTHER_THAN_DEFAULT = {
    "modality": "metadata",
    "backbone": "efficientnetv2_s",
    "backbone_kwargs": {"bn_eps": 1e-3, "drop_path_rate": 0.1},
    "fusion": "film",
    "metadata_fields": ["localization", "age"],
    "sex_vocabulary": ["male", "female"],
    "localization_vocabulary": ["back", "ear"],
    "age_offset": 0.1,
    "age_scale": 1 / 3,
    "metadata_hidden_sizes": [5, 4, 3],
    "metadata_hidden_dropout": 0.3,
    "metadata_field_dropout": 0.0,
    "metadata_dropout": 0.7,
    "classifier_dropout": 0,
    "temperature": 1.7320508075688772,
    "label_descriptions": {label: label.upper() for label in LABELS},
    "malignant_labels": ["mel"],
}


def test_round_trip_through_json(tmp_path: Path) -> None:
    assert set(OTHER_THAN_DEFAULT) == set(Ham10000Config.__annotations__)  # a new field must be added above
    config = Ham10000Config(**OTHER_THAN_DEFAULT)
    config.save_pretrained(tmp_path)
    loaded = Ham10000Config.from_pretrained(tmp_path)
    assert {key: getattr(loaded, key) for key in OTHER_THAN_DEFAULT} == OTHER_THAN_DEFAULT
    assert loaded.id2label == PUBLISHED_ORDER  # with int keys, which JSON does not have
    assert loaded.label2id == config.label2id
    loaded.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text()) == json.loads(
        (tmp_path / "config.json").read_text()
    )


@pytest.mark.parametrize("modality", MODALITIES)
@pytest.mark.parametrize("fusion", FUSIONS)
def test_round_trip_of_every_variant(modality: str, fusion: str, tmp_path: Path) -> None:
    config = Ham10000Config(modality=modality, fusion=fusion)
    config.save_pretrained(tmp_path)
    loaded = Ham10000Config.from_pretrained(tmp_path)
    assert (loaded.modality, loaded.fusion, loaded.metadata_fields) == (modality, fusion, config.metadata_fields)
    assert loaded.localization_vocabulary == list(LOCALIZATIONS)


def test_the_json_spells_everything_out(tmp_path: Path) -> None:
    """Defaults may change between versions; what a checkpoint means may not."""
    Ham10000Config().save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert set(OTHER_THAN_DEFAULT) | {"id2label", "label2id", "model_type"} <= set(saved)


@pytest.mark.parametrize(
    ("key", "value", "error"),
    [
        ("temprature", 2.0, Ham10000Error),
        ("temperature", "hot", StrictDataclassError),
        ("metadata_fields", ["age", "age"], StrictDataclassError),
        ("id2label", {"0": "nv", "1": "mel"}, StrictDataclassError),
    ],
)
def test_an_edited_config_file_is_checked(key: str, value: object, error: type, tmp_path: Path) -> None:
    Ham10000Config().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(error, match=key):
        Ham10000Config.from_pretrained(tmp_path)


def test_an_override_at_loading_is_checked(tmp_path: Path) -> None:
    Ham10000Config().save_pretrained(tmp_path)
    assert Ham10000Config.from_pretrained(tmp_path, temperature=2.0).temperature == 2.0
    with pytest.raises(StrictDataclassError, match="temperature"):
        Ham10000Config.from_pretrained(tmp_path, temperature="hot")
    with pytest.raises(StrictDataclassError, match="temperature"):
        Ham10000Config.from_pretrained(tmp_path, temperature=-2.0)
