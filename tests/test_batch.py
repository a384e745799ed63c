"""The arrays of a step: right by themselves, and the same when parts are kept from the step before."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scheduler_device import LABELS, Device, make_scheduler, request

from llmsql.gpu_backend.batch import BatchBuilder, StepBatch, build_batch
from llmsql.gpu_backend.scheduler import Scheduler
from llmsql.gpu_backend.step import Step

PROMPTS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=14), min_size=1, max_size=10)


def check(batch: StepBatch, step: Step, block_size: int) -> None:
    """Against the tree, token by token."""
    table, token = batch.table, 0
    readers = iter(batch.readers)
    logits = []
    for row, chunk in enumerate(step.chunks):
        node = chunk.node
        path = table.path_nodes[table.path_start[row] : table.path_start[row + 1]].tolist()
        assert len(path) == len(node.path())
        for number, part in zip(path, node.path()):
            blocks = table.blocks[table.node_block_start[number] : table.node_block_start[number + 1]]
            assert blocks.tolist() == part.blocks
            assert (table.node_offset[number], table.node_position[number]) == (part.offset, part.position)
            chunks = [other for other in step.chunks if other.node is part]
            assert table.node_len[number] == max([part.num_computed, *(other.end for other in chunks)])
        assert table.query_start[row] == token
        assert table.query_position[row] == node.position + chunk.start
        for offset in range(chunk.start, chunk.end):
            assert batch.token_ids[token] == node.tokens[offset]
            assert batch.positions[token] == node.position + offset
            assert batch.slots[token] == node.slots(offset + 1, block_size)[offset]
            if chunk.sequences and (chunk.all_logits or offset == chunk.end - 1):
                logits.append(token)
            token += 1
        if chunk.sequences:
            read, first = next(readers)
            assert read is chunk
            assert batch.logit_index[first] == logits[-1 if not chunk.all_logits else -chunk.length]
    assert next(readers, None) is None
    assert batch.logit_index.tolist() == logits
    assert table.query_start[-1] == token == len(batch.token_ids) == len(batch.slots) == len(batch.positions)


class Checked(Device):
    """Builds every step twice: with a builder that has seen the steps before, and with a new one."""

    def __init__(self, scheduler: Scheduler, **options: int) -> None:
        super().__init__(scheduler, **options)
        self.builder = BatchBuilder(scheduler.tree.pool.block_size)
        self.seen: dict[int, StepBatch] = {}

    def _check_limits(self, step: Step) -> None:
        super()._check_limits(step)
        if not step.chunks:
            return
        batch = self.builder.build(step)
        block_size = batch.block_size
        check(batch, step, block_size)
        fresh = build_batch(step, block_size)
        for name in ("token_ids", "positions", "slots", "logit_index"):
            np.testing.assert_array_equal(getattr(batch, name), getattr(fresh, name), name)
            assert getattr(batch, name).dtype == getattr(fresh, name).dtype
        for name, array in vars(batch.table).items():
            np.testing.assert_array_equal(array, getattr(fresh.table, name), name)
            assert array.dtype == np.int32
        self._check_structure(batch)

    def _check_structure(self, batch: StepBatch) -> None:
        before = self.seen.setdefault(batch.structure, batch)
        for name in ("node_offset", "node_position", "path_start", "path_nodes", "query_start"):
            np.testing.assert_array_equal(getattr(batch.table, name), getattr(before.table, name), name)
        own = batch.table.path_nodes[batch.table.path_start[1:] - 1]
        others = np.setdiff1d(np.arange(len(batch.table.node_len)), own)
        np.testing.assert_array_equal(batch.table.node_len[others], before.table.node_len[others])
        for node in range(len(batch.table.node_len)):
            old = before.table.blocks[before.table.node_block_start[node] : before.table.node_block_start[node + 1]]
            start = batch.table.node_block_start[node]
            np.testing.assert_array_equal(batch.table.blocks[start : start + len(old)], old)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_arrays_say_what_the_tree_says(data: st.DataObject) -> None:
    scheduler = make_scheduler(
        num_blocks=data.draw(st.integers(3, 40), label="num_blocks"),
        block_size=data.draw(st.integers(1, 5), label="block_size"),
        max_tokens=data.draw(st.integers(1, 30), label="max_tokens"),
        max_logits=data.draw(st.integers(1, 12), label="max_logits"),
        sharing=data.draw(st.booleans(), label="sharing"),
        caching=data.draw(st.booleans(), label="caching"),
    )
    device = Checked(scheduler, max_forced=data.draw(st.integers(0, 2), label="max_forced"))
    for prompt in data.draw(PROMPTS, label="prompts"):
        max_tokens = data.draw(st.integers(0, 9))
        scheduler.add(request(prompt, max_tokens, LABELS if max_tokens == 0 else ()))
        for _ in range(data.draw(st.integers(0, 3))):
            device.step()
    device.run()


def test_steps_that_only_decode_have_the_same_structure() -> None:
    scheduler = make_scheduler()
    for row in range(5):
        scheduler.add(request([1, 2, 3, 4 + row], max_tokens=20))
    device = Checked(scheduler)
    for _ in range(12):
        device.step()
    assert len(device.seen) == 2  # the prompts, then ten steps alike, with tails that grow over several blocks
    scheduler.add(request([1, 2, 3, 4, 9]))
    device.step()
    assert len(device.seen) == 3
