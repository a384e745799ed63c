"""What is in a model folder's safetensors files, and whether it is all there, read from their headers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .errors import ModelError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"

_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}
_MAX_HEADER = 100_000_000  # bytes; safetensors' own limit


@dataclass(frozen=True)
class Checkpoint:
    """The weights of a folder."""

    files: tuple[Path, ...]
    dtype: torch.dtype | None
    """Of the most numbers; None where none is a float."""


def read_checkpoint(folder: Path) -> Checkpoint:
    """Find the safetensors files of a model folder and check their headers; raises ModelError, which names the file."""
    if not (folder / "config.json").is_file():
        raise ModelError(f"model folder {str(folder)!r} has no config.json")
    files = _files(folder)
    sizes: dict[torch.dtype, int] = {}
    for file in files:
        for tensor in _header(file).values():
            begin, end = tensor["data_offsets"]
            dtype = _DTYPES.get(tensor["dtype"])
            if dtype is not None:
                sizes[dtype] = sizes.get(dtype, 0) + end - begin
    return Checkpoint(files, max(sizes, key=lambda dtype: sizes[dtype]) if sizes else None)


def _files(folder: Path) -> tuple[Path, ...]:
    if (folder / SINGLE).is_file():
        return (folder / SINGLE,)
    index = folder / INDEX
    if not index.is_file():
        found = sorted(
            path.name for pattern in ("*.safetensors", "*.bin", "*.pt", "*.gguf") for path in folder.glob(pattern)
        )
        others = f"; it has {', '.join(found[:3])}, which the engine does not read" if found else ""
        raise ModelError(f"model folder {str(folder)!r} has no {SINGLE} and no {INDEX}{others}")
    try:
        names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(f"{str(index)!r} is not a list of weights and their files: {error!r}") from error
    missing = [name for name in names if not (folder / name).is_file()]
    if missing or not names:
        lacks = f"{len(missing)} of the {len(names)} files, such as {missing[0]}" if missing else "any file"
        raise ModelError(f"model folder {str(folder)!r} lacks {lacks}, named in {INDEX}: copy or download it again")
    return tuple(folder / name for name in names)


def _header(file: Path) -> dict[str, Any]:
    """Name to dtype, shape and place of each tensor, as far as it is needed here."""
    size = file.stat().st_size
    with open(file, "rb") as data:
        length = int.from_bytes(data.read(8), "little")
        if not 2 <= length <= min(_MAX_HEADER, size - 8):
            raise ModelError(f"{str(file)!r} is not a safetensors file, or is cut off within its header ({size} bytes)")
        raw = data.read(length)
    try:
        header = json.loads(raw)
        header.pop("__metadata__", None)
        end = 8 + length + max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
    except (ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        raise ModelError(f"{str(file)!r} is not a safetensors file: its header cannot be read ({error!r})") from error
    if size < end:
        raise ModelError(
            f"{str(file)!r} is cut off: {size} bytes, but its header describes {end}; copy or download it again"
        )
    return dict(header)
