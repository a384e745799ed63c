"""Small tokenizers of the kinds that models come with, trained on a few lines, and random models that speak them."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import torch
import transformers as T
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

CORPUS = [
    '"title": "Great phone, 5 stars",\n"rating": 4.5,\nQuestion: Is it good?\nAnswer with exactly one of: "Yes"\n',
    "Data:\n{\nuser assistant system [INST] <<SYS>> naïve café 日本語 <s> </s> <|im_end|> the and of to don't\n",
    '{"name": "Anna", "kind": "phone", "tags": ["a", "b"], "good": true, "price": 12}\n2024-01-31 user: assistant:\n',
]
SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_SPLIT = {"llama3": _LLAMA3, "qwen": _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")}


@cache
def byte_level(kind: str = "llama3") -> Tokenizer:
    """As Llama 3, Qwen and GPT-2 have it."""
    tokenizer = Tokenizer(models.BPE())
    if kind == "gpt2":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_SPLIT[kind]), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(CORPUS, _bpe_trainer(500, SPECIAL, initial_alphabet=alphabet))
    return tokenizer


@cache
def llama2(legacy: bool = True) -> Tokenizer:
    """As Llama 2 and Mistral have it: spaces are ▁ and one comes first; characters that are no pieces become bytes.

    With the legacy normalizer a ▁ also follows every control token.
    """
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    if legacy:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.train_from_iterator(_words(), _bpe_trainer(600, ["<unk>", *SPECIAL, *BYTES]))
    return _bytes_as_pieces(tokenizer)


@cache
def gemma() -> Tokenizer:
    """As Gemma has it: spaces are ▁, none is put in front, and lines end in pieces of their own."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.train_from_iterator(_words(), _bpe_trainer(600, ["<unk>", *SPECIAL, *BYTES]))
    return _bytes_as_pieces(tokenizer)


@cache
def unigram() -> Tokenizer:
    """As T5 and XLM-R have it: the pieces of the most likely split, and one for what is unknown."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    trainer = trainers.UnigramTrainer(
        vocab_size=180, special_tokens=["<unk>", *SPECIAL], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS * 20, trainer)
    return tokenizer


KINDS: dict[str, Any] = {
    "gpt2": lambda: byte_level("gpt2"),
    "qwen": lambda: byte_level("qwen"),
    "llama3": lambda: byte_level("llama3"),
    "llama2": lambda: llama2(True),
    "mistral": lambda: llama2(False),
    "gemma": gemma,
    "unigram": unigram,
}


def wrapped(
    tokenizer: Tokenizer, template: str | None = None, *, eos: str = "<|im_end|>", added: tuple[AddedToken, ...] = ()
) -> T.PreTrainedTokenizerFast:
    """A transformers tokenizer with a chat template and further tokens."""
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.add_tokens(list(added))
    return T.PreTrainedTokenizerFast(
        tokenizer_object=copy,
        bos_token="<s>",
        eos_token=eos,
        unk_token="<unk>" if copy.token_to_id("<unk>") is not None else None,
        chat_template=template,
    )


@cache
def speaking_model(kind: str = "llama3", spare: int = 40, seed: int = 0) -> tuple[Any, Any]:
    """A random Llama and its tokenizer; the model has `spare` embeddings more than there are tokens."""
    tokenizer = wrapped(KINDS[kind]())
    torch.manual_seed(seed)
    config = T.LlamaConfig(
        vocab_size=len(tokenizer) + spare,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        initializer_range=0.3,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return T.LlamaForCausalLM(config).eval(), tokenizer


def _words() -> list[str]:
    words = [word for text in CORPUS for word in text.split()]
    return [*words, *[f" {word}" for word in words]] * 3


def _bpe_trainer(size: int, special: list[str], **options: Any) -> Any:
    return trainers.BpeTrainer(vocab_size=size, special_tokens=special, show_progress=False, **options)


def _bytes_as_pieces(tokenizer: Tokenizer) -> Tokenizer:
    """Byte pieces are plain pieces of the vocabulary, not control tokens."""
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] not in BYTES]
    return Tokenizer.from_str(json.dumps(state))
