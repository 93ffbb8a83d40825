"""Scikit-learn classifier by symmetrical flow matching over the latents of an autoencoder."""

import os
from collections.abc import Mapping, Sequence
from functools import partial
from os import PathLike
from typing import Any, ClassVar

from sklearn_msf._estimator.base import BaseMedSymmFlowClassifier
from sklearn_msf._estimator.fit_result import FitResult
from sklearn_msf._estimator.latent_preparation import (
    ENCODERS,
    OBJECT,
    LatentPreparation,
    is_same_encoder,
)
from sklearn_msf._estimator.paper import latent_paper_settings
from sklearn_msf._estimator.parameters import LATENT_GROUP_DEFAULTS
from sklearn_msf._estimator.preparation import Preparation
from sklearn_msf.latent.latent_space import GivenEncoders, LatentSpace

__all__ = ["LatentMedSymmFlowClassifier"]


class LatentMedSymmFlowClassifier(BaseMedSymmFlowClassifier):
    """Symmetrical flow matching over the latents of an autoencoder, for larger images.

    The method is that of :class:`MedSymmFlowClassifier`, but the field works on latents, whose
    sides are an eighth or a quarter of those of the images (paper, section 3.2). Training images
    are encoded once, so training steps do not run the autoencoder. Generated latents are decoded.
    Autoencoders encode images: volumes need ``MedSymmFlowClassifier(n_spatial_dims=3)``.

    Parameters
    ----------
    autoencoder : str or object, default="auto"
        Autoencoder that converts between images and latents:

        - an id on the Hugging Face hub or a folder with an ``AutoencoderKL`` or
          ``AutoencoderTiny`` of diffusers; the paper uses "stabilityai/sd-vae-ft-mse". Only
          ``config.json`` and ``diffusion_pytorch_model.safetensors`` are opened, and on the hub the
          licence in ``README.md``. What is in the hub's cache is used without asking the hub. A
          Path is always a folder;
        - any object with `encode` and `decode` for tensors in [-1, 1]; what it has to keep to is
          in the user guide under "Larger images: latents";
        - "fit" first trains a small ``AutoencoderKL`` on X;
        - "auto" is the paper's autoencoder from the hub or its cache if it can be had, else "fit",
          with a warning. All of these but objects need diffusers (the extra "latent");
        - None works with a `backbone` only, on its features alone: everything but generating
          images.
    backbone : str or module, default=None
        Frozen pretrained encoder whose features are further channels of the field, beside the
        latents ("joint latents"). They help to classify; only the latents are decoded:

        - an id on the Hugging Face hub or a folder with a vision model of transformers. Only
          ``config.json``, ``model.safetensors``, ``preprocessor_config.json`` (in a folder without
          it ``processor_config.json``) and the licence in ``README.md`` are read, and no code of a
          repository is run. What is in the hub's cache is used without asking the hub. A Path is
          always a folder;
        - a vision model of transformers as an object;
        - any torch module whose forward makes maps (n, C, h, w) of images (n, 3, H, W) in [-1, 1],
          with an attribute ``image_size`` if it takes images of one size only.

        See "Backbones" in the documentation.
    encoded_size : int or tuple of int, default=None
        Side, or height and width, to which images are resized before they are encoded. It must be a
        multiple of the autoencoder's factor (side of an image divided by side of its latents).
        None rounds the size of the images up to the next multiple. The paper's code has 256. It is
        for the autoencoder; with ``autoencoder=None`` it is for the backbone, which otherwise gets
        images of the size that it was trained with, or of that of X.
    label_decoding : {"latent", "pixel"}, default="latent"
        How a predicted mask is compared with the classes if ``label_prediction="velocity"``.
        "latent": with the encoded masks of the classes. "pixel": the mask is decoded and compared
        with the colours of the classes (the paper).
    n_variations : int or "auto", default="auto"
        Number of variations of each training image to encode: first the image and its flips, then
        random variations of the kind `augment`; with ``augment=None`` always 1. "auto": so many
        that the pixels of 4,000 images of 224 x 224 are encoded, but at most 32 of each image, and
        at least the image and its flips; without "affine" only these. A `time_budget` can reduce
        the number. Of fewer than all flips so many are encoded as one axis has: 3 count as 2, and
        1 has none.
        In `partial_fit` "auto" is the image, its flips and one random variation, another one in
        each call.
    cache_bytes : int, default=2**31
        Latents of up to this many bytes are kept in memory. `fit` writes larger ones to a file in
        `checkpoint_dir` if it is set; else, and in `partial_fit`, they go to a temporary file.
        Those of `X_val`, or of the images that `early_stopping` holds out, are always in memory, in
        float32.
    image_shape, classification_fraction, channels, network_params, flow_params, max_epochs, \
time_budget, batch_size, optimizer, learning_rate, optimizer_params, augment, class_weight, \
early_stopping, calibration, validation_fraction, n_iter_no_change, n_draws, n_steps, ode_solver, \
warm_start, checkpoint_dir, checkpoint_every, device, precision, compile_network, random_state, \
verbose
        As in :class:`MedSymmFlowClassifier`, for latents instead of pixels, with 64 `channels` by
        default. In `network_params` ``patch_size="auto"`` begins at 1: latents of up to 22
        positions a side are not folded, those of 28 are by 2. There is no "input_size", because
        `encoded_size` is the parameter for it. In `flow_params` ``time_shift=3``.
        With ``label_prediction="posterior"`` masks are plain colours at the size of the latents.
        With "velocity" they are encoded masks, which need ``label_encoding="rgb"`` and on which
        "beta" has no effect. Over the features of a backbone alone (``autoencoder=None``), from
        which nothing is generated, defaults are chosen for classification:
        ``classification_fraction="auto"`` is 0.8; ``max_epochs="auto"`` shows 20,000 images at t =
        1, each at least 15 and at most 25 times; in `flow_params` ``image_prediction="velocity"``,
        ``class_dropout=0``, ``time_shift=1`` and ``image_weight=0.5``; in `network_params`
        ``channel_mult="auto"`` is ``(1, 2)``, ``dropout=0.1`` and ``upsampling="adm"``. A
        `time_budget` includes opening and training of the encoders and the encoding; with "fit" at
        most a third of it is for the autoencoder. If opening encoders took all of it, `fit` raises
        a ValueError; if encoding did, training makes one step.

    Attributes
    ----------
    autoencoder_ : object
        The autoencoder that was opened, trained or passed (a torch module as a copy), or None.
    backbone_ : module or None
        A copy of the backbone that was opened or passed.
    model_, classes_, n_features_in_, feature_names_in_, image_shape_, n_iter_, history_, \
loss_curve_, rejection_, hub_source_
        As in :class:`MedSymmFlowClassifier`.

    See Also
    --------
    MedSymmFlowClassifier : The same over pixels, for small images.

    References
    ----------
    Caetano et al., "MedSymmFlow: Bridging Generative Modeling and Classification in Medical
    Imaging through Symmetrical Flow Matching", 2025.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn_msf import LatentMedSymmFlowClassifier
    >>> X, y = load_digits(n_class=2, return_X_y=True)
    >>> images = X.reshape(-1, 8, 8)
    >>> clf = LatentMedSymmFlowClassifier("fit", channels=16, max_epochs=2, random_state=0)
    """

    _preparation: ClassVar[type[Preparation]] = LatentPreparation
    _group_defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = LATENT_GROUP_DEFAULTS

    def __init__(
        self,
        autoencoder: Any = "auto",
        *,
        backbone: Any = None,
        encoded_size: int | Sequence[int] | None = None,
        label_decoding: str = "latent",
        n_variations: int | str = "auto",
        cache_bytes: int = 2**31,
        image_shape: Sequence[int] | None = None,
        classification_fraction: float | str = "auto",
        channels: int = 64,
        network_params: Mapping[str, Any] | None = None,
        flow_params: Mapping[str, Any] | None = None,
        max_epochs: int | str = "auto",
        time_budget: float | None = None,
        batch_size: int = 128,
        optimizer: str = "auto",
        learning_rate: float = 3e-3,
        optimizer_params: Mapping[str, Any] | None = None,
        augment: str | None = "auto",
        class_weight: Mapping[Any, float] | str | None = None,
        early_stopping: bool = False,
        calibration: str | None = None,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 10,
        n_draws: int = 2,
        n_steps: int = 1,
        ode_solver: str = "euler",
        warm_start: bool = False,
        checkpoint_dir: Any = None,
        checkpoint_every: int = 5,
        device: Any = "auto",
        precision: str = "auto",
        compile_network: bool | str = "auto",
        random_state: Any = None,
        verbose: int = 0,
    ):
        self._store_parameters(locals())

    @property
    def autoencoder_(self) -> Any:
        """The autoencoder that was opened, trained or passed, a torch module as a copy; or None."""
        space = self.model_.space
        assert isinstance(space, LatentSpace)
        return space.module_of("autoencoder")

    @property
    def backbone_(self) -> Any:
        """The backbone that was opened or passed, as a copy; None without one."""
        space = self.model_.space
        assert isinstance(space, LatentSpace)
        return space.module_of("backbone")

    def _saved_parameters(self, done: FitResult) -> dict[str, Any]:
        parameters = super()._saved_parameters(done)
        origin = done.continuation.origin
        for name in ENCODERS:
            value = parameters[name]
            of_fit = value if origin is None else getattr(origin, name)
            if not is_same_encoder(of_fit, value):
                raise ValueError(
                    f"{name}={value!r} is not that of the fit, {of_fit!r}, and files name one of "
                    f"them: set it back, set_params({name}=...), or fit anew."
                )
            if isinstance(value, PathLike) and not os.path.isabs(os.path.expanduser(value)):
                # As text it could be an id on the hub, which a path never is.
                parameters[name] = os.path.join(os.curdir, value)
            elif not isinstance(value, (str, PathLike, type(None))):
                parameters[name] = OBJECT
        return parameters

    @classmethod
    def from_pretrained(
        cls,
        folder: Any,
        autoencoder: Any = None,
        backbone: Any = None,
        *,
        revision: str | None = None,
    ) -> "LatentMedSymmFlowClassifier":
        """Open a model that :meth:`save_pretrained` saved or :meth:`push_to_hub` uploaded.

        Nothing in the files is executed. The files contain an autoencoder that was trained with the
        model, opened from a folder or passed as an unchanged ``AutoencoderKL`` or
        ``AutoencoderTiny`` of diffusers. An autoencoder from the hub
        is named in the files by id and revision, and opened from the hub or its cache, never from
        another folder. A backbone from the hub is named likewise, with a digest of its weights; the
        files contain no other backbone.

        Parameters
        ----------
        folder : str or Path
            Folder of the model, or its id on the Hugging Face hub, "user/model". A Path is always a
            folder, and so is a str that names one if there is no `revision`. A model of the hub
            that is in its cache is opened without asking the hub.
        autoencoder : str or object, optional
            Autoencoder of a model whose files do not contain it: a folder, an id on the hub, or an
            object with `encode` and `decode`.
        backbone : str or module, optional
            Backbone of a model whose files do not name one of the hub, because it was a folder or
            a module.
        revision : str, default=None
            Commit, branch or tag of a model on the hub. A branch or a tag is looked up at the hub,
            and in its cache if the hub does not answer. None is the newest commit of an earlier
            call without a revision that the cache knows, or else of the hub. The commit that was
            opened is in `hub_source_`.

        Returns
        -------
        LatentMedSymmFlowClassifier
            Fitted estimator. On the same machine its predictions equal those of the saved one, to
            the last bit.

        Raises
        ------
        FileNotFoundError
            If the folder holds no model.
        HubError
            If neither the hub nor its cache gives the model.
        ValueError
            For files that were cut off, changed or exchanged, for a model of another class, for a
            `revision` of a folder, and for an autoencoder that cannot be opened, makes other
            latents or images than the original one, or is passed although the files contain it. The
            same for a backbone, and for one whose weights have changed since.
        ImportError
            If the model needs diffusers, transformers or huggingface_hub and it is not installed.
        """
        given = GivenEncoders(autoencoder, backbone)
        read_space = partial(LatentPreparation.read_space, given=given)
        estimator = cls._open(folder, revision, read_space)
        origin = estimator._continuation.origin
        # An encoder that was an object is only named by a placeholder in the files.
        for name in ENCODERS:
            setattr(estimator, name, getattr(origin, name))
        return estimator

    @classmethod
    def from_paper(cls, name: str, **overrides: Any) -> "LatentMedSymmFlowClassifier":
        """Make a classifier with the paper's settings.

        Channels, levels, blocks, attention, dropout, batch size, epochs, learning rate, warm-up
        epochs and beta (which has no effect on encoded masks) are those of Table 5, the autoencoder
        that of section 3.2. Image weight, EMA decay and weight decay are those of the published
        commands, which are for BloodMNIST. The other settings come from the published code, as in
        :meth:`MedSymmFlowClassifier.from_paper`; "The paper's settings" in the documentation lists
        them, and what differs on purpose.

        Parameters
        ----------
        name : {"pneumoniamnist", "bloodmnist", "dermamnist", "retinamnist"}
            Data set of the paper.
        **overrides : dict
            Parameters that replace those of the paper. For a dict parameter only the given entries
            are replaced.

        Returns
        -------
        LatentMedSymmFlowClassifier

        Raises
        ------
        ValueError
            For a data set that is not in the table, and for an override with an unknown entry of a
            dict parameter.
        """
        return cls._with_overrides(latent_paper_settings(name), overrides)
