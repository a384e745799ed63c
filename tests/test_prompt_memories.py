"""Batches that go on with the prompts of earlier ones: in the engine, in DuckDB's functions, over Flight."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

import llmsql
from llmsql import models
from llmsql.batch_prompts import prepare_prompts
from llmsql.demo import MODEL_FOLDER
from llmsql.functions import make_call
from llmsql.optimizer import encode
from llmsql.prompt_memories import MAX_MEMORIES, PromptMemories
from llmsql.settings import Settings
from llmsql.statistics import StageStatistics

QUERY = "SELECT llm_filter('Positive?', stars, verified, description, review) AS p FROM reviews"


@pytest.fixture(scope="module")
def reviews() -> pa.Table:
    """Most products come once in a batch of 16, so there a batch by itself groups rows by all else that they share."""
    generator = np.random.default_rng(5)
    product = generator.integers(0, 32, 64)
    return pa.table(
        {
            "stars": generator.integers(1, 3, 64),
            "verified": generator.random(64) < 0.7,
            "description": [f"The product with the number {p} does it. " * 4 for p in product],
            "review": [f"Text {n}" for n in range(64)],
        }
    )


@pytest.mark.parametrize("more", [False, True])
def test_batches_compute_less_than_by_themselves(reviews: pa.Table, more: bool) -> None:
    found = {}
    for follow_earlier in (True, False):
        settings = Settings(follow_earlier=follow_earlier)
        model = models.acquire(MODEL_FOLDER, settings)  # a new engine, since the one before is closed
        try:
            call, statistics = make_call("llm_filter", "Positive?"), StageStatistics(more=more)
            for start in range(0, 64, 16):
                rows = {a.row for a in model.answer(call, reviews.slice(start, 16), settings, statistics)}
                assert rows == set(range(16))
            found[follow_earlier] = statistics
        finally:
            models.release(model)
    assert found[True].prompt_tokens == found[False].prompt_tokens
    assert found[True].computed_tokens < found[False].computed_tokens


def test_the_batches_of_a_stage_go_on_with_each_other(reviews: pa.Table) -> None:
    computed = {}
    for follow_earlier in (True, False):
        settings = {"cache": False, "progress": False, "batch_rows": 16, "follow_earlier": follow_earlier}
        with llmsql.connect(model=MODEL_FOLDER, **settings) as session:
            session.register("reviews", reviews)
            assert len(session.sql(QUERY).fetchall()) == 64
            computed[follow_earlier] = session.last_query.computed_tokens
    assert computed[True] < computed[False], computed


def test_the_switch_is_off_with_the_prefix_cache(reviews: pa.Table) -> None:
    model = models.acquire(MODEL_FOLDER, Settings(prefix_cache=False))
    try:
        call, fields = make_call("llm_filter", "Good?"), reviews.select(["review", "stars"]).slice(0, 8)
        list(model.answer(call, fields, Settings(), StageStatistics()))
        assert len(model._memories) == 0
    finally:
        models.release(model)


def test_which_calls_are_remembered(reviews: pa.Table) -> None:
    model = models.acquire(MODEL_FOLDER, Settings())
    try:
        fields = reviews.select(["review", "stars"]).slice(0, 4)

        def ask(call: object, **settings: object) -> int:
            list(model.answer(call, fields, Settings(**settings), StageStatistics()))
            return len(model._memories)

        assert ask(make_call("llm_filter", "Good?"), reorder=False) == 0
        assert ask(make_call("llm_filter", "Good?"), follow_earlier=False) == 0
        assert ask(make_call("llm_filter", "Good?", options={"reorder": False})) == 0
        assert ask(make_call("llm_filter", "Good?")) == 1
        assert ask(make_call("llm_filter", "Good?", options={"on_error": "fail"})) == 1
        assert ask(make_call("llm_filter", "Bad?")) == 2
        fields = fields.rename_columns(["text", "stars"])
        assert ask(make_call("llm_filter", "Bad?")) == 3
    finally:
        models.release(model)


def test_no_prompt_says_anything_else(reviews: pa.Table) -> None:
    """The same cells of the same rows are shown, whatever came before."""
    call = make_call("llm_filter", "Good?")
    model = models.acquire(MODEL_FOLDER, Settings())
    try:
        tokenizer, memories = model.engine.tokenizer, PromptMemories(10_000)
        for start in range(0, 64, 16):
            part = reviews.slice(start, 16)
            with memories.reordering(call, part.column_names, more=True) as reorder_cells:
                after = prepare_prompts(call, part, tokenizer, Settings(), reorder_cells=reorder_cells)
            alone = prepare_prompts(call, part, tokenizer, Settings())
            lines = [
                {row: sorted(tokenizer.decode(ids).splitlines()) for row, ids in prompts} for prompts in (after, alone)
            ]
            assert lines[0] == lines[1]
            assert after.estimate().prompt_tokens == alone.estimate().prompt_tokens
            assert after.estimate().computed_tokens <= alone.estimate().computed_tokens + (start == 0) * 50
    finally:
        models.release(model)


def test_memories_are_few() -> None:
    memories = PromptMemories(1_000)
    cells = encode(pa.table({"x": ["a", "b"]}))
    for number in range(2 * MAX_MEMORIES):
        with memories.reordering(make_call("llm", f"Question {number}?"), ["x"], more=False) as reorder_cells:
            assert sorted(reorder_cells(cells).rows.tolist()) == [0, 1]
    assert len(memories) == MAX_MEMORIES
