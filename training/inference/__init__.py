"""Prediction and its explanation, without the training stack."""
