"""The losses of the image branch and of the label branch."""

from typing import NamedTuple

import torch
from torch import Tensor

from sklearn_msf.flow.path import PathSample
from sklearn_msf.flow.velocity_field import VelocityField

__all__ = ["WholeBatch", "field_losses", "label_loss"]

# Minimum weight of the samples at t = 1 in the label loss of a batch that has other samples too.
_MIN_LABEL_FRACTION_AT_ONE = 0.8


class WholeBatch(NamedTuple):
    """A batch of which several processes have a part each.

    Attributes
    ----------
    n_samples, n_at_one : int
        Number of its samples, and of those at t = 1.
    n_processes : int
        Number of parts.
    """

    n_samples: int
    n_at_one: int
    n_processes: int


def field_losses(
    field: VelocityField,
    sample: PathSample,
    labels: Tensor,
    n_at_one: int,
    n_dropped: int | None = None,
    whole: WholeBatch | None = None,
    channel_parts: tuple[int, ...] = (),
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
    whole : WholeBatch, optional
        The batch of which the samples are a part. The mean of the losses of all parts is the loss
        of the whole batch.
    channel_parts : tuple of int, optional
        Numbers of channels of parts of the image that have equal shares in the image loss.

    Returns
    -------
    image_loss, label_loss : Tensor
        Scalars: means over the samples. If some samples are at t = 1 and some are not, those
        at t = 1 have a weight of at least 0.8 in the label loss.
    """
    output, errors = field.branch_outputs(sample, labels, n_at_one, n_dropped)
    loss_of_labels = label_loss(errors, n_at_one, whole)
    if output is None:
        return loss_of_labels.new_zeros(()), loss_of_labels
    generating = slice(n_at_one, None)
    loss_of_images = field.image_parameterization.loss(output, sample, generating, channel_parts)
    if whole is not None:
        # The mean over the samples of this part, weighted by their number. Avoid 0 / 0: a
        # VelocityRegressionField returns an empty output where all samples are at t = 1.
        n_generating = max(whole.n_samples - whole.n_at_one, 1)
        loss_of_images = loss_of_images * (len(output) * whole.n_processes / n_generating)
    return loss_of_images, loss_of_labels


def label_loss(errors: Tensor, n_at_one: int, whole: WholeBatch | None = None) -> Tensor:
    """Average the errors of the label branch, with a minimum weight of the samples at t = 1.

    Classification sees only samples at t = 1, however few of them a batch has. The label loss of
    the other samples makes the network memorise small data sets.

    Parameters
    ----------
    errors : Tensor of shape (n,)
        Error of each sample.
    n_at_one : int
        Number of samples at t = 1, which come first.
    whole : WholeBatch, optional
        As in :func:`field_losses`.

    Returns
    -------
    Tensor
        A scalar.
    """
    if whole is not None:
        return _part_of_label_loss(errors, n_at_one, whole)
    if not 0 < n_at_one < len(errors):
        return errors.mean()
    at_one, others = errors[:n_at_one].mean(), errors[n_at_one:].mean()
    fraction = max(_MIN_LABEL_FRACTION_AT_ONE, n_at_one / len(errors))
    return torch.lerp(others, at_one, fraction)


def _part_of_label_loss(errors: Tensor, n_at_one: int, whole: WholeBatch) -> Tensor:
    n_others = whole.n_samples - whole.n_at_one
    fraction = 1.0 if not n_others else 0.0
    if whole.n_at_one and n_others:
        fraction = max(_MIN_LABEL_FRACTION_AT_ONE, whole.n_at_one / whole.n_samples)
    # Sums, because this part may have none of a kind.
    at_one = errors[:n_at_one].sum() / max(whole.n_at_one, 1)
    others = errors[n_at_one:].sum() / max(n_others, 1)
    return whole.n_processes * torch.lerp(others, at_one, fraction)
