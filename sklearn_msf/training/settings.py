"""How to train, with every choice made."""

from dataclasses import dataclass

__all__ = ["TrainingSettings"]


@dataclass(frozen=True)
class TrainingSettings:
    """How to train.

    Attributes
    ----------
    max_epochs : int
        Passes over the data at most.
    time_budget : float or None
        Seconds after which training has ended, schedule included.
    batch_size : int
        Images a step; an epoch is split evenly into steps of about this size.
    optimizer : {"muon", "adamw"}
        Whether matrices step by Muon.
    learning_rate, weight_decay : float
        Peak rate, and decoupled decay of the weights.
    max_grad_norm : float or None
        Norm to which longer gradients are cut.
    ema_decay : float
        Share of the weights' moving average kept at each step.
    image_weight : float
        w, weight of the image half in the loss; the label half has 1 - w.
    t1_share : float
        Share of each batch at t = 1.
    class_dropout : float
        Share of the other rows whose mask says nothing of the class.
    precision : {"float32", "bfloat16"}
        Precision of convolutions and products.
    compile_network : bool
        Whether to compile the network.
    early_stopping : bool
        Whether to keep the best validated weights and to stop when they stay the best.
    n_iter_no_change : int
        Epochs without a better validation score after which training stops.
    """

    max_epochs: int
    time_budget: float | None
    batch_size: int
    optimizer: str
    learning_rate: float
    weight_decay: float
    max_grad_norm: float | None
    ema_decay: float
    image_weight: float
    t1_share: float
    class_dropout: float
    precision: str
    compile_network: bool
    early_stopping: bool
    n_iter_no_change: int

    @property
    def classless_share(self) -> float:
        """Share of each batch whose mask says nothing of the class."""
        return self.class_dropout * (1 - self.t1_share)

    @property
    def trains_images(self) -> bool:
        """Whether the image half learns."""
        return self.image_weight > 0 and self.t1_share < 1

    @property
    def trains_classless(self) -> bool:
        """Whether the image half learns to draw without a class."""
        return self.trains_images and self.class_dropout > 0
