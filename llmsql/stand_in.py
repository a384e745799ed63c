"""A model that is not asked: it counts what asking would cost, and gives answers that stand in for real ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import date, timedelta
from typing import Any

import pyarrow as pa

from llmsql.cache_keys import row_keys
from llmsql.caching_model import CachingModel
from llmsql.embedded import EmbeddedModel
from llmsql.fingerprint import noted_fingerprint
from llmsql.functions import Call
from llmsql.model import Answer, Measure, Model, measure
from llmsql.result_cache import CachedAnswer, ResultCache
from llmsql.settings import Settings
from llmsql.statistics import StageStatistics

FIRST_DAY = date(2000, 1, 1)


class StandInModel:
    """Takes the place of a model. Real answers come from the result cache only, and nothing is put there.

    The tokens of the statistics are those that the model would run: `computed_tokens` as the optimizer counts them,
    `output_tokens` at most. They stay 0 for a model that cannot tell.

    Args:
        model: in whose place it stands, perhaps behind its cache.
        on_guess: called when an answer is not known.
        options: of the engine, for a model whose files are here and whose engine is elsewhere.
        sample: rows of a batch at most whose tokens are counted; the rest is taken to be like them.
    """

    def __init__(self, model: Model, on_guess: Callable[[], None], options: dict[str, Any], sample: int | None = None):
        self._cache: ResultCache | None = None
        if isinstance(model, CachingModel):
            self._cache, self._caching = model.cache, model
            model = model.model
        files = getattr(model, "files", None)
        if isinstance(files, str):  # its tokenizer is enough; an engine of this node's need not be started
            model = EmbeddedModel(files, options, ())
        self._model = model
        self._on_guess = on_guess
        self._sample = sample

    def answer(self, call: Call, fields: pa.Table, settings: Settings, statistics: StageStatistics) -> Iterator[Answer]:
        """What the cache knows, then guesses."""
        known = self._known(call, fields, settings)
        missing = []
        for row, answer in enumerate(known):
            if answer is None:
                missing.append(row)
            else:
                yield Answer(row, answer.text, truncated=answer.truncated, cached=True)
        if not missing:
            return
        self._count(call, fields.take(pa.array(missing)), settings, statistics)
        self._on_guess()
        for row in missing:
            text = _guess(call, row, settings)
            yield Answer(row, text, None if text is not None else "not known before the model is asked")

    def measure(self, call: Call, name: str, items: pa.Array, settings: Settings) -> Measure:
        """As the model measures."""
        return measure(self._model, call, name, items, settings)

    def close(self) -> None:
        """Nothing to release."""

    def _known(self, call: Call, fields: pa.Table, settings: Settings) -> list[CachedAnswer | None]:
        fingerprint = self._fingerprint()
        if fingerprint is None or self._cache is None:
            return [None] * fields.num_rows
        keys = row_keys(call, fields, settings, fingerprint)
        found = self._cache.find(keys)
        return [found.get(key) for key in keys]

    def _fingerprint(self) -> bytes | None:
        """None where the weights would have to be read for it; then nobody has asked the model either."""
        if self._cache is None:
            return None
        if isinstance(self._model, EmbeddedModel):
            return noted_fingerprint(self._model.name, self._cache)
        return self._caching.fingerprint

    def _count(self, call: Call, fields: pa.Table, settings: Settings, statistics: StageStatistics) -> None:
        estimate = getattr(self._model, "estimate", None)
        if estimate is None:
            return
        rows = fields.num_rows
        shown = fields if self._sample is None else fields.slice(0, self._sample)
        found = estimate(call, shown, settings)
        share = rows / max(shown.num_rows, 1)
        statistics.prompt_tokens += round(found.prompt_tokens * share)
        statistics.computed_tokens += round(found.computed_tokens * share)
        if call.choices is None:
            statistics.output_tokens += rows * call.output_tokens(settings.max_output_tokens)


def _guess(call: Call, row: int, settings: Settings) -> str | None:
    """A text of the call's type, another one for each row where the type allows it; None where it is not known how."""
    if call.choices is not None:
        return call.choices[row % len(call.choices)]
    if call.function == "llm_score":
        assert call.minimum is not None
        assert call.maximum is not None
        return repr(call.minimum + (call.maximum - call.minimum) / (row + 1))
    if call.is_free:
        return f"{row} " + "word " * (call.output_tokens(settings.max_output_tokens) - 2)
    kind = call.answer_type.arrow
    if pa.types.is_integer(kind):
        return str(row % 100)
    if pa.types.is_floating(kind):
        return str(float(row))
    return str(FIRST_DAY + timedelta(days=row)) if pa.types.is_date(kind) else None
