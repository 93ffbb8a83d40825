"""Muon and AdamW with a moving average of the weights.

Everything that changes from step to step is a tensor: a step that was captured as a CUDA graph
reads the same memory again, and a Python number would stay what it was at the capture.
"""

import torch
from torch import Tensor, nn

from sklearn_msf.persistence.archives import ArchiveError, part_of
from sklearn_msf.runtime.device import to_channels_last
from sklearn_msf.training.muon import Muon

__all__ = ["OPTIMIZERS", "AveragedOptimizer"]

OPTIMIZERS = ("muon", "adamw")

# Matrices with a smaller side are left to AdamW: they have too few directions to balance.
_SMALLEST_SIDE = 16
# Names in the state of AdamW: the number of steps, and the mean of the squared gradients.
_STEP, _SQUARE = "step", "exp_avg_sq"


class AveragedOptimizer:
    """Makes the steps of a network and keeps a moving average of its weights.

    With "muon", Muon updates the weight matrices: its steps have singular values that are all
    about equal. Convolution weights count as matrices (out, positions * in). AdamW updates
    all other weights. Muon's steps are scaled to the length of AdamW's, so that both use one
    learning rate.

    Parameters
    ----------
    field : Module
        The network to train; its weights are converted to channels_last.
    average : Module
        A copy of the network that gets the averaged weights.
    optimizer : {"muon", "adamw"}
        Optimizer of the weight matrices.
    weight_decay : float
        Decoupled weight decay.
    max_grad_norm : float or None
        Longer gradients are scaled down to this norm; None does not limit them.
    ema_decay : float
        Fraction of the average that is kept at each step, less in the first steps.

    Attributes
    ----------
    n_steps : int
        Number of steps made.
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
        # Views of the weights. Their gradients are views too, which `step` sets every time.
        self._matrices = {
            parameter: nn.Parameter(_as_matrix(parameter.detach()))
            for parameter in self._parameters
            if optimizer == "muon" and _is_matrix(parameter)
        }
        others = [p for p in self._parameters if p not in self._matrices]
        device = self._parameters[0].device
        # The learning rate of the step, and the weight of the new weights in the average.
        self._rate, self._gain = (
            torch.zeros((), dtype=torch.float32, device=device) for _ in range(2)
        )
        on_cuda = device.type == "cuda"
        self._adamw = torch.optim.AdamW(
            others, lr=self._rate, weight_decay=weight_decay, fused=True, capturable=on_cuda
        )
        # The first steps run before the capture, of which torch would warn.
        self._adamw._warned_capturable_if_run_uncaptured = True
        self._optimizers: list[torch.optim.Optimizer] = [self._adamw]
        if self._matrices:
            self._muon = Muon(self._matrices.values(), lr=self._rate, weight_decay=weight_decay)
            self._optimizers.append(self._muon)

    def step(self, rate: float) -> None:
        """Make one step at a learning rate, with the gradients of the weights."""
        self.begin_step(rate)
        self.update()
        self.end_step()

    def begin_step(self, rate: float) -> None:
        """Set what differs from step to step: learning rate and weight of the new weights."""
        self._rate.fill_(rate)
        # Keep less in the first steps, so that the initial weights soon leave the average.
        decay = min(self._ema_decay, (self.n_steps + 1) / (self.n_steps + 10))
        self._gain.fill_(1.0 - decay)

    def update(self) -> None:
        """Change weights, moments and averages by the gradients, and clear these.

        This can be captured: nothing waits for the device or depends on the values of tensors.
        """
        if self._max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(self._parameters, self._max_grad_norm)
        for parameter, matrix in self._matrices.items():
            matrix.grad = None if parameter.grad is None else _as_matrix(parameter.grad)
        for optimizer in self._optimizers:
            optimizer.step()
        self.clear_gradients()
        with torch.no_grad():
            moved = torch._foreach_sub(self._parameters, self._averages)
            torch._foreach_mul_(moved, self._gain)
            torch._foreach_add_(self._averages, moved)

    def end_step(self) -> None:
        """Count the step."""
        self.n_steps += 1

    def count_broken_step(self) -> None:
        """Count the step that an interrupt ended after AdamW had changed its weights.

        The moments of these count it themselves, and no run has more of them than steps.
        """
        # Where the interrupt came first the optimizer has made no moments yet.
        steps = [int(moments[_STEP]) for moments in self._adamw.state.values() if moments]
        self.n_steps = max([self.n_steps, *steps])

    def gradients(self) -> list[Tensor]:
        """Return the gradients of the weights that have one."""
        return [weight.grad for weight in self._parameters if weight.grad is not None]

    def fill_gradients(self, *, all_weights: bool) -> None:
        """Give weights without a gradient one of zeros, so that all processes have the same.

        A process whose part of a batch does not use some weights has none for them. If no process
        uses them, as `all_weights` says, they stay without.
        """
        for weight in self._parameters if all_weights else ():
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)

    def clear_gradients(self) -> None:
        """Forget the gradients, also those that a capture which failed has left behind."""
        for weight in (*self._parameters, *self._matrices.values()):
            weight.grad = None

    def is_finite(self) -> Tensor:
        """Tell whether weights and averages are finite, as a Tensor () that nobody waits for."""
        norms = torch._foreach_norm([p.detach() for p in self._parameters] + self._averages)
        return torch.stack(norms).isfinite().all()

    def tensors(self) -> dict[str, Tensor]:
        """Copy weights, averages and moments, so that another run can continue from them."""
        tensors: dict[str, Tensor] = {}
        for prefix, field in (("field", self._field), ("average", self._average)):
            tensors |= {f"{prefix}.{name}": value for name, value in field.state_dict().items()}
        for i, parameter in enumerate(self._parameters):
            moments = self._moments(parameter)
            tensors |= {f"optimizer.{i}.{name}": value for name, value in moments.items()}
        # Copy all at once: a GPU takes longer to start hundreds of small copies than to copy.
        copies = [torch.empty_like(value) for value in tensors.values()]
        torch._foreach_copy_(copies, list(tensors.values()))
        return dict(zip(tensors, copies, strict=True))

    def wanted(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return tensors of the names, shapes and dtypes that tensors of the same run must have.

        Weights that never had a gradient have no moments, so only the names of `tensors` tell
        which do.
        """
        wanted: dict[str, Tensor] = {}
        for prefix, field in (("field", self._field), ("average", self._average)):
            wanted |= {f"{prefix}.{name}": value for name, value in field.state_dict().items()}
        stepped = {name.split(".")[1] for name in tensors if name.startswith("optimizer.")}
        for i, parameter in enumerate(self._parameters):
            if str(i) in stepped:
                moments = self._wanted_moments(parameter)
                wanted |= {f"optimizer.{i}.{name}": value for name, value in moments.items()}
        return wanted

    def check_moments(self, tensors: dict[str, Tensor], n_steps: int) -> None:
        """Check the values of moments that :meth:`wanted` has found to fit.

        Raises
        ------
        ArchiveError
            For a square that is negative, or a number of steps that no run of `n_steps` has.
        """
        for name, value in part_of(tensors, "optimizer").items():
            if name.endswith(f".{_SQUARE}") and bool((value < 0).any()):
                raise ArchiveError(f"its optimizer.{name} has negative values")
            if name.endswith(f".{_STEP}") and not 1 <= float(value) <= n_steps:
                raise ArchiveError(f"its optimizer.{name} is {float(value)}")

    def load(self, tensors: dict[str, Tensor], n_steps: int) -> None:
        """Load the weights, averages and moments of another run.

        The moments get other memory: a step that was captured before must be captured anew. If
        the other run updated a weight with the other optimizer, its moments are not used.
        """
        self._field.load_state_dict(part_of(tensors, "field"))
        self._average.load_state_dict(part_of(tensors, "average"))
        for optimizer in self._optimizers:
            optimizer.state.clear()
        for i, parameter in enumerate(self._parameters):
            moments = part_of(tensors, f"optimizer.{i}")
            if ("momentum_buffer" in moments) != (parameter in self._matrices):
                continue
            stepped = self._matrices.get(parameter, parameter)
            for name, value in moments.items():
                if name == _STEP:
                    moments[name] = value.to(parameter.device, copy=True)
                else:
                    # The fused kernel needs moments in the memory layout of the weights, and
                    # writes as many values as these have.
                    moments[name] = torch.empty_like(stepped).copy_(value)
            if moments:
                self._optimizer_of(parameter).state[stepped] = moments
        self.n_steps = n_steps

    def _optimizer_of(self, parameter: Tensor) -> torch.optim.Optimizer:
        return self._muon if parameter in self._matrices else self._adamw

    def _wanted_moments(self, parameter: Tensor) -> dict[str, Tensor]:
        if parameter in self._matrices:
            return {"momentum_buffer": self._matrices[parameter]}
        count = torch.zeros((), dtype=torch.float32)
        return {_STEP: count, "exp_avg": parameter, _SQUARE: parameter}

    def _moments(self, parameter: Tensor) -> dict[str, Tensor]:
        stepped = self._matrices.get(parameter, parameter)
        return self._optimizer_of(parameter).state.get(stepped, {})


def _is_matrix(weight: Tensor) -> bool:
    return weight.ndim > 1 and min(_as_matrix(weight).shape) >= _SMALLEST_SIDE


def _as_matrix(weight: Tensor) -> Tensor:
    """Reshape a weight to (out, positions * in), without a copy if it is channels_last."""
    return weight.movedim(1, -1).flatten(1) if weight.ndim > 2 else weight
