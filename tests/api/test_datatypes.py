"""Datatypes against a naive interpreter, which lists every byte of an element as the standard's definitions say (MPI 4.1, 5.1)."""

from __future__ import annotations

import itertools
import pickle
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serverless_mpi import MPI
from serverless_mpi.api import type_constructors
from tests.harness import run

BASICS = (MPI.BYTE, MPI.SHORT, MPI.INT, MPI.DOUBLE, MPI.C_FLOAT_COMPLEX, MPI.SHORT_INT)


@dataclass
class Naive:
    """A datatype, the displacement of each of its bytes in type-map order, its bounds, its alignment and its basic types."""

    mpi: Any
    bytes: list[int]
    lb: int
    ub: int
    align: int
    kinds: list[Any]

    @property
    def extent(self) -> int:
        return self.ub - self.lb


def _blocks(mpi: Any, blocks: list[tuple[int, int, Naive]]) -> Naive:
    """`count` elements of a type at a byte displacement, for each block."""
    places, bounds, kinds = [], [], []
    for displacement, count, of in blocks:
        for i in range(count):
            at = displacement + i * of.extent
            places += [at + byte for byte in of.bytes]
            bounds += [at + of.lb, at + of.ub]
            kinds += of.kinds
    align = max((of.align for _, count, of in blocks if count), default=1)
    return Naive(mpi, places, min(bounds, default=0), max(bounds, default=0), align, kinds)


def basic(mpi: Any) -> Naive:
    """A predefined type."""
    align = MPI._typealign(mpi)
    if mpi == MPI.SHORT_INT:
        return Naive(mpi, [0, 1, 4, 5, 6, 7], 0, 8, 4, [MPI.SHORT, MPI.INT])
    return Naive(mpi, list(range(mpi.size)), 0, mpi.size, align, [mpi])


small = st.integers(0, 3)
steps = st.integers(-3, 5)


@st.composite
def types(draw: Any, depth: int = 2) -> Naive:
    """A type of up to `depth` constructors."""
    if depth == 0 or draw(st.integers(0, 4)) == 0:
        return basic(draw(st.sampled_from(BASICS)))
    of = draw(types(depth - 1))
    kind = draw(
        st.sampled_from(
            [
                "contiguous",
                "vector",
                "hvector",
                "indexed",
                "hindexed",
                "indexed_block",
                "hindexed_block",
                "struct",
                "subarray",
                "darray",
                "resized",
                "dup",
            ]
        )
    )
    return _MAKERS[kind](draw, of, depth)


def _contiguous(draw: Any, of: Naive, depth: int) -> Naive:
    count = draw(small)
    return _blocks(of.mpi.Create_contiguous(count), [(0, count, of)])


def _vector(draw: Any, of: Naive, depth: int) -> Naive:
    count, length, stride = draw(small), draw(small), draw(steps)
    made = of.mpi.Create_vector(count, length, stride)
    return _blocks(made, [(i * stride * of.extent, length, of) for i in range(count)])


def _hvector(draw: Any, of: Naive, depth: int) -> Naive:
    count, length, stride = draw(small), draw(small), draw(st.integers(-20, 40))
    return _blocks(
        of.mpi.Create_hvector(count, length, stride),
        [(i * stride, length, of) for i in range(count)],
    )


def _indexed(draw: Any, of: Naive, depth: int) -> Naive:
    pairs = draw(st.lists(st.tuples(small, steps), max_size=4))
    lengths, at = [c for c, _ in pairs], [d for _, d in pairs]
    return _blocks(of.mpi.Create_indexed(lengths, at), [(d * of.extent, c, of) for c, d in pairs])


def _hindexed(draw: Any, of: Naive, depth: int) -> Naive:
    pairs = draw(st.lists(st.tuples(small, st.integers(-20, 40)), max_size=4))
    return _blocks(
        of.mpi.Create_hindexed([c for c, _ in pairs], [d for _, d in pairs]),
        [(d, c, of) for c, d in pairs],
    )


def _indexed_block(draw: Any, of: Naive, depth: int) -> Naive:
    length, at = draw(small), draw(st.lists(steps, max_size=4))
    return _blocks(
        of.mpi.Create_indexed_block(length, at), [(d * of.extent, length, of) for d in at]
    )


def _hindexed_block(draw: Any, of: Naive, depth: int) -> Naive:
    length, at = draw(small), draw(st.lists(st.integers(-20, 40), max_size=4))
    return _blocks(of.mpi.Create_hindexed_block(length, at), [(d, length, of) for d in at])


def _struct(draw: Any, of: Naive, depth: int) -> Naive:
    fields = [of, *draw(st.lists(types(depth - 1), max_size=2))]
    blocks = [(draw(st.integers(-10, 60)), draw(small), field) for field in fields]
    made = MPI.Datatype.Create_struct(
        [c for _, c, _ in blocks], [d for d, _, _ in blocks], [field.mpi for field in fields]
    )
    naive = _blocks(made, blocks)
    if (
        len({id(field.mpi._ob) for _, count, field in blocks if count}) > 1
        and naive.extent % naive.align
    ):
        naive.ub += naive.align - naive.extent % naive.align  # as a C compiler and MPICH pad it
    return naive


def _subarray(draw: Any, of: Naive, depth: int) -> Naive:
    dims = draw(
        st.lists(
            st.integers(1, 4).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))),
            min_size=1,
            max_size=3,
        )
    )
    starts = [draw(st.integers(0, n - b)) for n, b in dims]
    sizes, subsizes = [n for n, _ in dims], [b for _, b in dims]
    order = draw(st.sampled_from([MPI.ORDER_C, MPI.ORDER_F]))
    made = of.mpi.Create_subarray(sizes, subsizes, starts, order)
    return _array(
        made, of, sizes, [range(s, s + b) for s, b in zip(starts, subsizes, strict=True)], order
    )


def _darray(draw: Any, of: Naive, depth: int) -> Naive:
    dims = draw(
        st.lists(
            st.tuples(
                st.integers(1, 5),
                st.sampled_from([MPI.DISTRIBUTE_BLOCK, MPI.DISTRIBUTE_CYCLIC]),
                st.integers(1, 2),
                st.booleans(),
            ),
            min_size=1,
            max_size=2,
        )
    )
    grid = [processes for _, _, processes, _ in dims]
    size = int(np.prod(grid))
    rank = draw(st.integers(0, size - 1))
    coords = np.unravel_index(rank, grid)
    order = draw(st.sampled_from([MPI.ORDER_C, MPI.ORDER_F]))
    owned, arguments = [], []
    for (length, how, processes, default), mine in zip(dims, coords, strict=True):
        block = -(-length // processes) if how == MPI.DISTRIBUTE_BLOCK else 1
        arguments.append(MPI.DISTRIBUTE_DFLT_DARG if default else block)
        owned.append([i for i in range(length) if i // block % processes == mine])
    made = of.mpi.Create_darray(
        size, rank, [n for n, *_ in dims], [how for _, how, *_ in dims], arguments, grid, order
    )
    return _array(made, of, [n for n, *_ in dims], owned, order)


def _array(made: Any, of: Naive, sizes: list[int], owned: list[Any], order: int) -> Naive:
    index = np.arange(int(np.prod(sizes))).reshape(
        sizes, order="C" if order == MPI.ORDER_C else "F"
    )
    if order == MPI.ORDER_C:
        chosen = [index[place] for place in itertools.product(*owned)]
    else:
        chosen = [index[place[::-1]] for place in itertools.product(*owned[::-1])]
    naive = _blocks(made, [(int(i) * of.extent, 1, of) for i in chosen])
    naive.lb, naive.ub = 0, index.size * of.extent
    naive.align = of.align
    return naive


def _resized(draw: Any, of: Naive, depth: int) -> Naive:
    lb, extent = draw(st.integers(-8, 8)), draw(st.integers(1, 40))
    return Naive(of.mpi.Create_resized(lb, extent), of.bytes, lb, lb + extent, of.align, of.kinds)


def _dup(draw: Any, of: Naive, depth: int) -> Naive:
    return Naive(of.mpi.Dup(), of.bytes, of.lb, of.ub, of.align, of.kinds)


_MAKERS = {
    "contiguous": _contiguous,
    "vector": _vector,
    "hvector": _hvector,
    "indexed": _indexed,
    "hindexed": _hindexed,
    "indexed_block": _indexed_block,
    "hindexed_block": _hindexed_block,
    "struct": _struct,
    "subarray": _subarray,
    "darray": _darray,
    "resized": _resized,
    "dup": _dup,
}

props = settings(
    max_examples=80,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def _memory(of: Naive, count: int) -> tuple[np.ndarray[Any, Any], int, list[int]]:
    """(memory that `count` elements fit in, where the first begins, the place of each of their bytes)."""
    places = [i * of.extent + byte for i in range(count) for byte in of.bytes]
    origin = -min([0, *places])
    memory = np.random.default_rng(len(places)).integers(
        0, 256, origin + max([0, *places]) + 1, dtype=np.uint8
    )
    return memory, origin, [origin + place for place in places]


@props
@given(types())
def test_sizes_and_bounds(of: Naive) -> None:
    assert of.mpi.Get_size() == len(of.bytes)
    assert of.mpi.Get_extent() == (of.lb, of.extent)
    true = (min(of.bytes), max(of.bytes) + 1 - min(of.bytes)) if of.bytes else (0, 0)
    assert of.mpi.Get_true_extent() == true
    assert of.mpi._live.elements_of(of.mpi.size) == (len(of.kinds) if of.bytes else 0)


@props
@given(types(), st.integers(0, 3))
def test_packing_takes_the_bytes_in_order(of: Naive, count: int) -> None:
    memory, origin, places = _memory(of, count)
    layout = of.mpi.Commit()._ob.layout
    assert bytes(layout.pack(memoryview(memory), origin, count)) == bytes(memory[places])


@props
@given(types(), st.integers(0, 3), st.data())
def test_unpacking_puts_them_back_and_touches_nothing_else(
    of: Naive, count: int, data: Any
) -> None:
    memory, origin, places = _memory(of, count)
    layout = of.mpi.Commit()._ob.layout
    assert layout.overlaps(count) == (len(set(places)) < len(places))
    if layout.overlaps(count):
        return
    elements = data.draw(st.integers(0, count))  # a message may be shorter than the room for it
    given_bytes = bytes(range(256)) * (len(of.bytes) * elements // 256 + 1)
    packed = given_bytes[: len(of.bytes) * elements]
    expected = memory.copy()
    for place, value in zip(places, packed, strict=False):
        expected[place] = value
    layout.unpack(memoryview(packed), memoryview(memory), origin, count)
    assert (memory == expected).all()


@props
@given(types())
def test_decode_and_pickle_make_the_same_type_again(of: Naive) -> None:
    again = pickle.loads(pickle.dumps(of.mpi))
    assert again._ob.layout.pieces.tolist() == of.mpi._ob.layout.pieces.tolist()
    assert (again.lb, again.ub, again.size) == (of.mpi.lb, of.mpi.ub, of.mpi.size)
    integers, addresses, counts, kinds, combiner = of.mpi.Get_envelope()
    if combiner != MPI.COMBINER_NAMED:
        assert [len(part) for part in of.mpi.Get_contents()] == [integers, addresses, counts, kinds]
        assert again.Get_contents()[:3] == of.mpi.Get_contents()[:3]


@props
@given(types(), st.integers(0, 3))
def test_external32_gives_the_same_elements_back(of: Naive, count: int) -> None:
    memory, origin, places = _memory(of, count)
    layout = of.mpi.Commit()._ob.layout
    if (
        layout.overlaps(count)
        or of.lb != 0
        or of.extent <= 0
        or min(places, default=0) < 0
        or max(of.bytes, default=0) >= of.extent
    ):
        return  # such elements do not tile a buffer that Pack counts them in
    source = np.zeros(of.extent * count, np.uint8)
    source[: min(len(source), len(memory))] = memory[: len(source)]
    packed = bytearray(of.mpi.Pack_external_size("external32", count))
    assert of.mpi.Pack_external("external32", source, packed, 0) == len(packed)
    target = np.zeros_like(source)
    assert of.mpi.Unpack_external("external32", packed, 0, target) == len(packed)
    assert bytes(layout.pack(memoryview(target), 0, count)) == bytes(
        layout.pack(memoryview(source), 0, count)
    )


def test_external32_is_the_standards_bytes() -> None:
    cases = [
        (MPI.INT, np.int32(1), "00000001"),
        (MPI.LONG, np.int64(-2), "fffffffe"),
        (MPI.DOUBLE, np.float64(1), "3ff0000000000000"),
        (MPI.LONG_DOUBLE, np.longdouble(1), "3fff" + "0" * 28),
        (MPI.LONG_DOUBLE, np.longdouble(-1.5), "bfff8" + "0" * 27),
        (MPI.C_FLOAT_COMPLEX, np.complex64(1), "3f80000000000000"),
    ]
    for datatype, value, wanted in cases:
        packed = bytearray(datatype.Pack_external_size("external32", 1))
        source = np.array([value])
        datatype.Pack_external("external32", source, packed, 0)
        assert packed.hex() == wanted
        target = np.zeros_like(source)
        datatype.Unpack_external("external32", packed, 0, target)
        assert (target == source).all()
    with pytest.raises(MPI.Exception) as caught:
        MPI.LONG.Pack_external("external32", np.array([1 << 40]), bytearray(4), 0)
    assert caught.value.Get_error_class() == MPI.ERR_CONVERSION


def test_a_contiguous_buffer_is_packed_without_a_copy() -> None:
    array = np.arange(12, dtype="i4")
    datatype = MPI.INT.Create_contiguous(3).Commit()
    packed = datatype._ob.layout.pack(memoryview(array).cast("B"), 0, 4)
    array[5] = -1
    assert np.frombuffer(packed, "i4")[5] == -1


def test_a_count_beyond_an_int_costs_nothing_until_it_is_used() -> None:
    huge = MPI.DOUBLE.Create_contiguous(1 << 40).Create_vector(3, 2, 5)
    assert huge.size == 6 << 43 and huge.extent == 12 << 43
    assert huge.Get_contents()[2] == [3, 2, 5]


def test_elements_are_counted_across_kinds() -> None:
    pair = MPI.Datatype.Create_struct([1, 2], [0, 8], [MPI.DOUBLE, MPI.INT])
    status = MPI.Status()
    status.Set_elements(pair, 7)
    assert status.Get_count(MPI.BYTE) == 2 * 16 + 8 and status.Get_elements(pair) == 7
    assert status.Get_count(pair) == MPI.UNDEFINED


def test_derived_types_travel() -> None:
    def body(c: Any) -> None:
        column = MPI.DOUBLE.Create_vector(4, 1, 5).Create_resized(0, 8).Commit()
        field = np.zeros((4, 5))
        if c.rank == 0:
            field[:] = np.arange(20.0).reshape(4, 5)
            c.Send([field, 2, column], 1)
            c.Send([field, (1, 3), column], 1)
        else:
            c.Recv([field, 2, column], 0)
            dense = np.zeros(4)
            c.Recv(dense, 0)
            wanted = np.arange(20.0).reshape(4, 5)
            assert (
                (field[:, :2] == wanted[:, :2]).all()
                and (field[:, 2:] == 0).all()
                and (dense == wanted[:, 3]).all()
            )

    run(2, body)


def test_a_type_lives_as_long_as_somebody_needs_it() -> None:
    column = MPI.INT.Create_vector(2, 1, 2)
    rows = column.Create_contiguous(2).Commit()
    column.Free()
    assert not column and column == MPI.DATATYPE_NULL
    (inner,) = rows.Get_contents()[3]
    assert inner.Get_size() == 8 and rows.size == 16
    inner.Free()
    rows.Free()
    with pytest.raises(MPI.Exception) as caught:
        MPI.INT.Free()
    assert caught.value.Get_error_class() == MPI.ERR_TYPE


# --- shared constructions -----------------------------------------------------


def test_types_that_were_made_alike_share_their_layout_and_nothing_else() -> None:
    first, second = (MPI.INT.Create_vector(3, 1, np.int32(5)).Commit() for _ in range(2))
    assert first._ob.layout is second._ob.layout
    first.name = "first"
    assert second.name == ""
    assert first != second
    first.Get_contents()[2].append(9)
    first.decode()[2]["count"] = 9
    lengths = MPI.INT.Create_indexed([1, 2], [0, 4])
    lengths.decode()[2]["blocklengths"].append(9)
    assert second.Get_contents()[2] == [3, 1, 5]
    assert MPI.INT.Create_indexed([1, 2], [0, 4]).decode()[2]["blocklengths"] == [1, 2]
    first.Free()
    assert second.Get_size() == 12


def test_a_type_needs_integers_also_where_an_equal_one_was_made() -> None:
    MPI.INT.Create_vector(3, 1, 5)
    MPI.INT.Create_indexed([1, 2], [0, 4])
    for wrong in (3.0, np.float64(3), "3"):
        with pytest.raises(TypeError):
            MPI.INT.Create_vector(wrong, 1, 5)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        MPI.INT.Create_indexed([1.0, 2], [0, 4])  # type: ignore[list-item]


def test_small_integer_types_do_not_wrap() -> None:
    box = MPI.DOUBLE.Create_subarray(*np.array([[40000] * 2, [1, 1], [39999] * 2], np.int32))
    assert box.extent == 40000 * 40000 * 8
    assert box.true_lb == box.extent - 8
    assert MPI.DOUBLE.Create_vector(np.uint8(2), np.int8(1), np.int8(-100)).lb == -800


def test_a_struct_pads_by_types_and_not_by_how_they_were_made() -> None:
    one, other = (MPI.SHORT.Create_contiguous(1) for _ in range(2))
    same = MPI.Datatype.Create_struct([1, 1], [0, 9], [one, one])
    different = MPI.Datatype.Create_struct([1, 1], [0, 9], [one, other])
    assert (same.extent, different.extent) == (11, 12)


def test_constructions_are_kept_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: dict[Any, Any] = {}
    monkeypatch.setattr(type_constructors, "_shared", kept)
    for count in range(type_constructors.MOST_SHARED + 50):
        MPI.INT.Create_contiguous(count).Free()
    assert len(kept) == type_constructors.MOST_SHARED
    kept.clear()
    numbers = range(0, 8 * type_constructors.MOST_NUMBERS, 8)
    MPI.INT.Create_indexed_block(1, numbers)  # the arguments are many
    MPI.INT.Create_indexed([9000, 1000], [0, 9001])  # the index would be large
    assert not kept
    MPI.INT.Create_indexed([9000, 1000], [0, 9001]).Create_vector(2, 1, 3)  # it keeps the first
    assert not kept
    MPI.INT.Create_vector(90000, 1, 3)  # needs no index
    assert len(kept) == 1


@pytest.mark.parametrize(
    ("make", "most"),
    [
        (lambda: MPI.DOUBLE.Create_subarray([128, 128], [64, 64], [8, 8]), 20),
        (lambda: MPI.DOUBLE.Create_vector(1000, 1, 1000), 14),
        (lambda: MPI.DOUBLE.Create_indexed([1] * 100, list(range(0, 500, 5))), 18),
        (lambda: MPI.Datatype.Create_struct([1, 2], [0, 8], [MPI.INT, MPI.DOUBLE]), 22),
    ],
)
def test_making_a_type_again_takes_few_python_calls(make: Any, most: int) -> None:
    make().Commit().Free()
    calls = 0

    def profile(frame: Any, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event == "call"

    sys.setprofile(profile)
    try:
        make().Commit().Free()
    finally:
        sys.setprofile(None)
    assert calls <= most


@pytest.mark.parametrize("count", [1, 4])
def test_vectors_and_boxes_are_packed_without_an_index(count: int) -> None:
    memory = np.arange(40 * 40, dtype=np.float64)
    box = MPI.DOUBLE.Create_subarray([20, 20], [3, 4], [5, 6]).Commit()
    column = MPI.DOUBLE.Create_vector(20, 1, 20).Create_resized(0, 8).Commit()
    nested = column.Create_vector(2, 1, 3).Commit()
    for datatype in (box, column, nested):
        layout = datatype._ob.layout
        packed = bytes(layout.pack(memoryview(memory).cast("B"), 0, count))
        again = np.zeros_like(memory)
        layout.unpack(memoryview(packed), memoryview(again).cast("B"), 0, count)
        assert bytes(layout.pack(memoryview(again).cast("B"), 0, count)) == packed
        assert layout._plan is None and layout._pieces is None


def test_a_part_of_a_strided_element_is_received() -> None:
    column = MPI.DOUBLE.Create_vector(4, 1, 2).Commit()
    layout = column._ob.layout
    memory = np.zeros(16)
    layout.unpack(memoryview(np.arange(1.0, 7.0)).cast("B"), memoryview(memory).cast("B"), 0, 2)
    assert memory.tolist() == [1, 0, 2, 0, 3, 0, 4, 5, 0, 6, 0, 0, 0, 0, 0, 0]
    with pytest.raises(MPI.Exception) as error:
        layout.unpack(memoryview(bytes(65)), memoryview(memory).cast("B"), 0, 2)
    assert error.value.Get_error_class() == MPI.ERR_TRUNCATE
