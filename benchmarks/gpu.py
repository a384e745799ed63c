"""Everything that a GPU can show, in one call: are the kernels right, is the engine right, how fast are both.

    python benchmarks/gpu.py                         # on CUDA, under 8 minutes on an H100
    python benchmarks/gpu.py --models 1.5b,7b        # larger random models
    python benchmarks/gpu.py --dry-run               # the same steps, tiny, on the CPU in Triton's interpreter

Sections: the device's own peaks (a large matrix product, a large copy); every kernel against its reference; the engine
against `transformers.generate`; the kernels' times; whole workloads on random models against `transformers`, with each
optimisation on and off. All numbers of a table come from this one process. What a section finds is printed as Markdown
at once and kept in a file (`--out`, or the folder `$OUT`), so that nothing is lost where a later one fails. The exit
status is 1 if anything was wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]  # the tests' cases are checked here too


@dataclass
class Report:
    """Markdown for people, numbers for programs, and what was wrong."""

    folder: Path | None
    lines: list[str] = field(default_factory=list)
    results: dict[str, Any] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def line(self, text: str = "") -> None:
        print(text, flush=True)
        self.lines.append(text)

    def heading(self, columns: str) -> None:
        """Begin a table; columns are separated by ` | `, and those that begin with `#` are numbers."""
        names = columns.split(" | ")
        self.line()
        self.line("| " + " | ".join(name.lstrip("#") for name in names) + " |")
        self.line("| " + " | ".join("---:" if name.startswith("#") else "---" for name in names) + " |")

    def row(self, *cells: object) -> None:
        self.line("| " + " | ".join(str(cell) for cell in cells) + " |")

    def fail(self, problem: str) -> None:
        self.line(f"\nWRONG: {problem}")
        self.failures.append(problem)

    def save(self) -> None:
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "gpu.md").write_text("\n".join(self.lines) + "\n", encoding="utf-8")
            data = {"results": self.results, "failures": self.failures}
            (self.folder / "gpu.json").write_text(json.dumps(data, indent=1), encoding="utf-8")


@dataclass
class Settings:
    device: Any  # torch.device
    dry_run: bool
    models: list[str]
    deadline: float  # time.monotonic() from which on no further workload is begun
    peak_flops: float = 0.0  # of the device, measured: bf16 matrix product
    peak_bytes: float = 0.0  # a copy, read and written

    def time_left(self) -> bool:
        return time.monotonic() < self.deadline


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    if options.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    if not options.dry_run and not torch.cuda.is_available():
        raise SystemExit("No CUDA device: nothing was measured. --dry-run runs the same steps on the CPU.")
    import gpu_kernels
    import gpu_parity
    import gpu_workloads

    settings = Settings(
        device=torch.device("cpu" if options.dry_run else "cuda"),
        dry_run=options.dry_run,
        models=["tiny"] if options.dry_run else options.models.split(","),
        deadline=time.monotonic() + 60 * options.minutes,
    )
    sections: dict[str, Callable[[Report, Settings], None]] = {
        "peaks": gpu_kernels.measure_peaks,
        "kernels": gpu_kernels.check_kernels,
        "parity": gpu_parity.check_parity,
        "attention": gpu_kernels.time_attention,
        "operators": gpu_kernels.time_operators,
        "workloads": gpu_workloads.run_workloads,
        "generate_batch": gpu_workloads.run_generate_batch,
    }
    report = Report(Path(options.out) if options.out else None)
    describe(report, settings)
    chosen = options.only.split(",") if options.only else list(sections)
    for name, section in sections.items():
        if name not in chosen and name != "peaks":
            continue
        begin = time.monotonic()
        report.line(f"\n## {name}")
        try:
            section(report, settings)
        except Exception:
            report.fail(f"section {name} stopped:\n```\n{traceback.format_exc()}```")
        report.line(f"\n({name}: {time.monotonic() - begin:.0f} s)")
        report.save()
    if report.failures:
        raise SystemExit(f"{len(report.failures)} things were wrong:\n" + "\n".join(report.failures))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU, in Triton's interpreter")
    parser.add_argument("--models", default="135m,500m,1.5b", help="of 135m, 500m, 1.5b, 7b; random weights")
    parser.add_argument("--only", default="", help="section names, separated by commas")
    parser.add_argument("--minutes", type=float, default=7.0, help="no workload is begun after so many")
    parser.add_argument("--out", default=os.environ.get("OUT", ""), help="folder for gpu.md and gpu.json")
    return parser.parse_args(arguments)


def describe(report: Report, settings: Settings) -> None:
    import torch
    import transformers
    import triton

    on_gpu = settings.device.type == "cuda"
    name = torch.cuda.get_device_name(settings.device) if on_gpu else "CPU, dry run in Triton's interpreter"
    report.line(f"# {name}")
    report.line(
        f"\ntorch {torch.__version__}, triton {triton.__version__}, transformers {transformers.__version__}, "
        f"Python {sys.version.split()[0]}"
    )
    report.results["device"] = name


if __name__ == "__main__":
    main()
