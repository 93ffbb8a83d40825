"""LatentMedSymmFlowClassifier: the same estimator over the latents of an autoencoder."""

from collections.abc import Mapping, Sequence
from typing import Any

from sklearn_msf._estimator.latent import LatentMixin
from sklearn_msf.classifier import PAPER, MedSymmFlowClassifier, paper_key

__all__ = ["LatentMedSymmFlowClassifier"]

# What the rows of Table 5 have in common and Tables 3 and 4 have not.
_PAPER: dict[str, Any] = {
    **PAPER,
    "autoencoder": "stabilityai/sd-vae-ft-mse",
    "encoded_size": 256,
    "label_decoding": "pixel",
    "label_encoding": "rgb",
    "beta": 4.0,
    "channels": 128,
}
_PAPER_DATASETS: dict[str, dict[str, Any]] = {
    "pneumoniamnist": {
        "batch_size": 64,
        "max_epochs": 2000,
        "learning_rate": 3e-4,
        "augment": None,
    },
    "bloodmnist": {
        "batch_size": 64,
        "max_epochs": 1000,
        "learning_rate": 4e-4,
        "augment": "flip",
    },
    "dermamnist": {
        "batch_size": 128,
        "max_epochs": 1000,
        "learning_rate": 5e-4,
        "augment": "flip",
    },
    "retinamnist": {
        "batch_size": 128,
        "max_epochs": 2000,
        "learning_rate": 5e-4,
        "augment": "flip",
    },
}


class LatentMedSymmFlowClassifier(LatentMixin, MedSymmFlowClassifier):
    """Symmetrical flow matching over the latents of an autoencoder, for larger images.

    Images are encoded once, training never runs the autoencoder, and drawn latents are decoded:
    what :class:`MedSymmFlowClassifier` does to pixels happens on an eighth or a quarter of the
    sides (paper, section 3.3).

    Parameters
    ----------
    autoencoder : str or object, default="auto"
        Makes latents of images and images of latents:

        - an id on the Hugging Face hub or a folder with an ``AutoencoderKL`` or
          ``AutoencoderTiny`` of diffusers, weights in safetensors; the paper's is
          "stabilityai/sd-vae-ft-mse";
        - any object with `encode` and `decode` on tensors in [-1, 1], see
          :mod:`sklearn_msf.latent.autoencoder`;
        - "fit" trains a small ``AutoencoderKL`` on X first;
        - "auto" is the paper's where it can be had, else "fit".
    encoded_size : int or tuple of int, default=None
        Side, or height and width, to which images are resized before they are encoded;
        a multiple of the autoencoder's factor. None is the next multiple of their own. The
        paper has 256.
    label_decoding : {"latent", "pixel"}, default="latent"
        With ``label_prediction="velocity"``: whether a predicted mask is compared with the
        encoded masks of the classes, or decoded and compared with their colours (the paper).
    n_variations : int or "auto", default="auto"
        Variations of each training image that are encoded: first the image and its flips,
        then random ones of `augment`. "auto": as many as make 4,000 encoded images of 224 px
        or the same number of pixels, at most 32 and at least the flips.
    cache_bytes : int, default=2**31
        Latents up to this size are kept in memory; more are written to a file, beside the
        checkpoints where there are any.
    image_shape, label_encoding, label_prediction, image_prediction, beta, t1_share, \
class_dropout, image_weight, channels, channel_mult, n_blocks, attention_levels, patch_size, \
dropout, max_epochs, time_budget, batch_size, optimizer, learning_rate, weight_decay, \
max_grad_norm, ema_decay, augment, class_weight, early_stopping, calibration, \
validation_fraction, n_iter_no_change, n_draws, n_steps, ode_solver, guidance, warm_start, \
checkpoint_dir, checkpoint_every, device, precision, compile_network, random_state, verbose
        As in :class:`MedSymmFlowClassifier`, over latents instead of pixels, but the defaults are
        for classification, because latents of large images take long to train on:
        ``t1_share=0.8, image_prediction="velocity", image_weight=0.5, class_dropout=0, guidance=0,
        dropout=0.1, patch_size=1``. To draw, take those of pixels: ``t1_share=0.15,
        image_prediction="image", image_weight=0.7, class_dropout=0.1, guidance=0.5, dropout=0.2``,
        which train longer. The posterior form has plain colours at the size of the latents, the
        velocity form encoded masks, which need ``label_encoding="rgb"``. A
        `time_budget` counts the autoencoder's training and the encoding too; with "fit" a third of
        it goes to the autoencoder.

    Attributes
    ----------
    autoencoder_ : object
        The autoencoder: opened, trained, or a copy of what was passed.
    classes_, n_features_in_, feature_names_in_, image_shape_, n_iter_, history_, loss_curve_, \
field_, temperature_, reject_threshold_, reject_kind_
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

    def __init__(
        self,
        autoencoder: Any = "auto",
        *,
        encoded_size: int | Sequence[int] | None = None,
        label_decoding: str = "latent",
        n_variations: int | str = "auto",
        cache_bytes: int = 2**31,
        image_shape: Sequence[int] | None = None,
        label_encoding: str = "rgb",
        label_prediction: str = "posterior",
        image_prediction: str = "velocity",
        beta: float = 4.0,
        t1_share: float = 0.8,
        class_dropout: float = 0.0,
        image_weight: float = 0.5,
        channels: int = 32,
        channel_mult: Sequence[int] = (1, 2, 2, 2),
        n_blocks: int = 1,
        attention_levels: Sequence[int] = (1,),
        patch_size: int = 1,
        dropout: float = 0.1,
        max_epochs: int | str = "auto",
        time_budget: float | None = None,
        batch_size: int = 128,
        optimizer: str = "auto",
        learning_rate: float = 3e-3,
        weight_decay: float = 0.01,
        max_grad_norm: float | None = 1.0,
        ema_decay: float = 0.99,
        augment: str | None = "auto",
        class_weight: Mapping[Any, float] | str | None = None,
        early_stopping: bool = False,
        calibration: str | None = None,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 10,
        n_draws: int = 2,
        n_steps: int = 1,
        ode_solver: str = "euler",
        guidance: float = 0.0,
        warm_start: bool = False,
        checkpoint_dir: Any = None,
        checkpoint_every: int = 5,
        device: Any = "auto",
        precision: str = "auto",
        compile_network: bool | str = "auto",
        random_state: Any = None,
        verbose: int = 0,
    ):
        super().__init__(
            image_shape=image_shape,
            label_encoding=label_encoding,
            label_prediction=label_prediction,
            image_prediction=image_prediction,
            beta=beta,
            t1_share=t1_share,
            class_dropout=class_dropout,
            image_weight=image_weight,
            channels=channels,
            channel_mult=channel_mult,
            n_blocks=n_blocks,
            attention_levels=attention_levels,
            patch_size=patch_size,
            dropout=dropout,
            max_epochs=max_epochs,
            time_budget=time_budget,
            batch_size=batch_size,
            optimizer=optimizer,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            max_grad_norm=max_grad_norm,
            ema_decay=ema_decay,
            augment=augment,
            class_weight=class_weight,
            early_stopping=early_stopping,
            calibration=calibration,
            validation_fraction=validation_fraction,
            n_iter_no_change=n_iter_no_change,
            n_draws=n_draws,
            n_steps=n_steps,
            ode_solver=ode_solver,
            guidance=guidance,
            warm_start=warm_start,
            checkpoint_dir=checkpoint_dir,
            checkpoint_every=checkpoint_every,
            device=device,
            precision=precision,
            compile_network=compile_network,
            random_state=random_state,
            verbose=verbose,
        )
        self.autoencoder = autoencoder
        self.encoded_size = encoded_size
        self.label_decoding = label_decoding
        self.n_variations = n_variations
        self.cache_bytes = cache_bytes

    @classmethod
    def from_paper(cls, name: str, **overrides: Any) -> "LatentMedSymmFlowClassifier":
        """Make a classifier with the paper's settings (Table 5).

        Parameters
        ----------
        name : {"pneumoniamnist", "bloodmnist", "dermamnist", "retinamnist"}
            Data set of the paper.
        **overrides : dict
            Parameters to set otherwise.

        Returns
        -------
        LatentMedSymmFlowClassifier

        Raises
        ------
        ValueError
            For a data set that the paper does not have.
        """
        key = paper_key(name, _PAPER_DATASETS)
        return cls(**{**_PAPER, **_PAPER_DATASETS[key], **overrides})
