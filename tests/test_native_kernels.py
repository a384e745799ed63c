"""The C++ kernels against the torch references, and the engine on them against the engine on torch's operators."""

from __future__ import annotations

import copy
import dataclasses
import os
import platform
from pathlib import Path

import pytest
import torch
from attention_batches import plain_attention, random_batch, random_cache
from elementwise_cases import CASES, check
from engine_models import tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import Case, Node, Row, branching, build

from llmsql.gpu_backend import Engine, ModelError, Request
from llmsql.gpu_backend.attention_kernels import attention_kernels
from llmsql.gpu_backend.kernel_attention import KernelAttention
from llmsql.gpu_backend.kernel_choice import resolve_kernels, why_not_native
from llmsql.gpu_backend.kv_cache import LayerShape
from llmsql.gpu_backend.parity import sample_steps
from llmsql.kernels import norm, paged_attention_reference, rotary
from llmsql.kernels.native import attention, library, linear, operators, pool

DTYPES = (torch.float32, torch.bfloat16)
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2}
CUTS = ({"levels": 0, "processors": 1}, {"levels": 2, "processors": 64}, {"levels": 9, "processors": 1})
CPU = torch.device("cpu")

needs_kernels = pytest.mark.skipif(why_not_native() is not None, reason=f"no C++ kernels: {why_not_native()}")


def native_pools(key_pool: torch.Tensor, value_pool: torch.Tensor) -> list[torch.Tensor]:
    """Pools of the kernels that hold what these [slots, kv_heads, dim] do."""
    slots, kv_heads, key_dim = key_pool.shape
    shapes = pool.pool_shapes(slots, kv_heads, key_dim, value_pool.shape[2], key_pool.dtype)
    pools = [torch.zeros(shape, dtype=key_pool.dtype) for shape in shapes]
    pool.write_kv(key_pool, value_pool, pools[0], pools[1], torch.arange(slots))
    return pools


def slots_of(keys: torch.Tensor, values: torch.Tensor, slots: int, key_dim: int) -> list[torch.Tensor]:
    """The other way round, by torch alone."""
    keys = keys.permute(0, 3, 1, 2, 4).flatten(0, 1).flatten(2)[:slots, :, :key_dim]
    values = values.permute(0, 2, 4, 1, 3).flatten(0, 2)[:slots]
    return [keys, values]


def rotary_and_write(query, key, value, cos, sin, positions, key_pool, value_pool, slots):
    """The kernel on pools [slots, kv_heads, dim]."""
    keys, values = native_pools(key_pool, value_pool)
    out = operators.rotary_and_write(query, key, value, cos, sin, positions, keys, values, slots)
    for old, new in zip((key_pool, value_pool), slots_of(keys, values, len(key_pool), key_pool.shape[2])):
        old.copy_(new)
    return out


def check_attention(case: Case, *, spread: float = 1.0) -> None:
    """`spread` is that of the numbers, whose products grow with its square."""
    expected = paged_attention_reference(*case.arguments, **case.options)
    pools = native_pools(case.key_pool, case.value_pool)
    for cut in CUTS:
        out = attention.paged_attention(case.query, *pools, case.table, case.work(**cut), **case.options)
        assert out.dtype == case.query.dtype
        torch.testing.assert_close(out.float(), expected.float(), atol=TOLERANCE[out.dtype] * spread**2, rtol=0)


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("sliding_window", "softcap"), [(None, None), (1, None), (5, 2.0), (None, 2.0)])
def test_attention_over_a_branching_tree(dtype, sliding_window, softcap):
    check_attention(branching(dtype=dtype, sliding_window=sliding_window, softcap=softcap, heads=1))


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (4, 2), (5, 1), (14, 2), (20, 1), (130, 1)])
@pytest.mark.parametrize(("head_dim", "value_dim"), [(1, 1), (16, 40), (64, 64), (80, 80), (129, 7), (256, 256)])
def test_attention_of_heads(dtype, heads, kv_heads, head_dim, value_dim):
    shape = {"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim, "value_dim": value_dim}
    nodes = [Node(None, 9), Node(0, 9, continues=True), Node(0, 3)]
    check_attention(build(nodes, [Row(1, 17, 1), Row(1, 9, 4), Row(2, 11, 1)], dtype=dtype, **shape))


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("length", [1, 15, 16, 63, 64, 65, 129, 400])
def test_attention_over_several_tiles_of_keys(dtype, length):
    nodes = [Node(None, length), Node(0, 5, continues=True), Node(0, 70)]
    rows = [Row(1, length + 4, 1), Row(2, length, 70), *(Row(2, length + 69, 1) for _ in range(30))]
    for options in ({}, {"sliding_window": 50}):
        case = build(nodes, rows, dtype=dtype, head_dim=32, heads=6, block_size=16, spread=2.0, **options)
        check_attention(case, spread=2.0)


@needs_kernels
def test_attention_of_nothing():
    case = build([Node(None, 4)], [])
    pools = native_pools(case.key_pool, case.value_pool)
    assert attention.paged_attention(case.query, *pools, case.table, case.work(), **case.options).shape == (0, 2, 16)


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", [name for name in CASES if name.startswith(("norm", "rotary"))])
def test_operators_equal_their_references(name, dtype, monkeypatch):
    monkeypatch.setattr(norm, "rms_norm", operators.rms_norm)
    monkeypatch.setattr(rotary, "rotary_and_write", rotary_and_write)
    check(name, dtype, "cpu")


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("kv_heads", "key_dim", "value_dim"), [(1, 1, 1), (2, 16, 16), (3, 7, 40), (1, 129, 64)])
def test_what_is_written_is_found_in_its_slots(kv_heads, key_dim, value_dim, dtype):
    generator = torch.Generator().manual_seed(0)
    key, value = (torch.randn(kv_heads, 40, dim, generator=generator).to(dtype) for dim in (key_dim, value_dim))
    key, value = key.transpose(0, 1), value.transpose(0, 1)  # heads outside, as transformers hands them over
    slots = torch.randperm(50, generator=generator)[:40]
    slots[7] = -1
    shapes = pool.pool_shapes(50, kv_heads, key_dim, value_dim, dtype)
    keys, values = (torch.zeros(shape, dtype=dtype) for shape in shapes)
    pool.write_kv(key, value, keys, values, slots)
    written = slots >= 0
    for found, shown in zip(slots_of(keys, values, 50, key_dim), (key, value)):
        expected = torch.zeros(50, kv_heads, shown.shape[2], dtype=dtype)
        expected[slots[written]] = shown[written]
        assert torch.equal(found, expected)


@needs_kernels
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_operators_of_many_rows_are_shared_among_threads(threads):
    before = torch.get_num_threads()
    x = torch.randn(2000, 100, generator=torch.Generator().manual_seed(0))
    try:
        torch.set_num_threads(threads)
        normed, _ = operators.rms_norm(x, torch.ones(100), 1e-6)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(normed, norm.rms_norm_reference(x, torch.ones(100), 1e-6, None, offset=False)[0])


@needs_kernels
@pytest.mark.parametrize("seed", range(6))
def test_steps_of_random_batches(seed):
    batch = random_batch(seed, num_prompts=6, max_tokens=90)
    cache = random_cache(LayerShape(2, 8, 8 if seed else 4), torch.float32, seed)
    query = torch.randn(len(batch.token_ids), 4, 8)
    options = {"scale": 0.4, "window": 7 if seed > 1 else None, "softcap": 2.0 if seed == 3 else None}
    expected = plain_attention(batch, query, cache, *options.values())
    cache.keys[0], cache.values[0] = native_pools(cache.keys[0], cache.values[0])
    for cascade, split_keys in ((True, True), (True, False), (False, True)):
        step = KernelAttention(
            batch, cache, attention_kernels("native"), cascade=cascade, split_keys=split_keys, device=CPU
        )
        torch.testing.assert_close(step.attend(0, query, **options).double(), expected, atol=1e-5, rtol=0)


ROOT = list(range(100, 121))  # longer than Gemma's window
PROMPTS = [[*ROOT, 30, 31, 32], [*ROOT, 40], [*ROOT[:9], 50, 51]]


def answers(model, requests, **options):
    with Engine(model, max_batch_tokens=60, block_size=4, **options) as engine:
        done = {completion.id: completion for completion in engine.generate(requests)}
        engine.check()
        kind = engine._runner.kernels
    assert all(completion.error is None for completion in done.values())
    return [done[request.id] for request in requests], kind


@needs_kernels
@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3", "granite"])
@pytest.mark.parametrize("cascade", [True, False])
def test_the_engine_gives_the_answers_of_torch(family, cascade):
    requests = [Request(i, prompt, max_tokens=12) for i, prompt in enumerate(PROMPTS)]
    requests.append(Request("choice", PROMPTS[0], choices=[[9], [10, 11], [10, 12]]))
    expected, of_torch = answers(tiny_model(family), requests, kernels="torch")
    found, of_ours = answers(tiny_model(family), requests, kernels="native", cascade=cascade)
    assert (of_torch, of_ours) == ("torch", "native")
    assert [one.token_ids for one in found] == [one.token_ids for one in expected]
    assert found[-1].log_probs == pytest.approx(expected[-1].log_probs, abs=1e-3)


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma2", "gemma3"])
def test_layers_in_one_call_are_those_called_one_by_one(family, dtype):
    with Engine(tiny_model(family), kernels="native", dtype=dtype) as engine:
        runner = engine._runner
        assert runner.decoder.together is not None
        alone = dataclasses.replace(runner.decoder, together=None)
        steps = sample_steps(runner.vocab_size, engine.max_context)
        with torch.inference_mode():
            for one, other in zip(*(runner._sample_logits(steps, decoder) for decoder in (runner.decoder, alone))):
                assert torch.equal(one, other)


@needs_kernels
def test_types_that_the_kernels_do_not_know_run_in_torch():
    model = copy.deepcopy(tiny_model()).to(torch.float16)
    requests = [Request(0, PROMPTS[0], max_tokens=2)]
    assert answers(model, requests, kernels="native", dtype=torch.float16)[1] == "torch"


@needs_kernels
def test_auto_is_native_on_a_cpu():
    assert resolve_kernels("auto", CPU) == resolve_kernels("native", CPU) == "native"


COPIED = (
    f'while [ "$1" != -o ]; do shift; done; exec cp {library.load()._name} "$2"' if why_not_native() is None else ""
)
"""A compiler that gives what was compiled before, since compiling takes seconds."""


@pytest.fixture
def afresh(monkeypatch, tmp_path):
    """Nothing is loaded or compiled yet; the cache is the folder that is given."""
    monkeypatch.setenv("LLMSQL_KERNEL_CACHE", str(tmp_path / "cache"))
    for function in (library.load, why_not_native):
        function.cache_clear()
    yield tmp_path
    for function in (library.load, why_not_native):
        function.cache_clear()


@pytest.fixture
def compiler(afresh, monkeypatch):
    """Write a compiler of our own, a shell script that is given."""

    def write(script: str) -> None:
        path = afresh / "c++"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o700)
        monkeypatch.setenv("CXX", str(path))

    return write


def test_without_a_compiler_the_engine_runs_torch(afresh, monkeypatch):
    monkeypatch.setenv("PATH", str(afresh))
    monkeypatch.delenv("CXX", raising=False)
    assert resolve_kernels("auto", CPU) == "torch"
    with pytest.raises(ModelError, match=r"kernels='native' was asked for: there is no C\+\+ compiler"):
        resolve_kernels("native", CPU)


def test_a_compiler_that_fails_is_named_with_what_it_said(compiler):
    compiler("echo 'vectors.h:1: no such register' >&2; exit 1")
    assert resolve_kernels("auto", CPU) == "torch"
    with pytest.raises(ModelError, match=r"c\+\+ failed: vectors.h:1: no such register"):
        resolve_kernels("native", CPU)


def test_packed_without_sources_the_engine_runs_torch_and_says_so(afresh, monkeypatch, caplog):
    monkeypatch.setattr(library, "HEADERS", (*library.HEADERS, "forgotten.h"))
    for _ in range(2):
        assert resolve_kernels("auto", CPU) == "torch"
    assert caplog.text.count("the engine runs slower: the sources of its CPU kernels are not beside") == 1
    with pytest.raises(ModelError, match=r"packed without the sources of its CPU kernels .*forgotten\.h"):
        resolve_kernels("native", CPU)


def test_kernels_that_disagree_with_torch_are_not_used(afresh, monkeypatch, caplog):
    monkeypatch.setattr(attention, "agrees_with_torch", lambda: False)
    assert resolve_kernels("auto", CPU) == "torch"
    assert "give other results than torch" in caplog.text


@needs_kernels
def test_what_was_compiled_is_kept_to_the_user_and_found_again(compiler, afresh):
    compiler(f"echo x >> {afresh}/runs; {COPIED}")
    library.load()
    library.load.cache_clear()
    library.load()
    assert (afresh / "runs").read_text() == "x\n"
    folder = Path(os.environ["LLMSQL_KERNEL_CACHE"])
    (kept,) = folder.iterdir()
    assert folder.stat().st_mode & 0o077 == 0
    assert kept.stat().st_mode & 0o022 == 0


@needs_kernels
def test_a_broken_file_in_the_cache_is_compiled_anew(compiler, afresh):
    compiler(COPIED)
    library.load()
    (kept,) = Path(os.environ["LLMSQL_KERNEL_CACHE"]).iterdir()
    kept.unlink()
    kept.write_bytes(b"not a library")
    library.load.cache_clear()
    assert library.load().llmsql_rms_norm


@needs_kernels
@pytest.mark.skipif(platform.machine() != "x86_64", reason="names x86 processors")
def test_a_processor_with_narrower_vectors_gives_the_same(afresh, monkeypatch):
    options = ["-march=x86-64-v3" if option == "-march=native" else option for option in library.OPTIONS]
    monkeypatch.setattr(library, "OPTIONS", tuple(options))  # AVX2: no AVX-512, no products of bf16
    assert why_not_native() is None
    for dtype in DTYPES:
        check_attention(branching(dtype=dtype, sliding_window=5, softcap=2.0, heads=6, kv_heads=2, head_dim=40))
        x, weight = torch.randn(9, 70).to(dtype), torch.randn(50, 70).to(dtype)
        found = linear.linear(x, linear.pack(weight))
        tolerance = {"rtol": 1e-5, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 1e-2, "atol": 2e-2}
        torch.testing.assert_close(found.double(), x.double() @ weight.double().T, **tolerance)
        for name in ("norm, residual", "rotary of odd shapes"):
            monkeypatch.setattr(norm, "rms_norm", operators.rms_norm)
            monkeypatch.setattr(rotary, "rotary_and_write", rotary_and_write)
            check(name, dtype, "cpu")


@needs_kernels
def test_old_libraries_leave_the_cache(compiler, afresh):
    compiler(COPIED)
    folder = Path(os.environ["LLMSQL_KERNEL_CACHE"])
    folder.mkdir(mode=0o700)
    for age in range(20):
        old = folder / f"kernels-{age}.so"
        old.touch()
        os.utime(old, (1_000_000 - age, 1_000_000 - age))
    library.load()
    assert len(list(folder.iterdir())) == library.KEPT
    assert (folder / "kernels-0.so").exists()


@needs_kernels
def test_a_cache_that_others_can_write_to_is_not_used(compiler, afresh):
    compiler(COPIED)
    folder = Path(os.environ["LLMSQL_KERNEL_CACHE"])
    folder.mkdir()
    folder.chmod(0o777)
    library.load()
    assert list(folder.iterdir()) == []


@needs_kernels
@settings(max_examples=80, deadline=None)
@given(
    rows=st.sampled_from([0, 1, 2, 5, 6, 7, 33, 200]),
    inputs=st.sampled_from([1, 2, 7, 64, 100, 1700]),
    outputs=st.sampled_from([1, 31, 64, 65, 130]),
    dtype=st.sampled_from(DTYPES),
    bias=st.booleans(),
    strided=st.booleans(),
)
def test_products(rows, inputs, outputs, dtype, bias, strided):
    generator = torch.Generator().manual_seed(rows + inputs + outputs)
    x = torch.randn(rows, inputs + 3 * strided, generator=generator).to(dtype)[:, :inputs]
    weight = torch.randn(outputs, inputs, generator=generator).to(dtype)
    added = torch.randn(outputs, generator=generator).to(dtype) if bias else None
    packed = linear.pack(weight, added)
    found = linear.linear(x, packed)
    expected = torch.nn.functional.linear(x.double(), weight.double(), None if added is None else added.double())
    spread = inputs**0.5  # of the sums
    tolerance = {"rtol": 1e-5, "atol": 1e-5 * (9 + spread)}
    if dtype == torch.bfloat16:
        tolerance = {"rtol": 1e-2, "atol": 2e-2}
    torch.testing.assert_close(found.double(), expected, **tolerance)
    assert torch.equal(packed.unpacked(), weight)
    index = torch.arange(rows) % outputs
    assert torch.equal(packed.rows(index), weight[index])


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", linear.ACTIVATIONS)
def test_gated_products(dtype, activation):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(9, 40, generator=generator).to(dtype) * 4  # gates far from 0, too
    weights = [torch.randn(70, 40, generator=generator).to(dtype) for _ in range(2)]
    biases = [torch.randn(70, generator=generator).to(dtype), None]
    found = linear.gated_linear(x, *(linear.pack(*pair) for pair in zip(weights, biases)), activation)
    gate = x.double() @ weights[0].double().T + biases[0].double()
    function = torch.nn.functional.silu if activation == "silu" else _gelu
    expected = function(gate) * (x.double() @ weights[1].double().T)
    limit = 1e-5 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(found.double(), expected, rtol=limit, atol=limit * float(expected.abs().max()))


def _gelu(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.gelu(x, approximate="tanh")


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_product_of_one_row_is_that_of_many(dtype):
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(rows, 900, generator=generator).to(dtype) for rows in (250, 100))
    packed = linear.pack(weight)
    together = linear.linear(x, packed)
    for rows in (1, 2, 5, 64, 199):
        assert torch.equal(linear.linear(x[:rows], packed), together[:rows]), rows
