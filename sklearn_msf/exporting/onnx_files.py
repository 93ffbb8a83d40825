"""ONNX files of a classifier and of a sampler: made, compared with the model, then written."""

import importlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
import torch

from sklearn_msf._version import __version__
from sklearn_msf.data.images import ImageFormat
from sklearn_msf.data.on_demand import RowsOnDemand
from sklearn_msf.exporting.conversion import looped, to_onnx
from sklearn_msf.exporting.graphs import (
    EXPORTED_UNCERTAINTIES,
    ClassifierGraph,
    SamplerEnd,
    SamplerStart,
    SamplerStep,
    for_graphs,
)
from sklearn_msf.exporting.image_conversion import native_dtype
from sklearn_msf.flow.ode_solver import Evaluation, OdeSettings
from sklearn_msf.model.classification import (
    ClassificationSettings,
    Prediction,
    inputs_of,
    predict,
)
from sklearn_msf.model.fitted_model import FittedModel
from sklearn_msf.model.sampling import image_noise, sample
from sklearn_msf.model.uncertainty import UNCERTAINTIES
from sklearn_msf.persistence.json_data import labels_to_plain
from sklearn_msf.persistence.whole_files import write_file
from sklearn_msf.runtime.optional_imports import first_cause, importing
from sklearn_msf.runtime.torch_state import standard_torch
from sklearn_msf.runtime.user_warnings import warn_user

__all__ = ["export_classifier", "export_sampler"]

# Largest difference to the model, of probabilities and of images in units of their range.
_TOLERANCE = 1e-4
# A batch for the exporter, and the batches that are compared.
_N_TRACED = 3
_N_COMPARED = (1, 4)
# What one file of ONNX can hold.
_MAX_BYTES = 2**31 - 1
# Characters of the message of an error of torch.
_MAX_REASON = 300


@standard_torch()
def export_classifier(
    path: Path,
    model: FittedModel,
    settings: ClassificationSettings,
    kind: str,
    metadata: Mapping[str, Any],
) -> None:
    """Write a classifier with one Euler step as an ONNX file.

    The input "images" has the dtype, layout and range of the training X; the outputs are
    "probabilities", (n, K) in float32, and "uncertainty", (n,) in float64.

    Parameters
    ----------
    path : Path
        File to write; replaced as a whole.
    model : FittedModel
        The model.
    settings : ClassificationSettings
        Settings of classification.
    kind : str
        Kind of the uncertainty.
    metadata : mapping
        Entries of the file's metadata besides those of the model; anything that JSON can hold.

    Raises
    ------
    ValueError
        For a model that cannot be exported. Nothing is written.
    TypeError
        For class labels that are neither numbers nor strings.
    ImportError
        If onnx, onnxscript or onnxruntime is not installed.
    OSError
        If the file cannot be written.

    Warns
    -----
    UserWarning
        If the settings have another precision than float32, in which the file computes, and
        probabilities differ for it.
    """
    _check_can_write(path)
    _check_one_step(settings)
    if kind not in EXPORTED_UNCERTAINTIES:
        raise ValueError(
            f"The threshold is for kind={kind!r}, which needs {4 * len(model.classes)} passes of "
            "the whole network for each image and is not exported: call fit_reject with kind="
            f"{', '.join(map(repr, EXPORTED_UNCERTAINTIES))} on other calibration images."
        )
    in_graph = replace(settings, precision="float32")
    X = _random_images(model.image_format, _N_TRACED)

    def convert() -> Any:
        graph = ClassifierGraph(for_graphs(model), in_graph, kind)
        return to_onnx(graph, [torch.from_numpy(X)], ["images"], ["probabilities", "uncertainty"])

    onnx_model = _converted(model, convert)
    entries = {"uncertainty": kind, **metadata}
    data = _serialized(onnx_model, "classifier", model, entries)

    def predictions(X: np.ndarray, settings: ClassificationSettings) -> Prediction:
        rows = RowsOnDemand(X.reshape(len(X), -1))
        return predict(model, inputs_of(model, rows, settings), settings, kind)

    def compare(run: Callable[..., list[np.ndarray]], n: int) -> None:
        X = _random_images(model.image_format, n)
        wanted = predictions(X, in_graph)
        p, uncertainty = run({"images": X})
        _check_close("probabilities", p, wanted.probabilities, _TOLERANCE)
        _check_close("uncertainty", uncertainty, UNCERTAINTIES[kind](wanted), _TOLERANCE)

    _compare(data, compare)
    write_file(path, data)
    if settings.precision != in_graph.precision:
        X = _random_images(model.image_format, max(_N_COMPARED))
        p, of_graph = (predictions(X, each).probabilities for each in (settings, in_graph))
        _warn_of_precision(settings.precision, float(np.abs(p - of_graph).max()))


def _warn_of_precision(precision: str, difference: float) -> None:
    """Say by how much the estimator's own probabilities differ, as it computes less exactly."""
    if not difference <= _TOLERANCE:
        warn_user(
            f"predict_proba computes in {precision} here and the exported classifier in float32: "
            f"on random images their probabilities differ by up to {difference:.1g}. "
            "set_params(precision='float32') makes the estimator compute as the file does."
        )


@standard_torch()
def export_sampler(
    path: Path, model: FittedModel, ode: OdeSettings, metadata: Mapping[str, Any]
) -> None:
    """Write a sampler with steps of a fixed length as an ONNX file.

    The inputs are "labels", (n,) in int64, the numbers of classes in the order of the metadata, and
    "noise", (n, ...) in float32, from a standard normal distribution. The output "images" has the
    dtype, layout and range of the training X.

    Parameters
    ----------
    path, model, metadata :
        As in :func:`export_classifier`.
    ode : OdeSettings
        Integration from t = 0 to 1 with steps of "euler" or "midpoint".

    Raises
    ------
    ValueError, TypeError, ImportError, OSError
        As :func:`export_classifier`.
    """
    _check_can_write(path)
    native_dtype(model.image_format)
    onnx_model = _converted(model, lambda: _sampler(for_graphs(model), ode))
    noise = image_noise(model, 0, 0, max(_N_COMPARED)).cpu().numpy()
    entries = {
        "noise_shape": list(noise.shape[1:]),
        "n_steps": ode.n_steps,
        "ode_solver": ode.method,
        "guidance": ode.guidance,
        **metadata,
    }
    data = _serialized(onnx_model, "sampler", model, entries)

    def compare(run: Callable[..., list[np.ndarray]], n: int) -> None:
        labels = np.arange(n) % len(model.classes)
        wanted = sample(model, labels, 0, ode).astype(np.float64)
        (images,) = run({"labels": labels, "noise": noise[:n]})
        image_format = model.image_format
        # Whole numbers may be rounded to the next one.
        tolerance = _TOLERANCE * (image_format.high - image_format.low)
        tolerance += _rounding(image_format)
        _check_close("images", images.astype(np.float64), wanted, tolerance)

    _compare(data, compare)
    write_file(path, data)


def _sampler(model: FittedModel, ode: OdeSettings) -> Any:
    """Make the ONNX model of a sampler: start, a loop over evaluations of the velocity, end."""
    evaluations = model.field.path_evaluations(ode)
    labels = torch.arange(_N_TRACED) % len(model.classes)
    noise = image_noise(model, 0, 0, _N_TRACED)
    start, step, end = SamplerStart(model), SamplerStep(model, ode.guidance), SamplerEnd(model)
    with torch.no_grad():
        *state, masks, e_y = start(labels, noise)
    names = ["from_x", "x", "from_y", "y"][: len(state)]
    first, following = ([f"{which}_{name}" for name in names] for which in ("first", "next"))
    numbers = {
        field.name: [getattr(evaluation, field.name) for evaluation in evaluations]
        for field in fields(Evaluation)
    }
    of_one = [torch.tensor(0.5) for _ in numbers]
    return looped(
        to_onnx(start, [labels, noise], ["labels", "noise"], [*first, "masks", "e_y"], "start_"),
        to_onnx(
            step,
            [*of_one, masks, e_y, *state],
            [*numbers, "masks", "e_y", *names],
            following,
            "step_",
        ),
        to_onnx(end, [state[0]], ["last_x"], ["images"], "end_"),
        numbers,
        names,
    )


# Before


def _check_can_write(path: Path) -> None:
    """Refuse before minutes of work what the file system would refuse after them."""
    needed = "export_onnx needs onnx, onnxscript and onnxruntime: python -m pip install"
    with importing(f'{needed} "sklearn-msf[onnx]".'):
        for name in ("onnx", "onnxruntime", "onnxscript"):
            importlib.import_module(name)
    if path.is_dir():
        raise IsADirectoryError(f"path={os.fspath(path)!r} is a folder; name a file in it.")
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"path={os.fspath(path)!r} is in a folder that does not exist: make it first."
        )


def _check_one_step(settings: ClassificationSettings) -> None:
    ode = settings.ode
    if ode.n_steps != 1 or ode.method != "euler":
        raise ValueError(
            f"kind='classifier' exports one Euler step, and the model has n_steps={ode.n_steps} "
            f"and ode_solver={ode.method!r}: call set_params(n_steps=1, ode_solver='euler') first, "
            "evaluate it, and call fit_reject again if there is a threshold."
        )


def _random_images(image_format: ImageFormat, n: int) -> np.ndarray:
    """Draw images of X from the uniform distribution on its range, always the same."""
    dtype, rng = native_dtype(image_format), np.random.default_rng(0)
    low, high = image_format.low, image_format.high
    values = rng.uniform(low, high, (n, *image_format.empty(1).shape[1:]))
    if dtype.kind in "biu":
        # Rounded down, integers from 0 to 1 would all be 0.
        values = np.minimum(np.floor(low + (values - low) / (high - low) * (high - low + 1)), high)
    return values.astype(dtype)


# Conversion


def _converted(model: FittedModel, convert: Callable[[], Any]) -> Any:
    """Convert a model, and name what cannot be converted."""
    try:
        return convert()
    # The exporter raises errors of many classes, and an autoencoder of the user's can raise any.
    except Exception as error:
        # The exporter wraps them in advice to those who develop it.
        reason = shorten(first_cause(error), _MAX_REASON)
        source = model.space.autoencoder_source
        if source is None:
            raise ValueError(f"The model cannot be exported to ONNX ({reason}).") from error
        raise ValueError(
            f"The model cannot be exported to ONNX together with its autoencoder {source['class']} "
            f"({reason}). Fit with autoencoder='fit', or pass one of "
            "diffusers, or another torch module whose operations do not depend on the values of "
            "the images."
        ) from error


def _serialized(
    onnx_model: Any, kind: str, model: FittedModel, metadata: Mapping[str, Any]
) -> bytes:
    """Add the metadata, check the structure, and turn the model into bytes."""
    import onnx

    image_format = model.image_format
    entries = {
        "kind": kind,
        "sklearn_msf_version": __version__,
        "classes": labels_to_plain(model.classes)["values"],
        "image_format": {**image_format.to_plain(), "dtype": native_dtype(image_format).name},
        **metadata,
    }
    if model.space.autoencoder_source is not None:
        entries["autoencoder"] = model.space.autoencoder_source
    onnx_model.producer_name, onnx_model.producer_version = "sklearn_msf", __version__
    onnx.helper.set_model_props(onnx_model, {k: json.dumps(v) for k, v in entries.items()})
    n_bytes = onnx_model.ByteSize()
    if n_bytes > _MAX_BYTES:
        raise ValueError(
            f"The exported model would have {n_bytes:,} bytes; one file of ONNX holds at most "
            f"{_MAX_BYTES:,}: fit a network with fewer channels."
        )
    onnx.checker.check_model(onnx_model)
    data: bytes = onnx_model.SerializeToString()
    return data


# After


def _compare(data: bytes, compare: Callable[..., None]) -> None:
    """Run the exported model in onnxruntime on batches of several sizes."""
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    # Errors of onnxruntime have no class in common.
    except Exception as error:
        raise ValueError(f"The exported model was not written: onnxruntime: {error}") from error

    def run(inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        try:
            outputs: list[np.ndarray] = session.run(None, inputs)
        except Exception as error:
            raise ValueError(f"The exported model was not written: onnxruntime: {error}") from error
        return outputs

    for n in _N_COMPARED:
        compare(run, n)


def _rounding(image_format: ImageFormat) -> float:
    """Step between neighbouring values of the dtype of X, at its largest value."""
    dtype = native_dtype(image_format)
    if dtype.kind in "iub":
        return 1.0
    return float(np.finfo(dtype).eps) * max(abs(image_format.low), abs(image_format.high))


def _check_close(name: str, found: np.ndarray, wanted: np.ndarray, tolerance: float) -> None:
    # Relative where numbers are large, as logarithms and distances can be.
    allowed = tolerance * np.maximum(1, np.abs(wanted)) if name == "uncertainty" else tolerance
    difference = np.abs(found - wanted)
    # Not ">", which is false for NaN.
    if not (difference <= allowed).all():
        raise ValueError(
            f"The exported model was not written: its {name} differ from those of the model by up "
            f"to {np.nanmax(difference):.2g} in onnxruntime, and {tolerance:.2g} is allowed."
        )
