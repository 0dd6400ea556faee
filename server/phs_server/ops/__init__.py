"""Metrics, logs and memory."""
