"""Identification of the run that a folder of checkpoints belongs to."""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from sklearn_msf._estimator.data_validation import TrainingSamples
from sklearn_msf._estimator.parameters import Parameters, affecting
from sklearn_msf._estimator.weights import indices_of_named
from sklearn_msf._version import __version__
from sklearn_msf.data.on_demand import ImagesOnDemand, RowsOnDemand
from sklearn_msf.data.parts import parts_of
from sklearn_msf.flow.velocity_field import VelocityField
from sklearn_msf.nn.precision import PRECISIONS, resolve_precision
from sklearn_msf.persistence.json_data import to_plain
from sklearn_msf.persistence.paths import as_path
from sklearn_msf.training.checkpoints import stored_fingerprint
from sklearn_msf.training.fingerprints import START

__all__ = [
    "describe_samples",
    "describe_split",
    "digest_arrays",
    "precision_of_run",
    "run_fingerprint",
]

# Images that tell one set of them from another; reading all of them may take long.
_N_COMPARED = 64


def precision_of_run(p: Parameters) -> str:
    """Return the parameter, but for "auto" the precision of the run that has checkpoints, if any.

    "auto" is measured in each process, and another result would let the run end otherwise.
    """
    if p.precision != "auto" or p.checkpoint_dir is None:
        return str(p.precision)
    precision = stored_fingerprint(as_path("checkpoint_dir", p.checkpoint_dir)).get("precision")
    return str(precision) if precision in PRECISIONS else "auto"


def run_fingerprint(
    p: Parameters,
    samples: TrainingSamples,
    device: torch.device,
    prepared: Mapping[str, Any],
    random_state: np.random.RandomState,
    start_from: VelocityField | None,
    validation: TrainingSamples | None = None,
) -> dict[str, Any]:
    """Describe a fit by all that its result depends on.

    Parameters
    ----------
    p : Parameters
        Checked parameters.
    samples : TrainingSamples
        Training data.
    device : torch.device
        Device of the training.
    prepared : mapping
        Fingerprint of the preparation of the images; entries of the name of a parameter replace it.
    random_state : RandomState
        Made from the parameter; nothing has been drawn from it yet.
    start_from : VelocityField or None
        Field to start from, if fit continues another one.
    validation : TrainingSamples or None
        The user's validation set.

    Returns
    -------
    dict
        JSON data; large arrays are replaced by their digests.
    """
    values = {**vars(p), **prepared}
    if isinstance(p.class_weight, Mapping):
        # Weights of classes that y lacks change nothing in the run.
        named = indices_of_named(p.class_weight, samples.classes)
        weights = list(p.class_weight.values())
        labels = samples.classes.tolist()
        order = [k for k in np.argsort(named, kind="stable") if named[k] >= 0]
        values["class_weight"] = {str(labels[named[k]]): float(weights[k]) for k in order}
    # With early stopping the predictions of validation images choose the weights that are kept.
    affects = ("network", "training", *(("prediction",) if p.early_stopping else ()))
    fingerprint: dict[str, Any] = {
        name: to_plain(values[name]) for name in affecting(*affects) if name in values
    }
    fingerprint |= {name: value for name, value in prepared.items() if name not in vars(p)}
    if isinstance(p.random_state, np.random.RandomState):
        # Its state identifies the run, as nothing was drawn from it.
        fingerprint["random_state"] = _digest_of_state(random_state.get_state(legacy=False))
    fingerprint["version of sklearn_msf"] = __version__
    fingerprint["device"] = device.type
    fingerprint["precision"] = resolve_precision(p.precision, device)
    fingerprint["format of X"] = samples.image_format.to_plain()
    fingerprint["images of an epoch"] = samples.n_images
    fingerprint["images of X"] = digest_arrays(samples.rows)
    fingerprint["labels of y"] = digest_arrays(samples.labels, _texts_of(samples.classes))
    fingerprint["sample weights"] = digest_arrays(samples.weights)
    if samples.groups is not None:
        fingerprint["groups"] = digest_arrays(samples.groups)
    if validation is not None:
        of_validation = validation.rows, validation.labels, validation.weights
        fingerprint["validation set"] = digest_arrays(*of_validation)
    if start_from is not None:
        weights = [value.cpu().numpy() for value in start_from.state_dict().values()]
        fingerprint[START] = digest_arrays(*weights)
    return fingerprint


def _texts_of(classes: np.ndarray) -> np.ndarray:
    """Write labels as text, whose width is not that of an array that has held longer ones."""
    return np.array(classes.tolist()) if classes.dtype.kind == "U" else classes.astype(str)


def _digest_of_state(state: Mapping[str, Any]) -> str:
    """Compute a digest of the state of random numbers, of any bit generator."""
    values = {name: value for name, value in state.items() if name != "state"}
    values |= {f"state {name}": value for name, value in state["state"].items()}
    # Integers of PCG64 have 128 bits, which no array of numbers holds.
    return digest_arrays(
        *(
            np.asarray(value if isinstance(value, np.ndarray) else f"{name} {value}")
            for name, value in sorted(values.items())
        )
    )


def describe_samples(samples: TrainingSamples, *names: str) -> dict[str, str]:
    """Describe images, labels, weights and groups by shapes, dtypes and digests.

    Parameters
    ----------
    samples : TrainingSamples
        Training data, or a validation set.
    *names : str
        Names of the images, labels, weights and, if they count, groups.

    Returns
    -------
    dict of str to str
        Equal for equal data.
    """
    image_format = samples.image_format
    shape = (len(samples.rows), *image_format.shape)
    values: list[tuple[str, Any]] = [
        (f"{shape} of {image_format.dtype}", [samples.rows]),
        (f"{samples.classes.tolist()}", [samples.labels, _texts_of(samples.classes)]),
        (f"{len(samples.weights)} numbers", [samples.weights]),
    ]
    if samples.groups is not None:
        values.append((f"{samples.groups.max() + 1} groups", [samples.groups]))
    return {
        name: f"{text}, digest {digest_arrays(*arrays)}"
        for name, (text, arrays) in zip(names, values, strict=False)
    }


def describe_split(samples: TrainingSamples, fraction: float) -> str:
    """Describe what a seed splits, by a digest: other samples or fractions are split otherwise.

    Of the images some are compared, and their number.
    """
    n = len(samples.rows)
    compared = samples.rows[np.unique(np.linspace(0, n - 1, _N_COMPARED).astype(int))]
    groups = np.empty(0, int) if samples.groups is None else samples.groups
    return digest_arrays(np.array([n, fraction]), samples.labels, groups, compared)


def digest_arrays(*arrays: np.ndarray | RowsOnDemand | ImagesOnDemand) -> str:
    """Compute a digest of the shapes, dtypes and values of arrays, without copies of them."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.shape} {array.dtype.str}".encode())
        values = np.atleast_1d(array) if isinstance(array, np.ndarray) else array
        for part in parts_of(values):
            digest.update(values[part].tobytes())
    return digest.hexdigest()[:16]
