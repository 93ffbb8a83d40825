"""Muon and AdamW with a moving average of the weights."""

import torch
from torch import Tensor, nn

from sklearn_msf.runtime.device import to_channels_last
from sklearn_msf.training.muon import Muon
from sklearn_msf.training.state import part_of

__all__ = ["OPTIMIZERS", "AveragedOptimiser"]

OPTIMIZERS = ("muon", "adamw")

# Smaller matrices have no directions to balance.
_SMALLEST_SIDE = 16


class AveragedOptimiser:
    """Steps along the gradients of a network and keeps the average of its weights.

    With Muon, weights that are matrices, those of convolutions seen as
    (out, in * height * width), make steps whose singular values are all the same; everything
    else is left to AdamW. Muon's steps are scaled to the length of AdamW's, so that one rate
    serves both.

    Parameters
    ----------
    field : Module
        The network that trains; its weights are laid out in channels_last.
    average : Module
        Its copy that gets the averaged weights.
    optimizer : {"muon", "adamw"}
        Whether matrices are left to Muon.
    weight_decay : float
        Decoupled weight decay.
    max_grad_norm : float or None
        Norm to which longer gradients are cut.
    ema_decay : float
        Share of the average kept at each step.

    Attributes
    ----------
    n_steps : int
        Steps made.
    """

    def __init__(
        self,
        field: nn.Module,
        average: nn.Module,
        *,
        optimizer: str,
        weight_decay: float,
        max_grad_norm: float | None,
        ema_decay: float,
    ):
        self.n_steps = 0
        for module in (field, average):
            to_channels_last(module)
        self._field = field
        self._average = average
        self._max_grad_norm = max_grad_norm
        self._ema_decay = ema_decay
        self._parameters: list[Tensor] = list(field.parameters())
        self._averages: list[Tensor] = list(average.parameters())
        # Views of the weights; their gradients are views too, made anew in every step.
        self._matrices = {
            parameter: nn.Parameter(_as_matrix(parameter.detach()))
            for parameter in self._parameters
            if optimizer == "muon" and _is_matrix(parameter)
        }
        others = [p for p in self._parameters if p not in self._matrices]
        self._adamw = torch.optim.AdamW(others, weight_decay=weight_decay, fused=True)
        self._optimisers: list[torch.optim.Optimizer] = [self._adamw]
        if self._matrices:
            self._muon = Muon(self._matrices.values(), weight_decay=weight_decay)
            self._optimisers.append(self._muon)

    def step(self, rate: float) -> None:
        """Make one step at a learning rate, and forget the gradients."""
        if self._max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(self._parameters, self._max_grad_norm)
        for parameter, matrix in self._matrices.items():
            matrix.grad = None if parameter.grad is None else _as_matrix(parameter.grad)
        for optimiser in self._optimisers:
            optimiser.param_groups[0]["lr"] = rate
            optimiser.step()
        for weight in (*self._parameters, *self._matrices.values()):
            weight.grad = None
        self.n_steps += 1
        # A young average has little past to keep.
        decay = min(self._ema_decay, self.n_steps / (self.n_steps + 9))
        with torch.no_grad():
            torch._foreach_lerp_(self._averages, self._parameters, 1.0 - decay)

    def is_finite(self) -> bool:
        """Whether weights and averages are finite; waits for the device."""
        norms = torch._foreach_norm([p.detach() for p in self._parameters] + self._averages)
        return bool(torch.stack(norms).isfinite().all())

    def tensors(self) -> dict[str, Tensor]:
        """Copy weights, averages and moments, for another run to go on with."""
        tensors = {}
        for prefix, field in (("field", self._field), ("average", self._average)):
            for name, value in field.state_dict().items():
                tensors[f"{prefix}.{name}"] = value.clone()
        for i, parameter in enumerate(self._parameters):
            for name, value in self._moments(parameter).items():
                tensors[f"optimizer.{i}.{name}"] = value.clone()
        return tensors

    def load(self, tensors: dict[str, Tensor], n_steps: int) -> None:
        """Go on where another run was; weights that stepped by the other optimiser start anew."""
        self._field.load_state_dict(part_of(tensors, "field"))
        self._average.load_state_dict(part_of(tensors, "average"))
        for optimiser in self._optimisers:
            optimiser.state.clear()
        for i, parameter in enumerate(self._parameters):
            moments = part_of(tensors, f"optimizer.{i}")
            if ("momentum_buffer" in moments) != (parameter in self._matrices):
                continue
            stepped = self._matrices.get(parameter, parameter)
            for name, value in moments.items():
                if value.ndim:
                    # The fused kernel walks through memory: the layouts must be the same.
                    moments[name] = torch.empty_like(stepped).copy_(value)
                else:
                    moments[name] = value.to(parameter.device, copy=True)
            if moments:
                self._optimiser_of(parameter).state[stepped] = moments
        self.n_steps = n_steps

    def _optimiser_of(self, parameter: Tensor) -> torch.optim.Optimizer:
        return self._muon if parameter in self._matrices else self._adamw

    def _moments(self, parameter: Tensor) -> dict[str, Tensor]:
        stepped = self._matrices.get(parameter, parameter)
        return self._optimiser_of(parameter).state.get(stepped, {})


def _is_matrix(weight: Tensor) -> bool:
    return weight.ndim > 1 and min(_as_matrix(weight).shape) >= _SMALLEST_SIDE


def _as_matrix(weight: Tensor) -> Tensor:
    """(out, in * height * width) of a weight: a view of one in channels_last."""
    return weight.permute(0, 2, 3, 1).flatten(1) if weight.ndim == 4 else weight
