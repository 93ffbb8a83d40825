"""Symmetrical flow matching as a scikit-learn estimator.

Names are imported when first used, so that importing the package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sklearn_msf._version import __version__

if TYPE_CHECKING:
    from sklearn_msf.classifier import MedSymmFlowClassifier
    from sklearn_msf.latent_classifier import LatentMedSymmFlowClassifier

__all__ = ["LatentMedSymmFlowClassifier", "MedSymmFlowClassifier", "__version__"]

_HOMES = {
    "LatentMedSymmFlowClassifier": "sklearn_msf.latent_classifier",
    "MedSymmFlowClassifier": "sklearn_msf.classifier",
}


_MODULES = (
    "datasets",
    "exceptions",
    "generation_metrics",
    "operating_points",
    "plotting",
    "prevalence",
    "sample_augmentation",
    "selective",
)

# Type checkers would take any name for one of the package.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name in _MODULES:
            return import_module(f"{__name__}.{name}")
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
