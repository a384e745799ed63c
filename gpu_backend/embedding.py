"""The vectors of a decoder's input tokens."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F


class Embedding(Protocol):
    """A vector for each token id."""

    def __call__(self, token_ids: torch.Tensor) -> torch.Tensor:
        """[tokens] int64, all within the vocabulary -> [tokens, hidden]."""
        ...

    def restore(self) -> None:
        """Give the module its weight back."""
        ...


class PlainEmbedding:
    """Rows of a weight as it lies."""

    def __init__(self, weight: torch.Tensor) -> None:
        self.weight = weight  # [vocab, hidden]

    def __call__(self, token_ids: torch.Tensor) -> torch.Tensor:
        """See `Embedding`."""
        return F.embedding(token_ids, self.weight)

    def restore(self) -> None:
        """Nothing to do: the weight is the module's."""
