"""Metrics, their intervals, comparisons and figures of one or two models."""
