"""Errors that a caller may want to catch; all are ValueErrors."""

__all__ = ["AutoencoderError", "CheckpointMismatchError", "DivergenceError"]


class AutoencoderError(ValueError):
    """An autoencoder cannot be opened or cannot be used."""


class CheckpointMismatchError(ValueError):
    """`checkpoint_dir` holds checkpoints of another run."""


class DivergenceError(ValueError):
    """Loss or weights were not finite, and lower learning rates did not help."""
