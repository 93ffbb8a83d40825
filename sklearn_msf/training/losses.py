"""The losses of the image branch and of the label branch."""

import torch
from torch import Tensor

from sklearn_msf.flow.path import PathSample
from sklearn_msf.flow.velocity_field import VelocityField

__all__ = ["field_losses", "label_loss"]

# Minimum weight of the samples at t = 1 in the label loss of a batch that has other samples too.
_MIN_LABEL_FRACTION_AT_ONE = 0.8


def field_losses(
    field: VelocityField,
    sample: PathSample,
    labels: Tensor,
    n_at_one: int,
    n_dropped: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute the losses of both branches on points of the path (paper, section 3).

    Parameters
    ----------
    field : VelocityField
        In training.
    sample : PathSample
        Points of the path; the first `n_at_one` are at t = 1 and have no image loss.
    labels : Tensor of shape (n,), int64
        Class indices.
    n_at_one : int
        Number of samples at t = 1.
    n_dropped : int, optional
        Number of samples, the first ones, that have dropout: it helps classification but
        blurs generated images. All by default.

    Returns
    -------
    image_loss, label_loss : Tensor
        Scalars: means over the samples. If some samples are at t = 1 and some are not, those
        at t = 1 have a weight of at least 0.8 in the label loss.
    """
    output, errors = field.branch_outputs(sample, labels, n_at_one, n_dropped)
    loss_of_labels = label_loss(errors, n_at_one)
    if output is None:
        return loss_of_labels.new_zeros(()), loss_of_labels
    generating = slice(n_at_one, None)
    return field.image_parameterization.loss(output, sample, generating), loss_of_labels


def label_loss(errors: Tensor, n_at_one: int) -> Tensor:
    """Average the errors of the label branch, with a minimum weight of the samples at t = 1.

    Classification sees only samples at t = 1, however few of them a batch has. The label loss of
    the other samples makes the network memorise small data sets.

    Parameters
    ----------
    errors : Tensor of shape (n,)
        Error of each sample.
    n_at_one : int
        Number of samples at t = 1, which come first.

    Returns
    -------
    Tensor
        A scalar.
    """
    if not 0 < n_at_one < len(errors):
        return errors.mean()
    at_one, others = errors[:n_at_one].mean(), errors[n_at_one:].mean()
    fraction = max(_MIN_LABEL_FRACTION_AT_ONE, n_at_one / len(errors))
    return torch.lerp(others, at_one, fraction)
