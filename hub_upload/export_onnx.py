"""Writes a checkpoint as one ONNX file, `onnx/model.onnx`, that runs without torch.

Inputs are `pixel_values` and/or `metadata` (NaN is missing), the output is `logits`, the batch has any size.
"""

import contextlib
import importlib.util
import io
import logging
import warnings
from itertools import chain
from pathlib import Path

import torch

from ham10000.modeling import Ham10000Error, Ham10000ForImageClassification, Ham10000Processor
from ham10000.training.inference.prediction import load_checkpoint
from ham10000.training.run_folder import RunFile
from ham10000.training.utils.files import restore_mode, scratch_folder, writing

TOLERANCE = 1e-4


def fixed_inputs(processor: Ham10000Processor, seed: int = 0) -> dict[str, torch.Tensor]:
    """Seeded inputs of a checkpoint's own shape: three images and three rows, with missing values among them.

    `pixel_values` is (3, 3, height, width), `metadata` (3, fields); each is there if the variant reads it.
    """
    inputs = {}
    if "pixel_values" in processor.model_input_names:
        size = processor.image_processor.size
        generator = torch.Generator().manual_seed(seed)
        inputs["pixel_values"] = torch.randn(3, 3, size["height"], size["width"], generator=generator)
    if "metadata" in processor.model_input_names:
        sexes, sites = processor.sex_vocabulary, processor.localization_vocabulary
        rows = [{"age": 60, "sex": sexes[-1], "localization": sites[-1]}, {"age": 0, "sex": sexes[0]}, {}]
        rows = [{key: value for key, value in row.items() if key in processor.metadata_fields} for row in rows]
        inputs["metadata"] = processor.encode_metadata(rows)
    return inputs


def export_onnx(checkpoint: str | Path, output: str | Path | None = None) -> Path:
    """Writes a checkpoint's network as ONNX, checks it against PyTorch and prints the difference.

    The calibration temperature is in the graph; preparing the inputs is not, see `examples/onnx_without_torch.py`.

    Args:
        checkpoint: A checkpoint folder of any variant.
        output: The file to write; by default `onnx/model.onnx` in the checkpoint. An existing one is replaced, but
            only by a file that passed the check.

    Returns:
        The file. Inputs are float32, the first dimension is the batch.

    Raises:
        Ham10000Error: If the optional packages are missing, the checkpoint cannot be loaded, its backbone cannot be
            exported, the file cannot be written, or its logits differ by more than 1e-4.
    """
    if missing := [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]:
        raise Ham10000Error(f"ONNX export needs {missing[0]}, which is not installed: pip install ham10000[onnx]")
    checkpoint = Path(checkpoint).expanduser()
    if not checkpoint.is_dir():
        raise Ham10000Error(f"There is no folder {str(checkpoint)!r}; give a checkpoint folder on this machine.")
    output = checkpoint / RunFile.ONNX if output is None else Path(output).expanduser()
    if output.is_dir():
        raise Ham10000Error(f"{str(output)!r} is a folder; --output names a file, such as model.onnx.")
    model, processor = load_checkpoint(checkpoint)
    with writing(output), scratch_folder(output.parent) as scratch:
        file = scratch / output.name
        _write(model, fixed_inputs(processor), file)
        difference = compare_onnx(file, model, processor)
        written = sorted(scratch.iterdir(), reverse=True)  # the weights before the graph that names them
        for part in written:
            restore_mode(part)
            part.replace(output.parent / part.name)
        if len(written) == 1:  # the weights of an earlier, larger model, which no graph names any more
            output.with_name(f"{output.name}.data").unlink(missing_ok=True)
    print(f"Checked   logits of onnxruntime differ from PyTorch's by at most {difference:.1e}")
    return output


def compare_onnx(file: str | Path, model: Ham10000ForImageClassification, processor: Ham10000Processor) -> float:
    """Returns the largest difference of a logit between onnxruntime and PyTorch, in batches of 3, 1 and 5.

    Raises `Ham10000Error` if it is above 1e-4, or onnxruntime cannot run the file. The model is on the CPU in
    evaluation mode.
    """
    import onnxruntime

    first, second = fixed_inputs(processor), fixed_inputs(processor, seed=1)
    five = {name: torch.cat([value, first[name][1:]]) for name, value in second.items()}
    differences = []
    try:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # its errors arrive as exceptions
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        for batch in (first, {name: value[1:2] for name, value in second.items()}, five):
            (logits,) = session.run(["logits"], {name: value.numpy() for name, value in batch.items()})
            with torch.inference_mode():
                differences.append((torch.from_numpy(logits) - model(**batch).logits).abs().max().item())
    except Exception as error:  # its own types, which share no base class, and ValueError for a wrong input
        raise Ham10000Error(f"onnxruntime cannot run {str(file)!r}: {error}") from error
    if not all(value <= TOLERANCE for value in differences):  # NaN too
        raise Ham10000Error(
            f"{str(file)!r} is not the network it was made from: its logits differ from PyTorch's by {differences} in "
            f"batches of 3, 1 and 5; at most {TOLERANCE:g} is expected. Do not publish it."
        )
    return max(differences)


def _write(model: Ham10000ForImageClassification, inputs: dict[str, torch.Tensor], file: Path) -> None:
    batch, logged = torch.export.Dim("batch"), logging.root.manager.disable
    logging.disable(logging.ERROR)  # what the exporter says about its own inner workings
    try:
        with warnings.catch_warnings(action="ignore"), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
            program = torch.onnx.export(
                model,
                kwargs=inputs,
                input_names=list(inputs),
                output_names=["logits"],
                dynamic_shapes={name: {0: batch} for name in inputs},
                dynamo=True,
                verbose=False,
            )
            assert program is not None  # as it is without dynamo
            del program.model.graph.outputs[1:]  # the pooled features
            # The exporter notes down where each line of source code lies on this machine.
            functions = program.model.functions.values()
            for node in chain(program.model.graph.all_nodes(), *(function.all_nodes() for function in functions)):
                node.metadata_props.clear()
                node.doc_string = None
            program.save(file)  # weights beyond 2 GB go to a second file, `<name>.data`
    except (RuntimeError, torch.onnx.errors.OnnxExporterError) as error:
        raise Ham10000Error(
            f"The backbone {model.config.backbone!r} cannot be exported to ONNX by torch {torch.__version__}: "
            f"{str(error).strip().splitlines()[0]}"
        ) from error
    finally:
        logging.disable(logged)
