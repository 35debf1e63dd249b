"""Views, sets of places, and plans, against a plain byte array."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serverless_mpi.fileio import plan
from serverless_mpi.fileio.pieces import (
    NONE,
    covered,
    cut,
    gather,
    joined,
    located,
    places,
    present,
    scatter,
    total,
    union,
)
from serverless_mpi.fileio.views import View

SIZE = 200  # bytes of the files here


@st.composite
def filetypes(draw: Any) -> tuple[Any, int]:
    """Places of a filetype by rising offset, and its extent."""
    at, end = [], 0
    for _ in range(draw(st.integers(1, 5))):
        start = end + draw(st.integers(0, 4))
        end = start + draw(st.integers(1, 6))
        at.append((start, end - start))
    return places(*at), end + draw(st.integers(0, 5))


SETS = st.lists(st.tuples(st.integers(0, SIZE), st.integers(0, 30)), max_size=8).map(
    lambda pairs: union(places(*pairs))
)


def _bytes_of(at: Any) -> list[int]:
    """Every byte of places, in order."""
    return [byte for start, length in at.tolist() for byte in range(start, start + length)]


@given(filetypes(), st.integers(0, 9), st.integers(0, 60), st.integers(0, 40))
def test_a_view_names_the_bytes_of_its_filetypes(
    filetype: tuple[Any, int], disp: int, start: int, nbytes: int
) -> None:
    at, extent = filetype
    view = View(disp, 1, at, extent)
    stream = [disp + tile * extent + byte for tile in range(120) for byte in _bytes_of(at)]
    assert _bytes_of(view.places(start, nbytes)) == stream[start : start + nbytes]
    assert view.offset_of(start) == stream[start]
    end = disp + start
    assert view.bytes_before(end) == sum(byte < end for byte in stream)


@given(
    st.lists(st.tuples(st.integers(0, 90), st.integers(0, 9)), max_size=60).map(
        lambda pairs: places(*pairs)
    ),
    SETS,
)
def test_sets_of_places(at: Any, other: Any) -> None:
    every = set(_bytes_of(at))
    one = union(at)
    assert _bytes_of(one) == sorted(every)
    assert (one[1:, 0] > one[:-1, 0] + one[:-1, 1]).all()
    assert _bytes_of(joined(at)) == _bytes_of(at)
    assert covered(one, 20, 50) == sum(20 <= byte < 50 for byte in every)
    there, within = cut(at, 20, 50)
    assert _bytes_of(there) == [byte for byte in _bytes_of(at) if 20 <= byte < 50]
    assert [_bytes_of(at)[index] for index in _bytes_of(within)] == _bytes_of(there)
    inside = cut(other, 0, SIZE)[0]
    assert [_bytes_of(other)[i] for i in _bytes_of(located(inside, other))] == _bytes_of(inside)


@given(filetypes(), st.integers(1, 30))
def test_gather_and_scatter_are_copies_of_the_places(filetype: tuple[Any, int], many: int) -> None:
    at, extent = filetype
    at = View(0, 1, at, extent).places(0, many * total(at))  # few take slices, many an index
    data = np.random.default_rng(many).bytes(int(at[-1].sum()) + 5)
    run = bytes(gather(memoryview(data), at))
    assert run == bytes(data[byte] for byte in _bytes_of(at))
    into = bytearray(len(data))
    scatter(memoryview(run), memoryview(into), at)
    expected = bytearray(len(data))
    for byte in _bytes_of(at):
        expected[byte] = data[byte]
    assert into == expected


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 9)), max_size=6), st.integers(0, 70))
def test_what_is_present_ends_at_the_first_missing_byte(
    pairs: list[tuple[int, int]], size: int
) -> None:
    at = places(*pairs)
    missing = [index for index, byte in enumerate(_bytes_of(at)) if byte >= size]
    assert present(at, size) == (missing[0] if missing else total(at))


@given(SETS.filter(len), st.integers(1, 60), st.integers(-1, 20))
def test_groups_hold_every_place_once(at: Any, most: int, gap: int) -> None:
    groups = plan.groups(at, most, gap)
    assert [index for first, last in groups for index in range(first, last)] == [*range(len(at))]
    for first, last in groups:
        assert last - first == 1 or int(at[last - 1].sum() - at[first, 0]) <= most


@given(st.lists(SETS, min_size=1, max_size=5))
def test_domains_hold_all_that_is_touched(wanted: list[Any]) -> None:
    domains = plan.domains(wanted, len(wanted))
    everything = union(np.concatenate([*wanted, NONE]))
    assert sum(covered(everything, one.start, one.end) for one in domains) == total(everything)
    assert [one.owner for one in domains] == [*range(len(domains))]
    assert all(one.end == two.start for one, two in zip(domains, domains[1:], strict=False))
    share = -(-total(everything) // len(wanted))
    assert all(covered(everything, one.start, one.end) <= share for one in domains)


@given(
    st.lists(SETS, min_size=1, max_size=4),
    st.integers(5, 40),
    st.integers(0, SIZE),
    st.sampled_from([0, 64, 1000]),
)
def test_the_parts_of_an_upload_are_the_file(
    touched: list[Any], cell: int, base: int, most_copied: int
) -> None:
    full = plan.full_cells(touched, cell)
    everything = union(np.concatenate([*touched, NONE]))
    for one in full:
        assert one.end - one.start == cell and covered(everything, one.start, one.end) == cell
        shares = [covered(at, one.start, one.end) for at in touched]
        assert 2 * shares[one.owner] >= max(shares)
    whole = [
        n for n in range(SIZE // cell + 9) if covered(everything, n * cell, (n + 1) * cell) == cell
    ]
    assert [one.number - 1 for one in full] == whole
    left = []
    for at in touched:  # what is not uploaded
        for one in full:
            at = np.concatenate([cut(at, 0, one.start)[0], cut(at, one.end, 1 << 40)[0]])
        left.append(union(at))
    size = max([base, *(int(at[-1].sum()) for at in touched if len(at))])
    uploaded = frozenset(one.number for one in full)
    rest = plan.remaining_cells(left, uploaded, cell, size, base, most_copied)
    parts = sorted([*full, *rest], key=lambda one: one.number)
    assert [byte for one in parts for byte in range(one.start, one.end)] == [*range(size)]
    assert [one.start // cell + 1 for one in parts] == [one.number for one in parts]
    for one in parts[:-1]:
        assert (one.end - one.start) % cell == 0
    for one in rest:
        if one.copied:
            assert one.end <= base and not covered(everything, one.start, one.end)
            assert one.end - one.start <= max(most_copied, cell)
        else:
            assert one.end - one.start <= cell


@pytest.mark.parametrize(
    ("wanted", "alone", "shared"),
    [
        ([places((0, 100))] * 4, 4, 1),
        ([places((k * 100, 100)) for k in range(4)], 4, 4),
        ([places((k, 1), (k + 4, 1), (k + 8, 1)) for k in range(4)], 12, 1),
        ([NONE, NONE], 0, 0),
    ],
)
def test_sharing_saves_requests(wanted: list[Any], alone: int, shared: int) -> None:
    assert plan.shared_reads(wanted, 100, 0) == (alone, shared)
