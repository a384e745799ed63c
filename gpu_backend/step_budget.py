"""How many tokens a step may have: as planned, and fewer for a while after the device ran out of memory."""

from __future__ import annotations

import torch

_STEPS_TO_GROWTH = 32
_MESSAGES = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed")


class StepBudget:
    """Halved by a step that the device had no memory for; doubled again, up to the plan, after some that went well."""

    def __init__(self, planned: int) -> None:
        self.planned = planned
        self.num_tokens = planned
        self._went_well = 0

    def halve(self, num_tokens: int) -> bool:
        """After a step of `num_tokens` failed for want of memory; False if there is no smaller one."""
        self._went_well = 0
        self.num_tokens = max(1, num_tokens // 2)
        return num_tokens > 1

    def went_well(self) -> None:
        """After a step that the device had memory for."""
        if self.num_tokens < self.planned:
            self._went_well += 1
            if self._went_well == _STEPS_TO_GROWTH:
                self._went_well = 0
                self.num_tokens = min(self.planned, 2 * self.num_tokens)


def is_out_of_memory(problem: BaseException) -> bool:
    """Whether the device, or the process, had too little memory: torch says so in several ways."""
    if isinstance(problem, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(problem, RuntimeError) and any(text in str(problem).lower() for text in _MESSAGES)
