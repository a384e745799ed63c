"""The kernels around attention and the matrix products, in Triton's interpreter against their torch references."""

from __future__ import annotations

import interpreter
import pytest
import torch

if not interpreter.IS_ON:

    @pytest.mark.timeout(interpreter.SECONDS + 20)
    def test_in_the_interpreter(request):
        interpreter.check_in_interpreter(request)

else:
    from elementwise_cases import CASES, DTYPES, check

    @pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
    @pytest.mark.parametrize("name", CASES)
    def test_equals_its_reference(name, dtype):
        check(name, dtype, "cpu")

    def test_log_probs_of_infinite_and_missing_numbers():
        from llmsql.kernels.log_probs import gathered_log_softmax, gathered_log_softmax_reference

        inf, nan = float("inf"), float("nan")
        logits = torch.zeros(5, 5000)
        logits[0, 4999] = nan  # in the second block
        logits[1, 3] = nan
        logits[2, 4] = inf
        logits[3] = -inf
        logits[4, 1:] = -inf
        rows, starts = torch.arange(5), torch.arange(0, 11, 2)
        tokens = torch.tensor([0, 4999, 0, 3, 4, 5, 0, 1, 0, 1])
        out = gathered_log_softmax(logits, rows, starts, tokens)
        torch.testing.assert_close(
            out, gathered_log_softmax_reference(logits, rows, starts, tokens), equal_nan=True, atol=1e-5, rtol=0
        )
        assert out[:4].isnan().all()
        assert out[8:].tolist() == [0.0, -inf]

    def test_merge_of_parts_that_saw_no_key():
        from llmsql.kernels.merge import merge_parts, merge_parts_reference

        inf = float("inf")
        parts, lse = torch.randn(7, 3, 8), torch.randn(7, 3)
        lse[[0, 4, 5]] = -inf
        lse[2, 1], lse[3, 1] = -inf, -inf
        lse[6] = 3e38
        parts[[4, 5]] = 0.0
        start = torch.tensor([0, 2, 4, 6, 7], dtype=torch.int32)
        out = torch.full((5, 3, 8), 9.0)
        merge_parts(out, parts, lse, torch.tensor([3, 0, 4, 1], dtype=torch.int32), start)
        expected = merge_parts_reference(parts, lse, start).float()
        torch.testing.assert_close(out[[3, 0, 4, 1]], expected, atol=1e-6, rtol=0)
        assert out[4].eq(0).all()
        assert out[2].eq(9.0).all()

    def test_slots_beyond_the_reach_of_int32():
        from llmsql.kernels.kv_write import write_kv
        from llmsql.kernels.rotary import rotary_and_write

        slots, stride = 17, 2**28
        try:  # virtual memory; only the pages that are touched are ever there
            storage = torch.empty((slots - 1) * stride + 8, dtype=torch.float16)
        except RuntimeError:
            pytest.skip("not enough virtual memory for a pool of 2**32 elements")
        far, near = storage.as_strided((slots, 1, 8), (stride, 8, 1)), torch.zeros(slots, 1, 8, dtype=torch.float16)
        x, last = torch.randn(1, 1, 8, dtype=torch.float16), torch.tensor([slots - 1])
        write_kv(x, x, far, near, last)
        assert torch.equal(far[-1], x[0])
        write_kv(x + 1, x + 1, near, far, last)
        assert torch.equal(far[-1], x[0] + 1)
        right_angle = torch.zeros(1, 4), torch.ones(1, 4)
        rotary_and_write(x, x, x, *right_angle, torch.tensor([0]), far, near, last)
        assert torch.equal(far[-1, 0], torch.cat([-x[0, 0, 4:], x[0, 0, :4]]))

    def test_engine_operators_have_the_same_answers():
        # The seam of the fused decoder, in torch and in Triton, on views of one merged projection.
        from llmsql.gpu_backend.operators import TorchOperators
        from llmsql.gpu_backend.triton_operators import TritonOperators

        def run(operators):
            generator = torch.Generator().manual_seed(0)
            merged = torch.randn(5, 8 * 16, generator=generator)
            query, key, value = (part.view(5, -1, 16) for part in merged.split([64, 32, 32], dim=1))
            weight = torch.randn(16, generator=generator)
            query, key = (operators.rms_norm(x, weight, 1e-6, offset=True)[0] for x in (query, key))
            angles = torch.randn(20, 8, generator=generator)
            pools = torch.zeros(9, 2, 16), torch.zeros(9, 2, 16)
            positions, slots = torch.tensor([3, 4, 19, 0, 0]), torch.tensor([8, 0, 3, 4, 1])
            turns = operators.angles(angles.cos(), angles.sin(), positions, query.dtype)
            turned = operators.rotary_and_write(query, key, value, *turns, positions, *pools, slots)
            hidden, residual = (torch.randn(5, 48, generator=generator) for _ in range(2))
            normed, total = operators.rms_norm(hidden, torch.ones(48), 1e-5, residual)
            gate_up = torch.randn(5, 2 * 24, generator=generator)
            gated = operators.silu_and_mul(gate_up.clone()), operators.gelu_and_mul(gate_up.clone())
            return turned, *pools, normed, total, *gated

        for ours, theirs in zip(run(TritonOperators()), run(TorchOperators())):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
