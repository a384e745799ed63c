"""The settings of a session, validated once and passed on to the rooms that use them."""

from __future__ import annotations

import difflib
import math
import os
import re
from dataclasses import dataclass, field, fields, replace
from typing import Any

from llmsql.errors import SettingError
from llmsql.result_cache import DEFAULT_SIZE

ENGINE_SWITCHES = ("prefix_sharing", "share_in_step", "prefix_cache", "cascade", "fused", "forced_tokens")
KERNELS = ("auto", "triton", "native", "torch")
ENGINE_SETTINGS = (
    "device",
    "dtype",
    "kernels",
    "kv_memory",
    "max_batch_tokens",
    *ENGINE_SWITCHES,
    "trust_remote_code",
)
# Where an engine is: in this process, in one process per machine, or at an address of Arrow Flight.
PROCESS, NODE = "process", "node"
ADDRESSES = ("grpc://", "grpc+tcp://", "grpc+tls://", "grpc+unix://")
AN_ADDRESS = re.compile(r"grpc\+unix://.+|grpc(\+tcp|\+tls)?://[^/]+:\d+/?")
SWITCHES = (
    *("plan", "deduplicate", "reorder", "short_circuit", "order_filters", "early_stop", "infer_types"),
    *("cached_first", "follow_earlier"),
    *ENGINE_SWITCHES,
    "trust_remote_code",
)


@dataclass(frozen=True)
class Settings:
    """What a user may set in `connect` and `register`. Every optimisation has its off-switch here.

    Planner and optimizer:
        plan: stage LLM calls; off leaves each call in place as a UDF that DuckDB runs chunk by chunk.
        deduplicate: ask the model once for equal arguments.
        reorder: order rows and fields for prefix reuse.
        follow_earlier: order a batch after those whose KV the engine's prefix cache may hold, also other sessions'.
        short_circuit: ask a call inside AND, OR, CASE, COALESCE, ... only where its value can matter.
        order_filters: run the LLM predicates of a WHERE cheapest and most selective first, as measured on the way.
        early_stop: under a LIMIT, ask the rows in growing batches until enough of them pass.
        infer_types: give an llm call without a type the one that the SQL around it says, such as `llm(…) > 3`.
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
        cached_first: in Spark, find the answers that are kept before the other rows are cut into partitions.
    Engine:
        device: 'auto', 'cpu', 'cuda', 'cuda:1'; dtype: 'auto', 'float32', 'bfloat16', 'float16'.
        kernels: 'auto' is Triton's on CUDA, on a CPU those in C++ where there is a compiler, and torch's operators
            elsewhere; 'triton', 'native' (C++) and 'torch' name one.
        kv_memory: bytes for the KV cache, or a text such as '2GiB'; None takes a share of free memory.
        max_batch_tokens: tokens per step of the engine.
        prefix_sharing: compute the KV of a shared prefix once; share_in_step: also for rows that begin in the same
            step; prefix_cache: keep it from batch to batch; cascade: read it once per group in attention.
        fused: run the fused decoder where there is one for the model, instead of transformers' modules.
        forced_tokens: append what a schema leaves no choice about without asking the model.
        trust_remote_code: run Python code that a model folder brings with it.
    Where the engine is (see docs/serving.md):
        engine: 'process' is this one, 'node' one process that all sessions of this user on this machine share, and an
            address such as 'grpc://host:port' an engine that `llmsql serve` has started, whose engine settings are its
            own. None is 'node' for Spark's workers and 'process' elsewhere.
        token: what the engine at the address wants to see; None takes $LLMSQL_TOKEN.
        tls_root: PEM file of who signed the certificate of a 'grpc+tls://' engine; None takes the system's.
        engine_linger: seconds that a node's engine stays after the last session that used it.
        engine_threads: of a node's engine on a CPU; None leaves it to $OMP_NUM_THREADS, and in Spark takes the cores of
            an executor.

    Raises:
        SettingError: unknown name or bad value (through `Settings.make`).
    """

    plan: bool = True
    deduplicate: bool = True
    reorder: bool = True
    follow_earlier: bool = True
    short_circuit: bool = True
    order_filters: bool = True
    early_stop: bool = True
    infer_types: bool = True
    batch_rows: int = 100_000
    on_error: str = "null"
    max_output_tokens: int = 64
    max_rows: int | None = None
    max_tokens: int | None = None
    max_seconds: float | None = None
    progress: bool | None = None
    cache: bool | str | os.PathLike[str] | None = None
    cache_size: int | str = DEFAULT_SIZE
    cached_first: bool = True
    device: str = "auto"
    dtype: str = "auto"
    kernels: str = "auto"
    kv_memory: int | str | None = None
    max_batch_tokens: int | None = None
    prefix_sharing: bool = True
    share_in_step: bool = True
    prefix_cache: bool = True
    cascade: bool = True
    fused: bool = True
    forced_tokens: bool = True
    trust_remote_code: bool = False
    engine: str | None = None
    token: str | None = field(default=None, repr=False)
    tls_root: str | os.PathLike[str] | None = None
    engine_linger: float = 5.0
    engine_threads: int | None = None

    @classmethod
    def make(cls, options: dict[str, Any]) -> Settings:
        """Settings from keyword arguments, or a `SettingError` that says which one is wrong and why."""
        return cls().changed(**options)

    def changed(self, **options: Any) -> Settings:
        """A copy with some settings replaced; raises as `make`."""
        known = {known.name for known in fields(self)}
        for name in options:
            if name not in known:
                close = difflib.get_close_matches(name, sorted(known), n=1)
                hint = f"; did you mean {close[0]!r}?" if close else f"; known settings: {', '.join(sorted(known))}"
                raise SettingError(f"unknown setting {name!r}{hint}")
        changed = replace(self, **options)
        changed._validate()
        return changed

    def engine_options(self) -> dict[str, Any]:
        """The part that `Engine(...)` takes."""
        return {name: getattr(self, name) for name in ENGINE_SETTINGS}

    @property
    def address(self) -> str | None:
        """Where the engine is when somebody else started it."""
        return self.engine if self.engine is not None and self.engine.startswith(ADDRESSES) else None

    @property
    def has_budget(self) -> bool:
        """Whether there is a limit to what a statement may cost."""
        return any(limit is not None for limit in (self.max_rows, self.max_tokens, self.max_seconds))

    def cache_bytes(self) -> int:
        """`cache_size` in bytes.

        Raises:
            SettingError: it is no amount of memory.
        """
        return memory_bytes("setting 'cache_size'", self.cache_size)

    def _validate(self) -> None:
        for name in SWITCHES:
            if not isinstance(getattr(self, name), bool):
                raise SettingError(f"setting {name!r} must be True or False, not {getattr(self, name)!r}")
        for name in ("batch_rows", "max_output_tokens", "max_batch_tokens", "max_rows", "max_tokens", "engine_threads"):
            value = getattr(self, name)
            if value is None and name not in ("batch_rows", "max_output_tokens"):
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
        if self.kernels not in KERNELS:
            known = ", ".join(map(repr, KERNELS))
            raise SettingError(f"setting 'kernels' must be one of {known}, not {self.kernels!r}")
        self._validate_place()

    def _validate_place(self) -> None:
        at_address = isinstance(self.engine, str) and self.address and AN_ADDRESS.fullmatch(self.address)
        if self.engine not in (None, PROCESS, NODE) and not at_address:
            raise SettingError(
                "setting 'engine' must be 'process', 'node' or an address such as 'grpc://host:port', "
                f"not {self.engine!r}"
            )
        linger = self.engine_linger
        if not isinstance(linger, (int, float)) or isinstance(linger, bool) or not 0 <= linger < math.inf:
            raise SettingError(f"setting 'engine_linger' must be seconds, 0 or more, not {linger!r}")
        for name in ("token", "tls_root"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, (str, os.PathLike)) or not os.fspath(value)):
                raise SettingError(f"setting {name!r} must be a text that is not empty")
        if isinstance(self.token, str):
            check_token(self.token)
        if self.tls_root is not None and not (self.address or "").startswith("grpc+tls://"):
            raise SettingError("setting 'tls_root' is for an engine at 'grpc+tls://host:port'")
        if self.address is None:
            if self.token is not None:
                raise SettingError("setting 'token' is for an engine at an address such as 'grpc://host:port'")
            return
        for known in fields(self):
            if known.name in ENGINE_SETTINGS and getattr(self, known.name) != known.default:
                raise SettingError(
                    f"setting {known.name!r} is the engine's own: it was chosen where {self.engine} was started"
                )


def check_token(token: str) -> None:
    """Nothing, when a token can travel in a header.

    Raises:
        SettingError: it cannot.
    """
    if not token or not token.isascii() or not token.isprintable():
        raise SettingError("the token must be of printable ASCII characters, at least one")


def memory_bytes(what: str, value: int | str) -> int:
    """Bytes of an amount of memory, a number or a text such as '4GiB'.

    Raises:
        SettingError: it is no such amount.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:I?B)?\s*", str(value).upper())
    size = 0 if match is None else int(float(match[1]) * 1024 ** " KMGT".index(match[2] or " "))
    if size < 1 or isinstance(value, bool):
        raise SettingError(f"{what} must be bytes or a text such as '4GiB', not {value!r}")
    return size
