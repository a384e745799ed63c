"""The demo model's tokenizer: byte-level BPE that splits after newlines, so that cells can be tokenized one by one."""

from __future__ import annotations

import random
from collections.abc import Iterator

from tasks import TASKS, make_example
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

SPECIALS = ("<|pad|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")

#: Words with their space, digits in pairs, JSON's quotes with what follows them, other punctuation, line ends, spaces.
PATTERN = r' ?\p{L}+| ?\p{N}{1,2}| ?"[,:]?\n*| ?[^\s\p{L}\p{N}"]+\n*|\s*\n+|\s+(?!\S)|\s+'

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('unknown role: ' + message.role) }}"
    "{% endif %}"
    "{{ '<|' + message.role + '|>' + message.content + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def train_tokenizer(vocabulary: int, seed: int, examples: int = 24_000) -> PreTrainedTokenizerFast:
    """Learn the merges from generated examples; the same arguments give the same tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[AddedToken(special, special=True, normalized=False) for special in SPECIALS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(seed, examples), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        additional_special_tokens=list(SPECIALS[1:4]),
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=16384,
    )


def _texts(seed: int, examples: int) -> Iterator[str]:
    rng = random.Random(f"vocabulary {seed}")
    for number in range(examples):
        example = make_example(rng, TASKS[number % len(TASKS)])
        yield example.content
        yield example.answer
