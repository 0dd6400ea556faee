"""Checkpoints, the backbone, the last layer, head selection and the readout."""
