"""Decides the order in which rows and fields are shown to the model, so that prompts share prefixes."""

from __future__ import annotations

from .approximate_dependencies import dependency_errors
from .cells import Cells, encode
from .deduplication import Deduplication, deduplicate
from .dependencies import Dependency, find_dependencies
from .errors import OptimizerError
from .finite_cache import FiniteCacheHits, finite_cache_hits
from .icicle import icicle
from .ordering import Ordering, OrderingStats
from .parts import computed_units, cut
from .prefix_hits import PrefixHits, prefix_hits
from .prompt_memory import PromptMemory
from .prompts import render
from .reorder import METHODS, reorder
from .statistics import ColumnStatistics, column_statistics
from .streaming import reorder_batches
from .unordered import arrange_items

__all__ = [
    "METHODS",
    "Cells",
    "ColumnStatistics",
    "Deduplication",
    "Dependency",
    "FiniteCacheHits",
    "OptimizerError",
    "Ordering",
    "OrderingStats",
    "PrefixHits",
    "PromptMemory",
    "arrange_items",
    "column_statistics",
    "computed_units",
    "cut",
    "deduplicate",
    "dependency_errors",
    "encode",
    "find_dependencies",
    "finite_cache_hits",
    "icicle",
    "prefix_hits",
    "render",
    "reorder",
    "reorder_batches",
]
