"""The prefixes of prompts shown earlier: a trie whose nodes are known by hashes, of which the latest are kept."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .cells import Cells
from .fixed import Fields
from .grouping import AnyInts, Ints
from .prefix_tree import prompt_sequences

Hashes = npt.NDArray[np.uint64]
MAX_NODES = 2**19  # about 20 MiB
MAX_PATHS = 8  # per item, which are followed at one time
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_SHIFT, _ONE = np.uint64(29), np.uint64(1)


def cell_hashes(cells: Cells) -> Hashes:
    """A hash of each global cell id's text, the same in every table, [ids]."""
    hashes = np.zeros(len(cells.id_lengths), np.uint64)
    for number, text in enumerate(cells.id_texts.to_pylist()):
        digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        hashes[number] = int.from_bytes(digest, "little")
    return hashes


@dataclass(frozen=True)
class Prompts:
    """Rows as they are shown, one after the other: all [rows, columns], 0 or -1 where a prompt has ended."""

    chains: Hashes  # of the prefix that ends with each cell
    lengths: Ints  # of each cell
    columns: AnyInts  # of each cell

    @classmethod
    def of(cls, cells: Cells, rows: AnyInts, fields: Fields, hashes: Hashes) -> Prompts:
        """`rows` of the cells in the order in which they are shown, each with its `fields` [rows, columns]."""
        sequences = prompt_sequences(cells.select_rows(rows), fields)
        chains = np.zeros(sequences.shape, np.uint64, order="F")
        before = np.zeros(len(sequences), np.uint64)
        for place in range(sequences.shape[1]):
            before = _chained(before, hashes[sequences[:, place]])
            chains[:, place] = np.where(sequences[:, place] > 0, before, 0)
        columns = np.searchsorted(cells.offsets, sequences, side="right").astype(np.int32) - 1
        return cls(chains, np.where(sequences > 0, cells.id_lengths[sequences], 0), columns)

    def shared_with_row_before(self) -> Ints:
        """Units of whole cells that each prompt begins with as the one before it does, int64 [rows]."""
        shared = np.zeros(len(self.chains), np.int64)
        equal = self.chains[1:] == self.chains[:-1]  # a prefix is equal up to each of its ends
        shared[1:] = np.where(equal, self.lengths[1:], 0).sum(axis=1)
        return shared


@dataclass(frozen=True)
class Paths:
    """The longest remembered prefix that each of some items can follow with its own cells."""

    units: Ints  # [items] 0 where there is none
    ends: Hashes  # [items] the node in which it ends
    columns: AnyInts  # [items, columns] of its cells, in order; -1 behind the last


class EarlierPrompts:
    """A bounded trie of prompts. Equal hashes of different prefixes would cost a wrong guess, and nothing else."""

    def __init__(self) -> None:
        self.last = np.zeros(0, np.uint64)  # the prefixes of the last prompt
        self._chains = np.zeros(0, np.uint64)  # [nodes] ascending
        self._parents = np.zeros(0, np.uint64)  # [nodes] chain of the node above, 0 for none
        self._columns = np.zeros(0, np.int32)  # [nodes] of the node's cell
        self._units = np.zeros(0, np.int64)  # [nodes] length of the node's cell
        self._depths = np.zeros(0, np.int32)  # [nodes]
        self._shown = np.zeros(0, np.int64)  # [nodes] number of the last prompt that had it
        self._num_prompts = 0
        self._present = np.zeros(2, bool)  # whether some chain begins with these bits
        self._bits = 1

    def __len__(self) -> int:
        return len(self._chains)

    @property
    def units(self) -> int:
        """Length of all prefixes together, what they share counted once."""
        return int(self._units.sum())

    def learn(self, prompts: Prompts) -> None:
        """Remember prompts in the order in which they are shown, MAX_NODES prefixes at most."""
        num_rows, width = prompts.chains.shape
        if num_rows and width:
            flat = prompts.chains[::-1].ravel()
            chains, first = np.unique(flat, return_index=True)
            first = first[chains > 0]
            rows, places = np.divmod(first, width)
            rows = num_rows - 1 - rows  # the last that has it
            above = np.where(places > 0, prompts.chains[rows, np.maximum(places - 1, 0)], 0)
            kept = ~np.isin(self._chains, flat[first])
            self._chains = np.concatenate([self._chains[kept], flat[first]])
            self._parents = np.concatenate([self._parents[kept], above])
            self._columns = np.concatenate([self._columns[kept], prompts.columns[rows, places]])
            self._units = np.concatenate([self._units[kept], prompts.lengths[rows, places]])
            self._depths = np.concatenate([self._depths[kept], places.astype(np.int32)])
            self._shown = np.concatenate([self._shown[kept], self._num_prompts + rows])
            self._num_prompts += num_rows
            self.last = prompts.chains[-1]
        self.keep(None)

    def keep(self, capacity: int | None) -> None:
        """Forget all but what was shown last: `capacity` units, None for all, and no more than MAX_NODES prefixes."""
        kept = np.arange(len(self))
        if len(self) > MAX_NODES or (capacity is not None and self.units > capacity):
            # a prefix outlives those that go on from it
            kept = np.lexsort((self._chains, self._depths, -self._shown))[:MAX_NODES]
            if capacity is not None:
                kept = kept[np.cumsum(self._units[kept]) <= capacity]
        self._set(kept[np.argsort(self._chains[kept])])

    def known(self, chains: Hashes) -> npt.NDArray[np.bool_]:
        """Whether each prefix is remembered."""
        flat = chains.ravel()
        found = self._present[self._slots(flat)]
        maybe = np.flatnonzero(found)
        places = np.searchsorted(self._chains, flat[maybe])
        found[maybe] = self._chains[np.minimum(places, len(self) - 1)] == flat[maybe]
        return found.reshape(chains.shape)

    def hit_units(self, prompts: Prompts) -> int:
        """Units of whole cells that prompts, given depth-first, begin with as an earlier one or one of theirs does."""
        if not len(prompts.chains):
            return 0
        warm = np.zeros(len(prompts.chains), np.int64)
        rows = np.arange(len(warm))
        for place in range(prompts.chains.shape[1] if len(self) else 0):
            rows = rows[self.known(prompts.chains[rows, place])]
            warm[rows] += prompts.lengths[rows, place]
        return int(np.maximum(warm, prompts.shared_with_row_before()).sum())

    def follow(self, ids: AnyInts, lengths: Ints, hashes: Hashes) -> Paths:
        """For items with the cells `ids` [items, columns], 0 for none, the longest prefix that some order of them has.

        `lengths` and `hashes` are those of the ids. All prefixes that an item can follow are, up to MAX_PATHS at a
        time; of equally long ones the first in order of columns is taken.
        """
        count, width = ids.shape
        best = Paths(np.zeros(count, np.int64), np.zeros(count, np.uint64), np.full((count, width), -1, np.int32))
        items, chains = np.arange(count if len(self) else 0), np.zeros(count if len(self) else 0, np.uint64)
        units, columns = np.zeros(len(items), np.int64), np.full((len(items), width), -1, np.int32)
        for depth in range(width):
            steps = []
            for column in np.unique(self._columns[self._depths == depth]).tolist():
                cells = ids[items, column]
                further = _chained(chains, hashes[cells])
                at = np.flatnonzero((cells > 0) & self.known(further))
                steps.append((at, further[at], np.full(len(at), column, np.int32)))
            if not sum(len(at) for at, _, _ in steps):
                break
            at, chains, taken = (np.concatenate(parts) for parts in zip(*steps))
            items, units, columns = items[at], units[at] + lengths[ids[items[at], taken]], columns[at]
            columns[:, depth] = taken
            # the longest of each item first; sorting is stable, so the first in order of columns
            order = np.lexsort((-units, items))
            items, chains, units, columns = items[order], chains[order], units[order], columns[order]
            starts = np.flatnonzero(np.diff(items, prepend=-1))
            number = np.arange(len(items)) - np.repeat(starts, np.diff(starts, append=len(items)))
            better = starts[units[starts] > best.units[items[starts]]]
            best.units[items[better]], best.ends[items[better]] = units[better], chains[better]
            best.columns[items[better]] = columns[better]
            few = number < MAX_PATHS
            items, chains, units, columns = items[few], chains[few], units[few], columns[few]
        return best

    def next_columns(self, ends: Hashes) -> Ints:
        """For each remembered prefix the column of the cells that most often follow it, -1 where none does, [ends]."""
        found = np.full(len(ends), -1, np.int64)
        order = np.argsort(ends)
        places = np.minimum(np.searchsorted(ends, self._parents, sorter=order), len(ends) - 1)
        children = np.flatnonzero(ends[order[places]] == self._parents) if len(ends) else np.zeros(0, np.int64)
        size = int(self._columns.max(initial=0)) + 1
        keys, counts = np.unique(order[places[children]] * size + self._columns[children], return_counts=True)
        frequent = np.lexsort((-keys, counts))  # the most frequent is written last; of equals the first column
        found[keys[frequent] // size] = keys[frequent] % size
        return found

    def _set(self, nodes: Ints) -> None:
        for name in ("_chains", "_parents", "_columns", "_units", "_depths", "_shown"):
            setattr(self, name, getattr(self, name)[nodes])
        self._bits = len(nodes).bit_length() + 3
        self._present = np.zeros(1 << self._bits, bool)
        self._present[self._slots(self._chains)] = True

    def _slots(self, chains: Hashes) -> Hashes:
        return chains >> np.uint64(64 - self._bits)


def _chained(before: Hashes, hashes: Hashes) -> Hashes:
    """Hashes of prefixes that are one cell longer; never 0."""
    with np.errstate(over="ignore"):
        after = (before ^ hashes) * _MULTIPLIER
    return (after ^ (after >> _SHIFT)) | _ONE
