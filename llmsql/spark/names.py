"""Names for what a plan makes in a Spark session."""

from __future__ import annotations

import itertools
import uuid

_numbers = itertools.count(1)
_process = uuid.uuid4().hex[:8]


def fresh_name(kind: str) -> str:
    """A name that no relation of any session has."""
    return f"__llmsql_{_process}_{kind}_{next(_numbers)}"
