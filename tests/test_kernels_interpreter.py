"""The Triton kernel in Triton's interpreter against the torch reference.

The interpreter is chosen when triton is first imported, and compile-only tests need it off. So in an ordinary run this
file holds one test, which runs the file again in a process of its own with TRITON_INTERPRET=1.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="triton is not installed")

if os.environ.get("TRITON_INTERPRET") != "1":

    def test_in_the_interpreter():
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", __file__]
        environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
        assert " passed" in done.stdout

else:
    import torch
    from kernel_cases import Case, Node, Row, branching, build, dense_attention, random_case

    from llmsql.kernels import paged_attention, paged_attention_reference

    TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}

    def check(case: Case) -> None:
        out = paged_attention(*case.arguments, **case.options)
        assert out.dtype == case.query.dtype
        expected = paged_attention_reference(*case.arguments, **case.options)
        torch.testing.assert_close(out.float(), expected.float(), atol=TOLERANCE[out.dtype], rtol=0)

    def test_bfloat16_differs_in_casts_only():
        # The interpreter cannot multiply in bf16, so the launcher widens the operands there.
        check(branching(dtype=torch.bfloat16, heads=4, kv_heads=2, sliding_window=5, softcap=2.0))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
    @pytest.mark.parametrize("sliding_window", [None, 1, 5])
    @pytest.mark.parametrize("softcap", [None, 2.0])
    def test_branching_tree(dtype, sliding_window, softcap):
        check(branching(dtype=dtype, sliding_window=sliding_window, softcap=softcap))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
    @pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (4, 4), (4, 2), (4, 1), (5, 1), (8, 1), (20, 1)])
    def test_query_heads_per_kv_head(heads, kv_heads, dtype):
        check(branching(heads=heads, kv_heads=kv_heads, dtype=dtype))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
    @pytest.mark.parametrize("head_dim", [1, 16, 32, 64, 80, 96, 128, 256])
    def test_head_dim(head_dim, dtype):
        nodes = [Node(None, 7), Node(0, 9, continues=True)]
        check(build(nodes, [Row(1, 15, 1), Row(1, 4, 9)], head_dim=head_dim, dtype=dtype))

    @pytest.mark.parametrize("block_size", [1, 3, 4, 16, 32])
    def test_block_size(block_size):
        check(branching(block_size=block_size))

    @pytest.mark.parametrize("length", [1, 15, 16, 17, 31, 32, 33, 63, 64, 65, 130])
    def test_lengths_at_the_edges_of_blocks_and_tiles(length):
        rows = [Row(0, length - 1, 1), Row(0, 0, min(length, 3)), Row(0, length // 2, length - length // 2)]
        check(build([Node(None, length)], rows, block_size=16, dtype=torch.float16))

    @pytest.mark.parametrize("queries", [1, 7, 8, 9, 16, 17, 40])
    def test_several_query_blocks_per_row(queries):
        rows = [Row(0, 0, queries), Row(1, 40, 2), Row(0, 40 - queries, queries)]
        check(build([Node(None, 40), Node(0, 2)], rows))

    @pytest.mark.parametrize("sliding_window", [1, 4, 32, 33, 64, 200])
    def test_window_skips_whole_nodes_and_tiles(sliding_window):
        nodes = [Node(None, 70), Node(0, 3, continues=True), Node(1, 40), Node(2, 5)]
        check(build(nodes, [Row(3, 117, 1), Row(3, 100, 18), Row(2, 72, 4)], sliding_window=sliding_window))

    def test_deep_path_of_short_nodes():
        nodes = [Node(None, 2)] + [Node(i, 1 + i % 3, continues=i % 2 == 0) for i in range(25)]
        end = sum(node.length for node in nodes)
        check(build(nodes, [Row(25, end - 1, 1), Row(25, end - 9, 9)]))

    def test_rows_share_nodes_and_a_chunk_continues_a_node():
        nodes = [Node(None, 21), *[Node(0, 2 + i, continues=i == 0) for i in range(6)]]
        rows = [Row(i + 1, 21 + 1 + i, 1) for i in range(6)]
        check(build(nodes, [Row(0, 11, 10), *rows, Row(3, 21, 4)], heads=4, kv_heads=2))

    @pytest.mark.parametrize("seed", range(24))
    def test_random_trees(seed):
        case = random_case(seed)
        check(case)
        out = paged_attention(*case.arguments, **case.options)
        torch.testing.assert_close(out.double(), dense_attention(case), atol=1e-5, rtol=0)

    def test_large_scores_stay_finite():
        out = paged_attention(*(case := branching(spread=30.0)).arguments, **case.options)
        # Scores are in the thousands here, so fp32 leaves about three digits after the point of the weights.
        torch.testing.assert_close(out.double(), dense_attention(case), atol=2e-2, rtol=0)

    def test_only_empty_rows_and_no_rows():
        case = build([Node(None, 3)], [Row(0, 0, 0), Row(0, 1, 0)])
        assert paged_attention(*case.arguments, **case.options).shape == (0, 2, 16)
        case = build([Node(None, 3)], [])
        assert paged_attention(*case.arguments, **case.options).shape == (0, 2, 16)

    def test_a_token_that_sees_no_key_gets_zeros():
        case = build([Node(None, 0)], [])
        starts, zero = torch.tensor([0, 1], dtype=torch.int32), torch.tensor([0], dtype=torch.int32)
        table = type(case.table)(
            **(
                vars(case.table)
                | {"path_start": starts, "path_nodes": zero, "query_start": starts, "query_position": zero}
            )
        )
        query = torch.ones(1, 2, 16)
        assert paged_attention(query, case.key_pool, case.value_pool, table, **case.options).eq(0).all()

    def test_a_program_writes_its_own_tokens_only(monkeypatch):
        # Three heads leave one of sixteen lanes idle. On a GPU it would race with the next program if it wrote.
        from llmsql.kernels import attention

        kernel, interpreted = attention._load_kernel()

        class FirstProgram:
            def __getitem__(self, grid):
                def launch(out, *arguments, **constants):
                    assert (grid[0] > 2, constants["BLOCK_Q"]) == (True, 5)
                    out.fill_(float("nan"))
                    kernel[(1, 1)](out, *arguments, **constants)

                return launch

        monkeypatch.setattr(attention, "_load_kernel", lambda: (FirstProgram(), interpreted))
        case = build([Node(None, 12)], [Row(0, 0, 12)], heads=3)
        out = paged_attention(*case.arguments, **case.options)
        assert out[:5].isfinite().all()
        assert out[5:].isnan().all()

    def test_strided_query_and_pools():
        case = branching(heads=4, kv_heads=2)
        query = case.query.transpose(0, 1).contiguous().transpose(0, 1)  # as transformers hands it over
        pools = torch.stack([case.key_pool, case.value_pool], dim=1)
        expected = paged_attention_reference(*case.arguments, **case.options)
        out = paged_attention(query, pools[:, 0], pools[:, 1], case.table, **case.options)
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
        out = paged_attention(case.query, far, case.value_pool, case.table, **case.options)
        expected = paged_attention_reference(*case.arguments, **case.options)
        torch.testing.assert_close(out, expected, atol=4e-3, rtol=0)

    def test_the_engine_with_the_kernel_in_place_of_torch(monkeypatch):
        # What the engine does on CUDA, end to end. Gemma 2 has layers with and without a window, and softcap.
        from engine_models import generate_one, tiny_model, tree_prompts

        from llmsql.gpu_backend import Engine, Request
        from llmsql.gpu_backend import attention as engine_attention

        steps = []

        def choose_kernel(self, batch, cache, **settings):
            original(self, batch, cache, **settings)
            self._use_kernel = True
            self._table = engine_attention.node_table(batch.table, torch.device("cpu"))
            self._table.check(batch.block_size, num_tokens=len(batch.token_ids))
            steps.append(self._table)

        original = engine_attention.StepAttention.__init__
        monkeypatch.setattr(engine_attention.StepAttention, "__init__", choose_kernel)
        model, prompts = tiny_model("gemma2"), tree_prompts(5)
        with Engine(model, max_batch_tokens=60, block_size=4) as engine:
            requests = [Request(i, prompt, max_tokens=3) for i, prompt in enumerate(prompts)]
            answers = {done.id: list(done.token_ids) for done in engine.generate(requests)}
        assert [answers[i] for i in range(5)] == [generate_one(model, prompt, 3) for prompt in prompts]
        assert max(table.num_rows for table in steps) > 1
