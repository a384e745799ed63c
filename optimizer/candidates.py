"""Field orders by each method, scored on the exact trie."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from .approximate_dependencies import dependency_errors
from .cell_order import SharedUnits, text_order
from .cells import Cells
from .counting import count_shared
from .dependencies import (
    Dependency,
    Given,
    Known,
    chain,
    equivalent_columns,
    find_dependencies,
    given_dependencies,
    name_dependencies,
)
from .fixed import Fields, fixed_fields, given_fields
from .ggr import ggr_fields
from .grouping import Indices
from .ophr import ophr_fields
from .tree import tree_fields

AUTO = ("sort", "fixed", "ggr", "tree")  # the first of equals wins, so the simplest come first
BY_DEPENDENCIES = ("ggr", "tree")
APPROXIMATE = " (approximate dependencies)"


@dataclass(frozen=True)
class Candidate:
    """A field order for each row, and what the rows then share."""

    method: str
    fields: Fields  # [rows, columns]
    rows: Indices  # [rows] in depth-first order
    shared: SharedUnits


@dataclass(frozen=True)
class Comparison:
    """The best candidate, and what is known of all."""

    best: Candidate
    shared: dict[str, SharedUnits]  # by method; "none" is always among them
    seconds: dict[str, float]  # to make and to score each
    dependencies: tuple[Dependency, ...]


def compare_methods(
    cells: Cells,
    method: str,
    *,
    dependencies: Sequence[Given] | None,
    tolerance: float,
    seed: int,
    working_memory: int | None,
) -> Comparison:
    """The field orders of one method, or for "auto" of all, on distinct rows.

    Where dependencies within the tolerance make columns equivalent that exact ones do not, the methods that go by them
    are tried with both.
    """
    exact, approximate, named = _dependencies(cells, method, dependencies, tolerance)
    makers: dict[str, Callable[[Known], Fields]] = {
        "none": lambda known: given_fields(cells),
        "sort": lambda known: given_fields(cells),
        "fixed": lambda known: fixed_fields(cells),
        "ggr": lambda known: ggr_fields(cells, known),
        "tree": lambda known: tree_fields(cells, known, seed, working_memory),
        "ophr": lambda known: ophr_fields(cells),
    }
    wanted = [(name, exact) for name in (AUTO if method == "auto" else (method,))]
    if not np.array_equal(equivalent_columns(exact), equivalent_columns(approximate)):
        wanted += [(name, approximate) for name, _ in wanted if name in BY_DEPENDENCIES]
    if not {"none", "sort"} & {name for name, _ in wanted}:
        wanted.insert(0, ("none", exact))
    order = text_order(cells)
    best, shared, seconds = None, {}, {}
    for name, known in wanted:
        started = time.perf_counter()
        fields = makers[name](known)
        label = name if known is exact else name + APPROXIMATE
        shared[label], rows = count_shared(cells, fields, order)
        seconds[label] = time.perf_counter() - started
        eligible = name != "none" or method == "none"
        if eligible and (best is None or shared[label].total > best.shared.total):
            best = Candidate(label, fields, rows, shared[label])
    assert best is not None
    if "sort" in shared:  # an unbounded cache does not care in which order the rows come
        shared = {"none": shared["sort"], **shared}
    return Comparison(best, shared, seconds, named)


def _dependencies(
    cells: Cells, method: str, given: Sequence[Given] | None, tolerance: float
) -> tuple[Known, Known, tuple[Dependency, ...]]:
    """The dependencies that are trusted, those that may help, and the names of all."""
    if given is not None:
        known = given_dependencies(cells.names, given)
        return known, known, name_dependencies(cells, known, "given")
    if method != "auto" and method not in BY_DEPENDENCIES:
        none = np.eye(cells.num_columns, dtype=bool)
        return none, none, ()
    if tolerance == 0:
        exact = find_dependencies(cells)
        return exact, exact, name_dependencies(cells, exact, "exact")
    errors = dependency_errors(cells, tolerance)
    exact = errors == 0
    errors = chain(errors)
    named = name_dependencies(cells, errors < 1, "approximate", errors)
    named = tuple(one if one.error else replace(one, source="exact") for one in named)
    return exact, errors < 1, named
