"""Rotary position embeddings: tables of angles, taken from the model's own module."""

from __future__ import annotations

from collections.abc import Callable

import torch

Angles = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""Positions [1, n] int64 to cosines and sines [1, n, head_dim] float32, scaled as the model wants them."""

_FIRST_ROWS = 2048


class RotaryTable:
    """Cosines and sines of the positions in use, made once for all layers and steps with the same frequencies.

    The angles come from the transformers module, so that every kind of scaling is what it is there. The table grows by
    doubling up to `limit`, the model's context: frequencies may depend on the longest row beyond it.
    """

    def __init__(self, angles: Angles, device: torch.device, limit: int | None) -> None:
        self._angles = angles
        self._device = device
        self._limit = limit
        self._cos = self._sin = torch.empty(0, device=device)

    def __call__(self, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines [positions, head_dim // 2] float32 of at least `length` positions."""
        have = len(self._cos)
        if have < length:
            rows = max(length, 2 * have, _FIRST_ROWS)
            if self._limit is not None:
                assert length <= self._limit, "a request is longer than the context"
                rows = min(rows, self._limit)
            cos, sin = self._angles(torch.arange(rows, device=self._device)[None])
            half = cos.shape[-1] // 2  # the second half repeats the first
            self._cos, self._sin = cos[0, :, :half].contiguous(), sin[0, :, :half].contiguous()
        return self._cos, self._sin
