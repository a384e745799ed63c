"""A step's batch cut down to the tokens whose logits are read: all that the last layer needs as queries."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .batch import StepBatch


def logit_rows(batch: StepBatch) -> StepBatch:
    """The batch with the queries of `batch.logit_index` only, in that order; its table still holds every node.

    The tokens read of a row must be its last ones, which is how steps are made: a prompt's last token, or all tokens of
    a label.
    """
    table = batch.table
    index = batch.logit_index
    rows = np.searchsorted(table.query_start, index, side="right") - 1  # [logits]
    kept, counts = np.unique(rows, return_counts=True)
    ends = table.query_start[kept + 1]
    first = ends - counts
    assert np.array_equal(index, np.repeat(first - np.cumsum(counts) + counts, counts) + np.arange(len(index)))
    path_lens = np.diff(table.path_start)
    in_path = np.repeat(np.isin(np.arange(len(path_lens)), kept), path_lens)
    cut = replace(
        table,
        path_start=_starts(path_lens[kept]),
        path_nodes=table.path_nodes[in_path],
        query_start=_starts(counts),
        query_position=(table.query_position[kept] + first - table.query_start[kept]).astype(np.int32),
    )
    return replace(
        batch,
        token_ids=batch.token_ids[index],
        positions=batch.positions[index],
        slots=batch.slots[index],
        logit_index=np.arange(len(index)),
        table=cut,
        structure=-1,
    )


def _starts(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros(1, np.int32), np.cumsum(lengths)]).astype(np.int32)
