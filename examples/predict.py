"""Predicts one image the library way: `python examples/predict.py runs/fusion lesion.jpg`."""

import sys

import torch
from transformers import AutoModel, AutoProcessor

# Registers the model with the Auto classes. Without this package, leave the import out and pass trust_remote_code=True
# to both `from_pretrained` calls: the checkpoint brings its own code.
import ham10000.modeling  # noqa: F401

checkpoint, picture = sys.argv[1:]
model = AutoModel.from_pretrained(checkpoint).eval()
processor = AutoProcessor.from_pretrained(checkpoint)

# A fusion model takes both; what is not known is left out or None, and a checkpoint of another variant takes its part.
given = {"images": picture, "metadata": {"age": 60, "sex": "male", "localization": None}}
if model.config.modality != "fusion":
    given = {"images": picture} if model.config.uses_image else {"metadata": given["metadata"]}

with torch.inference_mode():
    probabilities = model(**processor(**given)).logits.softmax(dim=-1)[0]

for index in probabilities.argsort(descending=True).tolist():
    label = model.config.id2label[index]
    print(f"{probabilities[index]:6.1%}  {label:<5}  {model.config.label_descriptions[label]}")
print("Research software, not for diagnosis.")
