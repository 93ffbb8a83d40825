"""Loaders of medical images with the interface of `sklearn.datasets`."""

from sklearn_msf.datasets._medmnist import fetch_medmnist

__all__ = ["fetch_medmnist"]
