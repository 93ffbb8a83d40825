"""Search for the training images that are nearest to others, to find copies.

Distances need float64, which takes eight times the memory of uint8: images are converted a part at
a time.
"""

import hashlib
from collections.abc import Iterator

import numpy as np
from sklearn.neighbors import NearestNeighbors

__all__ = ["NearestImages", "find_nearest", "parts_as_floats", "without_duplicates"]

# Values that are converted at once: 128 MiB of float64.
_VALUES_AT_ONCE = 2**24
# The time of comparing images with each other grows as the square of their number, and a quantile
# of their distances is known well enough from so many of them.
_MAX_IMAGES_APART = 2000


def parts_as_floats(images: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Convert images, (n, n_features), to float64, a part at a time.

    Yields
    ------
    part : slice
        Rows of the part.
    rows : ndarray of shape (n_part, n_features), float64
    """
    n_at_once = max(1, _VALUES_AT_ONCE // max(1, images.shape[1]))
    for start in range(0, len(images), n_at_once):
        part = slice(start, start + n_at_once)
        yield part, images[part].astype(float, copy=False)


def without_duplicates(images: np.ndarray) -> np.ndarray:
    """Return the first of each group of equal images, (n, n_features), in their order."""
    indices = _first_of_equals(images)
    return images if len(indices) == len(images) else images[indices]


def find_nearest(
    searched: np.ndarray, images: np.ndarray, n_neighbors: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Find the nearest of some images to each of others.

    Parameters
    ----------
    searched : ndarray of shape (n, n_features)
        Images among which to search, at least `n_neighbors`.
    images : ndarray of shape (m, n_features)
        Images whose neighbours are wanted.
    n_neighbors : int, default=1
        Number of neighbours of each image.

    Returns
    -------
    distances : ndarray of shape (m, n_neighbors)
        Distances, the smallest first.
    indices : ndarray of shape (m, n_neighbors)
        Their rows in `searched`.
    """
    distances = np.full((len(images), n_neighbors), np.inf)
    indices = np.zeros((len(images), n_neighbors), dtype=np.intp)
    for part, rows in parts_as_floats(searched):
        search = NearestNeighbors(n_neighbors=min(n_neighbors, len(rows))).fit(rows)
        for of, wanted in parts_as_floats(images):
            of_part, in_part = search.kneighbors(wanted)
            both = np.hstack([distances[of], of_part])
            order = both.argsort(axis=1, kind="stable")[:, :n_neighbors]
            distances[of] = np.take_along_axis(both, order, axis=1)
            of_both = np.hstack([indices[of], in_part + part.start])
            indices[of] = np.take_along_axis(of_both, order, axis=1)
    return distances, indices


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
        self._indices = _first_of_equals(images)
        if len(self._indices) < 2:
            raise ValueError(
                f"Finding copies needs at least two different training images, got "
                f"{len(images)} alike: pass more images, or skip the search for copies."
            )
        # A selection would be a copy of all of them.
        has_duplicates = len(self._indices) < len(images)
        self.different = images[self._indices] if has_duplicates else images

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
        distances, rows = find_nearest(self.different, images, n_neighbors=2)
        first, second = distances.T
        # Both distances can be rounded to 0 if training images hardly differ.
        ratios = np.divide(first, second, out=np.zeros_like(first), where=second > 0)
        return first, ratios, self._indices[rows[:, 0]]

    def distances_apart(self) -> np.ndarray:
        """Measure distances of different training images to their nearest neighbours.

        Of more than 2,000 different images these are the distances of every second one, or every
        third, so that there are at most 2,000.

        Returns
        -------
        ndarray of shape (k,), k <= min(m, 2000)
        """
        step = -(-len(self.different) // _MAX_IMAGES_APART)
        distances, rows = find_nearest(self.different, self.different[::step], n_neighbors=2)
        # An image is its own nearest one, except for rounding.
        is_itself = rows[:, 0] == np.arange(0, len(self.different), step)
        return np.where(is_itself, distances[:, 1], distances[:, 0])


def _first_of_equals(images: np.ndarray) -> np.ndarray:
    """Return the indices, ascending, of the first of each group of equal rows."""
    found: dict[bytes, int] = {}
    for index, row in enumerate(images):
        # The sum makes a zero of a negative zero.
        found.setdefault(hashlib.blake2b((row + 0).tobytes(), digest_size=16).digest(), index)
    return np.fromiter(found.values(), dtype=np.intp, count=len(found))
