"""Serves the checkpoint it lies beside on Hugging Face Inference Endpoints; research only, never for diagnosis.

Published as `handler.py` at the root of a checkpoint's repository, where the Inference Toolkit finds it. It needs the
repository and its requirements.txt, nothing else: models and processor come from the repository's own code.
"""

import base64
import binascii
from pathlib import Path
from typing import Any

from PIL import Image
from transformers import pipeline

# Memory for the decoded images of a request is bounded by this many, however long its list is.
BATCH_SIZE = 16
_PARAMETERS = ("top_k", "unknown_values")


class EndpointHandler:
    """Answers requests to an endpoint.

    Args:
        path: The repository's folder, whose code is run; by default the folder this file lies in.

    Example:
        >>> handler = EndpointHandler("/repository")
        >>> handler({"inputs": {"image": "<base64>", "age": 60, "sex": "male"}, "parameters": {"top_k": 1}})
        [{'label': 'nv', 'score': 0.93}]
    """

    def __init__(self, path: str | Path = ""):
        folder = Path(path) if str(path) else Path(__file__).parent
        task: Any = "image-metadata-classification"  # transformers declares its own tasks only
        self.pipeline = pipeline(task, model=str(folder), trust_remote_code=True)

    def __call__(self, data: dict[str, Any]) -> list[Any]:
        """Classifies the inputs of one request.

        Args:
            data: `{"inputs": ..., "parameters": {...}}`. `inputs` is one input or a list of them, and an input is

                - an image: base64 text, a `data:` URL, encoded bytes, or the PIL image that the toolkit makes of a
                  request with an image for its body; text is never taken for a path and never fetched;
                - a dict with any of `image` (an image as above), `age` in years, `sex` and `localization`, as far as
                  the checkpoint reads them; what is absent or null is missing, which is legal for metadata.

                `parameters` may hold `top_k` (1 to all labels) and `unknown_values` (`"error"` or `"missing"`).

        Returns:
            For one input, `{"label": str, "score": float}` for each class, highest score first; for a list, a list of
            those.

        Raises:
            ValueError: For a bad request, naming the input and what to do. The toolkit answers it with status 400.
        """
        if not isinstance(data, dict) or "inputs" not in data:
            raise ValueError('The request needs {"inputs": ...}; "parameters" is optional.')
        if unknown := sorted(set(data) - {"inputs", "parameters"}):
            raise ValueError(f'Unknown key(s) {unknown} beside "inputs"; expected "parameters" or nothing.')
        parameters = {} if data.get("parameters") is None else data["parameters"]
        if not isinstance(parameters, dict) or not set(parameters) <= set(_PARAMETERS):
            raise ValueError(f'"parameters" must be an object with some of {list(_PARAMETERS)}, got {parameters!r}.')
        inputs = data["inputs"]
        if isinstance(inputs, list):
            rows = [_read_input(value, f"Input {number}") for number, value in enumerate(inputs)]
            return self.pipeline(rows, batch_size=BATCH_SIZE, **parameters)
        return self.pipeline(_read_input(inputs, "The input"), **parameters)


def _read_input(value: object, name: str) -> dict[str, object]:
    """One input of a request as the pipeline takes it; it checks the rest."""
    row = value if isinstance(value, dict) else {"image": _read_image(value, name)}
    return row if row.get("image") is None else {**row, "image": _read_image(row["image"], name)}


def _read_image(value: object, name: str) -> Image.Image | bytes:
    if isinstance(value, (Image.Image, bytes, bytearray)):
        return value if isinstance(value, Image.Image) else bytes(value)
    if not isinstance(value, str):
        raise ValueError(f"{name}: the image must be base64 text, got {type(value).__name__}.")
    text = value.strip()
    if text.lower().startswith(("http://", "https://")):
        raise ValueError(f"{name}: URLs are not fetched, got {text[:100]!r}; send the image itself as base64.")
    if text.lower().startswith("data:"):
        header, _, text = text.partition(",")
        if not header.lower().endswith(";base64"):
            raise ValueError(f"{name}: a data: URL must be base64, got {header[:100]!r}.")
    try:
        image = base64.b64decode("".join(text.split()), validate=True)  # MIME breaks it into lines
    except (binascii.Error, ValueError) as error:  # ValueError: not ASCII
        raise ValueError(f"{name}: the image is not valid base64 ({error}): {text[:40]!r}.") from error
    if not image:
        raise ValueError(f"{name}: the image is empty.")
    return image
