"""What a batch of prompts will cost, before it is run."""

from __future__ import annotations

from dataclasses import dataclass

CHARACTERS_PER_TOKEN = 4.0
OUTPUT_TOKEN = 8.0  # a generated token costs about as much as so many tokens of a prompt


@dataclass(frozen=True)
class Estimate:
    """What a batch will cost: rows, tokens of their prompts, and how many of those will have to be computed."""

    rows: int
    prompt_tokens: int
    computed_tokens: int

    @property
    def hit_rate(self) -> float:
        """Share of the prompt tokens in prefixes that an earlier prompt had, 0 to 1."""
        return hit_rate(self.prompt_tokens, self.computed_tokens)


def hit_rate(prompt_tokens: int, computed_tokens: int) -> float:
    """Share of the prompt tokens that need not be computed, 0 to 1."""
    return 1 - computed_tokens / prompt_tokens if prompt_tokens else 0.0
