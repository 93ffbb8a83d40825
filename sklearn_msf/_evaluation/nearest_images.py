"""Search for the training images that are nearest to others, to find copies.

Distances need float64, which takes eight times the memory of uint8, and those of many images to
many others fill any memory: both are made for a part of the images, and of their values, at a time.
"""

import hashlib
from collections.abc import Iterator

import numpy as np
from sklearn.metrics.pairwise import euclidean_distances
from sklearn.utils import gen_batches

__all__ = ["NearestImages", "distances_by_parts", "find_nearest", "without_duplicates"]

# Images of each kind whose distances are computed at once, and values of them that are converted
# at once: 32 MiB of float64.
_IMAGES_AT_ONCE = 1000
_VALUES_AT_ONCE = 2**22
# The time of comparing images with each other grows as the square of their number, and a quantile
# of their distances is known well enough from so many of them.
_MAX_IMAGES_APART = 2000


def distances_by_parts(
    searched: np.ndarray, images: np.ndarray
) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """Compute the distances of images, (m, n_features), to others, (n, n_features).

    Yields
    ------
    part : slice
        Some of the images.
    of_searched : slice
        Some of the others.
    distances : ndarray of shape (m_part, n_part)
    """
    for part in gen_batches(len(images), _IMAGES_AT_ONCE):
        for of_searched in gen_batches(len(searched), _IMAGES_AT_ONCE):
            yield part, of_searched, _distances(images[part], searched[of_searched])


def _distances(images: np.ndarray, others: np.ndarray) -> np.ndarray:
    squared = np.zeros((len(images), len(others)))
    n_at_once = max(1, _VALUES_AT_ONCE // max(len(images), len(others)))
    for columns in gen_batches(images.shape[1], n_at_once):
        parts = (rows[:, columns].astype(float) for rows in (images, others))
        squared += euclidean_distances(*parts, squared=True)
    return np.sqrt(squared)


def without_duplicates(images: np.ndarray) -> np.ndarray:
    """Return the first of each group of equal images, (n, n_features), in their order."""
    indices = _first_of_equals(images)
    # A selection would be a copy of all of them.
    return images if len(indices) == len(images) else images[indices]


def find_nearest(
    searched: np.ndarray, images: np.ndarray, n_neighbors: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Find the nearest of some images to each of others; of equally near ones the first.

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
    for part, of_searched, of_part in distances_by_parts(searched, images):
        rows = np.arange(len(of_part))
        found, places = [distances[part]], [indices[part]]
        for _ in range(min(n_neighbors, of_part.shape[1])):
            nearest = of_part.argmin(axis=1)
            found.append(of_part[rows, nearest][:, None])
            places.append(of_searched.start + nearest[:, None])
            of_part[rows, nearest] = np.inf
        order = np.hstack(found).argsort(axis=1, kind="stable")[:, :n_neighbors]
        distances[part] = np.take_along_axis(np.hstack(found), order, axis=1)
        indices[part] = np.take_along_axis(np.hstack(places), order, axis=1)
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
        The training images without duplicates; a copy if there are some.

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

        Of more than 2,000 different images these are the distances of 2,000, drawn at random but
        always the same.

        Returns
        -------
        ndarray of shape (min(m, 2000),)
        """
        n = len(self.different)
        rows, images = np.arange(n), self.different
        if n > _MAX_IMAGES_APART:
            # Not every second one: images of two kinds may lie in turns.
            rows = np.sort(np.random.default_rng(0).choice(n, _MAX_IMAGES_APART, replace=False))
            images = images[rows]
        distances, indices = find_nearest(self.different, images, n_neighbors=2)
        # An image is its own nearest one, except for rounding.
        return np.where(indices[:, 0] == rows, distances[:, 1], distances[:, 0])


def _first_of_equals(images: np.ndarray) -> np.ndarray:
    """Return the indices, ascending, of the first of each group of equal rows."""
    found: dict[bytes, int] = {}
    for index, row in enumerate(images):
        # The sum makes a zero of a negative zero.
        found.setdefault(hashlib.sha256((row + 0).tobytes()).digest(), index)
    return np.fromiter(found.values(), dtype=np.intp, count=len(found))
