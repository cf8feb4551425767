"""Arithmetic on arrays whose rows belong to groups: what billing counts encounters and days with."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from transforms.block import Ints

Bools = npt.NDArray[np.bool_]


def expand(begin: Ints, end: Ints) -> tuple[Ints, Ints]:
    """Ranges laid one behind the other: of each place which range it is of, and what it is."""
    many = end - begin
    owner = np.repeat(np.arange(len(many)), many)
    return owner, np.arange(len(owner)) - np.repeat(np.cumsum(many) - many, many) + begin[owner]


def begins(*keys: Ints) -> Bools:
    """Of sorted rows, where a key differs from that of the row before: the first of each group."""
    differs = np.zeros(len(keys[0]), dtype=np.bool_)
    differs[:1] = True
    for key in keys:
        differs[1:] |= key[1:] != key[:-1]
    return differs


def distinct(*keys: Ints) -> tuple[Ints, Ints]:
    """A row of each combination that these keys have, and of every row which combination it has."""
    code = np.zeros(len(keys[0]), dtype=np.int64)
    for key in keys:
        _, place = np.unique(key, return_inverse=True)
        _, code = np.unique(code * (place.max(initial=0) + 1) + place, return_inverse=True)
    _, first = np.unique(code, return_index=True)
    return first, code


def total(group: Ints, values: Ints, groups: int) -> Ints:
    """The sum of each group."""
    found = np.zeros(groups, dtype=np.int64)
    np.add.at(found, group, values)
    return found


def either(group: Ints, bits: Ints, groups: int) -> Ints:
    """The bits that any row of each group has."""
    found = np.zeros(groups, dtype=np.int64)
    np.bitwise_or.at(found, group, bits)
    return found


def has(group: Ints, true: Bools, groups: int) -> Bools:
    """Whether any row of each group is true."""
    found = np.zeros(groups, dtype=np.bool_)
    found[group[true]] = True
    return found


def several(group: Ints, values: Ints, groups: int) -> Bools:
    """Whether the rows of each group have more than one value."""
    bounds = np.iinfo(np.int64)
    lowest, highest = np.full(groups, bounds.max), np.full(groups, bounds.min)
    np.minimum.at(lowest, group, values)
    np.maximum.at(highest, group, values)
    return lowest < highest


def covered(group: Ints, low: Ints, high: Ints, groups: int) -> Ints:
    """Of each group the length of the union of its intervals."""
    keep = high > low
    group, low, high = group[keep], low[keep], high[keep]
    order = np.lexsort((low, group))
    group, low, high = group[order], low[order], high[order]
    found = total(group, high - low, groups)
    for one in np.unique(group[1:][(group[1:] == group[:-1]) & (low[1:] < high[:-1])]).tolist():
        mine = slice(*np.searchsorted(group, (one, one + 1)).tolist())
        found[one] = length(zip(low[mine].tolist(), high[mine].tolist(), strict=True))
    return found


def length(intervals: Iterable[tuple[int, int]]) -> int:
    """Length of the union of intervals."""
    whole, reached = 0, -(2**62)
    for low, high in sorted(intervals):
        if high > max(low, reached):
            whole += high - max(low, reached)
            reached = high
    return whole


def listed(group: Ints, values: pa.Array, groups: int) -> pa.Array:
    """Values, sorted by group, as a list for each group."""
    bounds = np.searchsorted(group, np.arange(groups + 1)).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(bounds), values)


def words(column: pa.ChunkedArray) -> tuple[Ints, pa.Array]:
    """A column of words as the rank of each among those that there are, -1 where it is null; and the words, sorted."""
    encoded = column.combine_chunks().dictionary_encode()
    order = pc.array_sort_indices(encoded.dictionary)
    rank = np.full(len(order) + 1, -1, dtype=np.int64)
    rank[order.to_numpy()] = np.arange(len(order))
    return rank[encoded.indices.fill_null(len(order)).to_numpy(zero_copy_only=False)], encoded.dictionary.take(order)
