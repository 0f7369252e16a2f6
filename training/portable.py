"""What a run says of itself, without the paths of the machine it was made on."""

import copy
import re
from typing import Any

# Settings that are places on somebody's machine.
_PLACES = ("data", "output_dir", "cache_dir", "split_file", "pretrained")
# The directories of an absolute path, POSIX or Windows, inside a sentence.
_DIRECTORIES = re.compile(r"(?<![\w.~/\\])(?:[A-Za-z]:|~)?[\\/](?:[^\s\\/'\":,;]+[\\/])+")


def portable_training(training: dict[str, Any]) -> dict[str, Any]:
    """A `train_config.json` without the paths of the machine it was made on.

    Args:
        training: The file's content.

    Returns:
        A copy whose places keep their last component only, in the settings as in the notes about the data.
    """
    portable = copy.deepcopy(training)
    config = portable["config"]
    places = [config[name] for name in _PLACES if isinstance(config.get(name), str)]
    for name in _PLACES:
        if isinstance(config.get(name), str):
            config[name] = _last_component(config[name])
    notes = portable.get("data_notes") or []
    for place in sorted(places, key=len, reverse=True):
        notes = [note.replace(place, _last_component(place)) for note in notes]
    portable["data_notes"] = [_DIRECTORIES.sub("", note) for note in notes]
    return portable


def _last_component(place: str) -> str:
    """Of a POSIX or Windows path; `pathlib` knows only the kind of the machine it runs on.

    The weights of a run have its folder's name before them: without it, all runs' are called the same.
    """
    parts = re.split(r"[\\/]", place.rstrip("\\/"))
    return "/".join(parts[-2:] if parts[-1] == "model.safetensors" else parts[-1:])


__all__ = ["portable_training"]
