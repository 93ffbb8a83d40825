"""The nearest of images that others may be copies of."""

import numpy as np
from sklearn.neighbors import NearestNeighbors

__all__ = ["NearestImages"]


class NearestImages:
    """Finds the nearest of images that others may be copies of.

    Parameters
    ----------
    images : ndarray of shape (n, n_features)
        Images; one that is there twice counts once. At least two different ones.

    Attributes
    ----------
    different : ndarray of shape (m, n_features)
        Each of them once.
    """

    def __init__(self, images: np.ndarray):
        self.different, self._indices = np.unique(images, axis=0, return_index=True)
        if len(self.different) < 2:
            raise ValueError(
                f"There must be at least two different training images to tell copies, got "
                f"{len(images)} alike: pass more of them, or do not ask for copies."
            )
        self._search = NearestNeighbors(n_neighbors=2).fit(self.different)

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Measure images, (m, n_features).

        Returns
        -------
        distances : ndarray of shape (m,)
            Distance to the nearest one.
        ratios : ndarray of shape (m,)
            That distance over the distance to the next nearest one: 0 for a copy.
        indices : ndarray of shape (m,)
            Index of the nearest one.
        """
        distances, rows = self._search.kneighbors(images)
        first, second = distances.T
        # Distances of images that hardly differ are rounded to 0.
        ratios = np.divide(first, second, out=np.zeros_like(first), where=second > 0)
        return first, ratios, self._indices[rows[:, 0]]

    def distances_apart(self) -> np.ndarray:
        """Measure each of the different images to the nearest of the others."""
        return np.asarray(self._search.kneighbors()[0][:, 0])
