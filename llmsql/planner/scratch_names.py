"""The names of the relations and columns that a plan makes for itself."""

from __future__ import annotations

import itertools
import re
import uuid

_numbers = itertools.count(1)
_process = uuid.uuid4().hex[:8]
_PREFIX = re.compile(r"__llmsql_[0-9a-f]{8}_(?:answers_\d+_(?=\w))?")


def fresh_name(kind: str) -> str:
    """A name that no relation of any session of any process has."""
    return f"__llmsql_{_process}_{kind}_{next(_numbers)}"


def without_prefixes(text: str) -> str:
    """A text about a plan, to be shown: our names in it without what makes them unique."""
    return _PREFIX.sub("", text)
