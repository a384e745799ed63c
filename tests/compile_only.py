"""Compile what the launchers launch, for a device that is not there: their own calls, on CPU tensors, never run."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.backends.nvidia.compiler import get_ptxas, sm_arch_from_capability
from triton.runtime.driver import driver

from llmsql.kernels import activation, attention, kv_write, log_probs, merge, norm, rotary

MODULES = (activation, attention, kv_write, log_probs, merge, norm, rotary)
SHARED_MEMORY = {80: 163 * 1024, 86: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024}
"""Bytes per thread block, CUDA programming guide."""


@dataclass(frozen=True)
class Compiled:
    name: str
    constants: dict[str, Any]
    kernel: Any  # triton's CompiledKernel

    @property
    def ptx(self) -> str:
        return self.kernel.asm["ptx"]

    def spilled_bytes(self, capability: int) -> int:
        """Bytes of registers that the assembler had to keep in memory, which it tells for the PTX."""
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "kernel.ptx"
            source.write_text(self.ptx, encoding="utf-8")
            options = ["-v", "--regAllocOptLevel=2", f"--gpu-name={sm_arch_from_capability(capability)}"]
            command = [get_ptxas(capability).path, *options, str(source), "-o", str(source.with_suffix(".cubin"))]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert "bytes spill" in done.stderr, done.stderr
        return sum(int(count) for count in re.findall(r"(\d+) bytes spill", done.stderr))


class _AbsentDevice(DriverBase):
    """Stands for a CUDA device of some compute capability; answers what compiling asks, and launches nothing."""

    def __init__(self, capability: int) -> None:
        super().__init__()
        self.capability = capability

    def get_current_device(self) -> tuple[str, int]:
        return ("absent", self.capability)  # triton keeps what it compiled by this

    def get_current_stream(self, device: object) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def map_python_to_cpp_type(self, ty: str) -> str:
        raise NotImplementedError

    def get_active_torch_device(self) -> None:
        raise NotImplementedError

    def get_benchmarker(self) -> None:
        raise NotImplementedError

    @classmethod
    def is_active(cls) -> bool:
        return False


@contextmanager
def compiling_for(capability: int) -> Iterator[list[Compiled]]:
    """Inside, launchers take CPU tensors, and each launch is compiled for `capability` and added to the list."""
    compiled: list[Compiled] = []
    run = triton.JITFunction.run

    def compile_only(self: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> None:
        kernel = run(self, *arguments, grid=grid, warmup=True, **options)
        constants = {name: value for name, value in options.items() if name.isupper()}
        compiled.append(Compiled(self.fn.__name__, constants, kernel))

    with pytest.MonkeyPatch.context() as patch:
        for module in MODULES:
            patch.setattr(module, "check_device", lambda *_: None)
        patch.setattr(triton.JITFunction, "run", compile_only)
        patch.setattr(driver, "_active", _AbsentDevice(capability))
        yield compiled
