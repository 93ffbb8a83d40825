"""Displays like those of scikit-learn; matplotlib is imported only when one is plotted."""

from sklearn_msf.plotting.curves import AccuracyRejectionDisplay, RiskCoverageDisplay
from sklearn_msf.plotting.generated_images import SampleGridDisplay, TrajectoryDisplay

__all__ = [
    "AccuracyRejectionDisplay",
    "RiskCoverageDisplay",
    "SampleGridDisplay",
    "TrajectoryDisplay",
]
