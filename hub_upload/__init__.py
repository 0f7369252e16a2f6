"""Publishes checkpoints: model card, push to the Hub, verification, export, and the browser demo."""
