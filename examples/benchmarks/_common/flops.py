"""Floating-point operations of a network."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["COUNTED", "counted_flops"]

# In the records: what makes a count differ from an earlier one.
COUNTED = "attention too; masks as one value"


@contextmanager
def counted_flops() -> Iterator[FlopCounterMode]:
    """Count the operations of convolutions and matrix products, those of attention too."""
    # torch does not count the products inside its fast attention for CPUs.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        yield counter
