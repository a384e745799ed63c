"""NodeTable states its invariants, and the names of the package are found."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from kernel_cases import branching, random_case


def _int32(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


@pytest.mark.parametrize("seed", range(20))
def test_random_tables_are_valid(seed):
    case = random_case(seed)
    case.table.to("cpu").check(case.options["block_size"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {"node_len": t.node_len.long()}, "node_len is torch.int64"),
        (lambda t: {"node_len": t.node_len[None]}, "2 dimensions"),
        (lambda t: {"node_block_start": t.node_block_start[:-1]}, "node_block_start has 9 entries for 9"),
        (lambda t: {"path_start": t.path_start + 1}, "path_start begins at 1"),
        (lambda t: {"query_start": t.query_start.flip(0)}, "query_start begins"),
        (lambda t: {"blocks": t.blocks - 100}, "negative"),
        (lambda t: {"blocks": t.blocks + 100}, "outside a pool"),
        (lambda t: {"node_offset": t.node_offset + 4}, "starts at slot"),
        (lambda t: {"node_len": t.node_len + 4}, "needs"),
        (lambda t: {"path_nodes": t.path_nodes.flip(0)}, "is at position"),
        (lambda t: {"path_nodes": t.path_nodes + 100}, "names node"),
        (lambda t: {"node_position": t.node_position + 1}, "is at position 1, the path before it ends at 0"),
        (lambda t: {"query_position": t.query_position + 1}, "own key must be on its path"),
        (lambda t: {"query_position": t.query_position - 100}, "query position -"),
    ],
)
def test_check_names_what_is_wrong(change, message):
    table = branching().table
    broken = replace(table, **change(table))
    with pytest.raises(AssertionError, match=message):
        broken.check(4, num_blocks=100)


def test_check_compares_starts_with_the_packed_tokens():
    with pytest.raises(AssertionError, match="query_start ends at 47, not at 48"):
        branching().table.check(4, num_tokens=48)


def test_a_module_hides_no_function_of_the_package():
    import llmsql.kernels.attention
    from llmsql.kernels import paged_attention

    assert paged_attention is llmsql.kernels.attention.paged_attention


def test_unknown_name_is_an_attribute_error():
    import llmsql.kernels

    with pytest.raises(AttributeError, match="no attribute 'flash'"):
        _ = llmsql.kernels.flash
    assert "paged_attention" in dir(llmsql.kernels)
