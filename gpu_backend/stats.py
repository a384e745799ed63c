"""What the engine has done so far, in numbers."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace


@dataclass
class EngineStats:
    """Counters since the engine was made; take a `snapshot()` before some work and `difference(snapshot)` after it."""

    requests: int = 0
    """Requests taken in, failed ones included."""
    failed_requests: int = 0
    prompt_tokens: int = 0
    """Tokens of all prompts taken in, with those that a grammar forces at the very beginning of the output."""
    computed_tokens: int = 0
    """Prompt tokens that were run through the model; the rest was shared."""
    cached_tokens: int = 0
    """Prefix tokens whose KV was left from requests that had finished before, each counted once when it is used again.

    They are part of what was shared.
    """
    label_tokens: int = 0
    """Tokens of choice labels that were run through the model."""
    output_tokens: int = 0
    """Tokens of all outputs, forced ones included."""
    forced_tokens: int = 0
    """Output tokens that a grammar left no choice about: added without asking the model."""
    steps: int = 0
    step_tokens: int = 0
    """Tokens of all steps: computed, label and decoded ones."""
    schedule_seconds: float = 0.0
    model_seconds: float = 0.0
    sample_seconds: float = 0.0
    peak_kv_blocks: int = 0
    """Most KV blocks that running requests held at one time; `difference` keeps the later value."""

    @property
    def hit_rate(self) -> float:
        """Share of prompt tokens that were not computed, 0 to 1."""
        return 1 - self.computed_tokens / self.prompt_tokens if self.prompt_tokens else 0.0

    def snapshot(self) -> EngineStats:
        """A copy that does not change any more."""
        return replace(self)

    def difference(self, before: EngineStats) -> EngineStats:
        """What was added after the snapshot `before`."""
        counters = {f.name: getattr(self, f.name) - getattr(before, f.name) for f in fields(self)}
        counters["peak_kv_blocks"] = self.peak_kv_blocks
        return EngineStats(**counters)
