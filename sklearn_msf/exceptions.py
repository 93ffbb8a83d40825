"""Errors that a caller may want to catch; all are ValueErrors."""

__all__ = [
    "AutoencoderError",
    "BackboneError",
    "CheckpointMismatchError",
    "DivergenceError",
    "PretrainedModelError",
]


class PretrainedModelError(ValueError):
    """A pretrained model cannot be opened or cannot be used."""


class AutoencoderError(PretrainedModelError):
    """An autoencoder cannot be opened or cannot be used."""


class BackboneError(PretrainedModelError):
    """A backbone cannot be opened or cannot be used."""


class CheckpointMismatchError(ValueError):
    """`checkpoint_dir` holds checkpoints of another run."""


class DivergenceError(ValueError):
    """Loss or weights were not finite, and lower learning rates did not help."""
