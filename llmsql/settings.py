"""The settings of a session, validated once and passed on to the rooms that use them."""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass, fields, replace
from typing import Any

from llmsql.errors import SettingError
from llmsql.result_cache import DEFAULT_SIZE

ENGINE_SETTINGS = ("device", "dtype", "kv_memory", "max_batch_tokens", "prefix_sharing", "cascade", "trust_remote_code")
SWITCHES = (
    *("plan", "deduplicate", "reorder", "short_circuit", "order_filters", "early_stop"),
    *("prefix_sharing", "cascade", "trust_remote_code"),
)


@dataclass(frozen=True)
class Settings:
    """What a user may set in `connect` and `register`. Every optimisation has its off-switch here.

    Planner and optimizer:
        plan: stage LLM calls; off leaves each call in place as a UDF that DuckDB runs chunk by chunk.
        deduplicate: ask the model once for equal arguments.
        reorder: order rows and fields for prefix reuse.
        short_circuit: ask a call inside AND, OR, CASE, COALESCE, ... only where its value can matter.
        order_filters: run the LLM predicates of a WHERE cheapest and most selective first, as measured on the way.
        early_stop: under a LIMIT, ask the rows in growing batches until enough of them pass.
        batch_rows: distinct rows that are read, ordered and run at a time (bounds memory).
    Calls:
        on_error: 'null' (a failed row becomes NULL with its reason in `last_query.errors`) or 'fail'.
        max_output_tokens: longest free-text answer, in tokens, unless the call says otherwise.
        max_rows, max_tokens, max_seconds: what one statement may cost: rows that the model is asked about, tokens that
            it runs (computed prompt tokens and output), seconds. More raises `BudgetError`, before the rows are asked
            where it can be known; finished answers stay in the result cache. None: no limit.
        progress: show a progress bar on stderr; None means only when it is a terminal.
    Result cache:
        cache: keep answers, so that equal questions are not paid for again: True (in the user's cache folder, or where
            $LLMSQL_CACHE says), False, a path, or ':memory:' for as long as the session lives. None is True for models
            read from files, and False for objects that answer.
        cache_size: bytes of the cache at most, or a text such as '4GiB'; what was unused for longest goes.
    Engine:
        device: 'auto', 'cpu', 'cuda', 'cuda:1'; dtype: 'auto', 'float32', 'bfloat16', 'float16'.
        kv_memory: bytes for the KV cache, or a text such as '2GiB'; None takes a share of free memory.
        max_batch_tokens: tokens per step of the engine.
        prefix_sharing: compute the KV of a shared prefix once; cascade: read it once per group in attention.
        trust_remote_code: run Python code that a model folder brings with it.

    Raises:
        SettingError: unknown name or bad value (through `Settings.make`).
    """

    plan: bool = True
    deduplicate: bool = True
    reorder: bool = True
    short_circuit: bool = True
    order_filters: bool = True
    early_stop: bool = True
    batch_rows: int = 100_000
    on_error: str = "null"
    max_output_tokens: int = 64
    max_rows: int | None = None
    max_tokens: int | None = None
    max_seconds: float | None = None
    progress: bool | None = None
    cache: bool | str | os.PathLike[str] | None = None
    cache_size: int | str = DEFAULT_SIZE
    device: str = "auto"
    dtype: str = "auto"
    kv_memory: int | str | None = None
    max_batch_tokens: int | None = None
    prefix_sharing: bool = True
    cascade: bool = True
    trust_remote_code: bool = False

    @classmethod
    def make(cls, options: dict[str, Any]) -> Settings:
        """Settings from keyword arguments, or a `SettingError` that says which one is wrong and why."""
        known = {field.name for field in fields(cls)}
        for name in options:
            if name not in known:
                close = difflib.get_close_matches(name, sorted(known), n=1)
                hint = f"; did you mean {close[0]!r}?" if close else f"; known settings: {', '.join(sorted(known))}"
                raise SettingError(f"unknown setting {name!r}{hint}")
        settings = cls(**options)
        settings._validate()
        return settings

    def changed(self, **options: Any) -> Settings:
        """A copy with some settings replaced."""
        changed = replace(self, **options)
        changed._validate()
        return changed

    def engine_options(self) -> dict[str, Any]:
        """The part that `Engine(...)` takes."""
        return {name: getattr(self, name) for name in ENGINE_SETTINGS}

    def cache_bytes(self) -> int:
        """`cache_size` in bytes.

        Raises:
            SettingError: it is no amount of memory.
        """
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:I?B)?\s*", str(self.cache_size).upper())
        size = 0 if match is None else int(float(match[1]) * 1024 ** " KMGT".index(match[2] or " "))
        if size < 1 or isinstance(self.cache_size, bool):
            raise SettingError(f"setting 'cache_size' must be bytes or a text such as '4GiB', not {self.cache_size!r}")
        return size

    def _validate(self) -> None:
        for name in SWITCHES:
            if not isinstance(getattr(self, name), bool):
                raise SettingError(f"setting {name!r} must be True or False, not {getattr(self, name)!r}")
        for name in ("batch_rows", "max_output_tokens", "max_batch_tokens", "max_rows", "max_tokens"):
            value = getattr(self, name)
            if value is None and name in ("max_batch_tokens", "max_rows", "max_tokens"):
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise SettingError(f"setting {name!r} must be a whole number of at least 1, not {value!r}")
        if self.max_seconds is not None and (
            not isinstance(self.max_seconds, (int, float))
            or isinstance(self.max_seconds, bool)
            or self.max_seconds <= 0
        ):
            raise SettingError(f"setting 'max_seconds' must be a number above 0, not {self.max_seconds!r}")
        if self.cache is not None and not isinstance(self.cache, (bool, str, os.PathLike)):
            raise SettingError(f"setting 'cache' must be True, False, a path or ':memory:', not {self.cache!r}")
        self.cache_bytes()
        if self.on_error not in ("null", "fail"):
            raise SettingError(f"setting 'on_error' must be 'null' or 'fail', not {self.on_error!r}")
