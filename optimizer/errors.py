"""The errors of the optimizer."""

from __future__ import annotations


class OptimizerError(ValueError):
    """A table, option or ordering that the optimizer cannot work with; says which and what to do."""
