"""Scikit-learn classifier by symmetrical flow matching over pixels."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from sklearn_msf._estimator.base import BaseMedSymmFlowClassifier
from sklearn_msf._estimator.paper import paper_settings
from sklearn_msf._estimator.parameters import GROUP_DEFAULTS, checked_entries
from sklearn_msf._estimator.preparation import PixelPreparation, Preparation

__all__ = ["MedSymmFlowClassifier"]


class MedSymmFlowClassifier(BaseMedSymmFlowClassifier):
    """Symmetrical flow matching over pixels: classifies, estimates uncertainty, generates images.

    One velocity field moves an image from noise to data and, at the same time, a colour mask from
    data to noise. The mask has one code for each class. Integrated from t = 1 to 0 the field
    classifies, from 0 to 1 it generates. The defaults are made for a few hundred to some ten
    thousand small images, and train in minutes on a laptop. :meth:`from_paper` has the settings of
    the paper.

    Parameters
    ----------
    image_shape : tuple of int, default=None
        (height, width) or (height, width, channels) of the images, for a 2-d X of shape
        (n, n_features). Without it the rows of a 2-d X are images of height 1. A 3-d or 4-d X needs
        it only for more than 4 channels.
    n_spatial_dims : {2, 3}, default=2
        2 for images, 3 for volumes of shape (n, depth, height, width) or (n, depth, height, width,
        channels), which are never recognised by their shape. Wherever a shape of images is given
        as (height, width) or (H, W), that of volumes is (depth, height, width) or (D, H, W), also
        in `image_shape`. The network is then a U-Net in three dimensions, whose steps take many
        times longer: see "Volumes" in the documentation for settings.
    classification_fraction : float or "auto", default="auto"
        Fraction of each batch at t = 1, in [0, 1]. There the image is clean and the mask is pure
        noise, as in classification. The other samples have t in [0, 1] (see "time_shift") and also
        teach generation. With ``max_epochs="auto"`` a smaller fraction makes training longer and
        generated images better; 0.8 makes training short, for classification only. "auto": 0.15, or
        what a `time_budget` needs to show each image five times at t = 1, at most 0.4. Where that
        is not enough to show each image 2.5 times, it is what shows it so often, at most 0.8. The
        first steps measure this; `history_` says what was chosen. In `partial_fit` it is 0.15.
    channels : int, default=32
        Number of channels of the first level of the U-Net; even.
    network_params : dict, default=None
        Further settings of the network. Each entry is optional; its default is in parentheses:

        - "channel_mult" ("auto"): channels of each level as a multiple of `channels`, such as
          ``(1, 2, 2)``. Each further level halves the size. "auto": ``(1, 2, 2, 2)``, but without
          the levels that would have a single position of an image: images of 8 pixels a side get
          two levels. Where training goes on, "auto" stands for the levels that the model has.
        - "n_blocks" (1): residual blocks in each level.
        - "attention_levels" (1,): levels with self-attention, counted from 0. The middle block
          always has self-attention.
        - "patch_size" ("auto"): side of the squares of pixels, of volumes the cubes, that are
          folded into channels before the U-Net; 1 folds nothing. "auto": the smallest power of 2,
          from 2 on, that leaves at most 512 positions: 2 up to 44 pixels a side, 4 for 64 pixels
          and for 28 voxels, 8 for 128 pixels; if longer than 2, no longer than the shortest side;
          1 up to 2 pixels a side.
          The more is folded, the faster is training, and the less detail do generated images have.
        - "dropout" (0.2): dropout in the residual blocks, in [0, 1), in steps of 1/256. It applies
          only to samples at t = 1; with ``classification_fraction=0`` it applies to all samples.
        - "time_scale" (1000.0): factor on t in [0, 1] before its sinusoidal features, in (0, 1e6].
          The larger it is, the finer the network can tell times apart. The paper's code has 1.
        - "time_modulation" ("scale_shift"): how the time embedding acts in a residual block.
          "scale_shift": it scales and shifts the features after the second norm. "shift": it is
          added before that norm (the paper's code).
        - "upsampling" ("light"): the half of the U-Net that turns features into images. "light": as
          small as the other half, with one residual block and one skip connection in each level.
          "adm": that of ADM and of the paper's code, with one block more than `n_blocks` in each
          level, a skip connection for each, and more than twice the operations.
        - "input_size" (None): side, or (height, width), to which images are resized for the
          network, by Pillow's bilinear filter. Generated images are brought back to the size of
          X. None leaves images as they are; the paper's code has 32.
    flow_params : dict, default=None
        Settings of the flow. Each entry is optional; its default is in parentheses:

        - "label_encoding" ("rgb"): label codes. "rgb": colours of a palette (paper, section 3.1;
          up to 64 classes). "grayscale": levels of gray (SymmFlow; up to 1,024 classes); with an
          odd number of classes and ``label_prediction="posterior"`` they need
          ``class_dropout=0``. "simplex": vertices of a regular simplex (up to 1,024 classes).
        - "label_prediction" ("posterior"): what the label branch of the network predicts.
          "posterior": the class posterior, from which the velocity of the mask follows in closed
          form. "velocity": this velocity itself, pixel by pixel (the paper).
        - "image_prediction" ("denoised"): what the image branch predicts. "denoised": the denoised
          image, which is the mean of the images that x_t can come from; the velocity is a function
          of it. "velocity": the velocity itself (the paper). The denoised image is much easier to
          learn for a small network.
        - "beta" (4.0): width of the uniform noise on the masks in 8-bit steps; with grayscale codes
          the range of the codes. In [0, 255].
        - "class_dropout" (0.1): fraction of the samples for generation whose mask carries no
          information about the class, in [0, 1). Guidance needs them.
        - "time_shift" (1.0): how far times are moved towards noise in training, in [0.1, 10]: the
          odds of noise against image, (1 - t) / t, are multiplied by it. 1 draws times uniformly
          (the paper's code). Samples at t = 1 stay there; where ``classification_fraction=0`` there
          are none, and values above 1 take samples away from where classification happens.
        - "image_weight" (0.7): weight w of the image branch in the loss, in [0, 1). The weight of
          the label branch is 1 - w; in steps that have samples at t = 1 these make up at least 0.8
          of the label loss.
    max_epochs : int or "auto", default="auto"
        Largest number of passes over the training data. "auto" chooses it so that training shows
        36,000 images at t = 1, but each image at least 15 and at most 90 times; with Muon half as
        many. So the number of epochs grows as `classification_fraction` falls, down to 0.05;
        smaller values count as 0.05. 0 counts as 1, because all samples then teach
        classification. With longer training small data sets are memorised.
    time_budget : float, default=None
        Seconds within which fit ends, after at least one step. The learning rate schedule is
        shortened to fit, and there are fewer epochs if necessary. How much is learned in this time
        depends on the machine, so results are not exactly reproducible. A budget that is over
        before training begins leads to a ConvergenceWarning and one step.
    batch_size : int, default=128
        Number of images in a training step. An epoch is split evenly into steps of about this size,
        unless ``optimizer_params={"even_batches": False}``.
    optimizer : {"auto", "adamw", "muon"}, default="auto"
        "adamw": AdamW (the paper's code). "muon": Muon for the weights that are matrices and AdamW
        for the others, at the same learning rate. "auto": Muon if `max_epochs` with it show 500
        full batches or more, even if a `time_budget` ends training earlier, else AdamW. With
        `warm_start` or `partial_fit` "auto" keeps the optimizer of the first call.
    learning_rate : float, default=3e-3
        Peak of the learning rate. It rises in the first tenth of training, and then falls to zero
        by a cosine.
    optimizer_params : dict, default=None
        Further settings of the optimizer. Each entry is optional; its default is in parentheses:

        - "weight_decay" (0.01): decoupled weight decay.
        - "max_grad_norm" (1.0): largest norm of the gradient; longer gradients are scaled down to
          it. None disables this.
        - "ema_decay" (0.99): fraction of the moving average of the weights that each step keeps, in
          [0, 1), but at most n / (n + 9) in step n: 0.99 counts from step 891 on, 0.999 from step
          8,991. Predictions and generated images come from the average.
        - "warmup" ("linear"): how the learning rate rises in the first tenth of training. "cosine":
          by half a cosine (the paper's code).
        - "even_batches" (True): whether an epoch is split into batches of one size near to
          `batch_size`. False cuts off batches of exactly `batch_size`, and the last one has the
          images that remain, as :class:`torch.utils.data.DataLoader` does (the paper's code).
    augment : {"auto", "hflip", "flip", "affine", "hflip+affine", "flip+affine"} or None, \
            default="auto"
        Random variation of the training images. "hflip": horizontal flips. "flip": flips of both
        axes, of volumes of all three. "affine": rotations by up to 15 degrees, of volumes in each
        plane (where one side of it is shorter, by as much less), scalings of each axis by up to
        10 % and shifts by up to 5 %. Affine changes are made only to samples at t = 1, so that
        generated images do not show them; with ``classification_fraction=0`` they are made to all
        samples.
        "auto": "hflip+affine" if every side of the images, of volumes the depth too, has at least 8
        pixels, else None. Choose "affine" if a mirror image has another meaning, as for digits or
        sides of the body. Where images are flipped, fit first compares held-out accuracies with and
        without mirror images by a small classifier, and warns if classes are mixed up. It leaves
        this out if training is short or the images are few.
    class_weight : dict or "balanced", default=None
        Weights of the classes, as in other scikit-learn classifiers. Held-out images and those of
        `X_val` have them too: the validation accuracy, and the log loss of which the temperature is
        the best, are weighted means.
    early_stopping : bool, default=False
        Whether to hold out a validation part, or use the `X_val` of fit, stop training when its
        accuracy no longer rises, and keep the best weights. If there are several images of a
        patient, pass `groups` to fit. partial_fit refuses it.
    calibration : {"temperature"} or None, default=None
        "temperature" divides the logits by one temperature. A second model is trained in the same
        way, but without a third of the training data, and the temperature is the one with which
        this model has the smallest log loss on that third (with a prior as weak as one image). The
        model itself is the same as with None, trained on all data. fit takes 5/3 of the time; of a
        `time_budget` the model gets 3/5.
        With `early_stopping`, or if fit gets `X_val`, the temperature is fitted on the validation
        part, without a second model; early stopping has chosen the weights on the same part, so
        that the probabilities are, if anything, too sure. With `warm_start` later calls without
        `X_val` keep the temperature. It is that of `n_draws`, `n_steps`, `ode_solver` and, over
        latents, `label_decoding` of fit: to change these, fit again. If there are several images of
        a patient, pass `groups` to fit.
    validation_fraction : float, default=0.1
        Fraction of the samples to hold out for early stopping, in (0, 1).
    n_iter_no_change : int, default=10
        Number of epochs without better validation accuracy after which early stopping ends
        training; those of the first tenth of `max_epochs`, in which the learning rate rises, do
        not count. This also ends the training of generation, which takes longer.
    n_draws : int, default=2
        Number of draws that are averaged for a prediction, each with its own mask noise. If
        training flipped images, draws see the flips in turn: with "hflip" every second one the
        mirror image; with "flip" four draws see the image, its mirror image, and both upside down,
        of volumes eight draws all flips. Other numbers count the first flips more.
        The class posterior does not depend on the noise with one step, and the same draws are
        computed once; with ``label_prediction="velocity"`` several draws improve predictions.
    n_steps : int, default=1
        Number of solver steps for classification; that the paper's results use one follows from the
        times of its Table 6. With ``label_prediction="posterior"`` more of them classify worse,
        with a warning; they are refused by predictions if the image branch was not trained.
    ode_solver : {"euler", "midpoint", "rk4", "dopri5"}, default="euler"
        ODE solver for classification. With ``label_prediction="posterior"`` the last step is the
        same for all solvers.
    warm_start : bool, default=False
        Whether fit continues from the weights of the previous call. It runs a whole schedule of
        `max_epochs` again, and ``max_epochs="auto"`` counts the images of this call alone: for a
        few new images set `max_epochs`, and a lower `learning_rate`.
    checkpoint_dir : str or Path, default=None
        Folder for the checkpoints of this run, and of no other. If fit was interrupted at any
        moment and is called again with the same data and parameters, by the same version of this
        package, it continues from the newest checkpoint and gives the same model. If the run had
        ended, its result is returned. With `warm_start` a fitted estimator, as one is whose first
        fit was interrupted, begins another run: to go on with that fit, fit a clone. A
        `time_budget` includes the seconds up to that checkpoint,
        but not those that were lost after it, nor those in which data are prepared again.
    checkpoint_every : int, default=5
        Number of epochs between two checkpoints; the two newest are kept.
    device : str or torch.device, default="auto"
        Device of the network; "auto" is CUDA if it is available, else the CPU.
    precision : {"auto", "float32", "bfloat16"}, default="auto"
        Precision of convolutions and products. On a CPU "auto" is bfloat16 if a measurement finds
        it at least 1.1 times as fast as float32 (once in a process, in less than a second). On
        CUDA it is bfloat16 if the card supports it. Set a precision for results that do not depend
        on this choice.
    compile_network : bool or "auto", default="auto"
        Whether training compiles the network with :func:`torch.compile`. "auto" compiles on CUDA
        for runs of 10,000 steps or more, unless a `time_budget` is below 900 s. It never compiles
        on a CPU, where compiling took 100 s and made training 1.2 times as fast. Without a compiler
        there is one warning, and training continues without compilation.
    random_state : int, RandomState instance or None, default=None
        Seed of initial weights, held-out samples, order, noise and augmentation.
    verbose : int, default=0
        1 shows a progress bar during training, and while :meth:`sample` generates images.

    Attributes
    ----------
    model_ : FittedModel
        The fitted model. Among its attributes are `field`, the velocity field with averaged
        weights, a :class:`torch.nn.Module`; `temperature` of the probabilities, 1 without
        calibration; and `image_format`, the layout, dtype and range of X.
    classes_ : ndarray of shape (K,)
        Class labels.
    n_features_in_ : int
        Number of values in an image.
    feature_names_in_ : ndarray of shape (n_features,)
        Names of the columns; only if X had names.
    image_shape_ : tuple of int
        (height, width) or (height, width, channels); with depth first for volumes.
    n_iter_ : int
        Number of epochs.
    history_ : list of dict
        Log of each epoch: "epoch", counted from 1, "loss" and its parts "image_loss" and
        "label_loss", "learning_rate", "n_images", "classification_fraction" (the fraction at
        t = 1), "seconds", and with `early_stopping` "validation_score".
    loss_curve_ : list of float
        Training loss of each epoch.
    rejection_ : RejectionRule
        Only after :meth:`fit_reject`. `threshold`: the uncertainty above which
        :meth:`predict_with_reject` rejects an image; None, if no threshold could be certified,
        rejects all. `kind`: the kind of uncertainty. `settings`: the parameters of prediction with
        which the threshold was learned, and `precision` that in which. `target_risk`,
        `cost_matrix`, `confidence`: what was asked for. `confusion_matrix`: how the calibration
        images that count were answered, with a column for rejected ones; from it the certificate
        can be checked. `n_images`, `n_accepted`, `n_wrong`: their number, and how many of them were
        accepted, and answered wrongly.
    hub_source_ : dict
        Only of a model that :meth:`from_pretrained` opened from the Hugging Face hub: its "id", and
        its "revision", which is the commit.

    See Also
    --------
    LatentMedSymmFlowClassifier : The same over latents, for larger images.
    sklearn_msf.datasets.fetch_medmnist : Load medical images.
    sklearn_msf.selective : Metrics and curves of selective prediction.

    References
    ----------
    Caetano et al., "MedSymmFlow: Bridging Generative Modeling and Classification in Medical
    Imaging through Symmetrical Flow Matching", 2025.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn_msf import MedSymmFlowClassifier
    >>> X, y = load_digits(n_class=2, return_X_y=True)
    >>> images = X.reshape(-1, 8, 8)
    >>> clf = MedSymmFlowClassifier(channels=16, max_epochs=50, random_state=0)
    >>> clf.fit(images[:200], y[:200]).score(images[200:], y[200:]) > 0.9
    True
    >>> clf.sample(class_id=1, n_samples=3).shape
    (3, 8, 8)
    >>> int(clf.predict_with_reject(images[200:], coverage=0.9).count())
    144
    """

    _preparation: ClassVar[type[Preparation]] = PixelPreparation
    _group_defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = GROUP_DEFAULTS

    def __init__(
        self,
        *,
        image_shape: Sequence[int] | None = None,
        n_spatial_dims: int = 2,
        classification_fraction: float | str = "auto",
        channels: int = 32,
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

    @classmethod
    def from_paper(
        cls, name: str, *, label_encoding: str = "rgb", **overrides: Any
    ) -> "MedSymmFlowClassifier":
        """Make a classifier with the paper's settings.

        Every setting has one of three sources:

        - Tables 3 and 4: channels, levels, blocks, attention, dropout, batch size, epochs, learning
          rate, warm-up epochs, beta. Section 3.1: colours of the classes and distances to them.
        - The code that the authors published (github.com/caetas/MedSymmFlow), where the paper says
          nothing: images resized to 32 pixels, raw times in [0, 1] (``time_scale=1``) that are
          added in the residual blocks (``time_modulation="shift"``), flips, the path and its
          targets, batches with a smaller last one, warm-up by a cosine, no limit of the gradient,
          one noise draw. (Of Euler steps for classification it has 25; one step follows from the
          times of Table 6.)
        - The only commands that the authors published, for latents of BloodMNIST: image weight 0.7,
          EMA decay 0.7 and weight decay 0.0. For images of 28 pixels there is no published
          command, and the tables do not name these three. The defaults of the published code are
          0.9, 0.999 and 1e-7. These commands ask for bfloat16, the code's default is float32;
          ``precision="auto"`` is bfloat16 where that is the faster one.

        What differs from the published code on purpose, such as its attention, which cannot learn
        under mixed precision, and its choice of weights on the test split, is listed in "The
        paper's settings" in the documentation.

        Parameters
        ----------
        name : {"pneumoniamnist", "bloodmnist", "dermamnist", "retinamnist"}
            Data set of the paper.
        label_encoding : {"rgb", "grayscale", "simplex"}, default="rgb"
            "rgb" gives MedSymmFlow (Table 4), "grayscale" gives SymmFlow (Table 3). "simplex" is
            not in the paper; it has the other settings of Table 4.
        **overrides : dict
            Parameters that replace those of the paper. For a dict parameter only the given entries
            are replaced.

        Returns
        -------
        MedSymmFlowClassifier

        Raises
        ------
        ValueError
            For a data set that is not in the tables, and for an override with an unknown entry of a
            dict parameter.
        """
        flow_defaults = cls._group_defaults["flow_params"]
        flow = checked_entries("flow_params", overrides.get("flow_params"), flow_defaults)
        encoding = flow.get("label_encoding", label_encoding)
        return cls._with_overrides(paper_settings(name, encoding), overrides)
