"""What prompts share, counted from the prompts themselves: a measure that owes nothing to the optimizer's own."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import AnyStr


def shared_prefixes(prompts: Iterable[AnyStr], width: int = 1) -> int:
    """Characters, or units of `width` bytes, in prefixes of earlier prompts.

    How many prefixes are new does not depend on the order of the prompts, so neighbours in sorted order will do.
    """
    return sum(common_prefix(left, right) // width for left, right in pairwise(sorted(prompts)))


def common_prefix(left: AnyStr, right: AnyStr) -> int:
    """How many characters or bytes two texts have in common before they differ."""
    low, high = 0, min(len(left), len(right))
    while low < high:
        middle = (low + high + 1) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
