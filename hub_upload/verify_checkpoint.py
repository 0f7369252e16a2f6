"""Proves that a checkpoint folder loads, with equal logits, where this package is not installed."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

import ham10000.modeling as modeling

# Runs in a fresh interpreter. The finder makes every import of this package fail there, installed or not, so the code
# that runs is the copy in the checkpoint folder.
_STRANGER = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "ham10000":
            raise ModuleNotFoundError("No module named 'ham10000'", name=name)

sys.meta_path.insert(0, Absent())
try:
    import ham10000.modeling
except ModuleNotFoundError:
    pass
else:
    sys.exit("the package can still be imported")

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification, AutoProcessor

folder, inputs_file, outputs_file = sys.argv[1:]
inputs = load_file(inputs_file)
logits = {}
for auto_class in (AutoModel, AutoModelForImageClassification):
    model = auto_class.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32)
    with torch.inference_mode():
        logits[auto_class.__name__] = model(**inputs).logits
assert AutoConfig.from_pretrained(folder, trust_remote_code=True).model_type == "ham10000"
assert AutoProcessor.from_pretrained(folder, trust_remote_code=True).model_input_names == sorted(inputs, reverse=True)
AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
save_file(logits, outputs_file)
"""


def fixed_inputs(processor: "modeling.Ham10000Processor", seed: int = 0) -> dict[str, torch.Tensor]:
    """Seeded inputs of a checkpoint's own shape: three images and rows, one of them with missing values.

    Args:
        processor: The checkpoint's processor.
        seed: Seed of the pixel values.

    Returns:
        `pixel_values` (3, 3, height, width) and `metadata` (3, fields), as far as the variant reads them.
    """
    inputs = {}
    if "pixel_values" in processor.model_input_names:
        size = processor.image_processor.size
        generator = torch.Generator().manual_seed(seed)
        inputs["pixel_values"] = torch.randn(3, 3, size["height"], size["width"], generator=generator)
    if "metadata" in processor.model_input_names:
        rows = [{"age": 60, "sex": "male", "localization": "back"}, {"age": 0, "sex": "female"}, {}]
        rows = [{key: value for key, value in row.items() if key in processor.metadata_fields} for row in rows]
        inputs["metadata"] = processor.encode_metadata(rows)
    return inputs


def verify_checkpoint(checkpoint: str | Path) -> dict[str, int]:
    """Loads a checkpoint in a process that cannot import this package and compares logits bit for bit.

    Args:
        checkpoint: Folder written by `save_pretrained` of model and processor.

    Returns:
        `{"images": n, "logits": n}`, the numbers compared.

    Raises:
        Ham10000Error: If the clean process fails to load the folder, or its logits differ in any bit.
    """
    checkpoint = Path(checkpoint).resolve()
    if not (checkpoint / "config.json").is_file():
        raise modeling.Ham10000Error(f"{str(checkpoint)!r} holds no config.json; expected a checkpoint folder.")
    try:
        processor = modeling.Ham10000Processor.from_pretrained(checkpoint)
        model = AutoModel.from_pretrained(checkpoint, dtype=torch.float32)
    except OSError as error:  # transformers' error for a file that is not there
        raise modeling.Ham10000Error(f"{str(checkpoint)!r} is no complete checkpoint folder: {error}") from error
    inputs = fixed_inputs(processor)
    with torch.inference_mode():
        expected = model(**inputs).logits
    with tempfile.TemporaryDirectory() as scratch:
        inputs_file, outputs_file = Path(scratch, "inputs.safetensors"), Path(scratch, "outputs.safetensors")
        save_file(inputs, inputs_file)
        # An own module cache: the copy of the code under test must come from the folder, not from an earlier load.
        environment = {
            **os.environ,
            "HF_MODULES_CACHE": str(Path(scratch, "modules")),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": str(torch.get_num_threads()),  # sums are split by threads, and bits depend on that
        }
        process = subprocess.run(
            [sys.executable, "-c", _STRANGER, str(checkpoint), str(inputs_file), str(outputs_file)],
            capture_output=True,
            text=True,
            cwd=scratch,
            env=environment,
        )
        if process.returncode != 0:
            raise modeling.Ham10000Error(
                f"{str(checkpoint)!r} does not load without this package:\n{process.stderr.strip()[-2000:]}"
            )
        actual = load_file(outputs_file)
    for name, logits in actual.items():
        if not torch.equal(logits, expected):
            difference = (logits - expected).abs().max().item()
            raise modeling.Ham10000Error(f"Logits of {name} with remote code differ by up to {difference:g}.")
    return {"images": len(expected), "logits": expected.numel() * len(actual)}


__all__ = ["fixed_inputs", "verify_checkpoint"]
