"""The warning about rows that failed."""

from __future__ import annotations

import warnings

from llmsql.scan import frames_of_ours
from llmsql.statistics import QueryStatistics


class LlmsqlWarning(UserWarning):
    """Rows of a statement failed and are NULL; `llm_errors()` lists the reasons."""


def warn_of_failures(statistics: QueryStatistics) -> None:
    """Warn where rows failed, with their count and the first reason; the warning points at the caller's line."""
    failed = sum(stage.failed for stage in statistics.stages)
    if failed:
        first = statistics.errors[0]
        warnings.warn(
            f"{failed} of {statistics.model_calls} rows failed and are NULL; the first: {first.error} "
            "(all reasons: SELECT * FROM llm_errors())",
            LlmsqlWarning,
            stacklevel=frames_of_ours() + 1,
        )
