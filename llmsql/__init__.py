"""SELECT llm(...) in DuckDB and Spark, answered by an embedded paged-KV engine.

    import llmsql
    con = llmsql.connect()
    con.sql("SELECT llm_filter('Is it positive?', review) FROM 'reviews.csv'").show()

Importing this package loads neither torch nor pyspark; both are loaded when they are first needed.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from llmsql.errors import (
    BudgetError,
    CallError,
    ClosedError,
    LlmsqlError,
    ModelError,
    QueryError,
    RowError,
    SettingError,
)

if TYPE_CHECKING:
    from llmsql.connection import connect, register
    from llmsql.failures import LlmsqlWarning
    from llmsql.interruption import InterruptError
    from llmsql.session import Session
    from llmsql.statistics import QueryStatistics
    from llmsql.table_functions import llm, llm_agg, llm_classify, llm_extract, llm_filter, llm_score

__version__ = "0.1.0"
__all__ = [
    "BudgetError",
    "CallError",
    "ClosedError",
    "InterruptError",
    "LlmsqlError",
    "LlmsqlWarning",
    "ModelError",
    "QueryError",
    "QueryStatistics",
    "RowError",
    "Session",
    "SettingError",
    "connect",
    "llm",
    "llm_agg",
    "llm_classify",
    "llm_extract",
    "llm_filter",
    "llm_score",
    "register",
]

_LAZY = {
    "connect": "llmsql.connection",
    "register": "llmsql.connection",
    "Session": "llmsql.session",
    "LlmsqlWarning": "llmsql.failures",
    "InterruptError": "llmsql.interruption",
    "QueryStatistics": "llmsql.statistics",
    **dict.fromkeys(
        ("llm", "llm_agg", "llm_classify", "llm_extract", "llm_filter", "llm_score"), "llmsql.table_functions"
    ),
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        value = getattr(import_module(_LAZY[name]), name)
        globals()[name] = value
        return value
    if name in ("spark", "testing"):
        return import_module(f"llmsql.{name}")
    raise AttributeError(f"module 'llmsql' has no attribute {name!r}")
