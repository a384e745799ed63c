"""The engine on its Triton kernels, end to end on the CPU in Triton's interpreter: the same tokens as torch's."""

from __future__ import annotations

import interpreter
import pytest

if not interpreter.IS_ON:

    @pytest.mark.timeout(interpreter.SECONDS + 20)
    def test_in_the_interpreter(request):
        interpreter.check_in_interpreter(request)

    def test_the_choice_of_kernels_is_checked():
        import torch

        from llmsql.gpu_backend import ModelError
        from llmsql.gpu_backend.kernel_choice import resolve_kernels

        cpu, cuda = torch.device("cpu"), torch.device("cuda")
        assert resolve_kernels("auto", cuda) == resolve_kernels("triton", cuda) == "triton"
        assert resolve_kernels("torch", cuda) == resolve_kernels("torch", cpu) == "torch"
        with pytest.raises(ModelError, match="run on the CPU"):
            resolve_kernels("native", cuda)
        with pytest.raises(ModelError, match="unknown kernels 'cutlass'"):
            resolve_kernels("cutlass", cpu)
        with pytest.raises(ModelError, match="needs a CUDA device, or for tests its interpreter"):
            resolve_kernels("triton", cpu)

else:
    from collections import Counter

    import torch
    import triton
    from attention_batches import plain_attention, random_batch, random_cache
    from engine_models import tiny_model

    from llmsql import kernels
    from llmsql.gpu_backend import Engine, Request, attention_kernels, kernel_attention
    from llmsql.gpu_backend.cascade import Costs
    from llmsql.gpu_backend.kv_cache import LayerShape

    ROOT = list(range(100, 121))  # longer than Gemma's window
    PROMPTS = [[*ROOT, 30, 31, 32], [*ROOT, 40], [*ROOT[:9], 50, 51]]
    FAMILIES = {
        "gemma2": {"rms_norm_kernel", "rotary_and_write_kernel", "gated_kernel"},  # windows and softcap
        "qwen3": {"rms_norm_kernel", "rotary_and_write_kernel", "gated_kernel"},  # norms of heads
        "granite": {"write_kv_kernel"},  # transformers' modules
    }

    @pytest.fixture
    def launches(monkeypatch):
        """How often each kernel is launched."""
        counts = Counter()
        kind = triton.runtime.interpreter.InterpretedFunction
        run = kind.run

        def counting(self, *arguments, **options):
            counts[self.__name__] += 1
            return run(self, *arguments, **options)

        monkeypatch.setattr(kind, "run", counting)
        return counts

    def answers(model, requests, **options):
        with Engine(model, max_batch_tokens=60, block_size=4, **options) as engine:
            done = {completion.id: completion for completion in engine.generate(requests)}
            engine.check()
        assert all(completion.error is None for completion in done.values())
        return [done[request.id] for request in requests]

    @pytest.mark.parametrize("family", FAMILIES)
    def test_tokens_and_scores_are_those_of_torch(family, launches, monkeypatch):
        monkeypatch.setattr(
            attention_kernels, "gpu_costs", lambda **_: Costs(product=0, block=4, merge=0, read=1, gather=0)
        )
        requests = [Request(i, prompt, max_tokens=2) for i, prompt in enumerate(PROMPTS)]
        requests.append(Request("choice", PROMPTS[0], choices=[[9], [10, 11], [10, 12]]))
        expected = answers(tiny_model(family), requests)
        assert not launches
        found = answers(tiny_model(family), requests, kernels="triton")
        assert [one.token_ids for one in found] == [one.token_ids for one in expected]
        assert found[-1].log_probs == pytest.approx(expected[-1].log_probs, abs=1e-3)
        wanted = {"paged_attention_kernel", "merge_parts_kernel", "gathered_log_softmax_kernel", *FAMILIES[family]}
        assert wanted <= set(launches), launches

    @pytest.mark.parametrize("seed", range(4))
    def test_steps_of_random_batches(seed, monkeypatch):
        monkeypatch.setattr(
            attention_kernels, "gpu_costs", lambda **_: Costs(product=0, block=1, merge=0, read=1, gather=0)
        )
        monkeypatch.setattr(attention_kernels, "num_processors", lambda _: 9)
        batch = random_batch(seed, num_prompts=4, max_tokens=25)
        cache = random_cache(LayerShape(2, 8, 8 if seed else 4), torch.float32, seed)
        query = torch.randn(len(batch.token_ids), 4, 8)
        options = {"scale": 0.4, "window": 7 if seed > 1 else None, "softcap": 2.0 if seed == 3 else None}
        expected = plain_attention(batch, query, cache, *options.values())
        for cascade, split_keys in ((True, True), (True, False), (False, True)):
            attention = kernel_attention.KernelAttention(
                batch,
                cache,
                attention_kernels.attention_kernels("triton"),
                cascade=cascade,
                split_keys=split_keys,
                device=torch.device("cpu"),
            )
            out = attention.attend(0, query, **options)
            torch.testing.assert_close(out.double(), expected, atol=1e-5, rtol=0)
            work = attention.work_list(0, 4, options["window"])
            work.check(attention.table, 2, window=options["window"])

    def test_a_work_list_serves_while_the_same_rows_decode(monkeypatch):
        monkeypatch.setattr(attention_kernels, "num_processors", lambda _: 5)
        monkeypatch.setattr(
            attention_kernels, "gpu_costs", lambda **_: Costs(product=0, block=4, merge=0, read=1, gather=0)
        )
        plan, attend = kernel_attention.plan_work, kernels.paged_attention
        plans = Counter()

        def planning(*arguments, **options):
            plans[kernel_attention.STEPS_OF_A_PLAN] += 1
            return plan(*arguments, min_segment_keys=4, **options)

        def attending(query, keys, values, table, work, **options):
            work.check(table, query.shape[1] // keys.shape[1], window=options["sliding_window"])
            return attend(query, keys, values, table, work, **options)

        monkeypatch.setattr(kernel_attention, "plan_work", planning)
        monkeypatch.setattr(kernels, "paged_attention", attending)
        requests = [Request(i, prompt, max_tokens=7 - 3 * (i == 1)) for i, prompt in enumerate(PROMPTS)]
        expected = [one.token_ids for one in answers(tiny_model("gemma2"), requests, kernels="torch")]
        for most in (64, 1, 0):
            monkeypatch.setattr(kernel_attention, "STEPS_OF_A_PLAN", most)
            # transformers' modules: all other kernels would only take time
            found = [one.token_ids for one in answers(tiny_model("gemma2"), requests, kernels="triton", fused=False)]
            assert found == expected
        assert 0 < plans[64] < plans[1] < plans[0], plans

    def test_heads_too_large_for_the_kernels_run_in_torch(launches):
        import transformers

        config = transformers.LlamaConfig(
            vocab_size=60, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, head_dim=258
        )
        model = transformers.LlamaForCausalLM(config).eval()
        (found,) = answers(model, [Request(0, [1, 2, 3], max_tokens=2)], kernels="triton")
        (expected,) = answers(model, [Request(0, [1, 2, 3], max_tokens=2)])
        assert found.token_ids == expected.token_ids
        assert not launches

    def test_without_the_cascade_nothing_is_merged(launches):
        requests = [Request(i, prompt, max_tokens=2) for i, prompt in enumerate(PROMPTS)]
        expected = answers(tiny_model(), requests)
        found = answers(tiny_model(), requests, kernels="triton", cascade=False)
        assert [one.token_ids for one in found] == [one.token_ids for one in expected]
        assert launches["paged_attention_kernel"] > 0
        assert launches["merge_parts_kernel"] == 0
