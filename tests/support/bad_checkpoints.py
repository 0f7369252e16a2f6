"""Cases of the bad-input corpus: checkpoint folders, and files of weights for the converter."""

import functools
import json
import os
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bad_input import Case, written
from safetensors.torch import load, save

from ham10000.hub_upload.convert_checkpoint import read_weights
from ham10000.modeling import Ham10000Config, create_model, create_processor
from ham10000.training.inference.prediction import load_checkpoint

Edit = Callable[[Path], Any]
CONFIG, PROCESSOR = "config.json", "processor_config.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


class Payload:
    """Pickled, it asks to run a command, which leaves a file in the working folder."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("payload-ran"),))


@functools.cache
def files() -> dict[str, bytes]:
    """A small fusion checkpoint that loads."""
    config = Ham10000Config(backbone="test_efficientnet")
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        create_model(config).save_pretrained(folder)
        create_processor(config, image_size=32).save_pretrained(folder)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def write_checkpoint(folder: Path) -> Path:
    """Writes the checkpoint into `folder/checkpoint`, so that it has an outside."""
    checkpoint = folder / "checkpoint"
    checkpoint.mkdir()
    for name, content in files().items():
        (checkpoint / name).write_bytes(content)
    return checkpoint


def case(name: str, edit: Edit, *fragments: str, check: Callable[[Any], None] | None = None) -> Case:
    def build(folder: Path) -> Path:
        checkpoint = write_checkpoint(folder)
        (folder / "evil.pth").write_bytes(pickle.dumps({"state_dict": Payload()}))
        edit(checkpoint)
        return checkpoint

    return Case("checkpoint", name, build, load_checkpoint, None if check else fragments, check)


def setting(file: str, **values: Any) -> Edit:
    """Sets keys of a JSON file; HERE stands for the checkpoint's parent folder."""

    def edit(checkpoint: Path) -> None:
        content = json.loads((checkpoint / file).read_text())
        target = content["image_processor"] if values.pop("of_pictures", False) else content
        target.update(values)
        (checkpoint / file).write_text(json.dumps(content).replace("HERE", str(checkpoint.parent)))

    return edit


def weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Edit:
    def edit(checkpoint: Path) -> None:
        tensors = {name: value.clone() for name, value in load((checkpoint / WEIGHTS).read_bytes()).items()}
        change(tensors)
        (checkpoint / WEIGHTS).write_bytes(save(tensors, metadata={"format": "pt"}))

    return edit


def shards(target: str) -> Edit:
    """Moves the weights next to the checkpoint, HERE, and points an index at them."""

    def edit(checkpoint: Path) -> None:
        (checkpoint / WEIGHTS).rename(checkpoint.parent / "outside.safetensors")
        place = target.replace("HERE", str(checkpoint.parent))
        index = {"metadata": {}, "weight_map": dict.fromkeys(load(files()[WEIGHTS]), place)}
        (checkpoint / INDEX).write_text(json.dumps(index))

    return edit


def without(file: str, edit: Edit = lambda _: None) -> Edit:
    """Takes a file away before the edit."""
    return lambda checkpoint: [(checkpoint / file).unlink(), edit(checkpoint)]


def folder_named(file: str) -> Edit:
    return without(file, lambda checkpoint: (checkpoint / file).mkdir())


def cut(share: float) -> Edit:
    return lambda checkpoint: os.truncate(checkpoint / WEIGHTS, int(len(files()[WEIGHTS]) * share))


def _loads(result: Any) -> None:
    assert (result[0].training, result[0].classifier.weight.shape[0]) == (False, 7)


only_pickle = without(WEIGHTS, written("pytorch_model.bin", pickle.dumps(Payload())))
DAMAGED, UNFIT = ("The weights of", "are damaged"), ("The weights of", "do not fit its config.json")
IN_CONFIG: list[tuple[str, Any, str]] = [
    ("modality", "both", "'image', 'metadata', 'fusion'"),
    ("backbone", "no_such_network", "timm cannot build"),
    ("backbone_kwargs", {"no_such": 1}, "no_such"),
    ("age_offset", "fifty", "age_offset"),
    ("metadata_fields", ["dx"], "it is the label itself"),
    ("model_type", "vit", "'ham10000'"),
    ("backbone", "hf-hub:someone/net", "backbone"),
    ("backbone", "local-dir:HERE", "backbone"),
    ("backbone_kwargs", {"checkpoint_path": "HERE/evil.pth"}, "evil.pth"),
    ("backbone_kwargs", {"pretrained_cfg": {"file": "HERE/evil.pth"}}, "pretrained_cfg"),
    # What our own classes do not see, because the library reads it first.
    ("id2label", ["akiec"], "id2label"),
    ("id2label", {"first": "akiec"}, "id2label"),
    ("dtype", "float3", "config.json"),
    ("attn_implementation", "someone/kernel", "config.json"),
    ("experts_implementation", "someone/kernel", "config.json"),
]
IN_PROCESSOR: list[tuple[str, Any, str]] = [
    ("modality", "both", "modality"),
    ("modality", "image", "modality"),  # another variant than the config's
    ("metadata_fields", ["sex", "age", "localization"], "metadata_fields"),  # exchanged
    ("sex_vocabulary", ["male", "female"], "sex_vocabulary"),  # exchanged
    ("image_processor", "x", "checkpoint"),
    ("metadata_fields", ["dx"], "it is the label itself"),
    ("metadata_fields", "age", "metadata_fields"),
    ("metadata_fields", ["age", "age"], "twice"),
    ("metadata_fields", ["skin"], "'skin'"),
    ("sex_vocabulary", 5, "sex_vocabulary"),
    ("localization_vocabulary", ["Back"], "lower-case"),
]
IN_PICTURES: list[tuple[str, Any, str]] = [
    ("size", "224", "size"),
    ("resizer", "magic", "resizer"),
    ("do_normalize", False, "do_normalize"),
    ("image_men", [0.5, 0.5, 0.5], "image_men"),
    ("image_processor_type", "ViTImageProcessor", "Ham10000ImageProcessor"),
]
NO_JSON = {"empty": "", "cut": "{", "not UTF-8": b'{"a": "\xff"}', "a list": "[1]", "100,000 deep": "[" * 100_000}
BAD_INDEX = {"cut": "{", "of nothing": "{}", "a list": "[]"}
NO_WEIGHTS = {"a pickle": pickle.dumps(Payload()), "empty": b"", "an endless header": b"\xff" * 8 + b"{}"}
SIX = {"classifier.weight": torch.zeros(6, 8)}

FOLDERS = [
    case("untouched", lambda checkpoint: None, check=_loads),
    *[case(f"config {k} {v!r}", setting(CONFIG, **{k: v}), text) for k, v, text in IN_CONFIG],
    case("config absent", without(CONFIG), "config.json"),
    case("config a folder", folder_named(CONFIG), "config.json"),
    *[case(f"config {name}", written(CONFIG, text), "config.json") for name, text in NO_JSON.items()],
    case("processor absent", without(PROCESSOR), "incomplete or damaged"),
    case("processor a folder", folder_named(PROCESSOR), "incomplete or damaged"),
    *[case(f"processor {name}", written(PROCESSOR, text), "checkpoint") for name, text in NO_JSON.items()],
    *[case(f"processor {k} {v!r}", setting(PROCESSOR, **{k: v}), text) for k, v, text in IN_PROCESSOR],
    *[case(f"pictures {k} {v!r}", setting(PROCESSOR, of_pictures=True, **{k: v}), text) for k, v, text in IN_PICTURES],
    case("weights absent", without(WEIGHTS), "incomplete or damaged", WEIGHTS),
    case("weights a folder", folder_named(WEIGHTS), "incomplete or damaged"),
    case("weights only as a pickle", only_pickle, "incomplete or damaged", WEIGHTS),
    *[case(f"weights {name}", written(WEIGHTS, data), *DAMAGED) for name, data in NO_WEIGHTS.items()],
    *[case(f"weights cut to {share:.1%}", cut(share), *DAMAGED) for share in (0.001, 0.5, 0.999)],
    case("weights of six classes", weights(lambda t: t.update(SIX)), *UNFIT),
    case("a weight too few", weights(lambda t: t.pop("classifier.bias")), "lacks 1", "classifier.bias"),
    case("a weight too many", weights(lambda t: t.update(evil=torch.zeros(3))), "unexpected 1", "evil"),
    case("weights of NaN", weights(lambda t: t["classifier.bias"].fill_(torch.nan)), "classifier.bias", "NaN"),
    case("weights of infinity", weights(lambda t: t["classifier.weight"].fill_(torch.inf)), "classifier.weight"),
    case("index names a file outside, relative", shards("../outside.safetensors"), "outside"),
    case("index names a file outside, absolute", shards("HERE/outside.safetensors"), "outside"),
    case("index names an absent file", shards("no.safetensors"), "no.safetensors"),
    *[case(f"index {name}", without(WEIGHTS, written(INDEX, s)), "checkpoint") for name, s in BAD_INDEX.items()],
    Case("checkpoint", "an absent folder", lambda folder: folder / "no", load_checkpoint, ("no folder", "no")),
    Case("checkpoint", "an empty folder", lambda folder: folder, load_checkpoint, ("has no config.json",)),
    case("untrusted code beside it", written("evil.py", "raise SystemExit"), check=_loads),
    case("code named in the config", setting(CONFIG, auto_map={"AutoModel": "../evil.Model"}), check=_loads),
]


def _torch_bytes(value: Any, new: bool = True) -> bytes:
    with tempfile.NamedTemporaryFile() as stream:
        torch.save(value, stream.name, _use_new_zipfile_serialization=new)
        return Path(stream.name).read_bytes()


def _flipped(data: bytes) -> bytes:
    within = torch.arange(600.0).numpy().tobytes()[400:480]  # the tensor's own bytes
    return data.replace(within, bytes([within[0] ^ 1]) + within[1:])


def to_convert(name: str, make: Callable[[], bytes], *fragments: str, file: str = "w.pt") -> Case:
    return Case("weights to convert", name, lambda f: written(file, make())(f), read_weights, (file, *fragments))


_SMALL = {"a.weight": torch.arange(600.0)}
_OTHER_ORDER = {"model_state_dict": _SMALL, "classes": ["nv", "mel", "akiec", "bcc", "bkl", "df", "vasc"]}
TO_CONVERT = [
    to_convert("zero bytes", lambda: b""),
    to_convert("text", lambda: b"not weights"),
    to_convert("zip of nothing", lambda: b"PK\x05\x06" + b"\0" * 18),
    to_convert("a pointer of Git LFS", lambda: b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
    to_convert("cut", lambda: _torch_bytes(_SMALL)[:-300], "cut short"),
    to_convert("cut, old format", lambda: _torch_bytes(_SMALL, new=False)[:-300], "cut short"),
    to_convert("one byte changed", lambda: _flipped(_torch_bytes(_SMALL)), "damaged"),
    to_convert("code", lambda: _torch_bytes(Payload()), "more than weights", "nothing in it was run"),
    to_convert("code, old format", lambda: _torch_bytes(Payload(), new=False), "more than weights"),
    to_convert("code, plain pickle", lambda: pickle.dumps(Payload(), protocol=2), "more than weights"),
    to_convert("code beside weights", lambda: _torch_bytes({**_SMALL, "note": Payload()}), "more than weights"),
    to_convert("a tensor", lambda: _torch_bytes(torch.zeros(3)), "Tensor", "state dict"),
    to_convert("nothing", lambda: _torch_bytes({}), "a dict"),
    to_convert("no tensor", lambda: _torch_bytes({"epoch": 3}), "'epoch'"),
    to_convert("numbers as names", lambda: _torch_bytes({1: torch.zeros(3)}), "names to tensors"),
    to_convert("weights that are text", lambda: _torch_bytes({"model_state_dict": "x"}), "model_state_dict"),
    to_convert("another order of the classes", lambda: _torch_bytes(_OTHER_ORDER), "classes", "'nv', 'mel'"),
    to_convert("safetensors cut", lambda: save(_SMALL)[:-9], "cut short", file="w.safetensors"),
    to_convert("a pickle named safetensors", lambda: pickle.dumps(Payload()), file="w.safetensors"),
    Case("weights to convert", "absent", lambda folder: folder / "no.pt", read_weights, ("no.pt",)),
    Case("weights to convert", "a folder", lambda folder: folder, read_weights, ("give the .pt",)),
]


CASES = [*FOLDERS, *TO_CONVERT]
