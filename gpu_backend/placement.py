"""A model's weights on the device and in the type they are computed in, moved one at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from .file_pages import FilePages

if TYPE_CHECKING:
    from transformers import PreTrainedModel


_LARGE = 2**20  # bytes


def place(model: PreTrainedModel, device: torch.device, dtype: torch.dtype, *, pages: FilePages | None = None) -> None:
    """Give each module weights on `device` in `dtype`, so that one weight at most is held twice.

    Weights are replaced, not changed, so that others who hold them keep what they have. Tied weights stay tied. What
    is of another type than the model as a whole stays so, and so do the modules that transformers keeps in float32.
    `pages` are those of weights that were read for us alone.
    """
    own = model.dtype
    wide = tuple(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
    if dtype == torch.float16:
        wide += tuple(getattr(model, "_keep_in_fp32_modules", None) or ())
    placed: dict[int, nn.Parameter] = {}  # by the id of the weight before
    for path, module in model.named_modules():
        for name, weight in module._parameters.items():
            if weight is None:
                continue
            if id(weight) not in placed:
                keeps = weight.dtype != own or any(part in f"{path}.{name}" for part in wide)
                wanted = weight.dtype if keeps else dtype
                fits = weight.device == device and weight.dtype == wanted
                moved = weight if fits else nn.Parameter(weight.detach().to(device, wanted), requires_grad=False)
                if pages is not None and not fits and weight.nbytes >= _LARGE:
                    pages.drop()
                placed[id(weight)] = moved
            module._parameters[name] = placed[id(weight)]
        for name, buffer in module._buffers.items():  # not their type: rotary frequencies stay in float32
            if buffer is not None:
                module._buffers[name] = buffer.to(device)
