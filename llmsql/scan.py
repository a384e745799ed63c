"""Running SQL where DuckDB can see the variables of the user's code, not ours.

DuckDB looks for an unknown table among the variables of the Python frame that calls it. Called from a method of ours it
would find our variables, so it is called from an empty frame that holds the caller's.
"""

from __future__ import annotations

import builtins
import sys
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any

PACKAGE = "llmsql"
RUN = compile("__llmsql_run()", "<llmsql>", "eval")


def caller_variables() -> dict[str, Any]:
    """The variables, local over global, of the nearest frame outside of llmsql."""
    frame, _ = _caller()
    return {} if frame is None else {**frame.f_globals, **frame.f_locals}


def frames_of_ours() -> int:
    """How many frames of llmsql stand between its caller's and this one, with that of the function that asks."""
    return _caller()[1] - 1


def run_with_variables(run: Callable[[], Any], variables: Mapping[str, Any]) -> Any:
    """Call `run`, a method of a connection with its arguments bound, from a frame whose variables are `variables`."""
    return eval(RUN, {**variables, "__builtins__": builtins, "__llmsql_run": run})


def _caller() -> tuple[FrameType | None, int]:
    """The nearest frame outside of llmsql, and how many of ours it called, this one not counted."""
    frame: FrameType | None = sys._getframe(1)
    ours = 0
    while frame is not None and _is_ours(frame):
        frame = frame.f_back
        ours += 1
    return frame, ours


def _is_ours(frame: FrameType) -> bool:
    name = str(frame.f_globals.get("__name__", ""))
    return name == PACKAGE or name.startswith(PACKAGE + ".")
