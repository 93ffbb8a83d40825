"""Groups of samples that belong together, such as the images of one patient."""

import numpy as np
from sklearn.model_selection import ShuffleSplit

__all__ = ["draw_one_of_each", "split_groups"]

# Number of random splits of the groups, of which the one with the most even classes is taken.
_N_SPLITS = 100


def split_groups(
    groups: np.ndarray, labels: np.ndarray, fraction: float, random_state: np.random.RandomState
) -> tuple[np.ndarray, np.ndarray]:
    """Split the indices of samples into a fraction and the others, without splitting a group.

    As scikit-learn's GroupShuffleSplit, which ignores classes, a hundred times; the split is taken
    in which the fraction that is held out differs least between the classes and from `fraction`.

    Parameters
    ----------
    groups : ndarray of shape (n,)
        Group of each sample.
    labels : ndarray of shape (n,)
        Class index of each sample.
    fraction : float
        Fraction of the samples to hold out.
    random_state : RandomState
        Source of the splits.

    Returns
    -------
    train, held_out : ndarray of int
        Indices of the samples.

    Raises
    ------
    ValueError
        If there are too few groups, or every split holds out all samples of a class.
    """
    present, group = np.unique(groups, return_inverse=True)
    if len(present) < 2:
        raise ValueError(
            "groups has only one group, which cannot be divided: pass the group of each image, "
            "such as its patient."
        )
    classes, label = np.unique(labels, return_inverse=True)
    counts = np.zeros((len(present), len(classes)))
    np.add.at(counts, (group, label), 1)
    shares = counts / counts.sum(axis=0)
    splits = ShuffleSplit(_N_SPLITS, test_size=fraction, random_state=random_state).split(shares)
    held_out = [groups_out for _, groups_out in splits]
    unevenness = [np.abs(shares[part].sum(axis=0) - fraction).max() for part in held_out]
    # A split that leaves nothing of a class to train on is taken only if all do.
    loses = [(counts[part].sum(axis=0) == counts.sum(axis=0)).any() for part in held_out]
    chosen = np.zeros(len(present), dtype=bool)
    chosen[held_out[int(np.lexsort((unevenness, loses))[0])]] = True
    lost = np.flatnonzero(~(counts[~chosen] > 0).any(axis=0))
    if len(lost):
        n_groups = int((counts[:, lost[0]] > 0).sum())
        raise ValueError(
            f"the class with index {classes[lost[0]]} in classes_ has samples of {n_groups} of "
            f"{len(present)} groups only, none of which would be left to train on: pass samples of "
            "more groups of this class."
        )
    return np.flatnonzero(~chosen[group]), np.flatnonzero(chosen[group])


def draw_one_of_each(groups: np.ndarray, seed: int) -> np.ndarray:
    """Draw one sample of each group at random, and return their indices."""
    order = np.random.default_rng(seed).permutation(len(groups))
    _, first = np.unique(groups[order], return_index=True)
    return np.sort(order[first])
