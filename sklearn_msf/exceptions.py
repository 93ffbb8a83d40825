"""Errors that a caller may want to catch; all but ProcessGroupError are ValueErrors."""

__all__ = [
    "AutoencoderError",
    "BackboneError",
    "CheckpointMismatchError",
    "DivergenceError",
    "HubError",
    "PretrainedModelError",
    "ProcessGroupError",
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


class HubError(ValueError):
    """The Hugging Face hub does not give a model, or does not take it."""


class ProcessGroupError(RuntimeError):
    """Processes that train together do not agree, or one of them does not answer."""
