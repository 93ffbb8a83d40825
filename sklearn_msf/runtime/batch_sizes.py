"""The smallest batch that gives a sample the same bits as the full batch.

Kernels may sum in another order for another batch size, and a prediction must not depend on the
samples beside it. Batches that are not full are therefore padded: to the full size, or to a
smaller one at which every operation was seen to give the same bits on this device. The check
runs a batch both ways and compares the result of each operation, row by row. A kernel chooses its
order by shapes and not by values, so what holds for one batch holds for others, and what holds
for one module holds for others of its form: for the fits of a search or of a cross-validation.
But values can hide an order: sums of zeros, as of a black image or of weights that are zero, are
the same in any. The check therefore puts random numbers in place of images and weights. A module
that a user has changed is not tried: its hooks would see them.
"""

import hashlib
import itertools
import math
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from sklearn_msf.runtime.cuda_graphs import no_captures
from sklearn_msf.runtime.module_changes import is_changed

__all__ = ["Prepared", "SmallBatches", "padded"]

# How many rows of the batches of a form, kind and size were seen to have the right bits.
_CHECKED: dict[Hashable, int] = {}
_FORMS: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()

# Of a multiplicative hash: 2**32 divided by the golden ratio, as a signed number.
_SCATTERING = 0x9E3779B1 - 2**32

_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


Prepared = TypeVar("Prepared")


def padded(x: Tensor, size: int) -> Tensor:
    """Pad a batch to `size` samples with copies of its first one.

    The operations are the same for all sizes, as :class:`SmallBatches` asks, which compares them.
    There the copies show whether a sample has the same bits at the later places of a full batch.
    """
    return torch.cat([x, x[:1].expand(size - len(x), *x.shape[1:])])


class SmallBatches(Generic[Prepared]):
    """Finds the sizes to which batches that are not full may be padded.

    Parameters
    ----------
    module : nn.Module
        The module whose passes are meant. What was seen holds for all modules of its form: with
        the same printed structure, and weights of the same shapes and memory formats.
    kind : hashable
        Everything else that the operations of a batch depend on, but for its size and for values:
        the device, the shapes, and what the printed structure does not show.
    prepare : callable
        Makes what a batch is computed from, which does not depend on its size: given the index of
        its first sample and the number of its samples. It may be costly, and is not compared. Of
        its floating tensors only the form counts.
    trial : callable
        Runs all operations of a batch, given what was prepared and the size to pad it to. They are
        as many for any size. The results are not used: the module has random weights in it.
    """

    def __init__(
        self,
        module: nn.Module,
        kind: Hashable,
        prepare: Callable[[int, int], Prepared],
        trial: Callable[[Prepared, int], object],
    ):
        self._module, self._kind = module, kind
        self._prepare, self._trial = prepare, trial

    def size(
        self, start: int, n_rows: int, full_size: int, largest_small: int | None = None
    ) -> int:
        """Return the size to which to pad the `n_rows` samples from the index `start` on.

        It is the full size if no smaller one, up to `largest_small`, is right.
        """
        if n_rows >= full_size or is_changed(self._module):
            return full_size
        form = _form_of(self._module), _settings_of_torch()
        watch, full, size = None, None, 1
        while size < full_size and size <= (largest_small or full_size):
            if size >= n_rows:
                key = form, self._kind, full_size, size
                n_checked = _CHECKED.get(key)
                if n_checked is None or 0 < n_checked < n_rows:
                    # Preparing may capture, so the lock is not held meanwhile.
                    watch = watch or self._watch(start, n_rows)
                    with no_captures(self._device):
                        full = full or watch(full_size)
                        same = watch(size).are_those_of(full, n_rows)
                    n_checked = _CHECKED[key] = n_rows if same else 0
                if n_checked:
                    return size
            size *= 2
        return full_size

    @property
    def _device(self) -> torch.device:
        return next((p.device for p in self._module.parameters()), torch.device("cpu"))

    def _watch(self, start: int, n_rows: int) -> Callable[[int], "_Digests"]:
        """Make a function that runs the samples, padded to a size, on random numbers."""
        # Equal numbers would hide an order too: several views of the samples are added up.
        seeds = itertools.count()
        prepared = tree_map_only(
            Tensor,
            lambda part: _random_like(part, next(seeds)) if part.is_floating_point() else part,
            self._prepare(start, n_rows),
        )
        trial, weights = partial(self._trial, prepared), _random_weights(self._module)
        # What is made by the first run and kept is no operation of the others.
        with no_captures(self._device), _OtherWeights(weights):
            trial(n_rows)
        return partial(_Digests, trial, weights)


def _random_like(tensor: Tensor, seed: int) -> Tensor:
    """Draw numbers with the shape, type, device and memory format of a tensor."""
    generator = torch.Generator(tensor.device).manual_seed(seed)
    return torch.empty_like(tensor).normal_(generator=generator)


# Torch handles the results of weights otherwise than those of tensors of inference mode.
@torch.inference_mode(False)
@torch.no_grad()
def _random_weights(module: nn.Module) -> dict[int, Tensor]:
    """Draw other weights for a module, by the ids of those that they stand for."""
    # Sums of products with them are about as large as what is multiplied.
    return {
        id(weight): _random_like(weight, seed) / math.sqrt(math.prod(weight.shape[1:]))
        for seed, weight in enumerate(module.parameters())
    }


def _form_of(module: nn.Module) -> str:
    """Digest what the kernels of a module are chosen by, apart from its input."""
    form = _FORMS.get(module)
    if form is None:
        weights = [
            (name, weight.shape, weight.stride(), weight.dtype)
            for name, weight in (*module.named_parameters(), *module.named_buffers())
        ]
        described = f"{module}{weights}".encode()
        form = _FORMS[module] = hashlib.sha256(described).hexdigest()
    return form


def _settings_of_torch() -> tuple[Any, ...]:
    """Return what kernels are chosen by besides their input, in the whole process or thread."""
    mkldnn: Any = torch.backends.mkldnn
    attention = torch.backends.cuda
    return (
        torch.get_num_threads(),
        torch._C._get_mkldnn_enabled(),
        mkldnn.matmul.fp32_precision,
        mkldnn.conv.fp32_precision,
        torch.backends.cudnn.enabled,
        torch.are_deterministic_algorithms_enabled(),
        attention.flash_sdp_enabled(),
        attention.mem_efficient_sdp_enabled(),
        attention.math_sdp_enabled(),
        attention.cudnn_sdp_enabled(),
    )


class _OtherWeights(TorchDispatchMode):
    """Runs operations with other weights, given by the ids of those that they stand for."""

    def __init__(self, weights: dict[int, Tensor]):
        super().__init__()
        self._weights = weights

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return self._result(operation, args, kwargs or {})

    def _result(self, operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        named = {name: self._other(value) for name, value in kwargs.items()}
        return operation(*map(self._other, args), **named)

    def _other(self, value: Any) -> Any:
        """Return what stands for an argument: operations have tensors, and lists of them.

        torch's own functions for trees of any form take longer than the operations of a small
        network do.
        """
        if isinstance(value, Tensor):
            return self._weights.get(id(value), value)
        if isinstance(value, list | tuple) and any(isinstance(part, Tensor) for part in value):
            return [self._other(part) for part in value]
        return value


class _Digests(_OtherWeights):
    """Runs a batch and digests the result of each operation."""

    def __init__(self, trial: Callable[[int], object], weights: dict[int, Tensor], size: int):
        super().__init__(weights)
        self._size = size
        self._digests: list[Tensor] = []
        # Many results of a network have rows of one shape, and the same factors.
        self._factors: dict[Hashable, Tensor] = {}
        with self:
            trial(size)

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = self._result(operation, args, kwargs or {})
        # A view has the bits of what it shows, which are digested already.
        if not operation.is_view:
            for value in [result] if isinstance(result, Tensor) else tree_leaves(result):
                if isinstance(value, Tensor) and value.is_floating_point() and value.ndim > 1:
                    self._digests.append(_digest(value, self._factors))
        return result

    def are_those_of(self, full: "_Digests", n_rows: int) -> bool:
        """Tell whether the first `n_rows` samples have the same bits in the full batch."""
        pairs = zip(self._digests, full._digests, strict=True)
        return len(self._digests) == len(full._digests) and all(
            _same_rows(mine, self._size, other, full._size, n_rows) for mine, other in pairs
        )


def _digest(value: Tensor, factors: dict[Hashable, Tensor]) -> Tensor:
    """Compute one number of the bits of each row, (n,), whatever the memory format.

    What the elements are multiplied by is kept in `factors`, for other results with such rows.
    """
    bits = value.view(_BITS[value.element_size()])
    if bits.dtype == torch.int16:
        bits = bits.int()
    key = bits.shape[1:], bits.dtype, bits.device
    if key not in factors:
        factors[key] = _factors_of(*key)
    return (bits * factors[key]).sum(dim=tuple(range(1, bits.ndim)), dtype=bits.dtype)


def _factors_of(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Compute odd numbers without a pattern, so that each bit of an element changes the sum.

    The sum wraps around.
    """
    numbers = torch.arange(math.prod(shape), dtype=dtype, device=device)
    scattered = numbers * _SCATTERING
    return ((scattered ^ (scattered >> 16)) | 1).view(shape)


def _same_rows(mine: Tensor, size: int, other: Tensor, full_size: int, n_rows: int) -> bool:
    """Compare the digests of two batches; True for results that have no rows of samples.

    Errors in these show in the results that are computed from them.
    """
    if len(mine) == len(other):
        # The rows are something else, whose elements are the samples.
        return True
    n_repeats = len(mine) // size
    if len(mine) != n_repeats * size or len(other) != n_repeats * full_size:
        return True
    # Draws of all samples come one after the other; positions of one sample are neighbours.
    by_draw = mine.view(-1, size).T, other.view(-1, full_size).T
    by_sample = mine.view(size, -1), other.view(full_size, -1)
    return any(_begin_alike(*rows, n_rows) for rows in (by_draw, by_sample))


def _begin_alike(mine: Tensor, other: Tensor, n_rows: int) -> bool:
    """Compare the samples, and those that pad the full batch with the first sample itself."""
    return torch.equal(mine[:n_rows], other[:n_rows]) and bool((other[n_rows:] == mine[0]).all())
