"""MedSymmFlowClassifier: symmetrical flow matching over pixels as a scikit-learn classifier."""

from collections.abc import Mapping, Sequence
from typing import Any

from sklearn_msf._estimator.base import BaseMedSymmFlowClassifier

__all__ = ["PAPER", "MedSymmFlowClassifier", "paper_key"]

# What Tables 3 and 4 have in common; the rest of the method is section 3 of the paper.
PAPER: dict[str, Any] = {
    "label_prediction": "velocity",
    "image_prediction": "velocity",
    "t1_share": 0.0,
    "class_dropout": 0.0,
    "image_weight": 0.7,
    "channels": 64,
    "channel_mult": (1, 2, 2, 2),
    "n_blocks": 2,
    "attention_levels": (1,),
    "patch_size": 1,
    "dropout": 0.0,
    "optimizer": "adamw",
    "weight_decay": 0.01,
    "max_grad_norm": None,
    "ema_decay": 0.7,
    "n_draws": 1,
    "n_steps": 1,
    "ode_solver": "euler",
    "guidance": 0.0,
    "precision": "bfloat16",
}
_PAPER_DATASETS: dict[str, dict[str, Any]] = {
    "pneumoniamnist": {
        "batch_size": 128,
        "max_epochs": 1000,
        "learning_rate": 5e-4,
        "augment": None,
    },
    "bloodmnist": {
        "batch_size": 256,
        "max_epochs": 1000,
        "learning_rate": 5e-4,
        "augment": "flip",
    },
    "dermamnist": {
        "batch_size": 256,
        "max_epochs": 1000,
        "learning_rate": 3e-4,
        "augment": "flip",
    },
    "retinamnist": {
        "batch_size": 256,
        "max_epochs": 2000,
        "learning_rate": 5e-4,
        "augment": "flip",
    },
}
# beta of Table 3 (SymmFlow, grayscale) and of Table 4 (MedSymmFlow, RGB).
_PAPER_BETA = {
    "grayscale": {"pneumoniamnist": 1.0, "bloodmnist": 4.0, "dermamnist": 4.0, "retinamnist": 3.0},
    "rgb": dict.fromkeys(_PAPER_DATASETS, 4.0),
}


def paper_key(name: Any, datasets: Mapping[str, Any]) -> str:
    """Find a data set of the paper, or say which it has."""
    key = name.lower() if isinstance(name, str) else name
    if key not in datasets:
        raise ValueError(f"name must be one of {sorted(datasets)}, got {name!r}.")
    return str(key)


class MedSymmFlowClassifier(BaseMedSymmFlowClassifier):
    """Symmetrical flow matching over pixels: classifies, knows its doubts, draws.

    One velocity field carries an image from noise to data while it carries a colour mask,
    one code a class, from data to noise. Run from t = 1 to 0 it classifies, run from 0 to 1
    it generates. The defaults suit a few hundred to some ten thousand small images and
    train in minutes on a laptop; :meth:`from_paper` has the settings of the paper.

    Parameters
    ----------
    image_shape : tuple of int, default=None
        (height, width) or (height, width, channels) of the images in rows of shape
        (n, n_features). Without it rows are lines of one pixel height. Not needed for X
        that has the shape of images.
    label_encoding : {"rgb", "grayscale", "simplex"}, default="rgb"
        Label codes: colours of a palette (paper, section 3.1; up to 64 classes), steps of
        gray (SymmFlow; for an odd number of classes the posterior form takes these only without
        `class_dropout`), or the vertices of a regular simplex (up to 1,024 classes).
    label_prediction : {"posterior", "velocity"}, default="posterior"
        What the label half of the network learns: the class posterior, from which the
        mask's velocity follows in closed form, or that velocity itself, pixel by pixel (the
        paper). See the user guide for how they compare.
    image_prediction : {"image", "velocity"}, default="image"
        What the image half of the network learns: the mean of the images that x_t can come from,
        of which the velocity is a function, or the image's velocity itself (the paper). The mean
        is far easier for a small network, see "Drawing well" in the user guide.
    beta : float, default=4.0
        Width of the uniform noise on the masks in 8-bit steps; for grayscale codes the
        range of the codes. In [0, 255].
    t1_share : float, default=0.15
        Share of each batch at t = 1, where the image is clean and the mask pure noise: what
        classification sees. The other rows have t ~ U(0, 1) and teach generation too. With
        ``max_epochs="auto"`` a smaller share is a longer training that draws better, and 0.8 a
        short one for those who only classify.
    class_dropout : float, default=0.1
        Share of the rows that teach generation whose mask says nothing of the class, in [0, 1):
        `guidance` needs them.
    image_weight : float, default=0.7
        Weight w of the image half of the loss, in [0, 1); the label half has 1 - w, and of that
        the rows at t = 1 0.8 at least.
    channels : int, default=32
        Channels of the first level of the U-Net; even.
    channel_mult : sequence of int, default=(1, 2, 2, 2)
        Channels of each level in units of `channels`; each further level halves the size.
    n_blocks : int, default=1
        Residual blocks a level.
    attention_levels : sequence of int, default=(1,)
        Levels with self-attention, counted from 0; the middle always has it.
    patch_size : int, default=2
        Side of the square of pixels folded into channels before the U-Net; 1 folds nothing.
    dropout : float, default=0.2
        Dropout in the residual blocks, in [0, 1), for the share at t = 1 where there is one;
        drawn in steps of 1/256.
    max_epochs : int or "auto", default="auto"
        Passes over the training data at most. "auto": as many as show 36,000 images at t = 1, but
        each of them there at least 15 and at most 90 times, or with Muon half of that, whatever
        `t1_share` is (down to 0.05; 0 counts as 1, as every row classifies then); small data
        classified for longer is learned by heart.
    time_budget : float, default=None
        Seconds within which fit ends, learning rate schedule included, with fewer epochs
        where need be. What is learned in a time depends on the machine, so results then do
        not repeat exactly.
    batch_size : int, default=128
        Images a training step; epochs are split evenly into steps of about this size.
    optimizer : {"auto", "adamw", "muon"}, default="auto"
        "adamw" (the paper), or "muon": Muon for the weights that are matrices, AdamW for the
        others, at one rate. "auto": Muon where `max_epochs` make 500 steps or more with it,
        whatever a `time_budget` leaves of them; later calls keep to the first one's.
    learning_rate : float, default=3e-3
        Peak learning rate, after a warm-up of a tenth of the training and before a cosine to
        zero.
    weight_decay : float, default=0.01
        Decoupled weight decay.
    max_grad_norm : float, default=1.0
        Norm to which longer gradients are cut; None cuts none.
    ema_decay : float, default=0.99
        Share of the moving average of the weights that each step keeps, in [0, 1).
        Predictions and images come from the average.
    augment : {"auto", "hflip", "flip", "affine", "hflip+affine", "flip+affine"} or None, \
            default="auto"
        Random variation of the training images: mirror images ("hflip") or flips of both axes
        ("flip"), and small rotations, shifts and scalings ("affine"; where there is a share at
        t = 1 only of its images, so that drawn images do not show them). "auto":
        "hflip+affine" for images of 8 pixels a side or more. Choose "affine" where a mirror
        image means something else, as with digits or the side of the body.
    class_weight : dict or "balanced", default=None
        Weights of the classes, as in other scikit-learn classifiers.
    early_stopping : bool, default=False
        Whether to hold out a validation part, stop when its accuracy no longer rises, and
        keep the best weights.
    calibration : {"temperature"} or None, default=None
        "temperature" gives the probabilities the one temperature that makes the log loss
        smallest on a third of the training data, for a second model, trained in the same way
        without that third. The model itself is that of None, trained on all; fit takes 5/3 of
        the time, and of a `time_budget` the model gets 3/5. With `early_stopping` its held-out
        part serves, without a second model; with `warm_start` later calls keep the temperature.
    validation_fraction : float, default=0.1
        Share held out for early stopping, in (0, 1).
    n_iter_no_change : int, default=10
        Epochs without better validation accuracy before early stopping; what draws, which
        takes longer to learn, is stopped too.
    n_draws : int, default=2
        Draws averaged for a prediction, each with its own mask noise. Where training
        included mirror images every second draw sees the mirror image. The posterior form
        hardly depends on the noise; the velocity form gains from several draws.
    n_steps : int, default=1
        Solver steps for classification; the paper publishes one.
    ode_solver : {"euler", "midpoint", "rk4", "dopri5"}, default="euler"
        ODE solver for classification and generation. In the posterior form the last step of a
        classification is the same for all.
    guidance : float, default=0.5
        How far drawing goes beyond the velocity of the class asked for, away from that of no class,
        in units of their difference (classifier-free guidance), at least 0; for :meth:`sample` and
        the way back of :meth:`counterfactual`. Images are more of their class and less varied; it
        needs `class_dropout` in training and twice the time of 0.
    warm_start : bool, default=False
        Whether fit goes on from the weights of the call before.
    checkpoint_dir : str or Path, default=None
        Folder for checkpoints of this one run. A fit that was cut off, at whatever moment,
        and is called again with the same data and parameters goes on from the last one and
        ends with the same model; a run that had ended is returned as it ended. With a
        `time_budget` the seconds before count.
    checkpoint_every : int, default=5
        Epochs between two checkpoints; the two newest are kept.
    device : str or torch.device, default="auto"
        Device of the network; "auto" takes CUDA where there is one.
    precision : {"auto", "float32", "bfloat16"}, default="auto"
        Precision of convolutions and products; "auto" takes bfloat16 where this CPU was
        timed to be faster with it (once a process, in less than a second), and on CUDA where the
        card has it. Name one for the same bits on every machine.
    compile_network : bool or "auto", default="auto"
        Whether training compiles the network with :func:`torch.compile`. "auto" does for runs
        of 10,000 steps and more on CUDA, and never on a CPU, where compiling took 100 s for a
        gain of 1.2x. Without a compiler: one warning, and training goes on as it is.
    random_state : int, RandomState instance or None, default=None
        Seed of initial weights, order, noise and augmentation.
    verbose : int, default=0
        1 shows a progress bar while training, and while :meth:`sample` draws.

    Attributes
    ----------
    classes_ : ndarray of shape (K,)
        Class labels.
    n_features_in_ : int
        Number of values of an image.
    feature_names_in_ : ndarray of shape (n_features,)
        Names of the columns, where X had any.
    image_shape_ : tuple of int
        (height, width) or (height, width, channels).
    n_iter_ : int
        Number of epochs run.
    history_ : list of dict
        Losses, learning rate, images, seconds and validation score of each epoch.
    loss_curve_ : list of float
        Training loss of each epoch.
    field_ : torch.nn.Module
        The velocity field with averaged weights.
    temperature_ : float
        Temperature of the probabilities; 1 without calibration.
    reject_threshold_ : float or None
        Uncertainty from which on :meth:`predict_with_reject` abstains, after
        :meth:`fit_reject`; None where none can be certified.
    reject_kind_ : str
        Kind of uncertainty that the threshold is for.

    See Also
    --------
    sklearn_msf.datasets.fetch_medmnist : Medical images to try it on.
    sklearn_msf.selective : Curves of accuracy against rejection.

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

    def __init__(
        self,
        *,
        image_shape: Sequence[int] | None = None,
        label_encoding: str = "rgb",
        label_prediction: str = "posterior",
        image_prediction: str = "image",
        beta: float = 4.0,
        t1_share: float = 0.15,
        class_dropout: float = 0.1,
        image_weight: float = 0.7,
        channels: int = 32,
        channel_mult: Sequence[int] = (1, 2, 2, 2),
        n_blocks: int = 1,
        attention_levels: Sequence[int] = (1,),
        patch_size: int = 2,
        dropout: float = 0.2,
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
        guidance: float = 0.5,
        warm_start: bool = False,
        checkpoint_dir: Any = None,
        checkpoint_every: int = 5,
        device: Any = "auto",
        precision: str = "auto",
        compile_network: bool | str = "auto",
        random_state: Any = None,
        verbose: int = 0,
    ):
        self.image_shape = image_shape
        self.label_encoding = label_encoding
        self.label_prediction = label_prediction
        self.image_prediction = image_prediction
        self.beta = beta
        self.t1_share = t1_share
        self.class_dropout = class_dropout
        self.image_weight = image_weight
        self.channels = channels
        self.channel_mult = channel_mult
        self.n_blocks = n_blocks
        self.attention_levels = attention_levels
        self.patch_size = patch_size
        self.dropout = dropout
        self.max_epochs = max_epochs
        self.time_budget = time_budget
        self.batch_size = batch_size
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.max_grad_norm = max_grad_norm
        self.ema_decay = ema_decay
        self.augment = augment
        self.class_weight = class_weight
        self.early_stopping = early_stopping
        self.calibration = calibration
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.n_draws = n_draws
        self.n_steps = n_steps
        self.ode_solver = ode_solver
        self.guidance = guidance
        self.warm_start = warm_start
        self.checkpoint_dir = checkpoint_dir
        self.checkpoint_every = checkpoint_every
        self.device = device
        self.precision = precision
        self.compile_network = compile_network
        self.random_state = random_state
        self.verbose = verbose

    @classmethod
    def from_paper(cls, name: str, **overrides: Any) -> "MedSymmFlowClassifier":
        """Make a classifier with the paper's settings (Tables 3 and 4).

        Parameters
        ----------
        name : {"pneumoniamnist", "bloodmnist", "dermamnist", "retinamnist"}
            Data set of the paper.
        **overrides : dict
            Parameters to set otherwise. ``label_encoding="grayscale"`` gives SymmFlow
            (Table 3), without it MedSymmFlow (Table 4).

        Returns
        -------
        MedSymmFlowClassifier

        Raises
        ------
        ValueError
            For a data set that the paper does not have.
        """
        key = paper_key(name, _PAPER_DATASETS)
        encoding = overrides.get("label_encoding", "rgb")
        beta = _PAPER_BETA.get(encoding, _PAPER_BETA["rgb"])[key]
        settings = {"label_encoding": encoding, "beta": beta}
        return cls(**{**PAPER, **_PAPER_DATASETS[key], **settings, **overrides})
