"""From image bytes to batches of model input."""
