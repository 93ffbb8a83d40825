"""Fitted estimators as folders of safetensors and JSON."""

import math
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from sklearn_msf._estimator.auto_settings import build_field
from sklearn_msf._estimator.model_card import CARD_START, model_card
from sklearn_msf._estimator.parameters import check_parameters
from sklearn_msf._estimator.pickling import PortableEstimator
from sklearn_msf._version import __version__
from sklearn_msf.data.images import ImageFormat
from sklearn_msf.flow.label_codes import count_code_channels
from sklearn_msf.latent.autoencoder import AutoencoderError
from sklearn_msf.model.temperature import MAX_LOG_TEMPERATURE
from sklearn_msf.model.uncertainty import UNCERTAINTIES
from sklearn_msf.persistence.archives import (
    RecordError,
    check_tensors,
    read_record,
    remove_leftovers,
    write_file,
    write_record,
)
from sklearn_msf.persistence.json_data import (
    from_plain,
    labels_from_plain,
    labels_to_plain,
    to_plain,
)
from sklearn_msf.training.state import part_of

__all__ = ["PretrainedEstimator"]

_NAME = "model"
_REPRESENTATION = "representation"
_CARD = "README.md"
_MAX_SEED = 2**32
# A model from elsewhere must not say where files are written, or make a prediction endless.
_OF_THE_MACHINE = {"checkpoint_dir"}
_MAX_REPETITIONS = 10_000
_MAX_SIDE = 2**14
_NUMBERS_OF_AN_EPOCH = ("epoch", "loss", "image_loss", "label_loss", "n_images", "seconds")
# torch refuses sizes beyond its own limits with a RuntimeError.
_NOT_A_MODEL = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
)

Estimator = TypeVar("Estimator", bound="PretrainedEstimator")


class PretrainedEstimator(PortableEstimator):
    """Saves a fitted estimator to a folder, and makes one from such a folder."""

    def save_pretrained(self, folder: Any) -> None:
        """Save the fitted model as safetensors and JSON, with a model card beside them.

        The files hold no code. A model that was in the folder before is replaced at once, as
        a whole; a README.md that is not a model card of ours stays. Not saved are the
        optimiser's moments (`warm_start` and `partial_fit` go on from the weights with new
        ones) and `checkpoint_dir`, which belongs to a machine and not to a model.

        Parameters
        ----------
        folder : str or Path
            Where to save; made where it is missing.

        Raises
        ------
        NotFittedError
            Before fit.
        TypeError
            For parameters or labels that plain data cannot hold.
        OSError
            Where the files cannot be written; a model that was there before still is.
        """
        self._check_fitted()
        path, card = Path(folder), model_card(self)
        document, tensors = self._to_document(), dict(self.field_.state_dict())
        representation, encoded = self._saved_representation()
        if representation is not None:
            document["representation"] = representation
            tensors |= {f"{_REPRESENTATION}.{name}": value for name, value in encoded.items()}
        write_record(path, _NAME, tensors, document)
        remove_leftovers(path, _NAME)
        if not (path / _CARD).exists() or (path / _CARD).read_bytes().startswith(CARD_START):
            write_file(path / _CARD, card.encode())

    @classmethod
    def from_pretrained(cls: type[Estimator], folder: Any) -> Estimator:
        """Open a model that :meth:`save_pretrained` saved.

        Nothing in the files is executed. Files that were damaged or exchanged are refused; a
        change that somebody made on purpose, digests included, is refused only where the
        result is no model. A model that was fitted on a device that this
        machine lacks is opened on the CPU, with a warning.

        Parameters
        ----------
        folder : str or Path
            Folder of the model.

        Returns
        -------
        MedSymmFlowClassifier
            Fitted; predicts what the saved one did, to the last bit on the same machine.

        Raises
        ------
        FileNotFoundError
            Where the folder holds no model.
        ValueError
            For files that were cut off, changed or exchanged, and for models of another class.
        """
        return cls._open(folder, None)

    @classmethod
    def _open(cls: type[Estimator], folder: Any, given: Any) -> Estimator:
        """Open a model; `given` stands for what its files only name."""
        path = Path(folder)
        if not (path / f"{_NAME}.json").is_file():
            raise FileNotFoundError(
                f"folder={str(folder)!r} holds no model: {_NAME}.json is missing. "
                "save_pretrained writes it."
            )
        tensors, document = read_record(path, _NAME)
        try:
            estimator = cls._from_document(document, tensors, given)
        except (RecordError, AutoencoderError):
            raise
        # Whatever a changed file has instead of what belongs there.
        except _NOT_A_MODEL as error:
            raise RecordError(f"{path / _NAME}.json is not a usable model: {error}.") from error
        return estimator

    def _check_fitted(self) -> None:
        raise NotImplementedError

    def _saved_representation(self) -> tuple[dict[str, Any] | None, dict[str, torch.Tensor]]:
        """Describe what stands between images and field, in plain data and tensors."""
        return None, {}

    def _open_representation(
        self,
        plain: Any,
        tensors: dict[str, torch.Tensor],
        image_format: ImageFormat,
        given: Any,
    ) -> int:
        """Take over what was saved, and return the channels that the field sees."""
        if plain is not None or tensors:
            raise RecordError("The model does not work on pixels.")
        return image_format.n_channels

    def _to_document(self) -> dict[str, Any]:
        """Everything but the weights, as plain data."""
        return {
            "class": type(self).__name__,
            "library_version": __version__,
            "parameters": {
                name: to_plain(value)
                for name, value in self._plain_parameters().items()
                if name not in _OF_THE_MACHINE
            },
            "layout": {name: to_plain(value) for name, value in self._field_layout.items()},
            "classes": labels_to_plain(self.classes_),
            "feature_names": (
                self.feature_names_in_.tolist() if hasattr(self, "feature_names_in_") else None
            ),
            "image_format": self._image_format.to_plain(),
            "noise_seed": self._noise_seed,
            "n_continued": self._n_continued,
            "mirror_draws": self._mirror_draws,
            "can_draw": self._can_draw,
            "can_draw_classless": self._can_draw_classless,
            "temperature": self.temperature_,
            "rejection": (
                {
                    "threshold": self.reject_threshold_,
                    "kind": self.reject_kind_,
                    "settings": self._reject_settings,
                }
                if hasattr(self, "reject_kind_")
                else None
            ),
            "history": self.history_,
        }

    @classmethod
    def _from_document(
        cls: type[Estimator],
        document: dict[str, Any],
        tensors: dict[str, torch.Tensor],
        given: Any,
    ) -> Estimator:
        if document["class"] != cls.__name__:
            raise RecordError(
                f"The folder holds a {document['class']!r}, not a {cls.__name__}: open it with "
                "that class."
            )
        estimator = cls()
        parameters = {name: from_plain(value) for name, value in document["parameters"].items()}
        if _OF_THE_MACHINE & parameters.keys():
            raise RecordError(f"The model must not set {sorted(_OF_THE_MACHINE)}.")
        estimator.set_params(**parameters)
        check_parameters(estimator.get_params(deep=False))
        if max(estimator.n_draws, estimator.n_steps) > _MAX_REPETITIONS:
            raise RecordError("The model wants more draws or steps than anybody would wait for.")
        classes = labels_from_plain(document["classes"])
        if classes.ndim != 1 or len(classes) < 2 or not (classes[:-1] < classes[1:]).all():
            raise RecordError("The classes of the model are not two or more in order.")
        image_format = ImageFormat.from_plain(document["image_format"])
        if max(image_format.shape) > _MAX_SIDE:
            raise RecordError(f"The model has images of shape {image_format.shape}.")
        encoded = part_of(tensors, _REPRESENTATION)
        tensors = {
            name: value for name, value in tensors.items() if not name.startswith(_REPRESENTATION)
        }
        n_channels = estimator._open_representation(
            document.get("representation"), encoded, image_format, given
        )
        layout = {name: from_plain(value) for name, value in document["layout"].items()}
        _check_layout(estimator, layout, len(classes), n_channels, tensors)
        state = {
            **vars(estimator),
            "classes_": classes,
            "n_features_in_": math.prod(image_format.shape),
            "image_shape_": image_format.shape,
            "history_": _history(document["history"]),
            "n_iter_": len(document["history"]),
            "_image_format": image_format.to_plain(),
            "_field_layout": layout,
            "_noise_seed": _integer("noise_seed", document["noise_seed"]),
            "_n_continued": _integer("n_continued", document["n_continued"]),
            "_mirror_draws": bool(document["mirror_draws"]),
            "_can_draw": bool(document["can_draw"]),
            "_can_draw_classless": bool(document["can_draw_classless"]),
            "temperature_": _temperature(document["temperature"]),
            **_rejection(document["rejection"]),
            "_training_state": None,
            "_weights": {name: value.numpy() for name, value in tensors.items()},
        }
        if document["feature_names"] is not None:
            names = np.array([str(name) for name in document["feature_names"]], dtype=object)
            if len(names) != state["n_features_in_"]:
                raise RecordError(f"The model has {len(names)} names for its features.")
            state["feature_names_in_"] = names
        estimator.__setstate__(state)
        return estimator


def _check_layout(
    estimator: PretrainedEstimator,
    layout: dict[str, Any],
    n_classes: int,
    n_channels: int,
    tensors: dict[str, torch.Tensor],
) -> None:
    """Refuse a layout that is none, or that the weights do not have.

    Everything that would take time or memory in proportion to a number in the file is
    compared first with what the file really holds.
    """
    wanted = {"label_encoding", "beta", "n_classes", "form", "image_prediction", "image_channels"}
    wanted |= {"channels", "channel_mult", "n_blocks", "attention_levels", "patch_size", "dropout"}
    if layout.keys() != wanted:
        raise RecordError(f"The layout must have the entries {sorted(wanted)}.")
    named = {**layout, "label_prediction": layout["form"]}
    parameters = estimator.get_params(deep=False)
    check_parameters({name: named.get(name, value) for name, value in parameters.items()})
    counts = layout["n_classes"], layout["image_channels"]
    if counts != (n_classes, n_channels):
        raise RecordError(
            f"The layout is for {counts[0]!r} classes and {counts[1]!r} channels; the model "
            f"has {n_classes} and {n_channels}."
        )
    if layout["n_blocks"] * len(layout["channel_mult"]) > len(tensors):
        raise RecordError("The layout has more blocks than there are weights.")
    mask_codes = estimator._mask_codes()
    if mask_codes is None:
        n_inputs = n_channels + count_code_channels(layout["label_encoding"], n_classes)
    elif layout["form"] == "velocity" and len(mask_codes) == n_classes:
        n_inputs = n_channels + mask_codes.shape[1]
    else:
        raise RecordError("The model has encoded masks that its label half does not use.")
    first = tensors.get("unet.conv_in.weight")
    shape = () if first is None else tuple(first.shape)
    widths = [layout["channels"] * multiple for multiple in layout["channel_mult"]]
    wanted_shape = (widths[0], n_inputs * layout["patch_size"] ** 2, 3, 3)
    if shape != wanted_shape or max(widths) > sum(value.numel() for value in tensors.values()):
        raise RecordError(f"The layout does not fit a first convolution of shape {shape}.")
    # Without memory, and as slow as the number of weights.
    with torch.device("meta"):
        field = build_field(layout, 0, mask_codes)
    check_tensors(tensors, field.state_dict(), "The model")


def _history(plain: Any) -> list[dict[str, Any]]:
    if not isinstance(plain, list) or not all(isinstance(record, dict) for record in plain):
        raise RecordError("The history of the model is not a list of records.")
    for record in plain:
        values = [record.get(name) for name in _NUMBERS_OF_AN_EPOCH]
        if not all(type(value) in (int, float) and math.isfinite(value) for value in values):
            raise RecordError(f"The history of the model has a record that is none: {record!r}.")
    return plain


def _integer(name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < _MAX_SEED:
        raise RecordError(f"The model has {name}={value!r}; expected an integer >= 0.")
    return value


def _temperature(value: Any) -> float:
    if type(value) not in (int, float) or not abs(math.log(value)) <= MAX_LOG_TEMPERATURE:
        raise RecordError(f"The model has temperature={value!r}.")
    return float(value)


def _rejection(plain: Any) -> dict[str, Any]:
    """Fitted attributes of a model that learned to abstain."""
    if plain is None:
        return {}
    threshold, kind, settings = plain["threshold"], plain["kind"], plain["settings"]
    certified = threshold is None or (type(threshold) is float and math.isfinite(threshold))
    if not certified or kind not in UNCERTAINTIES or not isinstance(settings, dict):
        raise RecordError(f"The model abstains by a rule that is none: {plain!r}.")
    return {"reject_threshold_": threshold, "reject_kind_": kind, "_reject_settings": settings}
