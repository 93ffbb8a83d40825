"""Displays in scikit-learn's manner; matplotlib is imported when one is drawn.

May import every room below it; none imports it. `curves` and `confusion` have the displays of
selective prediction, `generated_images` those of generated images and their trajectories,
`counterfactuals` that of images changed to another class. `pictures` makes pictures of arrays,
and `pyplot` imports matplotlib.
"""

from sklearn_msf.plotting.confusion import RejectionConfusionMatrixDisplay
from sklearn_msf.plotting.counterfactuals import CounterfactualDisplay
from sklearn_msf.plotting.curves import AccuracyRejectionDisplay, RiskCoverageDisplay
from sklearn_msf.plotting.generated_images import SampleGridDisplay, TrajectoryDisplay

__all__ = [
    "AccuracyRejectionDisplay",
    "CounterfactualDisplay",
    "RejectionConfusionMatrixDisplay",
    "RiskCoverageDisplay",
    "SampleGridDisplay",
    "TrajectoryDisplay",
]
