"""AdamW with a moving average of the weights."""

import torch
from torch import Tensor

from sklearn_msf.fields import VelocityField
from sklearn_msf.states import part_of

__all__ = ["AveragedAdamW"]


class AveragedAdamW:
    """Steps along the gradients of a field and keeps the average of its weights.

    Parameters
    ----------
    field : VelocityField
        The field that trains.
    average : VelocityField
        Its copy that gets the averaged weights.
    weight_decay : float
        Weight decay of AdamW.
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
        field: VelocityField,
        average: VelocityField,
        *,
        weight_decay: float,
        max_grad_norm: float | None,
        ema_decay: float,
    ):
        self.n_steps = 0
        self._field = field
        self._average = average
        self._max_grad_norm = max_grad_norm
        self._ema_decay = ema_decay
        self._parameters: list[Tensor] = list(field.parameters())
        self._averages: list[Tensor] = list(average.parameters())
        self._adamw = torch.optim.AdamW(self._parameters, weight_decay=weight_decay, fused=True)

    def step(self, rate: float) -> None:
        """Make one step at a learning rate, and forget the gradients."""
        if self._max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(self._parameters, self._max_grad_norm)
        self._adamw.param_groups[0]["lr"] = rate
        self._adamw.step()
        self._adamw.zero_grad(set_to_none=True)
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
            for name, value in self._adamw.state.get(parameter, {}).items():
                tensors[f"optimizer.{i}.{name}"] = value.clone()
        return tensors

    def load(self, tensors: dict[str, Tensor], n_steps: int) -> None:
        """Go on where another run was."""
        self._field.load_state_dict(part_of(tensors, "field"))
        self._average.load_state_dict(part_of(tensors, "average"))
        self._adamw.state.clear()
        for i, parameter in enumerate(self._parameters):
            moments = part_of(tensors, f"optimizer.{i}")
            for name, value in moments.items():
                if value.ndim:
                    # The fused kernel walks through memory: the layouts must be the same.
                    moments[name] = torch.empty_like(parameter).copy_(value)
                else:
                    moments[name] = value.to(parameter.device, copy=True)
            if moments:
                self._adamw.state[parameter] = moments
        self.n_steps = n_steps
