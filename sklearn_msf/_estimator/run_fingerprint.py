"""Which run a folder of checkpoints belongs to."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator

from sklearn_msf._estimator.data_validation import TrainingRows
from sklearn_msf._estimator.parameters import draw_seed
from sklearn_msf._version import __version__
from sklearn_msf.nn.precision import resolve_precision
from sklearn_msf.persistence.json_data import to_plain
from sklearn_msf.runtime.device import resolve_device
from sklearn_msf.training.checkpoints import Checkpoints

__all__ = ["digest_arrays", "open_checkpoints"]

# What may differ between a run and the one that goes on with it: nothing of it trains.
_FREE = {
    "cache_bytes",
    "checkpoint_dir",
    "checkpoint_every",
    "guidance",
    "label_decoding",
    "n_draws",
    "n_steps",
    "ode_solver",
    "verbose",
}


def open_checkpoints(
    estimator: BaseEstimator,
    data: TrainingRows,
    random_state: np.random.RandomState,
    *,
    warm: bool,
) -> Checkpoints | None:
    """Open the checkpoints of a fit, where the estimator has a folder for them.

    Parameters
    ----------
    estimator : BaseEstimator
        The estimator with its parameters, and where `warm` its weights.
    data : TrainingRows
        What it is fitted on.
    random_state : RandomState
        Made of the estimator's; the seed of a run that starts anew is drawn from it.
    warm : bool
        Whether fit starts from the estimator's weights.

    Returns
    -------
    Checkpoints or None

    Raises
    ------
    ValueError
        Where the folder cannot be written to, and where it holds checkpoints of other data or
        parameters.
    """
    if estimator.checkpoint_dir is None:
        return None
    fingerprint: dict[str, Any] = {
        name: to_plain(value)
        for name, value in estimator._fingerprint_parameters(warm=warm).items()
        if name not in _FREE
    }
    if isinstance(estimator.random_state, np.random.RandomState):
        # Where it stands tells runs apart; nothing has been drawn from it yet.
        _, words, position, *_ = random_state.get_state(legacy=True)
        fingerprint["random_state"] = digest_arrays(np.asarray(words), np.asarray(position))
    device = resolve_device(estimator.device)
    fingerprint["version of sklearn_msf"] = __version__
    fingerprint["device"] = device.type
    fingerprint["precision"] = resolve_precision(estimator.precision, device)
    fingerprint["format of X"] = estimator._image_format.to_plain()
    fingerprint["images of an epoch"] = data.n_images
    fingerprint["images of X"] = digest_arrays(data.rows)
    fingerprint["labels of y"] = digest_arrays(
        data.labels, np.asarray(estimator.classes_).astype(str)
    )
    fingerprint["sample weights"] = digest_arrays(data.weights)
    if warm:
        weights = [value.cpu().numpy() for value in estimator.field_.state_dict().values()]
        fingerprint["weights to start from"] = digest_arrays(*weights)
    every = int(estimator.checkpoint_every)
    return Checkpoints(Path(estimator.checkpoint_dir), every, fingerprint, draw_seed(random_state))


def digest_arrays(*arrays: np.ndarray) -> str:
    """Digest of the shapes, dtypes and values of arrays."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.shape} {array.dtype.str}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]
