"""Dropout that is quick on a CPU and leaves torch's global generator alone."""

import torch
from torch import Tensor, nn

__all__ = ["Dropout"]


class Dropout(nn.Module):
    """Dropout that draws a byte for each element, from a generator of its own.

    torch's draws a number for each, on a CPU on one thread: as slow as the convolution beside
    it. And it draws from the global generator, which other threads draw from too.

    Parameters
    ----------
    p : float
        Share set to zero in training, in steps of 1/256.

    Attributes
    ----------
    generator : torch.Generator or None
        Source of the bytes; None is torch's global generator.
    """

    def __init__(self, p: float):
        super().__init__()
        self.p = p
        self.generator: torch.Generator | None = None

    def forward(self, h: Tensor, n_rows: int | None = None) -> Tensor:
        """Set a share of h, (n, C, H, W), to zero and scale the rest up.

        With `n_rows` in so many rows alone, the first ones.
        """
        if not self.training or not self.p or n_rows == 0:
            return h
        if n_rows is not None and n_rows < len(h):
            return torch.cat([self(h[:n_rows]), h[n_rows:]])
        n_zero = min(255, max(1, round(256 * self.p)))
        n, channels, height, width = h.shape
        words = torch.empty((h.numel() + 7) // 8, dtype=torch.int64, device=h.device)
        words.random_(-(2**63), None, generator=self.generator)
        kept = words.view(torch.uint8)[: h.numel()] >= n_zero
        # In the order of the memory of channels_last.
        kept = kept.view(n, height, width, channels).permute(0, 3, 1, 2)
        return h * kept.to(h.dtype).mul_(256 / (256 - n_zero))
