"""Dropout that is fast on a CPU and does not need torch's global generator."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Dropout"]


class Dropout(nn.Module):
    """Dropout that draws one random byte per element, from its own generator.

    torch's dropout draws a random number per element, on a CPU in a single thread, which takes
    as long as the convolution next to it. It also draws from the global generator, which other
    threads use too.

    Parameters
    ----------
    p : float
        Fraction of the elements set to zero in training, rounded to a multiple of 1/256. A
        positive fraction becomes at least 1/256 and at most 255/256.

    Attributes
    ----------
    generator : torch.Generator or None
        Source of the bytes; None stands for torch's global generator.
    part : tuple of slice and int, or None
        If the samples that have dropout are a part of those of a batch that several processes
        share: which ones, and the number of all. The bytes are drawn for all, so that each sample
        gets those that it would get in one process.
    """

    def __init__(self, p: float):
        super().__init__()
        self.p = p
        self.generator: torch.Generator | None = None
        self.part: tuple[slice, int] | None = None

    def forward(self, h: Tensor, n_rows: int | None = None) -> Tensor:
        """Set a fraction of h, (n, C, H, W), to zero and scale up the rest.

        If `n_rows` is given, do so only in the first `n_rows` samples of the batch.
        """
        if not self.training or not self.p or (n_rows == 0 and self.part is None):
            return h
        if n_rows is not None and n_rows < len(h):
            # Gradients of a split are joined in one pass; those of slices are added to zeros.
            dropped, others = h.split([n_rows, len(h) - n_rows])
            return torch.cat([self(dropped), others])
        n_zero = min(255, max(1, round(256 * self.p)))
        # The other flag is raised for all threads while one of them exports or compiles a model.
        if torch.compiler.is_dynamo_compiling():
            # A compiler knows the global generator only, and joins torch's dropout to its kernels.
            return F.dropout(h, n_zero / 256)
        n, channels, *size = h.shape
        part, n_drawn = (slice(None), n) if self.part is None else self.part
        n_bytes = n_drawn * channels * math.prod(size)
        words = torch.empty((n_bytes + 7) // 8, dtype=torch.int64, device=h.device)
        words.random_(-(2**63), None, generator=self.generator)
        kept = words.view(torch.uint8)[:n_bytes] >= n_zero
        # Use the memory order of channels_last, which h has.
        kept = kept.view(n_drawn, *size, channels).movedim(-1, 1)[part]
        return h * kept.to(h.dtype).mul_(256 / (256 - n_zero))
