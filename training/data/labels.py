"""The labels of a source: read from one-hot columns or words, and the set that they form."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from ham10000.modeling.configuration_ham10000 import LABELS, Ham10000Error
from ham10000.modeling.processing_ham10000 import MISSING_VALUES
from ham10000.training.utils.columns import DataOptions, spelled

# The classes of ISIC 2018, 2019 and MILK10k, whose ground truth has a column for each.
_ONE_HOT = frozenset(
    ["MEL", "NV", "BCC", "AKIEC", "AK", "BKL", "DF", "VASC", "SCC", "SCCKA", "UNK", "BEN_OTH", "MAL_OTH", "INF"]
)
# Of ISIC, PAD-UFES-20 and `marmal88/skin_cancer`, in the form of `spelled`. HAM10000's classes are groups: Tschandl et
# al. 2018 (Scientific Data 5:180161) count solar lentigines, seborrheic and lichen-planus like keratoses as bkl,
# actinic keratoses and Bowen's disease as akiec, angiomas, angiokeratomas and pyogenic granulomas as vasc.
_SPELLINGS = {
    "akiec": "ak; ack; actinic keratosis; actinic keratoses; solar keratosis; bowen's disease; bowens disease; "
    "squamous cell carcinoma in situ; intraepithelial carcinoma",
    "bcc": "basal cell carcinoma",
    "bkl": "sek; benign keratosis; benign keratosis like lesion; benign keratosis like lesions; solar lentigo; "
    "pigmented benign keratosis; seborrheic keratosis; lichen planus like keratosis",
    "df": "dermatofibroma",
    "mel": "melanoma; melanoma nos; melanoma in situ; melanoma invasive",
    "nv": "nev; nevus; nevi; naevus; naevi; melanocytic nevus; melanocytic nevi; melanocytic naevus; "
    "melanocytic naevi",
    "vasc": "vascular lesion; vascular lesions; angioma; hemangioma; haemangioma; angiokeratoma; pyogenic granuloma",
}
LABEL_SPELLINGS = {word: label for label, words in _SPELLINGS.items() for word in (label, *words.split("; "))}


@dataclass
class LabelSet:
    """What the labels of a source are read as.

    Attributes:
        labels: The set, in the order of the class ids.
        dx: The label of each row; one that is not in the set stays as it was written.
        notes: A sentence for each decision.
    """

    labels: list[str]
    dx: pd.Series
    notes: list[str]


def one_hot_columns(header: Sequence[str]) -> list[str]:
    """The columns of ISIC's classes, or none."""
    found = [name for name in header if name in _ONE_HOT]
    return found if len(found) > 1 else []


def labels_from_one_hot(frame: pd.DataFrame, names: Sequence[str], origin: str | Path, lines: list[int]) -> list[str]:
    """Reads the label of each row from ISIC's one-hot columns.

    Args:
        frame: String columns.
        names: The one-hot columns.
        origin: The file, for messages.
        lines: Line of each row in it.

    Returns:
        The name of each row's column in lower case.

    Raises:
        Ham10000Error: For a row that names no class, or several, or a value that is neither 0 nor 1.
    """
    numbers = frame[list(names)].apply(pd.to_numeric, errors="coerce").to_numpy(dtype=np.float64)
    bad = ~np.isin(numbers, (0.0, 1.0)).all(axis=1) | (numbers.sum(axis=1) != 1)
    if bad.any():
        row = int(bad.argmax())
        raise Ham10000Error(
            f"{origin}, line {lines[row]}: expected a 1 in one of {list(names)} and 0 in the others, got "
            f"{frame[list(names)].iloc[row].tolist()}."
        )
    return [names[index].lower() for index in numbers.argmax(axis=1)]


def read_labels(
    values: pd.Series, options: DataOptions, declared: Sequence[str] = (), *, name: str = "dx", ours: bool = False
) -> LabelSet:
    """Reads the labels of a source and finds the set they form.

    Args:
        values: The label of each row as it is written.
        options: Its `labels` are the set, its `label_map` is applied first.
        declared: Further labels that the source has a column for, whether or not a row has it.
        name: The column, for messages.
        ours: The set is HAM10000's, whatever the rows say.

    Returns:
        HAM10000's seven where every label can be read as one; otherwise the source's own in lower case, sorted.

    Raises:
        Ham10000Error: Where `label_map` names a label that does not occur.
    """
    words = values.map(spelled)
    present = [word for word in dict.fromkeys([*words, *map(spelled, declared)]) if word not in MISSING_VALUES]
    mapped = {spelled(old): new for old, new in options.label_map.items()}
    if absent := sorted(set(mapped) - set(present)):
        raise Ham10000Error(f"--label_map names {absent}, but the column {name} has {sorted(present)[:30]}.")
    after = {word: mapped.get(word, word) for word in present}  # still the users' words
    known = {word: LABEL_SPELLINGS.get(spelled(new)) for word, new in after.items()}
    notes: list[str] = []
    if options.labels:
        labels = list(options.labels)
        by_word = {spelled(label): label for label in labels}
        read = {word: by_word.get(spelled(new), by_word.get(known[word] or "")) for word, new in after.items()}
    # ISIC 2019 declares UNK, which no training row has.
    elif ours or all(known[word] for word in present if word != "unk" or word in set(words)):
        labels, read = list(LABELS), known
    else:
        written = {spelled(text): text.strip().lower() for text in sorted([*values, *declared], reverse=True)}
        read = {word: new if word in mapped else written[word] for word, new in after.items()}
        labels = sorted({str(label) for word, label in read.items() if word != "unk" or word in set(words)})
        notes.append(f"the labels are the data's own: {', '.join(labels)}")
        if offered := [
            f"'{label}={LABEL_SPELLINGS[label]}'"
            for label in labels
            if label not in LABELS and label in LABEL_SPELLINGS
        ]:
            notes.append(f"to read labels as HAM10000's: --label_map {' '.join(offered)}")
    counts = words.value_counts()
    for word in sorted(word for word, label in read.items() if label and spelled(label) != word and word in counts):
        notes.append(f"{name} {word!r} is read as {read[word]!r} in {counts[word]:,} rows")
    dx = words.map(read)
    return LabelSet(labels, dx.where(dx.notna(), values), notes)
