"""Splits of samples, which keep groups together, such as the images of one patient."""

import math

import numpy as np
from sklearn.model_selection import ShuffleSplit, train_test_split

from sklearn_msf._estimator.data_validation import TrainingSamples
from sklearn_msf.runtime.user_warnings import warn_user

__all__ = ["draw_one_of_each", "hold_out", "split_groups", "split_samples"]

# Number of random splits of the groups, of which the one with the most even classes is taken.
_N_SPLITS = 100


def hold_out(
    samples: TrainingSamples, fraction: float, random_state: np.random.RandomState
) -> tuple[TrainingSamples, TrainingSamples]:
    """Split the samples, stratified, into a training part and a validation part."""
    train, valid = split_samples("early_stopping", samples, fraction, random_state)
    return samples.take(train), samples.take(valid)


def split_samples(
    purpose: str,
    samples: TrainingSamples,
    fraction: float,
    random_state: np.random.RandomState,
) -> tuple[np.ndarray, np.ndarray]:
    """Split the indices of the samples, stratified, into those to train on and a fraction.

    Samples of one group stay together.

    Raises
    ------
    ValueError
        If a class has too few samples, or samples of too few groups, to be split.
    """
    try:
        if samples.groups is not None:
            train, valid = split_groups(samples.groups, samples.labels, fraction, random_state)
        else:
            _check_counts(purpose, samples, fraction)
            train, valid = train_test_split(
                np.arange(len(samples.rows)),
                test_size=fraction,
                stratify=samples.labels,
                random_state=random_state,
            )
            lost = np.setdiff1d(samples.labels, samples.labels[train])
            if len(lost):
                raise ValueError(
                    f"it would leave no image of the classes {samples.classes[lost].tolist()} to "
                    f"train on; {_ways_out(purpose, 'lower')}."
                )
    except ValueError as error:
        raise ValueError(
            f"{purpose} cannot hold out a fraction of {fraction:.3g} of {len(samples.rows)} "
            f"samples by class: {error}"
        ) from error
    _warn_of_absent_classes(purpose, samples, valid)
    return np.sort(train), np.sort(valid)


def _check_counts(purpose: str, samples: TrainingSamples, fraction: float) -> None:
    """Refuse classes and numbers of samples that cannot be divided by class."""
    counts = np.bincount(samples.labels, minlength=len(samples.classes))
    single = samples.classes[counts == 1].tolist()
    if single:
        raise ValueError(
            f"one image only is of each of the classes {single}; pass X_val and y_val, or more of "
            "these images."
        )
    n, n_classes = len(samples.labels), np.count_nonzero(counts)
    n_held_out = math.ceil(fraction * n)
    for n_there, part, change in (
        (n_held_out, "hold out", "raise"),
        (n - n_held_out, "train on", "lower"),
    ):
        if n_there < n_classes:
            raise ValueError(
                f"it would {part} {n_there} of {n} images, and needs as many as the {n_classes} "
                f"classes are; {_ways_out(purpose, change)}."
            )


def _ways_out(purpose: str, change: str) -> str:
    ways = "pass X_val and y_val, or more images"
    return f"{change} validation_fraction, {ways}" if purpose == "early_stopping" else ways


def _warn_of_absent_classes(purpose: str, samples: TrainingSamples, valid: np.ndarray) -> None:
    """Warn of classes with too few samples or groups to have one in the part that is held out."""
    absent = np.setdiff1d(samples.labels, samples.labels[valid])
    if len(absent):
        few, more = "too few images", "images"
        if samples.groups is not None:
            few, more = "images of too few groups", "groups"
        warn_user(
            f"{purpose} holds out no image of the classes {samples.classes[absent].tolist()}, "
            f"which have {few}: pass X_val and y_val, or more {more}."
        )


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
    if math.ceil(fraction * len(present)) >= len(present):
        raise ValueError(
            f"groups has {len(present)} groups only, of which none would be left to train on: "
            "lower validation_fraction, or pass images of more groups, or X_val and y_val."
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
