"""Medical images in the manner of `sklearn.datasets`.

May import `persistence` and `runtime`; no other room imports it.
"""

from sklearn_msf.datasets._medmnist import fetch_medmnist

__all__ = ["fetch_medmnist"]
