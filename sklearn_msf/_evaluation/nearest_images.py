"""Search for the training images that are nearest to others, to find copies."""

import numpy as np
from sklearn.neighbors import NearestNeighbors

__all__ = ["NearestImages"]


class NearestImages:
    """Find the training image that is nearest to an image.

    Parameters
    ----------
    images : ndarray of shape (n, n_features)
        Training images, at least two different ones. Duplicates count once.

    Attributes
    ----------
    different : ndarray of shape (m, n_features)
        The training images without duplicates.

    Raises
    ------
    ValueError
        If there are fewer than two different images.
    """

    def __init__(self, images: np.ndarray):
        # Sorting makes several copies, which are smaller in the dtype of the images.
        different, self._indices = np.unique(images, axis=0, return_index=True)
        self.different = different.astype(float)
        if len(self.different) < 2:
            raise ValueError(
                f"Finding copies needs at least two different training images, got "
                f"{len(images)} alike: pass more images, or skip the search for copies."
            )
        self._search = NearestNeighbors(n_neighbors=2).fit(self.different)

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Measure the distances of images, (m, n_features), to the training images.

        Returns
        -------
        distances : ndarray of shape (m,)
            Distance to the nearest training image.
        ratios : ndarray of shape (m,)
            That distance divided by the distance to the second nearest: 0 for a copy.
        indices : ndarray of shape (m,)
            Index of the nearest training image.
        """
        distances, rows = self._search.kneighbors(images)
        first, second = distances.T
        # Both distances can be rounded to 0 if training images hardly differ.
        ratios = np.divide(first, second, out=np.zeros_like(first), where=second > 0)
        return first, ratios, self._indices[rows[:, 0]]

    def distances_apart(self) -> np.ndarray:
        """Measure the distance of each different training image to its nearest neighbour."""
        return np.asarray(self._search.kneighbors(n_neighbors=1)[0][:, 0])
