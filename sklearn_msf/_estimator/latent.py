"""What latents add to an estimator: a step before the field and a step after it."""

import math
import time
import warnings
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sklearn_msf._estimator.auto_settings import training_targets
from sklearn_msf._estimator.base import BaseMedSymmFlowClassifier
from sklearn_msf._estimator.data_validation import TrainingRows
from sklearn_msf._estimator.latent_serialization import OBJECT, LatentState
from sklearn_msf._estimator.parameters import draw_seed
from sklearn_msf._estimator.run_fingerprint import digest_arrays
from sklearn_msf.data.augmentation import mirror_images
from sklearn_msf.data.images import ImageFormat
from sklearn_msf.flow.label_codes import LabelCodes, make_label_codes
from sklearn_msf.latent.autoencoder import (
    AutoencoderError,
    ImageAutoencoder,
    as_autoencoder,
    open_autoencoder,
)
from sklearn_msf.latent.autoencoder_io import read_autoencoder, write_autoencoder
from sklearn_msf.latent.autoencoder_training import fit_autoencoder, fitted_factor
from sklearn_msf.latent.cache import keep_latents
from sklearn_msf.latent.latent_space import (
    LatentRepresentation,
    LatentTrainingData,
    encode_variations,
)
from sklearn_msf.latent.scaling import LatentFormat, learn_latent_format
from sklearn_msf.nn.precision import resolve_precision
from sklearn_msf.runtime.device import resolve_device
from sklearn_msf.training.batches import TrainingData
from sklearn_msf.training.checkpoints import CheckpointMismatchError

__all__ = ["LatentMixin"]

_PAPER_AUTOENCODER = "stabilityai/sd-vae-ft-mse"
# Share of a time budget in which an autoencoder is trained.
_FIT_SHARE = 1 / 3
# Share of what is left of it that "auto" variations may take to encode.
_ENCODING_SHARE = 0.5
_N_TIMED = 16
# "auto" variations: as many as make this many encoded pixels, at most so many an image.
_AUTO_PIXELS = 4_000 * 224 * 224
_MAX_AUTO_VARIATIONS = 32


class LatentMixin(LatentState, BaseMedSymmFlowClassifier):
    """Puts an autoencoder between the images and the field."""

    # Constructor parameters of the subclass.
    autoencoder: Any
    encoded_size: Any
    label_decoding: str
    n_variations: Any
    time_budget: Any
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

    def _preparing_share(self) -> float:
        named = isinstance(self.autoencoder, str) and self.autoencoder in ("fit", "auto")
        return _FIT_SHARE if named and self._autoencoder.source["kind"] != "hub" else 0.0

    def _learn_representation(
        self, data: TrainingRows, random_state: np.random.RandomState, started: float
    ) -> None:
        """Open or train the autoencoder, and learn the scaling of its latents."""
        device = resolve_device(self.device)
        images = self._image_format.to_numpy_images(data.rows)
        fit_seed, self._variation_seed = draw_seed(random_state), draw_seed(random_state)
        # Where there are checkpoints it is open already.
        autoencoder = self.__dict__.pop("_opened", None) or self._open_autoencoder()
        if autoencoder is None:
            autoencoder = self._fitted_autoencoder(images, fit_seed, device, started)
        self._autoencoder = autoencoder.to(device)
        self._autoencoder_asked_for = self.autoencoder
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
        if not isinstance(wanted, str) or wanted not in ("fit", "auto"):
            return as_autoencoder(wanted)
        if wanted == "fit":
            return None
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
        asked = self._image_format.size if self.encoded_size is None else self.encoded_size
        sides = np.broadcast_to(asked, 2).tolist()
        size = self._encoded_size(fitted_factor((sides[0], sides[1])))
        masks = f"{self.label_prediction} {len(self.classes_)}"
        made = f"{seed} {size} {precision} {self.time_budget} {masks}"
        key = digest_arrays(images, np.array(made))
        folder = None if self.checkpoint_dir is None else Path(self.checkpoint_dir)
        autoencoder = None if folder is None else read_autoencoder(folder, key)
        if autoencoder is None and folder is not None and any(folder.glob("checkpoint-*.json")):
            raise CheckpointMismatchError(
                f"checkpoint_dir={str(folder)!r} holds checkpoints, but not the autoencoder that "
                "was trained with them: use another folder, or delete this one to start anew."
            )
        if autoencoder is None:
            seconds = None
            if self.time_budget is not None:
                seconds = _FIT_SHARE * (self.time_budget - (time.perf_counter() - started))
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

    def _training_data(
        self, data: TrainingRows, device: torch.device, started: float
    ) -> TrainingData:
        """Encode variations of the images, or find them where they were encoded before."""
        if not self._is_asked_for():
            raise ValueError(
                f"Training cannot go on with another autoencoder, {self.autoencoder!r}, than the "
                "model was fitted with; set it back, or fit anew with warm_start=False."
            )
        augment, representation = self._augmentation(), self._representation
        images = self._image_format.to_numpy_images(data.rows)
        n_flips = len(mirror_images(torch.empty(0, 1, 1, 1), augment))
        n_variations = self._count_variations(len(images), n_flips, augment)
        if self.n_variations == "auto" and self.time_budget is not None and n_variations > 1:
            n_variations = min(n_variations, self._count_affordable(images, started))
        channels, height, width = representation.shape
        channels *= 1 + self._autoencoder.has_deviation
        latents = keep_latents(
            (len(images), n_variations, channels, height, width),
            lambda latents: encode_variations(
                latents, images, representation, augment, self._variation_seed
            ),
            fingerprint=lambda: digest_arrays(
                images,
                np.array(
                    f"{self._autoencoder.fingerprint()[0]} {augment} {n_variations} "
                    f"{self._latent_format.size} {self._variation_seed} {representation.precision}"
                ),
            ),
            folder=None if self.checkpoint_dir is None else Path(self.checkpoint_dir),
            max_bytes=int(self.cache_bytes),
        )
        n_drawable = min(n_flips, n_variations)
        return LatentTrainingData(
            latents, n_drawable, representation.shape[0], *training_targets(data), device
        )

    def _count_variations(self, n_images: int, n_flips: int, augment: str | None) -> int:
        if augment is None:
            return 1
        if self.n_variations != "auto":
            return int(self.n_variations)
        n_pixels = n_images * math.prod(self._latent_format.size)
        wanted = min(_MAX_AUTO_VARIATIONS, math.ceil(_AUTO_PIXELS / n_pixels))
        return max(n_flips, wanted) if "affine" in augment else n_flips

    def _count_affordable(self, images: np.ndarray, started: float) -> int:
        """Variations that a share of the time left is enough for."""
        representation, before = self._representation, time.perf_counter()
        some = ImageFormat.normalise(torch.from_numpy(images[:_N_TIMED]))
        representation.encode(some)
        now = time.perf_counter()
        left = self.time_budget - (now - started)
        seconds_each = (now - before) / len(some)
        return max(1, int(_ENCODING_SHARE * left / (seconds_each * len(images))))

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

    def _is_asked_for(self) -> bool:
        """Whether the autoencoder at hand is that of the parameters."""
        asked, now = self._autoencoder_asked_for, self.autoencoder
        return asked is now or (isinstance(asked, str) and isinstance(now, str) and asked == now)

    def _plain_parameters(self) -> dict[str, Any]:
        parameters = super()._plain_parameters()
        if not isinstance(self.autoencoder, (str, PathLike)):
            parameters["autoencoder"] = OBJECT
        return parameters

    def _fingerprint_parameters(self, *, warm: bool) -> dict[str, Any]:
        """Describe the parameters, and the autoencoder where it can be had before fit."""
        parameters = super()._fingerprint_parameters(warm=warm)
        opened = self._autoencoder if warm else self._open_autoencoder()
        if opened is not None and not warm:
            self._opened = opened
        parameters["autoencoder"] = "fit" if opened is None else opened.fingerprint()[0]
        return parameters
