"""Preparation of a fit over latents: open or train the encoders, encode the images once."""

import math
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sklearn_msf._estimator.data_validation import TrainingSamples
from sklearn_msf._estimator.parameters import Parameters, draw_seed
from sklearn_msf._estimator.preparation import training_targets
from sklearn_msf._estimator.run_fingerprint import digest_arrays
from sklearn_msf.data.augmentation import mirror_images
from sklearn_msf.data.images import ImageFormat
from sklearn_msf.data.on_demand import ImagesOnDemand
from sklearn_msf.exceptions import AutoencoderError, CheckpointMismatchError
from sklearn_msf.flow.label_codes import LabelCodes, make_label_codes
from sklearn_msf.latent.autoencoder import ImageAutoencoder
from sklearn_msf.latent.autoencoder_io import read_autoencoder, write_autoencoder
from sklearn_msf.latent.autoencoder_latents import learn_latents
from sklearn_msf.latent.autoencoder_opening import as_autoencoder, open_hub_autoencoder
from sklearn_msf.latent.autoencoder_training import fit_autoencoder, fitted_factor
from sklearn_msf.latent.backbone import ImageBackbone
from sklearn_msf.latent.backbone_features import learn_features
from sklearn_msf.latent.backbone_opening import as_backbone
from sklearn_msf.latent.cache import keep_latents
from sklearn_msf.latent.frozen_network import some_values
from sklearn_msf.latent.latent_batches import LatentTrainingData, encode_variations
from sklearn_msf.latent.latent_space import (
    GivenEncoders,
    LatentSpace,
    check_channels,
    check_colours,
)
from sklearn_msf.model.image_space import FieldInputs, ImageSpace
from sklearn_msf.nn.precision import resolve_precision
from sklearn_msf.persistence.archives import ArchiveError
from sklearn_msf.persistence.hub import is_hub_id
from sklearn_msf.persistence.json_data import is_seed
from sklearn_msf.persistence.limits import check_resized_size
from sklearn_msf.persistence.whole_files import write_file
from sklearn_msf.runtime.user_warnings import warn_user
from sklearn_msf.training.batches import TrainingData
from sklearn_msf.training.checkpoints import measured

__all__ = ["ENCODERS", "OBJECT", "LatentOrigin", "LatentPreparation", "encoder_parameter"]

# Parameters that name an encoder, and their placeholder in files for one that is an object.
ENCODERS = ("autoencoder", "backbone")
OBJECT = "<object>"
_NONE_GIVEN = GivenEncoders()
_PAPER_AUTOENCODER = "stabilityai/sd-vae-ft-mse"
# The commit with its weights as safetensors, so that "auto" is the same autoencoder at any time.
_PAPER_REVISION = "31f26fdeee1355a5c34592e401dd41e45d25a493"
# Fraction of a time budget for training an autoencoder.
_FIT_FRACTION = 1 / 3
# Fraction of the remaining time budget for encoding "auto" variations.
_ENCODING_FRACTION = 0.5
_N_TIMED = 16
# File beside checkpoints with the number of variations that a time budget allowed.
_NUMBER_OF_VARIATIONS = "latents-number-of-variations.txt"
# "auto" variations: so many that this many pixels are encoded, but at most so many of each image.
_AUTO_PIXELS = 4_000 * 224 * 224
_MAX_AUTO_VARIATIONS = 32
# Raise it when a seed gives other variations, so that latents in older files are not used again.
_RECIPE = 2


@dataclass(frozen=True)
class LatentOrigin:
    """State of the first fit, which later fits that continue it need.

    Attributes
    ----------
    autoencoder : object
        The parameter `autoencoder` of the first fit.
    variation_seed : int
        Seed of the encoded variations.
    backbone : object
        The parameter `backbone` of the first fit.
    """

    autoencoder: Any
    variation_seed: int
    # Pickles from before there were backbones have none.
    backbone: Any = None

    def to_plain(self) -> dict[str, Any]:
        """Return what files hold: the seed. The parameters are saved with the others."""
        return {"variation_seed": self.variation_seed}


def _mask_palette(p: Parameters, n_classes: int) -> LabelCodes | None:
    """Return the colours of the classes if the field carries encoded masks, else None."""
    if p.label_prediction != "velocity":
        return None
    return make_label_codes(p.label_encoding, n_classes, 0.0)


class LatentPreparation:
    """Opens or trains the autoencoder, opens the backbone, and encodes the training images.

    Parameters
    ----------
    p : Parameters
        Checked parameters.
    device : torch.device
        Device of the network.
    space : LatentSpace, optional
        Space of the fit to continue.
    origin : LatentOrigin, optional
        Origin of the fit to continue.

    Raises
    ------
    ValueError
        If the parameter `autoencoder` or `backbone` has changed since the fit to continue.
    """

    def __init__(
        self,
        p: Parameters,
        device: torch.device,
        space: LatentSpace | None = None,
        origin: LatentOrigin | None = None,
    ):
        self._p = p
        self._device = device
        self._precision = resolve_precision(p.precision, device)
        self._origin = origin
        features = None if space is None else space.features
        self._autoencoder = None if space is None else space.autoencoder
        self._backbone = None if features is None else features.backbone
        self.goes_on = self.has_checkpoints = False
        self._is_opened = space is not None
        self._is_keeper = False
        # Of the autoencoder that this fit has trained.
        self._key_of_fitted: str | None = None
        for name in ENCODERS if origin is not None else ():
            asked, now = getattr(origin, name), getattr(p, name)
            if not _is_same(asked, now):
                raise ValueError(
                    f"Training cannot go on with another {name}, {now!r}, than the "
                    "model was fitted with; set it back, or fit anew with warm_start=False."
                )
        if space is not None and self._wanted_size(space) != space.encoded_size:
            raise ValueError(
                f"Training cannot go on with encoded_size={p.encoded_size!r}: the model was fitted "
                f"on images of {space.encoded_size} for its encoders. Set it back, or fit anew "
                "with warm_start=False."
            )

    @staticmethod
    def read_space(
        plain: Any,
        tensors: dict[str, torch.Tensor],
        image_format: ImageFormat,
        p: Parameters,
        n_classes: int,
        *,
        known: Any = None,
        plain_origin: Any = None,
        given: GivenEncoders = _NONE_GIVEN,
    ) -> tuple[LatentSpace, LatentOrigin]:
        """Return the space that a saved model describes, with encoders that were `given`."""
        palette = _mask_palette(p, n_classes)
        space = LatentSpace.from_plain(plain, tensors, image_format, palette, given, known)
        parameters = {
            name: encoder_parameter(getattr(p, name), getattr(given, name), space.module_of(name))
            for name in ENCODERS
        }
        # Older files have no seed.
        seed = 0 if plain_origin is None else plain_origin["variation_seed"]
        if not is_seed(seed):
            raise ArchiveError(f"The model has variation_seed={seed!r}; expected an integer >= 0.")
        return space, LatentOrigin(variation_seed=seed, **parameters)

    @property
    def origin(self) -> LatentOrigin | None:
        """Parameters of the encoders, seed of the variations; None before :meth:`learn_space`."""
        return self._origin

    def fingerprint(self) -> dict[str, Any]:
        """Describe what was opened, by a digest and by what it makes of a fixed image.

        The digest is None for no encoder, and "fit" for the one that is trained by this fit.
        """
        found: dict[str, Any] = {"autoencoder": "fit" if self._trains_one else None}
        found["backbone"] = None
        for name, encoder in (("autoencoder", self._autoencoder), ("backbone", self._backbone)):
            if encoder is not None:
                found[name], probe = encoder.fingerprint()
                found[f"what the {name} makes of a fixed image"] = measured(some_values(probe))
        return found

    @property
    def _trains_one(self) -> bool:
        """Whether an autoencoder is to be trained, once :meth:`open` was called."""
        return self._p.autoencoder is not None and self._autoencoder is None

    def learn_space(
        self, samples: TrainingSamples, random_state: np.random.RandomState, started: float
    ) -> LatentSpace:
        """Open or train the encoders, and learn the scaling of what they make."""
        image_format = samples.image_format
        images = samples.images_of_an_epoch
        palette = _mask_palette(self._p, len(samples.classes))
        fit_seed, variation_seed = draw_seed(random_state), draw_seed(random_state)
        self.open()
        self._check_time_left(started)
        if self._backbone is not None:
            # Before an autoencoder is trained, which takes long.
            check_channels(image_format, self._backbone, encodes_masks=False)
        if self._trains_one:
            check_colours(image_format, encodes_masks=palette is not None)
            self._autoencoder = self._fitted_autoencoder(samples, palette, fit_seed, started)
        self._origin = LatentOrigin(self._p.autoencoder, variation_seed, self._p.backbone)
        space = LatentSpace(image_format, None, palette)
        if self._autoencoder is not None:
            space = self._with_latents(space, images, self._autoencoder.to(self._device))
        if self._backbone is not None:
            space = self._with_features(space, images, self._backbone.to(self._device))
        return space

    def _with_latents(
        self, space: LatentSpace, images: ImagesOnDemand, autoencoder: ImageAutoencoder
    ) -> LatentSpace:
        image_format, palette = space.image_format, space.palette
        check_channels(image_format, autoencoder, encodes_masks=palette is not None)
        size = self._encoded_size(image_format, autoencoder.factor, autoencoder.image_size)
        latents = learn_latents(images, autoencoder, size, self._precision, palette)
        return replace(space, latents=latents)

    def _with_features(
        self, space: LatentSpace, images: ImagesOnDemand, backbone: ImageBackbone
    ) -> LatentSpace:
        size = self._size_for_backbone(space, backbone)
        check_resized_size("encoded_size", size, space.image_format.size)
        features = learn_features(images, backbone, size, self._precision)
        if space.latents is not None:
            features = features.on_grid(space.shape[1:])
        return replace(space, features=features)

    def _size_for_backbone(self, space: LatentSpace, backbone: ImageBackbone) -> tuple[int, int]:
        height, width = backbone.preprocessing.size or space.image_format.size
        if space.autoencoder is None and self._p.encoded_size is not None:
            height, width = np.broadcast_to(self._p.encoded_size, 2).tolist()
        return height, width

    def _wanted_size(self, space: LatentSpace) -> tuple[int, int]:
        """Compute the size that the parameter asks for, for the encoders of a space."""
        if space.autoencoder is None:
            assert space.features is not None
            return self._size_for_backbone(space, space.features.backbone)
        autoencoder = space.autoencoder
        return self._encoded_size(space.image_format, autoencoder.factor, autoencoder.image_size)

    def keep(self, space: ImageSpace) -> None:
        """Write what a run that goes on needs beside the checkpoints, now and later.

        That is a fitted autoencoder, and the number of variations that the time allows. Of several
        processes only the first one is asked to.
        """
        assert isinstance(space, LatentSpace)
        self._is_keeper = True
        if self._folder is not None and self._key_of_fitted is not None:
            assert space.autoencoder is not None
            write_autoencoder(self._folder, self._key_of_fitted, space.autoencoder)

    def training_data(
        self,
        space: ImageSpace,
        samples: TrainingSamples,
        augment: str | None,
        started: float,
        part: int | None = None,
    ) -> TrainingData:
        """Encode variations of the images, or reuse those that an earlier run wrote to a file.

        Of each image of a `part`, which is seen once, "auto" makes one random variation besides the
        flips, and another one in each part.
        """
        assert isinstance(space, LatentSpace)
        assert self._origin is not None
        p, seed = self._p, self._origin.variation_seed
        if part is not None:
            seed = int(np.random.SeedSequence([seed, part]).generate_state(1)[0])
        images = samples.images
        n_flips = len(mirror_images(torch.empty(0, 1, 1, 1), augment))
        n_variations = self._count_variations(space, len(images), n_flips, augment)
        if p.n_variations == "auto" and part is not None:
            n_variations = n_flips + (augment is not None and "affine" in augment)
        if p.n_variations == "auto" and p.time_budget is not None and n_variations > 1:
            n_variations = min(n_variations, self._count_affordable(space, images, started))
        if n_variations < n_flips:
            # The flips of one axis come first: a part of those of the other would be seen in
            # training alone, and neither checked nor averaged over.
            n_variations = 1 << (n_variations.bit_length() - 1)
        channels, height, width = space.shape
        channels += space.n_deviations
        latents = keep_latents(
            (len(images), n_variations, channels, height, width),
            lambda latents: encode_variations(
                latents, images, space, augment, seed, self._precision
            ),
            fingerprint=lambda: digest_arrays(
                images,
                np.array(
                    f"{space.digest()} {augment} {n_variations} {seed} {self._precision} {_RECIPE}"
                ),
            ),
            folder=self._folder,
            max_bytes=int(p.cache_bytes),
        )
        n_plain = min(n_flips, n_variations)
        return LatentTrainingData(
            latents,
            n_plain,
            space.shape[0],
            space.shape[0] - space.n_latent,
            *training_targets(samples),
            self._device,
        )

    def inputs_of(
        self,
        space: ImageSpace,
        data: TrainingData,
        samples: TrainingSamples,
        indices: np.ndarray,
        precision: str,
        flips: Sequence[tuple[int, ...]],
    ) -> FieldInputs:
        """Return latents that training has encoded: to encode them again would take time."""
        assert isinstance(data, LatentTrainingData)
        if len(flips) > data.n_flips:
            # The first of several processes had the time to encode more flips than this one.
            return space.kept_inputs(samples.take(indices).rows, self._device, precision, flips)
        return data.inputs_of(torch.from_numpy(indices), flips)

    @property
    def _folder(self) -> Path | None:
        folder = self._p.checkpoint_dir
        return None if folder is None else Path(folder)

    def open(self) -> None:
        """Open both encoders, once; an autoencoder that will be trained stays None."""
        if not self._is_opened:
            backbone = self._p.backbone
            self._backbone = None if backbone is None else as_backbone(backbone)
            self._autoencoder = _open_autoencoder(self._p.autoencoder)
            self._is_opened = True

    def _check_time_left(self, started: float) -> None:
        """Refuse to train where finding the encoders took the whole time budget."""
        budget = self._p.time_budget
        spent = time.perf_counter() - started
        named = {name: getattr(self._p, name) for name in ENCODERS}
        by_name = {n: v for n, v in named.items() if isinstance(v, (str, PathLike))}
        if budget is None or spent < budget or not by_name or self.goes_on:
            return
        looked_for = [f"{n}={v!r}" for n, v in by_name.items() if v != "fit"]
        what, remedy = "checking X", ""
        if looked_for:
            what += f" and opening {' and '.join(looked_for)}"
        if any(is_hub_id(str(v)) and not Path(v).is_dir() for v in by_name.values() if v != "fit"):
            remedy = "; a folder needs no answer from the Hugging Face hub"
        raise ValueError(
            f"time_budget={budget!r} was over before training began: {what} took {spent:.1f} "
            f"seconds. Set a larger time_budget{remedy}."
        )

    def _fitted_autoencoder(
        self,
        samples: TrainingSamples,
        palette: LabelCodes | None,
        seed: int,
        started: float,
    ) -> ImageAutoencoder:
        """Train an autoencoder, or read the one that an interrupted run had trained."""
        p, folder = self._p, self._folder
        images, image_format = samples.images, samples.image_format
        asked = image_format.size if p.encoded_size is None else p.encoded_size
        sides = np.broadcast_to(asked, 2).tolist()
        size = self._encoded_size(image_format, fitted_factor((sides[0], sides[1])))
        masks = f"{p.label_prediction} {0 if palette is None else palette.n_classes}"
        budget = None if p.time_budget is None else float(p.time_budget)
        made = f"{seed} {size} {self._precision} {budget} {masks}"
        key = digest_arrays(images, samples.weights, np.array(made))
        autoencoder = None if folder is None else read_autoencoder(folder, key)
        if autoencoder is None and self.goes_on and self.has_checkpoints:
            raise CheckpointMismatchError(
                f"checkpoint_dir={str(folder)!r} holds checkpoints, but not the autoencoder that "
                "was trained with them: use another folder, or delete this one to start anew."
            )
        if autoencoder is None:
            seconds = None
            if p.time_budget is not None:
                seconds = _FIT_FRACTION * (p.time_budget - (time.perf_counter() - started))
            autoencoder = fit_autoencoder(
                images,
                size,
                weights=samples.weights,
                seed=seed,
                device=self._device,
                precision=self._precision,
                seconds=seconds,
                palette=palette,
            )
            self._key_of_fitted = key
        return autoencoder

    def _count_variations(
        self, space: LatentSpace, n_images: int, n_flips: int, augment: str | None
    ) -> int:
        if augment is None:
            return 1
        if self._p.n_variations != "auto":
            return int(self._p.n_variations)
        n_pixels = n_images * space.encoded_pixels
        wanted = min(_MAX_AUTO_VARIATIONS, math.ceil(_AUTO_PIXELS / n_pixels))
        return max(n_flips, wanted) if "affine" in augment else n_flips

    def _count_affordable(self, space: LatentSpace, images: ImagesOnDemand, started: float) -> int:
        """Count the variations that the time allows; a run that goes on keeps its number."""
        if self._folder is None:
            return self._measure_affordable(space, images, started)
        noted = self._folder / _NUMBER_OF_VARIATIONS
        if self.goes_on:
            with suppress(OSError, ValueError):
                return max(1, int(noted.read_text(encoding="ascii")))
        n_affordable = self._measure_affordable(space, images, started)
        if self._is_keeper:
            # As for checkpoints: a full disk is no reason to end the fit.
            with suppress(OSError):
                write_file(noted, b"%d" % n_affordable)
        return n_affordable

    def _measure_affordable(
        self, space: LatentSpace, images: ImagesOnDemand, started: float
    ) -> int:
        """Count the variations that can be encoded in a fraction of the remaining time."""
        some = ImageFormat.normalise(torch.from_numpy(images[:_N_TIMED]))
        if self._device.type == "cuda":
            # The first pass loads libraries.
            space.encode(some[:1], self._precision)
        before = time.perf_counter()
        space.encode(some, self._precision)
        now = time.perf_counter()
        left = self._p.time_budget - (now - started)
        seconds_each = (now - before) / len(some)
        return max(1, int(_ENCODING_FRACTION * left / (seconds_each * len(images))))

    def _encoded_size(
        self, image_format: ImageFormat, factor: int, only: tuple[int, int] | None = None
    ) -> tuple[int, int]:
        """Compute the size to which images are resized before they are encoded.

        `only` is the size that an autoencoder resizes everything to, if it has one.
        """
        if self._p.encoded_size is None and only is not None:
            return only
        if self._p.encoded_size is None:
            height, width = image_format.size
            if min(height, width) < factor:
                raise ValueError(
                    f"X has images of {height} x {width} pixels, but the autoencoder needs at "
                    f"least {factor} x {factor}: set encoded_size to enlarge them"
                    f"{', and image_shape for rows' if image_format.flat else ''}."
                )
            return factor * math.ceil(height / factor), factor * math.ceil(width / factor)
        sides = np.broadcast_to(self._p.encoded_size, 2).tolist()
        check_resized_size("encoded_size", sides, image_format.size)
        if any(side % factor for side in sides):
            raise ValueError(
                f"encoded_size={self._p.encoded_size!r} must be a multiple of the autoencoder's "
                f"factor {factor}."
            )
        return sides[0], sides[1]


def encoder_parameter(saved: Any, given: Any, module: Any) -> Any:
    """Return the value of an encoder's parameter in a model that is opened.

    Parameters
    ----------
    saved : object
        The parameter in the file; `OBJECT` stands for an object.
    given : object
        What the user passed to open the model, or None.
    module : object
        The module that is used.
    """
    if given is not None:
        return given
    return module if isinstance(saved, str) and saved == OBJECT else saved


def _open_autoencoder(wanted: Any) -> ImageAutoencoder | None:
    """Open the autoencoder that the parameter names; None for none, and if one will be trained."""
    if wanted is None or (isinstance(wanted, str) and wanted == "fit"):
        return None
    if not isinstance(wanted, str) or wanted != "auto":
        return as_autoencoder(wanted)
    try:
        return open_hub_autoencoder(_PAPER_AUTOENCODER, _PAPER_REVISION)
    except AutoencoderError as error:
        warn_user(
            f"autoencoder='auto': {_PAPER_AUTOENCODER} cannot be opened "
            f"({error.__cause__ or error}), a small autoencoder is trained on X.",
        )
        return None


def _is_same(asked: Any, now: Any) -> bool:
    """Tell whether two values of an encoder's parameter name the same one."""
    if not isinstance(asked, (str, PathLike)) or not isinstance(now, (str, PathLike)):
        return asked is now
    if isinstance(asked, str) and isinstance(now, str):
        return asked == now
    # A Path is a folder, and never one of the words that are no names.
    is_word = any(isinstance(value, str) and value in ("auto", "fit") for value in (asked, now))
    return not is_word and Path(asked) == Path(now)
