"""Preparation of a fit over latents: open or train the encoders, encode the images once."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sklearn_msf._estimator.data_validation import TrainingSamples
from sklearn_msf._estimator.encoded_sizes import (
    as_sides,
    size_for_autoencoder,
    size_for_backbone,
)
from sklearn_msf._estimator.parameters import START_ANEW, Parameters, draw_seed
from sklearn_msf._estimator.preparation import Run, training_targets
from sklearn_msf._estimator.run_fingerprint import digest_arrays
from sklearn_msf._estimator.variation_count import (
    affordable_variations,
    count_flips,
    count_variations,
    count_within_run,
)
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
from sklearn_msf.latent.backbone_io import read_features, write_features
from sklearn_msf.latent.backbone_opening import as_backbone
from sklearn_msf.latent.cache import keep_latents
from sklearn_msf.latent.channel_checks import check_channels, check_colours
from sklearn_msf.latent.frozen_network import some_values
from sklearn_msf.latent.latent_batches import LatentTrainingData, encode_variations
from sklearn_msf.latent.latent_space import GivenEncoders, LatentSpace
from sklearn_msf.model.image_space import FieldInputs, ImageSpace
from sklearn_msf.nn.precision import resolve_precision
from sklearn_msf.persistence.archives import ArchiveError
from sklearn_msf.persistence.hub import is_hub_id
from sklearn_msf.persistence.json_data import is_seed
from sklearn_msf.persistence.limits import check_resized_size
from sklearn_msf.persistence.paths import as_path
from sklearn_msf.runtime.out_of_memory import naming_what_takes_memory
from sklearn_msf.runtime.user_warnings import warn_user
from sklearn_msf.training.batches import TrainingData
from sklearn_msf.training.fingerprints import measured

__all__ = [
    "ENCODERS",
    "OBJECT",
    "LatentOrigin",
    "LatentPreparation",
    "encoder_parameter",
    "is_same_encoder",
]

# Parameters that name an encoder, and their placeholder in files for one that is an object.
ENCODERS = ("autoencoder", "backbone")
OBJECT = "<object>"
_NONE_GIVEN = GivenEncoders()
_PAPER_AUTOENCODER = "stabilityai/sd-vae-ft-mse"
# The commit with its weights as safetensors, so that "auto" is the same autoencoder at any time.
_PAPER_REVISION = "31f26fdeee1355a5c34592e401dd41e45d25a493"
# Fraction of a time budget for training an autoencoder.
_FIT_FRACTION = 1 / 3
# Raise it when a seed gives other variations, so that latents in older files are not used again.
_RECIPE = 2
_OUT_OF_MEMORY = (
    "Encoding the images, or training the autoencoder, ran out of memory: set a smaller "
    "encoded_size or n_variations, or resize X"
)


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
        # None until they are opened, or for none. Those of the fit to continue are open.
        self._encoders: _Encoders | None = None
        if space is not None:
            self._encoders = _Encoders(space.autoencoder, space.backbone)
        for name in ENCODERS if origin is not None else ():
            asked, now = getattr(origin, name), getattr(p, name)
            if not is_same_encoder(asked, now):
                raise ValueError(
                    f"Training cannot go on with another {name}, {now!r}, than the "
                    f"model was fitted with; set it back, or {START_ANEW}."
                )
        if space is not None and self._wanted_size(space) != space.encoded_size:
            raise ValueError(
                f"Training cannot go on with encoded_size={p.encoded_size!r}: the model was fitted "
                f"on images of {space.encoded_size} for its encoders. Set it back, or {START_ANEW}."
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
        """Describe the encoders, by a digest and by what each makes of a fixed image.

        The digest is None for no encoder, and "fit" for the one that is trained by this fit.
        """
        opened = self._opened
        found: dict[str, Any] = {"autoencoder": "fit" if self._trains_one else None}
        found["backbone"] = None
        for name, encoder in (("autoencoder", opened.autoencoder), ("backbone", opened.backbone)):
            if encoder is not None:
                found[name], probe = encoder.fingerprint()
                found[f"what the {name} makes of a fixed image"] = measured(some_values(probe))
        return found

    @naming_what_takes_memory(_OUT_OF_MEMORY)
    def learn_space(
        self, samples: TrainingSamples, random_state: np.random.RandomState, run: Run
    ) -> LatentSpace:
        """Open or train the encoders, and learn the scaling of what they make."""
        image_format = samples.image_format
        images = samples.images_of_an_epoch
        palette = _mask_palette(self._p, len(samples.classes))
        fit_seed, variation_seed = draw_seed(random_state), draw_seed(random_state)
        autoencoder, backbone = self._opened.autoencoder, self._opened.backbone
        self._check_time_left(run)
        if backbone is not None:
            # Before an autoencoder is trained, which takes long.
            check_channels(image_format, backbone, encodes_masks=False)
        if self._trains_one:
            check_colours(image_format, encodes_masks=palette is not None)
            autoencoder = self._fitted_autoencoder(samples, palette, fit_seed, run)
        self._origin = LatentOrigin(self._p.autoencoder, variation_seed, self._p.backbone)
        space = LatentSpace(image_format, None, palette)
        if autoencoder is not None:
            space = self._with_latents(space, images, autoencoder.to(self._device))
        if backbone is not None:
            space = self._with_features(space, samples, backbone.to(self._device), run)
        return space

    def _with_latents(
        self, space: LatentSpace, images: ImagesOnDemand, autoencoder: ImageAutoencoder
    ) -> LatentSpace:
        image_format, palette = space.image_format, space.palette
        check_channels(image_format, autoencoder, encodes_masks=palette is not None)
        size = self._size_for_autoencoder(image_format, autoencoder)
        latents = learn_latents(images, autoencoder, size, self._precision, palette)
        return replace(space, latents=latents)

    def _with_features(
        self, space: LatentSpace, samples: TrainingSamples, backbone: ImageBackbone, run: Run
    ) -> LatentSpace:
        image_size = space.image_format.size
        size = self._size_for_backbone(space, backbone)
        check_resized_size("encoded_size", size, image_size)
        assert self._origin is not None
        features, folder, key = None, self._folder, ""
        if folder is not None:
            made = f"{backbone.digest_of_weights()} {size} {self._origin.variation_seed}"
            key = digest_arrays(samples.images, samples.weights, np.array(made))
        if folder is not None and run.goes_on:
            features = read_features(
                folder, key, image_size, backbone, is_expected=run.has_checkpoints
            )
        if features is None:
            images = samples.images_of_an_epoch
            features = learn_features(images, backbone, size, self._precision)
            if folder is not None and run.is_first:
                write_features(folder, key, features)
        if space.latents is not None:
            features = features.on_grid(space.shape[1:])
        return replace(space, features=features)

    def _size_for_autoencoder(
        self, image_format: ImageFormat, autoencoder: ImageAutoencoder
    ) -> tuple[int, int]:
        factor, only = autoencoder.factor, autoencoder.image_size
        return size_for_autoencoder(self._p.encoded_size, image_format, factor, only)

    def _size_for_backbone(self, space: LatentSpace, backbone: ImageBackbone) -> tuple[int, int]:
        asked = self._p.encoded_size if space.autoencoder is None else None
        return size_for_backbone(asked, space.image_format, backbone.preprocessing.size)

    def _wanted_size(self, space: LatentSpace) -> tuple[int, int]:
        """Compute the size that the parameter asks for, for the encoders of a space."""
        if space.autoencoder is None:
            assert space.backbone is not None
            return self._size_for_backbone(space, space.backbone)
        return self._size_for_autoencoder(space.image_format, space.autoencoder)

    @naming_what_takes_memory(_OUT_OF_MEMORY)
    def training_data(
        self,
        space: ImageSpace,
        samples: TrainingSamples,
        augment: str | None,
        run: Run,
        part: int | None = None,
    ) -> TrainingData:
        """Encode variations of the images, or reuse those that an earlier run wrote to a file.

        Of each image of a `part`, which is seen once, "auto" makes one random variation besides the
        flips, and another one in each part.
        """
        assert isinstance(space, LatentSpace)
        assert self._origin is not None
        seed = self._origin.variation_seed
        if part is not None:
            seed = int(np.random.SeedSequence([seed, part]).generate_state(1)[0])
        images = samples.images
        n_variations = self._count_variations(
            space, images, augment, run, are_seen_once=part is not None
        )
        channels, height, width = space.shape
        channels += space.n_deviations
        of_latents = f"{augment} {n_variations} {seed} {self._precision} {_RECIPE}"
        latents = keep_latents(
            (len(images), n_variations, channels, height, width),
            lambda latents: encode_variations(
                latents, images, space, augment, seed, self._precision
            ),
            fingerprint=lambda: digest_arrays(images, np.array(f"{space.digest()} {of_latents}")),
            folder=self._folder,
            max_bytes=int(self._p.cache_bytes),
        )
        return LatentTrainingData(
            latents,
            min(count_flips(augment), n_variations),
            space.shape[0],
            space.shape[0] - space.n_latent,
            *training_targets(samples),
            self._device,
        )

    def _count_variations(
        self,
        space: LatentSpace,
        images: ImagesOnDemand,
        augment: str | None,
        run: Run,
        *,
        are_seen_once: bool,
    ) -> int:
        p, affordable = self._p, None
        if p.time_budget is not None:
            measure = partial(
                affordable_variations,
                space,
                images,
                self._precision,
                self._device,
                run.started + p.time_budget,
                run.n_unseen * min(int(p.n_draws), count_flips(augment)),
            )
            assert self._origin is not None
            seed = self._origin.variation_seed
            affordable = partial(count_within_run, self._folder, seed, run, measure)
        return count_variations(
            p.n_variations,
            augment,
            len(images),
            space.encoded_pixels,
            are_seen_once=are_seen_once,
            affordable=affordable,
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
            rows = samples.take(indices).rows
            return space.inputs(rows, self._device, precision, flips, repeated=True)
        return data.inputs_of(torch.from_numpy(indices), flips)

    @property
    def _folder(self) -> Path | None:
        folder = self._p.checkpoint_dir
        return None if folder is None else as_path("checkpoint_dir", folder)

    @property
    def _opened(self) -> "_Encoders":
        """Both encoders, opened once; an autoencoder that will be trained stays None."""
        if self._encoders is None:
            backbone = self._p.backbone
            opened = None if backbone is None else as_backbone(backbone)
            self._encoders = _Encoders(_open_autoencoder(self._p.autoencoder), opened)
        return self._encoders

    @property
    def _trains_one(self) -> bool:
        """Whether an autoencoder is to be trained."""
        return self._p.autoencoder is not None and self._opened.autoencoder is None

    def _check_time_left(self, run: Run) -> None:
        """Refuse to train where finding the encoders took the whole time budget."""
        budget = self._p.time_budget
        spent = time.perf_counter() - run.started
        named = {name: getattr(self._p, name) for name in ENCODERS}
        by_name = {n: v for n, v in named.items() if isinstance(v, (str, PathLike))}
        if budget is None or spent < budget or not by_name or run.goes_on:
            return
        looked_for = [f"{n}={v!r}" for n, v in by_name.items() if v != "fit"]
        what, remedy = "checking X", ""
        if looked_for:
            what += f" and opening {' and '.join(looked_for)}"
        ids = [name for name in map(str, by_name.values()) if name != "fit" and is_hub_id(name)]
        if not all(Path(name).is_dir() for name in ids):
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
        run: Run,
    ) -> ImageAutoencoder:
        """Train an autoencoder, or read the one that an interrupted run had trained."""
        p, folder = self._p, self._folder
        images, image_format = samples.images, samples.image_format
        height, width = as_sides(image_format.size if p.encoded_size is None else p.encoded_size)
        factor = fitted_factor((height, width))
        size = size_for_autoencoder(p.encoded_size, image_format, factor)
        masks = f"{p.label_prediction} {0 if palette is None else palette.n_classes}"
        budget = None if p.time_budget is None else float(p.time_budget)
        made = f"{seed} {size} {self._precision} {budget} {masks}"
        key, autoencoder = "", None
        if folder is not None:
            key = digest_arrays(images, samples.weights, np.array(made))
            autoencoder = read_autoencoder(folder, key)
        if autoencoder is not None:
            return autoencoder
        if run.goes_on and run.has_checkpoints:
            raise CheckpointMismatchError(
                f"checkpoint_dir={str(folder)!r} holds checkpoints, but not the autoencoder that "
                "was trained with them: use another folder, or delete this one to start anew."
            )
        seconds = None
        if p.time_budget is not None:
            seconds = _FIT_FRACTION * (p.time_budget - (time.perf_counter() - run.started))
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
        if folder is not None and run.is_first:
            # A run that goes on needs it.
            write_autoencoder(folder, key, autoencoder)
        return autoencoder


@dataclass(frozen=True)
class _Encoders:
    """Encoders that a fit has opened."""

    autoencoder: ImageAutoencoder | None
    backbone: ImageBackbone | None


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


def is_same_encoder(asked: Any, now: Any) -> bool:
    """Tell whether two values of an encoder's parameter name the same one."""
    if not isinstance(asked, (str, PathLike)) or not isinstance(now, (str, PathLike)):
        return asked is now
    if asked == now:
        return True
    # A Path is always a folder; a text may be a word or an id on the hub, and a folder too.
    texts = [value for value in (asked, now) if isinstance(value, str)]
    is_word = any(text in ("auto", "fit") for text in texts)
    if is_word or (len(texts) == 2 and any(map(is_hub_id, texts))):
        return False
    return Path(os.path.expanduser(asked)) == Path(os.path.expanduser(now))
