"""Functional dependencies that hold but for some rows."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .cells import Cells, Codes
from .errors import OptimizerError
from .grouping import Ints, first_of_group, group_keys

Floats = npt.NDArray[np.float64]
SAMPLE = 2_048  # pairs of rows compared for each column
MISSED = 1e-9  # probability with which the sample may rule out a dependency that is within the tolerance


def dependency_errors(cells: Cells, tolerance: float, seed: int = 0) -> Floats:
    """Error of each dependency of one column on one other, float64 [columns, columns]; 1 where above the tolerance.

    The error of [a, b] is g3 (Kivinen and Mannila, 1995): the least share of rows to remove so that a determines b;
    0 is an exact dependency. NULL counts as a value.

    Most pairs are ruled out on a sample, the others are counted on all rows. For each column, rows are drawn and
    compared with another row of the same value. If a share e of the rows can be removed so that all others agree, two
    compared rows disagree with probability 2 e at most; so a pair is ruled out when more of them disagree than 2 *
    tolerance explains. No error is ever reported wrong and no exact dependency is missed, since one disagreement
    refutes it and nothing else rules it out; one within the tolerance is missed with probability below 1e-9.
    Raises OptimizerError for a tolerance that is not in [0, 1).
    """
    if not 0 <= tolerance < 1:
        raise OptimizerError(f"the tolerance is a share of rows from 0 to below 1, got {tolerance}")
    codes, num_rows = cells.codes, cells.num_rows
    errors = np.ones((cells.num_columns, cells.num_columns))
    np.fill_diagonal(errors, 0)
    generator = np.random.default_rng(seed)
    limit = _disagreements_explained(2 * tolerance)
    for column in range(cells.num_columns):
        rows, partners = _pairs_of_equals(codes[:, column], generator)
        if not len(rows):  # no value repeats
            errors[column] = 0
            continue
        disagreements = (codes[rows] != codes[partners]).sum(axis=0)
        for other in np.flatnonzero((disagreements <= limit) & (errors[column] > 0)).tolist():
            removed = num_rows - _rows_kept(codes[:, column], codes[:, other])
            if removed <= tolerance * num_rows:
                errors[column, other] = removed / num_rows
    return errors


def _pairs_of_equals(codes: Codes, generator: np.random.Generator) -> tuple[Ints, Ints]:
    """Random rows, and for each a random other row with the same code (itself if there is none)."""
    order = np.argsort(codes, kind="stable")
    ordered = codes[order]
    if (ordered[1:] != ordered[:-1]).all():
        return order[:0], order[:0]
    places = generator.integers(0, len(codes), SAMPLE)
    starts = np.searchsorted(ordered, ordered[places], "left")
    sizes = np.searchsorted(ordered, ordered[places], "right") - starts
    steps = 1 + (generator.random(SAMPLE) * (sizes - 1)).astype(np.int64)
    return order[places], order[starts + (places - starts + steps) % sizes]


def _disagreements_explained(probability: float) -> int:
    """The disagreements that SAMPLE pairs exceed with a chance below MISSED (Chernoff's bound) at this probability."""
    if probability in (0, 1) or probability > 1:
        return 0 if probability == 0 else SAMPLE
    share = np.arange(1, SAMPLE) / SAMPLE
    divergence = share * np.log(share / probability) + (1 - share) * np.log((1 - share) / (1 - probability))
    too_many = (share > probability) & (SAMPLE * divergence >= -np.log(MISSED))
    return int(too_many.argmax()) if too_many.any() else SAMPLE


def _rows_kept(determinant: Codes, dependent: Codes) -> int:
    """The most rows that can stay if each value of the determinant keeps one value of the dependent."""
    left, right = determinant.astype(np.int64) + 1, dependent.astype(np.int64) + 1
    groups = group_keys(left * (int(right.max()) + 1) + right)
    counts, values = np.bincount(groups), left[first_of_group(groups)]
    most = np.zeros(int(left.max()) + 1, dtype=np.int64)
    np.maximum.at(most, values, counts)
    return int(most.sum())
