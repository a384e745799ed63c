"""A model in front of which stands the result cache: it is asked only what the cache does not know."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa

from llmsql.answers import parse_answer
from llmsql.cache_keys import row_keys
from llmsql.functions import Call
from llmsql.model import Answer, Measure, Model, answering, measure
from llmsql.result_cache import CachedAnswer, ResultCache
from llmsql.settings import Settings
from llmsql.statistics import StageStatistics

WRITE_EVERY = 0.002  # seconds: slow answers are written one by one,
WRITE_AFTER = 0.02  # ... and the last of a burst after this time at the latest
WRITE_AT = 512  # answers

LOG = logging.getLogger(__name__)


class CachingModel:
    """Answers from the cache what it knows, and puts there what the model answers; failures are not kept.

    Args:
        model: who is asked about the rest.
        cache: where answers are kept.
        fingerprint: of the model; called at the first question.
    """

    def __init__(self, model: Model, cache: ResultCache, fingerprint: Callable[[], bytes]):
        self.model = model
        self.cache = cache
        self._fingerprint = fingerprint
        self._known_fingerprint: bytes | None = None

    @property
    def fingerprint(self) -> bytes:
        """Of the model: equal for equal weights and tokenizer, whatever the folder is called."""
        if self._known_fingerprint is None:
            self._known_fingerprint = self._fingerprint()
        return self._known_fingerprint

    def answer(self, call: Call, fields: pa.Table, settings: Settings, statistics: StageStatistics) -> Iterator[Answer]:
        """First the rows that the cache knows, then the model's answers as they come, each kept at once."""
        keys = row_keys(call, fields, settings, self.fingerprint)
        known = self.cache.find(keys)
        for row, key in enumerate(keys):
            if key in known:
                yield Answer(row, known[key].text, truncated=known[key].truncated, cached=True)
        LOG.debug("result cache: %d of %d rows known", len(known), len(keys))
        missing = np.array([row for row, key in enumerate(keys) if key not in known], np.int64)
        if not len(missing):
            return
        rest = fields if len(missing) == len(keys) else fields.take(pa.array(missing))
        writer = _Writer(self.cache, self.fingerprint)
        try:
            with answering(self.model, call, rest, settings, statistics) as answers:
                for answer in answers:
                    row = int(missing[answer.row])
                    if answer.error is None and _is_value(call, answer):
                        writer.add(keys[row], CachedAnswer(answer.text or "", answer.truncated))
                    yield Answer(row, answer.text, answer.error, answer.truncated)
        finally:
            writer.close()

    def measure(self, call: Call, name: str, items: pa.Array, settings: Settings) -> Measure:
        """As the model measures."""
        return measure(self.model, call, name, items, settings)

    def close(self) -> None:
        """Close the model."""
        self.model.close()


class _Writer:
    """Writes answers soon after they came, several at a time where they come fast."""

    def __init__(self, cache: ResultCache, fingerprint: bytes):
        self._cache = cache
        self._fingerprint = fingerprint
        self._lock = threading.Lock()
        self._pending: dict[bytes, CachedAnswer] = {}
        self._written = 0.0
        self._timer: threading.Timer | None = None

    def add(self, key: bytes, answer: CachedAnswer) -> None:
        with self._lock:
            self._pending[key] = answer
            late = time.monotonic() - self._written > WRITE_EVERY
            if not late and len(self._pending) < WRITE_AT:
                if self._timer is None:  # nobody knows when the next answer comes
                    self._timer = threading.Timer(WRITE_AFTER, self._write_rest)
                    self._timer.daemon = True
                    self._timer.start()
                return
            self._write()

    def close(self) -> None:
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
            self._write()

    def _write_rest(self) -> None:
        with self._lock:
            self._timer = None
            self._write()

    def _write(self) -> None:
        pending, self._pending = self._pending, {}
        self._cache.store(self._fingerprint, pending)
        self._written = time.monotonic()


def _is_value(call: Call, answer: Answer) -> bool:
    if answer.text is None or (answer.truncated and not call.is_free):
        return False
    try:
        parse_answer(call, answer.text)
    except ValueError:
        return False
    return True
