"""The configuration: closed sets, strict names and types, and an exact round trip."""

import csv
import json
from pathlib import Path

import pytest
from huggingface_hub.errors import StrictDataclassError

from ham10000.modeling import FORBIDDEN_FIELDS, LABELS, Ham10000Config, Ham10000Error

# In the order of every HAM10000 publication's confusion matrices that sort them, and of scikit-learn's LabelEncoder.
PUBLISHED_ORDER = {0: "akiec", 1: "bcc", 2: "bkl", 3: "df", 4: "mel", 5: "nv", 6: "vasc"}


def test_labels_are_the_seven_in_alphabetical_order() -> None:
    for config in (Ham10000Config(), Ham10000Config(num_labels=7)):
        assert config.id2label == PUBLISHED_ORDER
        assert config.label2id == {label: index for index, label in PUBLISHED_ORDER.items()}
        assert (config.num_labels, set(config.label_descriptions)) == (7, set(PUBLISHED_ORDER.values()))
    assert Ham10000Config(num_labels=3).label_names == ["LABEL_0", "LABEL_1", "LABEL_2"]  # as transformers names them


@pytest.mark.shared
def test_vocabularies_are_those_of_the_csv(shared_dir: Path) -> None:
    with (shared_dir / "ham10000" / "HAM10000_metadata.csv").open() as file:
        rows = list(csv.DictReader(file))
    config = Ham10000Config()
    assert config.localization_vocabulary == sorted({row["localization"] for row in rows} - {"unknown"})
    assert config.sex_vocabulary == sorted({row["sex"] for row in rows} - {"unknown"})
    assert list(LABELS) == sorted({row["dx"] for row in rows})
    assert set(config.metadata_fields) | set(FORBIDDEN_FIELDS) == set(rows[0])


NAN, INF = float("nan"), float("inf")
# Wrong types, values outside the closed sets, and values out of range, by key.
WRONG: dict[str, list] = {
    "modality": ["both", None],
    "fusion": ["attention"],
    "backbone": [3],
    "backbone_kwargs": [None, [("bn_eps", 1e-3)]],
    "temperature": ["1.0", True, 0, -1.0, NAN, INF],
    "age_scale": [None, 0, -20.0],
    "metadata_hidden_sizes": [[8.5], 8, [], [16, 0]],
    "metadata_hidden_dropout": [1.0],
    "metadata_field_dropout": [-0.1],
    "metadata_dropout": [1],
    "classifier_dropout": [NAN],
    "metadata_fields": ["age", ["age", 1], ["age", "age"], []],
    "sex_vocabulary": [[], ["male", "male"], ["Female", "Male"]],
    "localization_vocabulary": [["back", "unknown"], ["back "]],
    "id2label": [{0: "nv"}, {0: "nv", 2: "mel"}, {0: "nv", 1: "nv"}, {0: "nv", 1: " "}],
    "malignant_labels": [["melanoma"], ["mel", "mel"]],
    "problem_type": ["regression", "multi_label_classification"],
    "label_descriptions": [{"mel": 1}, {"mel": "melanoma"}],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in WRONG.items() for value in values])
def test_wrong_types_and_values(key: str, value: object) -> None:
    with pytest.raises(StrictDataclassError, match=key):
        Ham10000Config(**{key: value})


COLUMNS_THAT_TELL = ("dx", "dx_type", "dataset", "lesion_id", "image_id")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        *(({key: 1}, f"{key}.*temperature") for key in ("temprature", "back_bone", "class_weights", "image_size")),
        ({"label2id": {"nv": 0, "mel": 1}, "id2label": {0: "mel", 1: "nv"}}, "label2id"),
        ({"label2id": dict.fromkeys(LABELS, 0)}, "`label2id` gives several labels the same id"),
        ({"label2id": {"nv": "0.5", "mel": "1"}}, "whole numbers as class ids"),
        ({"id2label": {"a": "nv", "b": "mel"}}, "whole numbers as class ids"),
        ({"num_labels": 3, "id2label": {0: "a", 1: "b"}}, r"`num_labels` is 3, .* have 2 labels: \['a', 'b'\]"),
        ({"num_labels": 1}, "two or more"),
        ({"metadata_fields": ["age", "site"]}, r"'site'; expected some of \['age', 'sex', 'localization'\]"),
        *(({"metadata_fields": ["age", c]}, f"'{c}' can never be a model input") for c in COLUMNS_THAT_TELL),
    ],
)
def test_keys_labels_and_fields_that_are_refused(given: dict, message: str) -> None:
    with pytest.raises((Ham10000Error, StrictDataclassError), match=message):
        Ham10000Config(**given)


@pytest.mark.parametrize("count", [2, 11])
@pytest.mark.parametrize("form", [int, str])
def test_any_label_set_travels(count: int, form: type, tmp_path: Path) -> None:
    """With ids as transformers' example scripts pass them, and with more than ten, which JSON sorts as text."""
    names = ["mel", "naevus", *(f"class {index}" for index in range(count - 2))]
    id2label, label2id = dict(enumerate(names)), {name: index for index, name in enumerate(names)}
    given = {"id2label": {form(index): name for index, name in id2label.items()}}
    for maps in (given, {**given, "label2id": {name: form(index) for name, index in label2id.items()}}):
        config = Ham10000Config(**maps)
        config.save_pretrained(tmp_path)
        for one in (config, Ham10000Config.from_pretrained(tmp_path)):
            assert one.label_names == names
            assert (one.id2label, one.label2id, one.num_labels) == (id2label, label2id, count)
            assert one.malignant_labels == ["mel"]
            assert (one.label_descriptions["mel"], one.label_descriptions["naevus"]) == ("melanoma", "naevus")


FITTED = {"temperature": 2.0, "class_prior": [0.1] * 6 + [0.4], "conformal_thresholds": {"0.9": [0.5] * 7}}
NO_FITS = {"temperature": 1.0, "class_prior": None, "conformal_thresholds": None}


def fits(config: Ham10000Config) -> dict:
    return {name: getattr(config, name) for name in FITTED}


@pytest.mark.parametrize("when", ["at loading", "later"])
def test_other_labels_replace_all_that_was_said_of_the_old(when: str, tmp_path: Path) -> None:
    def with_labels(id2label: dict, **others) -> Ham10000Config:
        config = Ham10000Config(**FITTED, malignant_labels=["mel"])
        config.save_pretrained(tmp_path)
        if when == "at loading":
            return Ham10000Config.from_pretrained(tmp_path, id2label=id2label, **others)
        config.id2label = id2label
        return config

    other = with_labels({"0": "cat", "1": "dog"}, num_labels=2, label2id={"cat": "0", "dog": "1"})
    assert (other.label_names, other.malignant_labels, fits(other)) == (["cat", "dog"], [], NO_FITS)
    assert (other.label_descriptions, other.label2id) == ({"cat": "cat", "dog": "dog"}, {"cat": 0, "dog": 1})
    same = with_labels({str(index): label for index, label in enumerate(LABELS)}, num_labels=7)
    assert (same.label_names, same.malignant_labels, fits(same)) == (list(LABELS), ["mel"], FITTED)
    turned = with_labels(dict(enumerate(reversed(LABELS))))
    assert (turned.malignant_labels, fits(turned)) == (["mel"], NO_FITS)


def test_a_number_of_labels_set_later_names_them(tmp_path: Path) -> None:
    config = Ham10000Config(**FITTED)
    config.num_labels = 3
    config.save_pretrained(tmp_path)
    loaded = Ham10000Config.from_pretrained(tmp_path)
    assert (loaded.label2id, loaded.num_labels) == ({"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2}, 3)
    assert (loaded.malignant_labels, fits(loaded)) == ([], NO_FITS)


OTHER_THAN_DEFAULT = {
    "modality": "metadata",
    "class_prior": [0.1, 0.1, 0.1, 0.1, 0.1, 0.4, 0.1],
    "conformal_thresholds": {"0.9": [0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0]},
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
    "malignant_labels": ["mel"],
    "label_descriptions": {label: label.upper() for label in LABELS},
}


def test_round_trip_through_json(tmp_path: Path) -> None:
    assert set(OTHER_THAN_DEFAULT) == set(Ham10000Config.__annotations__)  # a new field must be added above
    Ham10000Config(**OTHER_THAN_DEFAULT).save_pretrained(tmp_path)
    loaded = Ham10000Config.from_pretrained(tmp_path)
    assert {key: getattr(loaded, key) for key in OTHER_THAN_DEFAULT} == OTHER_THAN_DEFAULT
    assert loaded.id2label == PUBLISHED_ORDER  # with int keys, which JSON does not have
    saved = json.loads((tmp_path / "config.json").read_text())
    loaded.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()) == saved
    Ham10000Config(modality="image", malignant_labels=[], metadata_fields=[]).save_pretrained(tmp_path)
    loaded = Ham10000Config.from_pretrained(tmp_path)
    assert (loaded.malignant_labels, loaded.metadata_fields) == ([], [])
    # Defaults may change between versions; what a checkpoint means may not, so they are written down, too.
    default = Ham10000Config()
    assert default.malignant_labels == ["mel", "bcc", "akiec"]
    default.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert set(OTHER_THAN_DEFAULT) | {"id2label", "label2id", "model_type"} <= set(saved)


def test_a_misspelled_key_in_the_file_is_warned_of(tmp_path: Path, said_by_transformers: list[str]) -> None:
    """Not refused: libraries save keys of theirs, and the next release others, which are saved again."""
    Ham10000Config().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    unknown = {
        "temprature": 2.0,
        "quantization_config": {"bits": 8},
        "_of_a_later_release": [1, 2],
        "dtype": "float16",
    }
    saved = {**json.loads(path.read_text()), **unknown}
    path.write_text(json.dumps(saved))
    by_hand, bare = Ham10000Config(**saved), Ham10000Config.from_dict({"modality": "fusion", **unknown})
    for one in (Ham10000Config.from_pretrained(tmp_path), by_hand, bare):
        assert one.temperature == 1.0
        assert one._of_a_later_release == one.to_dict()["_of_a_later_release"] == [1, 2]
    warning = "config.json has keys that change nothing: 'temprature' (is 'temperature' meant?)."
    assert said_by_transformers == [warning]


def test_an_override_at_loading_a_later_assignment_and_a_position_are_checked(tmp_path: Path) -> None:
    Ham10000Config().save_pretrained(tmp_path)
    config = Ham10000Config.from_pretrained(tmp_path, temperature=2.0)
    assert config.temperature == 2.0
    for wrong in ("hot", -2.0):
        with pytest.raises(StrictDataclassError, match="temperature"):
            Ham10000Config.from_pretrained(tmp_path, temperature=wrong)
    with pytest.raises(StrictDataclassError, match="fusion"):
        config.fusion = "sum"
    with pytest.raises((TypeError, ValueError), match="keyword"):
        Ham10000Config("image")
