"""The engine: requests in, completions out, one step at a time."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .batch import BatchBuilder, StepBatch
from .blocks import BlockPool
from .completion import completion
from .context import read_context
from .cpu_memory import keep_freed_memory
from .errors import EngineError, ModelError, RequestError
from .fair_lock import FairLock
from .grammar import GrammarCompiler
from .intake import Intake
from .kernel_choice import resolve_kernels
from .loading import eos_token_ids, load_model, resolve_device
from .masks import MaskMaker, StepMasks
from .memory import plan_memory
from .model_runner import ModelRunner
from .output import CANNOT_GO_ON
from .readout import NOT_A_NUMBER, next_tokens, score_labels
from .request import Completion, FinishReason, Request
from .scheduler import Scheduler
from .sequence import Sequence
from .stats import EngineStats
from .step import Step
from .step_budget import StepBudget, is_out_of_memory
from .stream import Stream, job_of
from .tokenizer import PromptTokenizer, load_tokenizer
from .tree import PrefixTree

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_MAX_RUNNING = {"cuda": 1024}  # elsewhere 256


class Engine:
    """A model in this process that answers batches of requests and computes every shared prefix once.

    Example:
        with Engine("path/to/model") as engine:
            for completion in engine.generate([Request(0, [1, 2, 3]), Request(1, [1, 2, 4], choices=["Yes", "No"])]):
                print(completion.id, completion.text)

    Any number of threads may call `generate` at once; steps run one after the other and serve them all.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | PreTrainedModel,
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        kv_memory: int | str | None = None,
        max_batch_tokens: int | None = None,
        tokenizer: str | os.PathLike[str] | PreTrainedTokenizerBase | None = None,
        trust_remote_code: bool = False,
        block_size: int = 16,
        max_running: int | None = None,
        window: int = 4096,
        prefix_sharing: bool = True,
        share_in_step: bool = True,
        cascade: bool = True,
        prefix_cache: bool = True,
        exact_admission: bool = True,
        longest_first: bool = True,
        forced_tokens: bool = True,
        overlap_masks: bool | None = None,
        fused: bool = True,
        kernels: str = "auto",
        split_keys: bool = True,
    ) -> None:
        """Load the model and make its KV pool.

        Args:
            model: a folder with config.json and *.safetensors, a hub id, or a transformers model (left unchanged).
            device: "auto", "cpu", "cuda" or "cuda:N".
            dtype: "float32", "bfloat16", "float16" or "auto": a model object's own; bfloat16 on CUDA; on a CPU the
                checkpoint's where the processor computes in it, else float32. See `dtypes.resolve_dtype`.
            kv_memory: bytes of the KV pool, or a text such as "2GiB"; None takes a share of what is free.
            max_batch_tokens: tokens of one step at most; None chooses by device and by what is free.
            tokenizer: where the tokenizer is, if not with the model.
            trust_remote_code: whether the model's own Python code may run.
            block_size: tokens of one KV block.
            max_running: requests in the works at one time, at most; None chooses by device.
            window: requests taken from the input ahead of those that run; bounds memory.
            prefix_sharing: False gives each request a path of its own: the baseline without reuse.
            share_in_step: False makes a request wait while another computes its prefix in the same step.
            prefix_cache: False forgets the KV of a prefix with the last request that needs it; otherwise it stays, in
                the same pool, until running requests want the blocks.
            exact_admission: False keeps blocks for `max_tokens` of output free from a request's start; otherwise it
                starts when the blocks will be free by the time that it needs them.
            longest_first: False takes prompts that part from each other in the order in which they came; otherwise
                those with the longest `max_tokens` first, in classes of powers of two.
            cascade: False lets every row read all of its keys by itself.
            fused: False runs transformers' modules also where there is a fused decoder. The decoder keeps weights in a
                layout of its own; of a model object, which keeps its weights too, that is a second copy, made where it
                takes no more than a quarter of the free memory.
            kernels: "auto" runs Triton's kernels on CUDA, on a CPU the C++ kernels where they can be compiled, and
                torch's operators elsewhere. "torch", "native" (C++) and "triton" (on the CPU in Triton's interpreter,
                for tests) name one.
            split_keys: False lets one program of the attention kernel read all keys of a row, however idle the GPU is.
            forced_tokens: False asks the model also for the tokens about which a grammar leaves no choice.
            overlap_masks: whether the tokens that grammars allow are found beside the model instead of before it runs;
                None does so on CUDA, where the host would wait.

        Raises:
            ModelError: the model cannot be loaded or its architecture is not supported.
            MemoryBudgetError: the KV budget is malformed or less than a block, or it and the steps need more memory
                than there is.
        """
        limits = {"block_size": block_size, "max_running": max_running, "window": window}
        for name, value in {**limits, "max_batch_tokens": max_batch_tokens}.items():
            if value is not None and value < 1:
                raise EngineError(f"{name} must be at least 1, got {value}")
        self._lock = FairLock()
        self._closed = False
        self._abandoned: deque[Stream] = deque()
        self._streams: list[Stream] = []
        self.stats = EngineStats()
        self.device = resolve_device(device)
        if self.device.type == "cpu":
            keep_freed_memory()
        loaded = load_model(model, device=self.device, dtype=dtype, trust_remote_code=trust_remote_code)
        self.dtype = loaded.dtype
        self.eos_token_ids = eos_token_ids(loaded)
        context = read_context(loaded)
        self.max_context = context.length
        self.block_size = block_size
        self._runner = ModelRunner(
            loaded,
            device=self.device,
            dtype=self.dtype,
            cascade=cascade,
            kernels=resolve_kernels(kernels, self.device),
            split_keys=split_keys,
            fused=fused,
            shared=isinstance(model, torch.nn.Module),
        )
        max_running = max_running or _MAX_RUNNING.get(self.device.type, 256)
        self.memory = plan_memory(
            kv_memory,
            max_batch_tokens,
            max_running=max_running,
            step=self._runner.step_memory(),
            bytes_per_token=self._runner.kv_bytes_per_token,
            block_size=block_size,
            context=self.max_context,
            weights=self._runner.weight_bytes,
            device=self.device,
        )
        self._runner.allocate(self.memory.num_blocks * block_size)
        self._pool = BlockPool(self.memory.num_blocks, block_size)
        self._scheduler = Scheduler(
            PrefixTree(self._pool, sharing=prefix_sharing, caching=prefix_cache, longest_first=longest_first),
            max_tokens=self.memory.max_batch_tokens,
            max_logits=self.memory.max_logits,
            max_running=min(max_running, self.memory.max_logits),
            share_in_step=share_in_step,
            exact_admission=exact_admission,
        )
        self._budget = StepBudget(self.memory.max_batch_tokens)
        self._batches = BatchBuilder(block_size)
        self._window = window
        self._intake = Intake(
            vocab_size=self._runner.vocab_size,
            context=context,
            eos_token_ids=self.eos_token_ids,
            tokenizer=lambda: self.tokenizer,
            grammars=GrammarCompiler(lambda: self.tokenizer, self._runner.vocab_size, self.eos_token_ids),
            forced_tokens=forced_tokens,
        )
        self._masks = MaskMaker(overlap=self.device.type == "cuda" if overlap_masks is None else overlap_masks)
        self._trust_remote_code = trust_remote_code
        self._tokenizer_source = tokenizer if tokenizer is not None else model
        self._tokenizer: PromptTokenizer | ModelError | None = None

    @property
    def decoder(self) -> str:
        """ "fused" or "transformers": whose code runs the model's layers; the log says why."""
        self._check_open()
        return "transformers" if self._runner.decoder is None else "fused"

    @property
    def tokenizer(self) -> PromptTokenizer:
        """The model's tokenizer, loaded on first use; raises ModelError when the model has none."""
        if self._tokenizer is None:
            try:
                self._tokenizer = self._load_tokenizer()
            except ModelError as problem:
                self._tokenizer = problem  # asked for again by every completion
        if isinstance(self._tokenizer, ModelError):
            raise ModelError(str(self._tokenizer))
        return self._tokenizer

    def _load_tokenizer(self) -> PromptTokenizer:
        source: Any = self._tokenizer_source
        if isinstance(source, (str, os.PathLike)):
            return load_tokenizer(source, eos_token_ids=self.eos_token_ids, trust_remote_code=self._trust_remote_code)
        if hasattr(source, "apply_chat_template"):
            return PromptTokenizer(source, eos_token_ids=self.eos_token_ids)
        raise ModelError("a model object comes without a tokenizer: give Engine(model, tokenizer=...)")

    def generate(
        self,
        requests: Iterable[Request],
        *,
        stats: EngineStats | None = None,
        on_step: Callable[[], None] | None = None,
    ) -> Iterator[Completion]:
        """Answer the requests, yielding each completion as soon as it is finished.

        The input is read lazily, `window` requests ahead. A request that is invalid or fails gets a completion with
        `error` set; all others finish. Closing the iterator early cancels what is left. Raises EngineError when the
        engine is closed.

        `stats` gets the prompt, computed and output tokens of this call alone, whoever else calls at the same time; a
        prefix that several calls need counts as computed for the first of them. `on_step` is called before each step,
        outside of the lock; what it raises ends the call as closing the iterator does.
        """
        self._check_open()
        return self._generate(Stream(iter(requests), EngineStats() if stats is None else stats), on_step)

    def clear_cache(self) -> None:
        """Forget the KV of prefixes that no request at hand needs."""
        with self._lock:
            self._reap()
            self._scheduler.tree.give_up_unneeded()

    def check(self) -> None:
        """Assert the invariants of the tree, the KV blocks and the scheduler."""
        with self._lock:
            self._reap()
            self._scheduler.check()

    def close(self) -> None:
        """Free the model and the KV pool; running `generate` calls end with EngineError. Idempotent."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            for stream in self._streams:
                stream.drop(self._scheduler)
            self._masks.close()
            del self._runner
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # The loop: refill, step, yield; a step is schedule, run, commit, read.

    def _generate(self, stream: Stream, on_step: Callable[[], None] | None) -> Iterator[Completion]:
        try:
            while True:
                if on_step is not None:
                    on_step()
                arrived = stream.read(self._window)  # outside the lock: the input may be another generate()
                self._intake.prepare(arrived)
                with self._lock:
                    self._check_open()
                    self._reap()
                    self._add(stream, arrived)
                    if stream.live and not stream.finished:
                        self._step(first=stream.neglected() if len(self._streams) > 1 else None)
                while stream.finished:
                    yield stream.finished.popleft()
                if stream.exhausted and not stream.live:
                    if stream.cut:
                        self._check_open()
                    return
        finally:
            self._abandon(stream)

    def _step(self, first: Sequence | None = None) -> None:
        started = time.perf_counter()
        step = self._schedule(first)
        if step is None:
            return
        batch = self._batches.build(step)
        scheduled = time.perf_counter()
        masks = self._masks.start(batch)
        try:
            with self._lock.interruptible():
                logits = self._runner.forward(batch)
        except (RuntimeError, ValueError, MemoryError) as problem:
            # Nothing is committed: the requests of other callers are scheduled again.
            if not is_out_of_memory(problem):
                raise EngineError(f"the model failed in a step of {step.num_tokens} tokens: {problem}") from problem
            logits = None  # what the step has allocated is freed with `problem`
        finally:
            masks.wait()
        if logits is None:
            self._make_do(step)
            return
        ran = time.perf_counter()
        try:
            self._scheduler.commit(step)
            self._read(batch, logits, masks, step.prefilled)
        except BaseException as problem:
            self._give_up(step, f"the step's results could not be read: {problem!r}")
            if not is_out_of_memory(problem):
                raise
        self._budget.went_well()
        self.stats.steps += 1
        self.stats.step_tokens += step.num_tokens
        self.stats.computed_tokens += step.num_prompt_tokens
        if len(self._streams) == 1:
            self._streams[0].stats.computed_tokens += step.num_prompt_tokens
        else:
            for sequence, num_tokens in step.num_prompt_tokens_by_owner():
                job_of(sequence).stream.stats.computed_tokens += num_tokens
        self.stats.label_tokens += step.num_label_tokens
        self.stats.schedule_seconds += scheduled - started
        self.stats.model_seconds += ran - scheduled
        self.stats.sample_seconds += time.perf_counter() - ran

    def _schedule(self, first: Sequence | None) -> Step | None:
        self._scheduler.max_tokens = self._budget.num_tokens
        step = self._scheduler.schedule(first)
        if step is None:
            return None
        for sequence, problem in step.rejected:
            self._finish(sequence, "error", error=problem)
        self.stats.peak_kv_blocks = max(self.stats.peak_kv_blocks, self._scheduler.tree.num_pinned_blocks)
        self.stats.cached_tokens = self._scheduler.tree.cache.num_reused_tokens
        return step if step.chunks else None

    def _read(self, batch: StepBatch, logits: torch.Tensor, masks: StepMasks, prefilled: list[Sequence]) -> None:
        """Turn the step's logits into tokens and scores, and finish the requests that are done."""
        score_labels(batch, logits, kernels=self._runner.kernels == "triton")
        for sequence in prefilled:
            if sequence.scores_only:
                self._finish_choice(sequence)
        tokens = next_tokens(batch, logits, masks, kernels=self._runner.kernels == "triton")
        num_sampled = num_added = 0
        for sequence, token_id, log_prob, error in tokens:
            job = job_of(sequence)
            output = job.output
            assert output is not None
            if error is not None:
                self._finish(sequence, "error", error=error)
                continue
            added = output.add(token_id, log_prob)
            num_sampled += 1
            num_added += len(added)
            job.stream.stats.output_tokens += len(added)
            if output.problem is not None:
                self._finish(sequence, "error", error=f"{CANNOT_GO_ON}: {output.problem}")
            elif output.finish_reason is not None:
                self._finish(sequence, output.finish_reason)
            else:
                self._scheduler.append(sequence, added)
        self.stats.output_tokens += num_added
        self.stats.forced_tokens += num_added - num_sampled

    # Requests on their way in and out.

    def _add(self, stream: Stream, requests: list[Request]) -> None:
        for request in requests:
            self.stats.requests += 1
            try:
                sequence = self._intake.sequence(request, stream)
            except RequestError as problem:
                self.stats.failed_requests += 1
                stream.finished.append(
                    Completion(getattr(request, "id", None), finish_reason="error", error=str(problem))
                )
                continue
            self.stats.prompt_tokens += len(sequence.token_ids)
            stream.stats.prompt_tokens += len(sequence.token_ids)
            output = job_of(sequence).output
            if output is not None:
                self.stats.output_tokens += len(output.token_ids)
                stream.stats.output_tokens += len(output.token_ids)
                self.stats.forced_tokens += len(output.token_ids)
                if output.finish_reason is not None:  # its grammar leaves nothing to ask the model
                    stream.finished.append(completion(job_of(sequence), output.finish_reason, decode=self._decode))
                    continue
            stream.live[sequence] = None
            self._scheduler.add(sequence)
        if requests and stream not in self._streams:
            self._streams.append(stream)

    def _finish_choice(self, sequence: Sequence) -> None:
        scores = job_of(sequence).scores
        assert scores is not None
        if np.isnan(scores.log_probs).any():
            self._finish(sequence, "error", error=NOT_A_NUMBER)
        else:
            self._finish(sequence, "choice")

    def _finish(self, sequence: Sequence, reason: FinishReason, *, error: str | None = None) -> None:
        job = job_of(sequence)
        if sequence in job.stream.live:
            del job.stream.live[sequence]
        if not (reason == "error" and not sequence.started):  # rejected ones are not in the tree any more
            self._scheduler.remove(sequence)
        if error is not None:
            self.stats.failed_requests += 1
        job.stream.finished.append(completion(job, reason, error, decode=self._decode))

    def _decode(self, token_ids: tuple[int, ...]) -> str:
        try:
            return self.tokenizer.decode(token_ids)
        except ModelError:
            return ""

    def _make_do(self, step: Step) -> None:
        """After a step that the device had no memory for: the next is half as large, or its requests fail."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if not self._budget.halve(step.num_tokens):
            problem = f"the {self.device.type} ran out of memory in a step of a single token: {self.memory}"
            for sequence in self._scheduler.concerned(step):
                self._finish(sequence, "error", error=problem)

    def _give_up(self, step: Step, problem: str) -> None:
        """After a failure between commit and read: whoever awaits this step's logits can never go on."""
        for chunk in step.chunks:
            for sequence in chunk.sequences:
                if sequence in job_of(sequence).stream.live:
                    self._finish(sequence, "error", error=problem)

    def _abandon(self, stream: Stream) -> None:
        """Cancel what is left of a stream; may run at any time, even as a finaliser inside a step."""
        self._abandoned.append(stream)
        taken = True
        while self._abandoned and taken:  # otherwise the lock's holder does it, at its next turn
            with self._lock.attempt() as taken:
                if taken:
                    self._reap()

    def _reap(self) -> None:
        while self._abandoned:
            stream = self._abandoned.popleft()
            stream.drop(self._scheduler)
            if stream in self._streams:
                self._streams.remove(stream)

    def _check_open(self) -> None:
        if self._closed:
            raise EngineError("the engine is closed")
