"""Displays in scikit-learn's manner; matplotlib is imported when one is drawn."""

from sklearn_msf.plotting.curves import AccuracyRejectionDisplay, RiskCoverageDisplay
from sklearn_msf.plotting.generated_images import SampleGridDisplay, TrajectoryDisplay

__all__ = [
    "AccuracyRejectionDisplay",
    "RiskCoverageDisplay",
    "SampleGridDisplay",
    "TrajectoryDisplay",
]
