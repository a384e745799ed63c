"""What can go wrong in the engine, as exceptions for people."""

from __future__ import annotations


class EngineError(Exception):
    """Base of all engine errors; raised itself when a closed engine is used."""


class ModelError(EngineError):
    """The model or its tokenizer cannot be loaded, or its architecture is not supported."""


class MemoryBudgetError(EngineError):
    """A memory budget is malformed or too small to run anything."""


class RequestError(EngineError):
    """One request is invalid; inside `Engine.generate` it becomes that request's `Completion.error`."""
