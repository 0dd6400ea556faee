"""Metrics, logs, memory, and limits on open files."""
