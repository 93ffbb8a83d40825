"""Muon: steps along orthogonalised momentum, for all matrices at once (Jordan et al., 2024).

The momentum M of a weight matrix is replaced by a matrix with the same singular vectors and
singular values near 1. With M scaled to unit norm and A = M M^T, five iterations of a quintic
polynomial do that::

    Q = b A + c A^2        P <- (a I + Q) P        A <- (a I + Q) A (a I + Q)

starting from P = I and ending with P M. Only A and P change from iteration to iteration, and
they are as small as the shorter side of M: a matrix of 64 x 576 costs 2.5 times less than with
the usual iteration on M itself, and matrices of different lengths share one batch.

All computations are in the dtype of the weights, float32. :class:`torch.optim.Muon` computes in
bfloat16, which most CPUs emulate and which is forty times slower there. Squaring M also needs
the digits of float32.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from sklearn_msf.runtime.device import arithmetic

__all__ = ["Muon", "orthogonalize"]

# Coefficients a, b, c: the polynomial that is steepest at 0 and keeps singular values near 1.
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_N_ITERATIONS = 5
_MOMENTUM = 0.95
_SMALLEST_NORM = 1e-7
# Root mean square of a typical step of AdamW, in units of the learning rate.
_STEP_SIZE = 0.2


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum and decoupled weight decay, for all matrices at once.

    A step is as long as a typical step of AdamW, so that both can use one learning rate
    (``adjust_lr_fn="match_rms_adamw"`` of :class:`torch.optim.Muon`).

    Parameters
    ----------
    matrices : iterable of Tensor of shape (m, n)
        Weights to optimize, float32.
    lr : float or Tensor of shape (), default=1e-3
        Learning rate. As a tensor it may change between the replays of a captured step.
    weight_decay : float, default=0.01
        Decoupled weight decay.
    """

    def __init__(
        self, matrices: Iterable[Tensor], *, lr: float | Tensor = 1e-3, weight_decay: float = 0.01
    ):
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Make one step; a matrix without a gradient is not changed."""
        for group in self.param_groups:
            matrices = [matrix for matrix in group["params"] if matrix.grad is not None]
            if not matrices:
                continue
            gradients = [matrix.grad for matrix in matrices]
            momenta = [self._momentum(matrix) for matrix in matrices]
            torch._foreach_lerp_(momenta, gradients, 1 - _MOMENTUM)
            directions = orthogonalize(torch._foreach_lerp(gradients, momenta, _MOMENTUM))
            lengths = [-_STEP_SIZE * math.sqrt(max(matrix.shape)) for matrix in matrices]
            torch._foreach_mul_(directions, lengths)
            torch._foreach_mul_(directions, group["lr"])
            torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(matrices, directions)

    def _momentum(self, matrix: Tensor) -> Tensor:
        state = self.state[matrix]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(matrix)
        buffer: Tensor = state["momentum_buffer"]
        return buffer


def orthogonalize(matrices: Sequence[Tensor]) -> list[Tensor]:
    """Bring the singular values of matrices close to 1: between 0.65 and 1.25.

    Singular values below a thousandth of the norm stay smaller; a zero matrix stays zero.

    Parameters
    ----------
    matrices : sequence of Tensor of shape (m, n)
        Of any shapes, on one device, float32 or float64.

    Returns
    -------
    list of Tensor of shape (m, n)
    """
    # Transpose tall matrices, so that the first side is the shorter one.
    lying = [matrix if len(matrix) <= matrix.shape[1] else matrix.T for matrix in matrices]
    by_shape: dict[tuple[int, int], list[int]] = defaultdict(list)
    for i, matrix in enumerate(lying):
        by_shape[matrix.shape[0], matrix.shape[1]].append(i)
    by_side: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for shape in by_shape:
        by_side[shape[0]].append(shape)
    results: list[Tensor] = list(matrices)
    # TF32 would round the squares.
    with arithmetic(matrices[0].device):
        for shapes in by_side.values():
            stacks = [torch.stack([lying[i] for i in by_shape[shape]]) for shape in shapes]
            stacks = [
                stack / stack.norm(dim=(1, 2), keepdim=True).clamp_min(_SMALLEST_NORM)
                for stack in stacks
            ]
            factors = _polynomial(torch.cat([stack @ stack.mT for stack in stacks]))
            parts = factors.split([len(stack) for stack in stacks])
            for shape, stack, part in zip(shapes, stacks, parts, strict=True):
                for i, result in zip(by_shape[shape], part @ stack, strict=True):
                    results[i] = result if matrices[i].shape == result.shape else result.T
    return results


def _polynomial(squares: Tensor) -> Tensor:
    """Multiply the factors a I + Q of all iterations, (k, m, m), for A of shape (k, m, m)."""
    a, b, c = _COEFFICIENTS
    product = torch.eye(squares.shape[1], dtype=squares.dtype, device=squares.device)
    product = product.expand_as(squares)
    for iteration in range(_N_ITERATIONS):
        q = torch.baddbmm(squares, squares, squares, beta=b, alpha=c)
        product = torch.baddbmm(product, q, product, beta=a)
        if iteration < _N_ITERATIONS - 1:
            left = torch.baddbmm(squares, q, squares, beta=a)
            squares = torch.baddbmm(left, left, q, beta=a)
    return product
