"""Medical images in the manner of `sklearn.datasets`.

Imports no other room, and none imports it.
"""

from sklearn_msf.datasets._medmnist import fetch_medmnist

__all__ = ["fetch_medmnist"]
