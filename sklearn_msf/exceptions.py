"""Errors that a caller may want to catch; all but ProcessGroupError are ValueErrors."""

__all__ = [
    "AutoencoderError",
    "CheckpointMismatchError",
    "DivergenceError",
    "ProcessGroupError",
]


class AutoencoderError(ValueError):
    """An autoencoder cannot be opened or cannot be used."""


class CheckpointMismatchError(ValueError):
    """`checkpoint_dir` holds checkpoints of another run."""


class DivergenceError(ValueError):
    """Loss or weights were not finite, and lower learning rates did not help."""


class ProcessGroupError(RuntimeError):
    """Processes that train together do not agree, or one of them does not answer."""
