"""What latents add to an estimator: a step before the field and a step after it."""

import copy
import hashlib
import math
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sklearn_msf._base import BaseMedSymmFlowClassifier
from sklearn_msf._data import TrainingRows
from sklearn_msf._parameters import draw_seed
from sklearn_msf._recipe import training_targets
from sklearn_msf.augmentation import mirror_images
from sklearn_msf.autoencoder import AutoencoderError, ImageAutoencoder, open_autoencoder
from sklearn_msf.autoencoder_fitting import fit_autoencoder, fitted_factor
from sklearn_msf.autoencoder_record import (
    autoencoder_from_record,
    autoencoder_to_record,
    read_autoencoder,
    write_autoencoder,
)
from sklearn_msf.batches import TrainingData
from sklearn_msf.device import resolve_device, resolve_precision
from sklearn_msf.images import ImageFormat
from sklearn_msf.label_codes import LabelCodes, make_label_codes
from sklearn_msf.latent_cache import keep_latents
from sklearn_msf.latent_format import LatentFormat, learn_latent_format
from sklearn_msf.latents import LatentRepresentation, LatentTrainingData, encode_variations
from sklearn_msf.persistence import RecordError, check_tensors
from sklearn_msf.states import part_of

__all__ = ["LatentMixin"]

_PAPER_AUTOENCODER = "stabilityai/sd-vae-ft-mse"
# Share of a time budget in which an autoencoder is trained.
_FIT_SHARE = 1 / 3
# "auto" variations: as many as make this many encoded images, at most so many an image.
_AUTO_ENCODED = 4_000
_MAX_AUTO_VARIATIONS = 8
# Other machines round differently.
_PROBE_TOLERANCE = 0.01
_MAX_SIDE = 2**14


class LatentMixin(BaseMedSymmFlowClassifier):
    """Puts an autoencoder between the images and the field."""

    # Constructor parameters of the subclass.
    autoencoder: Any
    encoded_size: Any
    label_decoding: str
    n_variations: Any
    cache_bytes: int

    _autoencoder: ImageAutoencoder
    _latent_format: LatentFormat

    @property
    def autoencoder_(self) -> Any:
        """The autoencoder: opened, trained, or a copy of what was passed."""
        return self._autoencoder.module

    @property
    def _representation(self) -> LatentRepresentation:
        device = self._autoencoder.device
        precision = resolve_precision(self.precision, device)
        decodes = self._latent_format.mask_codes is not None and self.label_decoding == "pixel"
        return LatentRepresentation(
            self._image_format,
            self._autoencoder,
            self._latent_format,
            precision,
            self._palette() if decodes else None,
        )

    def _palette(self) -> LabelCodes:
        return make_label_codes(self.label_encoding, len(self.classes_), 0.0)

    def _mask_palette(self) -> LabelCodes | None:
        """Colours of the classes, where the field carries encoded masks of them."""
        return self._palette() if self.label_prediction == "velocity" else None

    def _mask_codes(self) -> Tensor | None:
        return self._latent_format.mask_codes

    # Fitting

    def _learn_representation(
        self, data: TrainingRows, random_state: np.random.RandomState, started: float
    ) -> None:
        """Open or train the autoencoder, and learn the scaling of its latents."""
        device = resolve_device(self.device)
        images = self._image_format.to_numpy_images(data.rows)
        fit_seed, self._variation_seed = draw_seed(random_state), draw_seed(random_state)
        autoencoder = self._open_autoencoder()
        if autoencoder is None:
            autoencoder = self._fitted_autoencoder(images, fit_seed, device, started)
        self._autoencoder = autoencoder.to(device)
        self._autoencoder_asked_for = self._plain_parameters()["autoencoder"]
        self._check_channels(autoencoder)
        self._latent_format = learn_latent_format(
            images,
            autoencoder,
            self._encoded_size(autoencoder.factor),
            resolve_precision(self.precision, device),
            self._mask_palette(),
        )

    def _open_autoencoder(self) -> ImageAutoencoder | None:
        """Open the autoencoder asked for; None where it is to be trained."""
        wanted = self.autoencoder
        if not isinstance(wanted, str):
            # Fitting moves it and stops its gradients: not those of the user's.
            return ImageAutoencoder(copy.deepcopy(wanted))
        if wanted == "fit":
            return None
        if wanted != "auto":
            return open_autoencoder(wanted)
        try:
            return open_autoencoder(_PAPER_AUTOENCODER)
        except (AutoencoderError, ImportError) as error:
            warnings.warn(
                f"autoencoder='auto': {_PAPER_AUTOENCODER} cannot be had "
                f"({type(error).__name__}), a small autoencoder is trained on X.",
                stacklevel=2,
            )
            return None

    def _fitted_autoencoder(
        self, images: np.ndarray, seed: int, device: torch.device, started: float
    ) -> ImageAutoencoder:
        """Train an autoencoder, or take the one that a run that was cut off had trained."""
        precision = resolve_precision(self.precision, device)
        sides = np.broadcast_to(self.encoded_size or self._image_format.size, 2).tolist()
        size = self._encoded_size(fitted_factor((sides[0], sides[1])))
        masks = f"{self.label_prediction} {len(self.classes_)}"
        key = _digest(images, f"{seed} {size} {precision} {self.time_budget} {masks}")
        folder = None if self.checkpoint_dir is None else Path(self.checkpoint_dir)
        autoencoder = None if folder is None else read_autoencoder(folder, key)
        if autoencoder is None:
            seconds = None
            if self.time_budget is not None:
                seconds = _FIT_SHARE * self.time_budget - (time.perf_counter() - started)
            autoencoder = fit_autoencoder(
                images,
                size,
                seed=seed,
                device=device,
                precision=precision,
                seconds=seconds,
                palette=self._mask_palette(),
            )
            if folder is not None:
                write_autoencoder(folder, key, autoencoder)
        return autoencoder

    def _training_data(self, data: TrainingRows, device: torch.device) -> TrainingData:
        """Encode variations of the images, or find them where they were encoded before."""
        if self._plain_parameters()["autoencoder"] != self._autoencoder_asked_for:
            raise ValueError(
                f"Training cannot go on with another autoencoder, {self.autoencoder!r}, than the "
                "model was fitted with; set it back, or fit anew with warm_start=False."
            )
        augment, representation = self._augmentation(), self._representation
        images = self._image_format.to_numpy_images(data.rows)
        n_flips = len(mirror_images(torch.empty(0, 1, 1, 1), augment))
        n_variations = self._count_variations(len(images), n_flips, augment)
        channels, height, width = representation.shape
        channels *= 1 + self._autoencoder.has_deviation
        digest, _ = self._autoencoder.fingerprint()
        latents = keep_latents(
            (len(images), n_variations, channels, height, width),
            lambda latents: encode_variations(
                latents, images, representation, augment, self._variation_seed
            ),
            fingerprint=_digest(
                images,
                f"{digest} {augment} {n_variations} {self._latent_format.size} "
                f"{self._variation_seed} {representation.precision}",
            ),
            folder=None if self.checkpoint_dir is None else Path(self.checkpoint_dir),
            max_bytes=int(self.cache_bytes),
        )
        n_drawable = min(n_flips, n_variations)
        return LatentTrainingData(
            latents, n_drawable, self._latent_format, *training_targets(data), device
        )

    def _count_variations(self, n_images: int, n_flips: int, augment: str | None) -> int:
        if augment is None:
            return 1
        if self.n_variations != "auto":
            return int(self.n_variations)
        wanted = min(_MAX_AUTO_VARIATIONS, math.ceil(_AUTO_ENCODED / n_images))
        return max(n_flips, wanted) if "affine" in augment else n_flips

    def _encoded_size(self, factor: int) -> tuple[int, int]:
        """Size to which images are resized."""
        if self.encoded_size is None:
            height, width = self._image_format.size
            if min(height, width) < factor:
                raise ValueError(
                    f"X has images of {height} x {width} pixels, smaller than the {factor} that "
                    "the autoencoder makes one position of: set encoded_size to enlarge them"
                    f"{', and image_shape for rows' if self._image_format.flat else ''}."
                )
            return factor * math.ceil(height / factor), factor * math.ceil(width / factor)
        sides = np.broadcast_to(self.encoded_size, 2).tolist()
        if any(side % factor for side in sides):
            raise ValueError(
                f"encoded_size={self.encoded_size!r} must be a multiple of the autoencoder's "
                f"factor {factor}."
            )
        return sides[0], sides[1]

    def _check_channels(self, autoencoder: ImageAutoencoder) -> None:
        n_channels = self._image_format.n_channels
        if self.label_prediction == "velocity" and autoencoder.image_channels != 3:
            raise ValueError(
                f"label_prediction='velocity' encodes colours, but the autoencoder takes images "
                f"of {autoencoder.image_channels} channels: use label_prediction='posterior'."
            )
        if n_channels not in (1, autoencoder.image_channels):
            raise ValueError(
                f"X has images of {n_channels} channels; the autoencoder takes "
                f"{autoencoder.image_channels} (gray images are repeated). Select or convert "
                "channels, or train one with autoencoder='fit'."
            )

    # State

    def _plain_parameters(self) -> dict[str, Any]:
        parameters = super()._plain_parameters()
        if not isinstance(self.autoencoder, str):
            digest, _ = ImageAutoencoder(copy.deepcopy(self.autoencoder)).fingerprint()
            parameters["autoencoder"] = f"object {digest}"
        return parameters

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        if "_autoencoder" in state:
            document, tensors = autoencoder_to_record(self._autoencoder, by_name=False)
            module = None if document["kind"] != "object" else self._autoencoder.module
            arrays = {name: value.numpy() for name, value in tensors.items()}
            state["_autoencoder"] = [document, arrays, module]
            state["_latent_format"] = _format_to_plain(self._latent_format)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        if isinstance(state.get("_autoencoder"), (list, tuple)):
            document, arrays, module = state["_autoencoder"]
            tensors = {name: torch.tensor(value) for name, value in arrays.items()}
            state["_autoencoder"] = autoencoder_from_record(document, tensors, module)
            state["_latent_format"] = _format_from_plain(state["_latent_format"])
        super().__setstate__(state)
        if "_autoencoder" in state and hasattr(self, "field_"):
            self._autoencoder.to(next(self.field_.parameters()).device)

    def _saved_representation(self) -> tuple[dict[str, Any] | None, dict[str, Tensor]]:
        document, weights = autoencoder_to_record(self._autoencoder, by_name=True)
        latents = self._latent_format
        tensors = {f"autoencoder.{name}": value for name, value in weights.items()}
        tensors |= {"shift": latents.shift, "scale": latents.scale}
        if latents.mask_codes is not None:
            tensors["mask_codes"] = latents.mask_codes
        _, tensors["probe"] = self._autoencoder.fingerprint()
        return {"autoencoder": document, "encoded_size": list(latents.size)}, tensors

    def _open_representation(
        self, plain: Any, tensors: dict[str, Tensor], image_format: ImageFormat, given: Any
    ) -> int:
        self._autoencoder = autoencoder_from_record(
            plain["autoencoder"], part_of(tensors, "autoencoder"), given
        )
        _check_probe(self._autoencoder, tensors["probe"])
        factor, n_channels = self._autoencoder.factor, self._autoencoder.latent_channels
        height, width = (int(n) for n in plain["encoded_size"])
        if not all(0 < n <= _MAX_SIDE and n % factor == 0 for n in (height, width)):
            raise RecordError(f"The model has encoded_size={plain['encoded_size']!r}.")
        shift, scale, codes = tensors["shift"], tensors["scale"], tensors.get("mask_codes")
        wanted = {"shift": torch.empty(n_channels), "scale": torch.empty(n_channels)}
        found = {"shift": shift, "scale": scale}
        if codes is not None:
            found["mask_codes"] = codes
            wanted["mask_codes"] = torch.empty(
                len(codes), n_channels, height // factor, width // factor
            )
        check_tensors(found, wanted, "The scaling of the latents")
        if not bool((scale > 0).all()):
            raise RecordError("The model has a scaling of latents that is not positive.")
        self._latent_format = LatentFormat((height, width), shift, scale, codes)
        self._variation_seed = 0
        self._autoencoder_asked_for = self._plain_parameters()["autoencoder"]
        self._image_format = image_format
        self._check_channels(self._autoencoder)
        return n_channels

    @classmethod
    def from_pretrained(cls, folder: Any, autoencoder: Any = None) -> "LatentMixin":
        """Open a model that :meth:`save_pretrained` saved.

        Nothing in the files is executed. An autoencoder that was trained with the model, or
        came from a folder or as an object of diffusers, is in the files; one from the hub is
        named by id and revision, and opened from there.

        Parameters
        ----------
        folder : str or Path
            Folder of the model.
        autoencoder : str or object, optional
            The autoencoder of a model whose files do not hold it: a folder, an id on the hub,
            or an object with `encode` and `decode`.

        Returns
        -------
        LatentMedSymmFlowClassifier
            Fitted; predicts what the saved one did, to the last bit on the same machine.

        Raises
        ------
        FileNotFoundError
            Where the folder holds no model.
        ValueError
            For files that were cut off, changed or exchanged, for models of another class, and
            for an autoencoder that cannot be had or makes other latents.
        """
        return cls._open(folder, autoencoder)


def _check_probe(autoencoder: ImageAutoencoder, wanted: Tensor) -> None:
    """Refuse an autoencoder that makes other latents of a fixed image."""
    _, found = autoencoder.fingerprint()
    same = found.shape == wanted.shape
    if not same or float((found - wanted).abs().max()) > _PROBE_TOLERANCE * float(wanted.std()):
        raise AutoencoderError(
            "The autoencoder makes other latents than the one that the model was fitted with "
            f"({tuple(found.shape)} and {tuple(wanted.shape)}, or other values): pass that one, "
            "from_pretrained(folder, autoencoder=...)."
        )


def _format_to_plain(latents: LatentFormat) -> dict[str, Any]:
    """Arrays and numbers of a format, for pickles."""
    codes = latents.mask_codes
    return {
        "size": list(latents.size),
        "shift": latents.shift.numpy(),
        "scale": latents.scale.numpy(),
        "mask_codes": None if codes is None else codes.numpy(),
    }


def _format_from_plain(plain: dict[str, Any]) -> LatentFormat:
    codes = plain["mask_codes"]
    return LatentFormat(
        (int(plain["size"][0]), int(plain["size"][1])),
        torch.tensor(plain["shift"]),
        torch.tensor(plain["scale"]),
        None if codes is None else torch.tensor(codes),
    )


def _digest(images: np.ndarray, text: str) -> str:
    """Digest of images and of what is made of them."""
    digest = hashlib.sha256(f"{images.shape} {images.dtype.str} {text}".encode())
    digest.update(np.ascontiguousarray(images).tobytes())
    return digest.hexdigest()[:16]
