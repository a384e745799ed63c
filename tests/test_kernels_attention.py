"""The attention and merge kernels in Triton's interpreter against the torch reference."""

from __future__ import annotations

import interpreter
import pytest
import torch
from kernel_cases import Case, Node, Row, branching, build, dense_attention, random_case

from llmsql.kernels import paged_attention, paged_attention_reference

if not interpreter.IS_ON:

    @pytest.mark.timeout(interpreter.SECONDS + 20)
    def test_in_the_interpreter(request):
        interpreter.check_in_interpreter(request)

else:
    TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
    PLAIN = {"levels": 0, "processors": 1}
    SPLIT = {"levels": 0, "processors": 64}  # keys cut wherever that is possible
    CASCADE = {"levels": 9, "processors": 1}
    CASCADE_SPLIT = {"levels": 2, "processors": 64}

    def small(**options) -> Case:
        """Two decode rows and a chunk below one root; a split inside a block."""
        nodes = [Node(None, 9), Node(0, 9, continues=True), Node(0, 3)]
        return build(nodes, [Row(1, 17, 1), Row(1, 9, 4), Row(2, 11, 1)], **options)

    def attend(case: Case, **cut: int) -> torch.Tensor:
        return paged_attention(*case.arguments, case.work(**cut), **case.options)

    def check(case: Case, *cuts: dict[str, int]) -> None:
        expected = paged_attention_reference(*case.arguments, **case.options)
        for cut in cuts or (PLAIN, CASCADE_SPLIT):
            out = attend(case, **cut)
            assert out.dtype == case.query.dtype
            torch.testing.assert_close(out.float(), expected.float(), atol=TOLERANCE[out.dtype], rtol=0)

    def test_bfloat16_differs_in_casts_only():
        # The interpreter cannot multiply in bf16, so the launcher widens the operands there.
        check(small(dtype=torch.bfloat16, heads=4, kv_heads=2, sliding_window=5, softcap=2.0))

    @pytest.mark.parametrize(
        ("dtype", "sliding_window", "softcap"),
        [
            (torch.float32, None, None),
            (torch.float16, None, 2.0),
            (torch.float16, 1, None),
            (torch.float32, 5, 2.0),
        ],
        ids=str,
    )
    def test_branching_tree(dtype, sliding_window, softcap):
        check(branching(dtype=dtype, sliding_window=sliding_window, softcap=softcap, heads=1))

    @pytest.mark.parametrize(
        ("heads", "kv_heads", "dtype"),
        [
            *(
                (heads, kv_heads, torch.float16)
                for heads, kv_heads in ((1, 1), (4, 2), (4, 1), (5, 1), (14, 2), (20, 1))
            ),
            *((heads, kv_heads, torch.float32) for heads, kv_heads in ((2, 2), (4, 1), (7, 1))),
        ],
        ids=str,
    )
    def test_query_heads_per_kv_head(heads, kv_heads, dtype):
        check(small(heads=heads, kv_heads=kv_heads, dtype=dtype))

    @pytest.mark.parametrize(
        ("head_dim", "dtype"),
        [(dim, torch.float16) for dim in (1, 16, 32, 64, 80, 96, 128, 256)]
        + [(80, torch.float32), (256, torch.float32)],
        ids=str,
    )
    def test_head_dim(head_dim, dtype):
        nodes = [Node(None, 7), Node(0, 9, continues=True)]
        check(build(nodes, [Row(1, 15, 1), Row(1, 4, 9)], head_dim=head_dim, dtype=dtype), SPLIT)

    @pytest.mark.parametrize("value_dim", [1, 40])
    def test_values_of_another_dimension(value_dim):
        check(small(head_dim=20, value_dim=value_dim, dtype=torch.float16))

    @pytest.mark.parametrize("block_size", [1, 3, 16, 32])
    def test_block_size(block_size):
        check(small(block_size=block_size, dtype=torch.float16))

    @pytest.mark.parametrize("length", [1, 15, 16, 17, 64, 65, 130])
    def test_lengths_at_the_edges_of_blocks_and_tiles(length):
        rows = [Row(0, length - 1, 1), Row(0, 0, min(length, 3)), Row(0, length // 2, length - length // 2)]
        check(build([Node(None, length)], rows, block_size=16, dtype=torch.float16))

    @pytest.mark.parametrize(
        ("shared", "sliding_window"),
        [*((shared, None) for shared in (0, 1, 15, 16, 17, 64, 65)), (16, 20), (17, 20), (65, 20)],
    )
    def test_shared_prefixes_at_the_edges_of_blocks_and_tiles(shared, sliding_window):
        nodes = [Node(None, shared), *[Node(0, 1 + i, continues=i == 0) for i in range(9)]]
        rows = [Row(i + 1, shared + i // 2, 1 + i - i // 2) for i in range(9)]
        case = build(
            nodes, rows, heads=2, kv_heads=1, block_size=16, dtype=torch.float16, sliding_window=sliding_window
        )
        check(case, CASCADE, CASCADE_SPLIT)

    @pytest.mark.parametrize("queries", [1, 8, 17, 40])
    def test_several_query_blocks_per_row(queries):
        rows = [Row(0, 0, queries), Row(1, 40, 2), Row(0, 40 - queries, queries)]
        check(build([Node(None, 40), Node(0, 2)], rows, dtype=torch.float16))

    @pytest.mark.parametrize("sliding_window", [1, 33, 200])
    def test_window_skips_whole_nodes_and_tiles(sliding_window):
        nodes = [Node(None, 70), Node(0, 3, continues=True), Node(1, 40), Node(2, 5)]
        rows = [Row(3, 117, 1), Row(3, 100, 18), Row(2, 72, 4)]
        check(build(nodes, rows, sliding_window=sliding_window, dtype=torch.float16))

    def test_deep_path_of_short_nodes():
        nodes = [Node(None, 2)] + [Node(i, 1 + i % 3, continues=i % 2 == 0) for i in range(12)]
        end = sum(node.length for node in nodes)
        check(build(nodes, [Row(12, end - 1, 1), Row(12, end - 9, 9)]), PLAIN, CASCADE, SPLIT)

    def test_rows_share_nodes_and_a_chunk_continues_a_node():
        nodes = [Node(None, 21), *[Node(0, 2 + i, continues=i == 0) for i in range(6)]]
        rows = [Row(i + 1, 21 + 1 + i, 1) for i in range(6)]
        check(build(nodes, [Row(0, 11, 10), *rows, Row(3, 21, 4)], heads=4, kv_heads=2))

    def test_short_and_long_rows_take_tiles_of_their_own_size():
        nodes = [Node(None, 60), *[Node(0, 30) for _ in range(3)]]
        rows = [Row(1, 89, 1), Row(2, 60, 30), Row(3, 70, 8)]
        case = build(nodes, rows, heads=4, kv_heads=1, dtype=torch.float16)
        assert [launch.block_m for launch in case.work(**PLAIN).launches] == [16, 128]
        assert [launch.block_m for launch in case.work(**CASCADE).launches] == [16, 128]
        check(case, PLAIN, CASCADE)

    @pytest.mark.parametrize("seed", range(8))
    def test_random_trees(seed):
        case = random_case(seed)
        expected = dense_attention(case)
        for cut in (CASCADE, SPLIT) if seed % 2 else (PLAIN, CASCADE_SPLIT):
            torch.testing.assert_close(attend(case, **cut).double(), expected, atol=1e-5, rtol=0)

    @pytest.mark.parametrize("cut", [PLAIN, CASCADE_SPLIT])
    def test_large_scores_stay_finite(cut):
        out = attend(case := small(spread=30.0), **cut)
        # Scores are in the thousands here, so fp32 leaves about three digits after the point of the weights.
        torch.testing.assert_close(out.double(), dense_attention(case), atol=2e-2, rtol=0)

    def test_only_empty_rows_and_no_rows():
        assert attend(build([Node(None, 3)], [Row(0, 0, 0), Row(0, 1, 0)])).shape == (0, 2, 16)
        assert attend(build([Node(None, 3)], [], value_dim=8)).shape == (0, 2, 8)

    def test_a_token_that_sees_no_key_gets_zeros():
        case = build([Node(None, 0)], [])
        starts, zero = torch.tensor([0, 1], dtype=torch.int32), torch.tensor([0], dtype=torch.int32)
        path = {"path_start": starts, "path_nodes": zero, "query_start": starts, "query_position": zero}
        table = type(case.table)(**(vars(case.table) | path))
        case = Case(table, torch.ones(1, 2, 16), case.key_pool, case.value_pool, [], case.options)
        assert attend(case).eq(0).all()

    def test_a_program_writes_its_own_tokens_only(monkeypatch):
        # Three heads leave one of sixteen lanes idle. On a GPU it would race with the next program if it wrote.
        from llmsql.kernels import attention

        kernel = attention.paged_attention_kernel

        class SecondProgram:
            def __getitem__(self, grid):
                def launch(out, *arguments, **constants):
                    assert grid == (3, 1)
                    out.fill_(float("nan"))
                    items = arguments[5]
                    kernel[(1, 1)](out, *arguments[:5], items[1:], *arguments[6:], **constants)

                return launch

        monkeypatch.setattr(attention, "paged_attention_kernel", SecondProgram())
        case = build([Node(None, 12)], [Row(0, 0, 12)], heads=3)
        work = case.work()
        first, count = work.items[1, :2].tolist()
        assert count == 5
        out = paged_attention(*case.arguments, work, **case.options)
        written = [token for token in range(12) if out[token].isfinite().any()]
        assert written == work.entry_token[first : first + count].tolist()

    def test_strided_query_and_pools():
        case = small(heads=4, kv_heads=2)
        query = case.query.transpose(0, 1).contiguous().transpose(0, 1)  # as transformers hands it over
        pools = torch.stack([case.key_pool, case.value_pool], dim=1)
        expected = paged_attention_reference(*case.arguments, **case.options)
        for work in (case.work(), case.work(**CASCADE_SPLIT)):
            out = paged_attention(query, pools[:, 0], pools[:, 1], case.table, work, **case.options)
            torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)

    def test_slots_beyond_the_reach_of_int32():
        case = build([Node(None, 12)], [Row(0, 11, 1)], heads=1, dtype=torch.float16)
        slots, stride = case.key_pool.shape[0], 2**28
        assert slots * stride > 2**32
        try:  # virtual memory; only the pages that are touched are ever there
            storage = torch.empty((slots - 1) * stride + 16, dtype=torch.float16)
        except RuntimeError:
            pytest.skip("not enough virtual memory for a pool of 2**32 elements")
        far = storage.as_strided(case.key_pool.shape, (stride, 16, 1))
        far.copy_(case.key_pool)
        out = paged_attention(case.query, far, case.value_pool, case.table, case.work(), **case.options)
        expected = paged_attention_reference(*case.arguments, **case.options)
        torch.testing.assert_close(out, expected, atol=4e-3, rtol=0)

    def test_parts_and_their_log_sum_exps():
        # One item against attention spelled out: what the merge is given.
        from llmsql.kernels import attention

        case = build([Node(None, 9), Node(0, 4), Node(0, 3)], [Row(1, 12, 1), Row(2, 11, 1)], heads=2)
        seen = {}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(attention, "merge_parts", lambda out, parts, lse, *_: seen.update(parts=parts, lse=lse))
            attend(case, **CASCADE)
        # Rows of the first token: its own keys, and the shared ones; in the order of the items.
        parts, lse = seen["parts"][:2], seen["lse"][:2]
        keys, values, _ = case.paths[0]
        scores = torch.einsum("hd,kd->hk", case.query[0], keys[:, 0]) * case.options["scale"]
        expected = [
            (scores[:, run].softmax(-1) @ values[run, 0], scores[:, run].logsumexp(-1))
            for run in (slice(9, 13), slice(0, 9))
        ]
        if not torch.allclose(lse[0], expected[0][1], atol=1e-5):
            expected.reverse()
        for row, (out, log_sum) in enumerate(expected):
            torch.testing.assert_close(parts[row], out, atol=1e-5, rtol=0)
            torch.testing.assert_close(lse[row], log_sum, atol=1e-5, rtol=0)
