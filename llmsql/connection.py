"""The ways in: `connect` makes a session, `register` only adds the functions to a connection."""

from __future__ import annotations

import os
import weakref
from typing import Any

import duckdb

from llmsql import models
from llmsql.duckdb_functions import ChunkFunctions
from llmsql.errors import SettingError
from llmsql.model import Model
from llmsql.session import Session
from llmsql.settings import Settings
from llmsql.statistics import QueryStatistics


def connect(
    database: str | os.PathLike[str] | duckdb.DuckDBPyConnection = ":memory:",
    *,
    model: str | os.PathLike[str] | Model | None = None,
    read_only: bool = False,
    config: dict[str, Any] | None = None,
    **settings: Any,
) -> Session:
    """A session on a database file, on memory (the default), or around a DuckDB connection of your own.

    Args:
        database: a path, ':memory:', or an open connection, which stays open when the session closes.
        model: a model folder, a hub id, 'demo' for the small model that comes with llmsql, or an object that answers.
            None is 'demo', or with `engine="grpc://host:port"` the model that is there.
        read_only, config: as in `duckdb.connect`, for a path.
        **settings: see `llmsql.settings.Settings`.

    Raises:
        ModelError: there is no such model folder, or it lacks weights or tokenizer.
        SettingError: an unknown or ill-typed setting.

    Example:
        >>> import llmsql
        >>> from llmsql.testing import FakeModel
        >>> with llmsql.connect(model=FakeModel(lambda prompt, fields, options: "Yes")) as con:
        ...     con.sql("SELECT llm_filter('Is it red?', x) AS red FROM (VALUES ('rose')) t(x)").fetchall()
        [(True,)]
    """
    checked = Settings.make(settings)
    opened = models.open_model(model, checked)
    try:
        if isinstance(database, duckdb.DuckDBPyConnection):
            return Session(database, opened, checked, owns_connection=False)
        connection = duckdb.connect(os.fspath(database), read_only=read_only, config=config or {})
        return Session(connection, opened, checked, owns_connection=True)
    except BaseException:
        models.release(opened)
        raise


class Registration:
    """What `register` did: `statistics` counts what the functions asked; `remove` takes them off again."""

    def __init__(self, functions: ChunkFunctions, opened: models.ModelSet):
        self._functions = functions
        self._finalizer = weakref.finalize(functions, _release, opened)
        # At exit DuckDB reports every function that is still on an open connection as a leak.
        self._at_exit = weakref.finalize(self, functions.remove)

    @property
    def statistics(self) -> QueryStatistics:
        """Counters since registration."""
        return self._functions.statistics

    def remove(self) -> None:
        """Take the functions off the connection and give the model back. Idempotent."""
        self._functions.remove()
        self._finalizer()


def _release(opened: models.ModelSet) -> None:
    opened.release()


_registrations: weakref.WeakKeyDictionary[duckdb.DuckDBPyConnection, Registration] = weakref.WeakKeyDictionary()


def register(
    connection: duckdb.DuckDBPyConnection, *, model: str | os.PathLike[str] | Model | None = None, **settings: Any
) -> Registration:
    """Add the LLM functions to a DuckDB connection as plain UDFs, for tools that hold the connection themselves.

    DuckDB gives a function at most 2,048 rows at a time and does not tell it the names of its columns, so equal rows
    are found and rows reordered within such a chunk only; fields get names from a struct argument
    (`llm('…', {'title': title})`), and are called field1, field2, ... otherwise. Options are those of the settings.
    Use `connect` where you can.

    Raises:
        ModelError, SettingError: as `connect`.
    """
    if not isinstance(connection, duckdb.DuckDBPyConnection):
        raise SettingError(f"register needs a DuckDB connection, not {type(connection).__name__}")
    checked = Settings.make(settings)
    opened = models.ModelSet(models.open_model(model, checked), checked)
    registration = Registration(ChunkFunctions(connection, opened, checked), opened)
    _registrations[connection] = registration
    return registration
