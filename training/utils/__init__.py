"""Helpers that know nothing of data, models or training."""
