"""Identification of the run that a folder of checkpoints belongs to."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sklearn_msf._estimator.data_validation import TrainingSamples
from sklearn_msf._estimator.parameters import Parameters, affecting, draw_seed
from sklearn_msf._version import __version__
from sklearn_msf.flow.velocity_field import VelocityField
from sklearn_msf.nn.precision import resolve_precision
from sklearn_msf.persistence.json_data import to_plain
from sklearn_msf.training.checkpoints import Checkpoints

__all__ = ["digest_arrays", "open_checkpoints"]


def open_checkpoints(
    p: Parameters,
    samples: TrainingSamples,
    device: torch.device,
    prepared: Mapping[str, Any],
    random_state: np.random.RandomState,
    start_from: VelocityField | None,
) -> Checkpoints:
    """Open the checkpoints of a fit.

    Parameters
    ----------
    p : Parameters
        Checked parameters with a `checkpoint_dir`.
    samples : TrainingSamples
        Training data.
    device : torch.device
        Device of the training.
    prepared : mapping
        Fingerprint of the preparation of the images; replaces parameters of the same name.
    random_state : RandomState
        Made from the parameter; the seed of a new run is drawn from it.
    start_from : VelocityField or None
        Field to start from, if fit continues another one.

    Returns
    -------
    Checkpoints

    Raises
    ------
    CheckpointMismatchError
        If the folder holds checkpoints of other data or parameters.
    ValueError
        If the folder cannot be written to.
    """
    values = {**vars(p), **prepared}
    fingerprint: dict[str, Any] = {
        name: to_plain(values[name]) for name in affecting("network", "training") if name in values
    }
    if isinstance(p.random_state, np.random.RandomState):
        # Its state identifies the run, because nothing has been drawn from it yet.
        _, words, position, *_ = random_state.get_state(legacy=True)
        fingerprint["random_state"] = digest_arrays(np.asarray(words), np.asarray(position))
    fingerprint["version of sklearn_msf"] = __version__
    fingerprint["device"] = device.type
    fingerprint["precision"] = resolve_precision(p.precision, device)
    fingerprint["format of X"] = samples.image_format.to_plain()
    fingerprint["images of an epoch"] = samples.n_images
    fingerprint["images of X"] = digest_arrays(samples.rows)
    fingerprint["labels of y"] = digest_arrays(samples.labels, samples.classes.astype(str))
    fingerprint["sample weights"] = digest_arrays(samples.weights)
    if start_from is not None:
        weights = [value.cpu().numpy() for value in start_from.state_dict().values()]
        fingerprint["weights to start from"] = digest_arrays(*weights)
    folder, every = Path(p.checkpoint_dir), int(p.checkpoint_every)
    return Checkpoints(folder, every, fingerprint, draw_seed(random_state))


def digest_arrays(*arrays: np.ndarray) -> str:
    """Compute a digest of the shapes, dtypes and values of arrays."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.shape} {array.dtype.str}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]
