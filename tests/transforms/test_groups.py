"""Arithmetic on arrays whose rows belong to groups, against the same said in plain loops."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from transforms import groups

MANY = settings(max_examples=40, deadline=None)
SMALL = st.integers(-3, 3)
ROWS = st.lists(st.tuples(st.integers(0, 4), SMALL, SMALL), max_size=12)


def columns(rows: list[tuple[int, ...]], width: int = 3) -> list[groups.Ints]:
    return [np.array([row[n] for row in rows], dtype=np.int64) for n in range(width)]


@MANY
@given(ROWS)
def test_the_length_of_a_union_is_the_number_of_what_it_covers(rows):
    group, low, high = columns(rows)
    expected = [len({at for g, a, b in rows if g == n for at in range(a, b)}) for n in range(6)]
    assert groups.covered(group, low, high, 6).tolist() == expected
    assert [groups.length((a, b) for g, a, b in rows if g == n) for n in range(6)] == expected


@MANY
@given(ROWS)
def test_sums_bits_and_whether_any_is_true_are_those_of_each_group(rows):
    group, value, other = columns(rows)
    of_group = [[(v, o) for g, v, o in rows if g == n] for n in range(6)]
    assert groups.total(group, value, 6).tolist() == [sum(v for v, _ in mine) for mine in of_group]
    assert groups.has(group, value > other, 6).tolist() == [any(v > o for v, o in mine) for mine in of_group]
    assert groups.several(group, value, 6).tolist() == [len({v for v, _ in mine}) > 1 for mine in of_group]
    bits = [0] * 6
    for g, v, _ in rows:
        bits[g] |= v + 3
    assert groups.either(group, value + 3, 6).tolist() == bits


@MANY
@given(ROWS)
def test_rows_with_the_same_keys_are_one_combination_and_others_are_not(rows):
    first, which = groups.distinct(*columns(rows))
    for n, row in enumerate(rows):
        assert rows[first[which[n]]] == row
        assert rows.index(row) == first[which[n]]
    assert len(first) == len(set(rows))


@MANY
@given(ROWS)
def test_a_group_of_sorted_rows_begins_where_a_key_differs(rows):
    rows = sorted(rows)
    expected = [n == 0 or rows[n - 1][:2] != row[:2] for n, row in enumerate(rows)]
    assert groups.begins(*columns(rows)[:2]).tolist() == expected


@MANY
@given(st.lists(st.tuples(SMALL, st.integers(0, 4)), max_size=8))
def test_ranges_are_laid_one_behind_the_other(rows):
    begin, many = columns(rows, 2)
    owner, value = groups.expand(begin, begin + many)
    assert list(zip(owner.tolist(), value.tolist(), strict=True)) == [
        (n, a + k) for n, (a, length) in enumerate(rows) for k in range(length)
    ]


@MANY
@given(ROWS)
def test_values_sorted_by_group_are_a_list_for_each(rows):
    rows = sorted(rows)
    group, value, _ = columns(rows)
    assert groups.listed(group, pa.array(value), 6).to_pylist() == [[v for g, v, _ in rows if g == n] for n in range(6)]


@MANY
@given(st.lists(st.one_of(st.none(), st.text("ab", max_size=2)), max_size=8), st.integers(0, 8))
def test_words_are_ranked_among_those_that_there_are(told, cut):
    rank, names = groups.words(pa.chunked_array([told[:cut], told[cut:]], pa.string()))
    assert names.to_pylist() == sorted({word for word in told if word is not None})
    assert [None if n < 0 else names[int(n)].as_py() for n in rank] == told
