"""Settings of a training run, with all automatic choices made."""

from dataclasses import dataclass

__all__ = ["TrainingSettings"]


@dataclass(frozen=True)
class TrainingSettings:
    """Settings of a training run.

    Attributes
    ----------
    max_epochs : int
        Maximum number of passes over the data.
    time_budget : float or None
        Seconds within which training and its learning rate schedule end; None sets no limit.
    batch_size : int
        Images per step.
    even_batches : bool
        Whether an epoch is split evenly into steps of about `batch_size`; otherwise the last step
        of an epoch has the images that remain.
    optimizer : {"muon", "adamw"}
        Optimizer of the weight matrices.
    learning_rate, weight_decay : float
        Peak rate, and decoupled decay of the weights.
    warmup : {"linear", "cosine"}
        Form of the rise to the peak rate.
    max_grad_norm : float or None
        Longer gradients are scaled down to this norm; None does not limit them.
    ema_decay : float
        Fraction of the moving average of the weights that is kept at each step; at most
        n / (n + 9) in step n.
    image_weight : float
        w, the weight of the image branch in the loss; the label branch has 1 - w.
    classification_fraction : float
        Fraction of each batch at t = 1.
    class_dropout : float
        Fraction of the other samples that are trained unconditionally: their masks have no
        information about the class.
    time_shift : float
        How far the times of the other samples are moved towards noise; 1 leaves them uniform.
    precision : {"float32", "bfloat16"}
        Precision of convolutions and matrix products.
    compile_network : bool
        Whether to compile the network.
    early_stopping : bool
        Whether to keep the weights with the best validation score, and to stop when the score
        no longer improves.
    n_iter_no_change : int
        Epochs without a better validation score after which training stops.
    raises_fraction : bool, default=False
        Whether the first steps may show that the time budget needs a larger fraction, which then
        replaces `classification_fraction`; False once it is settled.
    """

    max_epochs: int
    time_budget: float | None
    batch_size: int
    even_batches: bool
    optimizer: str
    learning_rate: float
    weight_decay: float
    warmup: str
    max_grad_norm: float | None
    ema_decay: float
    image_weight: float
    classification_fraction: float
    class_dropout: float
    time_shift: float
    precision: str
    compile_network: bool
    early_stopping: bool
    n_iter_no_change: int
    raises_fraction: bool = False

    @property
    def unconditional_fraction(self) -> float:
        """Fraction of each batch that is trained unconditionally, without the samples at t = 1."""
        return self.class_dropout * (1 - self.classification_fraction)

    @property
    def trains_images(self) -> bool:
        """Whether the image branch is trained."""
        return self.image_weight > 0 and self.classification_fraction < 1

    @property
    def trains_unconditionally(self) -> bool:
        """Whether the image branch learns to generate unconditionally."""
        return self.trains_images and self.class_dropout > 0
