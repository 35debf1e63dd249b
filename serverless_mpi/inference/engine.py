"""Row-partitioned inference over a communicator: mpi4py's or the shim's, the same code.

Each rank has some of every layer's rows (neurons).  Before a layer it gives the others the activation rows their
weights touch and lays theirs behind its own, sender after sender: in one collective call a layer, so that a channel can
pack what a rank sends, unless few have anything for each other.  A row's sum is taken in the order of its entries, wherever its inputs lie, so the order of
every sum is that of the serial kernel, and so are the bits of the answer.

Overlap: batches are in flight together, each a thread with a communicator of its own, so that one computes while
another waits.  With `accumulate` a rank also multiplies its own rows while its peers' are on their way, and then adds the
products of theirs in the order of the senders: the bits then depend on the partition, and on nothing else.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from enum import IntEnum
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serverless_mpi.inference import codec
from serverless_mpi.sparse import CAP, Panels, SparseRows, layer, multiply

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]
Flags = NDArray[np.bool_]

ROWS_AT_ONCE = 64  # that are copied from samples to samples
IN_FLIGHT = 2  # batches at the same time: while one waits, one computes
_HEAD = struct.Struct(
    "<I"
)  # of a message: bytes of its set of samples, which follow, and then the rows


OWN = -1  # the block of own rows


class Exchange(IntEnum):
    """How the ranks exchange rows before a layer; equal on all ranks. The numbers are in files.

    NONE: no rank needs rows of another. ALLGATHER: one message for all peers. ALLTOALL: one message
    for each peer. PAIRWISE: as ALLTOALL, but by point-to-point messages, as few pairs have any.
    """

    NONE = 0
    ALLGATHER = 1
    ALLTOALL = 2
    PAIRWISE = 3


@dataclass
class Part:
    """A layer as one rank holds it.

    Its input is a panel of `columns` activation rows: first those that the rank computed itself,
    then the received ones, sender after sender. Duplicate rows, which have equal entries, are held
    and computed once: the others are "distinct rows".

    Attributes
    ----------
    indptr, indices, values
        The rank's distinct rows in CSR over the panel, entries in the network's order. `values` has
        nnz numbers, or one that all entries have.
    columns
        Rows of the panel.
    row_of_neuron
        Distinct row of each neuron that the rank owns behind the layer, neurons ascending.
    exchange
        How rows are exchanged before the layer.
    send_rows, send_offsets
        Own distinct rows that are sent: those for peer q are
        `send_rows[send_offsets[q]:send_offsets[q + 1]]`. With ALLGATHER all peers get all of them,
        and the offsets are 0 and then `len(send_rows)`.
    recv_index
        With ALLGATHER, place of each received row in its sender's message; else empty, since every
        row of a message is needed.
    recv_offsets
        (ranks + 1,): the received rows of sender q are `recv_offsets[q]` to `recv_offsets[q + 1]`.
    recv_counts
        (ranks,): rows in the message of each sender, needed or not.
    """

    indptr: Indices
    indices: NDArray[Any]
    values: Floats
    columns: int
    row_of_neuron: NDArray[np.uint32]
    exchange: Exchange
    send_rows: NDArray[np.uint32]
    send_offsets: Indices
    recv_index: NDArray[np.uint32]
    recv_offsets: Indices
    recv_counts: Indices

    @property
    def rows(self) -> int:
        """Distinct rows."""
        return len(self.indptr) - 1

    @property
    def own(self) -> int:
        """Panel rows that are the rank's own."""
        return self.columns - int(self.recv_offsets[-1])

    def check(self, ranks: int, own: int) -> None:
        """Raise ValueError unless the arrays fit each other, on one of `ranks` ranks that has `own` rows before the layer."""
        counts = (self.send_offsets, self.recv_offsets, self.recv_counts)
        whole = all(one.dtype.kind in "iu" for one in (self.indptr, self.indices, *counts))
        if (
            not whole
            or not len(self.indptr)
            or [len(one) for one in counts] != [ranks + 1, ranks + 1, ranks]
        ):
            raise ValueError("arrays of other lengths or types")
        for one, end in (
            (self.indptr, len(self.indices)),
            (self.send_offsets, len(self.send_rows)),
            (self.recv_offsets, self.columns - own),
        ):
            if int(one[0]) or int(one[-1]) != end or (one[1:] < one[:-1]).any():
                raise ValueError("sums that do not rise from 0 to what they count")
        taken = np.diff(self.recv_offsets)
        sender = np.repeat(np.arange(ranks), taken)
        shared = self.exchange == Exchange.ALLGATHER
        for numbers, below in (
            (self.indices, self.columns),
            (self.row_of_neuron, self.rows),
            (self.send_rows, own),
            (self.recv_index, self.recv_counts[sender] if shared else 0),
        ):
            if numbers.dtype.kind not in "iu" or (
                len(numbers) and (numbers.min() < 0 or (numbers >= below).any())
            ):
                raise ValueError("numbers of rows that are not there")
        if (
            len(self.recv_index) != (len(sender) if shared else 0)
            or (self.recv_counts < taken).any()
            or (not shared and (self.recv_counts != taken).any())
        ):
            raise ValueError("an exchange that does not fit")
        if self.values.dtype != np.float32 or len(self.values) not in (1, len(self.indices)):
            raise ValueError("values of another number or type")
        if not np.isfinite(self.values).all():
            raise ValueError("values have NaN or infinity")

    @cached_property
    def weights(self) -> SparseRows:
        """The matrix, over the same memory."""
        return SparseRows(self.indptr, self.indices, self._values(slice(None)), self.columns)

    @cached_property
    def blocks(self) -> dict[int, SparseRows]:
        """The matrix cut by whose rows it reads: sender -> columns of that sender's rows alone; OWN -> of own rows.

        Blocks without entries are left out; a row's entries keep their order in each.
        """
        bounds = np.concatenate([[0], self.own + self.recv_offsets])
        block = (
            np.searchsorted(bounds, self.indices, side="right") - 2
        )  # the last of equal bounds: of a sender with rows
        row = np.repeat(np.arange(self.rows), np.diff(self.indptr))
        made = {}
        for sender in np.unique(block).tolist():
            mine = np.flatnonzero(block == sender)
            indptr = np.concatenate([[0], np.cumsum(np.bincount(row[mine], minlength=self.rows))])
            first, last = bounds[sender + 1 : sender + 3]
            made[sender] = SparseRows(
                indptr,
                self.indices[mine] - first.astype(self.indices.dtype),
                self._values(mine),
                int(last - first),
            )
        return made

    def _values(self, entries: Any) -> Any:
        """Of those entries; the one number if all have it."""
        return self.values[0] if len(self.values) == 1 else self.values[entries]


@dataclass
class LayerStatistics:
    """What a layer took on one rank: seconds; rows, nonzeros, bytes and messages it sent; samples still_active before it.

    send_s: making messages; wait_s: until peers' messages were there; compute_s: the rest.  A message that all peers
    share counts once, and so do its rows.
    """

    compute_s: float = 0.0
    send_s: float = 0.0
    wait_s: float = 0.0
    rows: int = 0
    nonzeros: int = 0
    nbytes: int = 0
    messages: int = 0
    active_samples: int = 0

    def add(self, other: LayerStatistics) -> None:
        """Make it the sum of both."""
        for one in fields(self):
            setattr(self, one.name, getattr(self, one.name) + getattr(other, one.name))


@dataclass
class Statistics:
    """What a rank's inference took, by layer."""

    layers: list[LayerStatistics] = field(default_factory=list)

    def total(self) -> LayerStatistics:
        """The sum over the layers."""
        return _sum(self.layers)


def _sum(many: Sequence[LayerStatistics]) -> LayerStatistics:
    total = LayerStatistics()
    for one in many:
        total.add(one)
    return total


def infer(
    comm: Any,
    parts: Sequence[Part],
    x: Floats,
    bias: float,
    cap: float = CAP,
    *,
    batches: int = 1,
    accumulate: bool = False,
    watch: Callable[[int, int], None] | None = None,
) -> tuple[Floats, Indices, Statistics]:
    """Run samples through the network; every rank of `comm` calls it, with the same `batches` and `accumulate`.

    x: rows of the neurons this rank owns at boundary 0, ascending: (rows, samples), C-contiguous.
    batches: equal shares of the samples, of which IN_FLIGHT are under way together (one after the other where MPI allows
    one thread alone).  accumulate: add products of peers' rows to those of own rows.  watch: called with (batch, layer)
    when a batch comes to a layer, and with the number of layers when it is through; it may be called by several threads.

    Returns
    -------
    y: rows of the neurons this rank owns at the last boundary, over the samples that live there on some rank; those
    samples' numbers, ascending; and what it took.

    Raises
    ------
    ValueError
        No layers, x is not as above or has NaN or infinity, or what a peer sent does not fit: its network is another.
    """
    _check(parts, x)
    batches = max(1, min(batches, x.shape[1]))
    bounds = [x.shape[1] * batch // batches for batch in range(batches + 1)]
    lanes = min(IN_FLIGHT, batches) if _threads_allowed() else 1
    comms = [comm] + [comm.Dup() for _ in range(lanes - 1)]

    def lane(number: int) -> list[tuple[Floats, Indices, list[LayerStatistics]]]:
        """Batches number, number + lanes, ...: on every rank the same, in the same order."""
        made = []
        for batch in range(number, batches, lanes):
            share = np.ascontiguousarray(x[:, bounds[batch] : bounds[batch + 1]])
            one = _Batch(comms[number], share, bias, cap, accumulate)
            made.append(one.run(parts, partial(watch, batch) if watch else lambda layer: None))
        return made

    results = _together(lane, lanes)
    for one in comms[1:]:
        one.Free()
    taken = Statistics([LayerStatistics() for _ in range(len(parts))])
    outputs, numbers = [], []
    for batch in range(batches):
        y, samples, layers = results[batch % lanes][batch // lanes]
        outputs.append(y)
        numbers.append(samples + bounds[batch])
        for total, took in zip(taken.layers, layers, strict=True):
            total.add(took)
    return (
        (outputs[0] if batches == 1 else np.concatenate(outputs, axis=1)),
        np.concatenate(numbers),
        taken,
    )


def _check(parts: Sequence[Part], x: Floats) -> None:
    if not len(parts):
        raise ValueError("a network needs at least 1 layer")
    if x.ndim != 2 or x.dtype != np.float32:
        raise ValueError(
            f"x must be float32 of shape (rows, samples), not {x.dtype} of shape {x.shape}"
        )
    if x.shape[0] != parts[0].own:
        raise ValueError(
            f"x has {x.shape[0]} rows; this rank owns {parts[0].own} neurons of the input"
        )
    if x.size and not np.isfinite((x.min(), x.max())).all():
        raise ValueError("x has NaN or infinity")


def _threads_allowed() -> bool:
    from serverless_mpi import MPI

    return bool(MPI.Query_thread() == MPI.THREAD_MULTIPLE)


def _together(call: Callable[[int], Any], count: int) -> list[Any]:
    """[call(0), call(1), ...], each in a thread of its own but the first; the first error is raised when one fails."""
    results: list[Any] = [None] * count
    if count == 1:
        return [call(0)]
    with ThreadPoolExecutor(count, "smpi-batch") as pool:
        for number, future in enumerate([pool.submit(call, number) for number in range(count)]):
            results[number] = future.result()
    return results


class _Input:
    """Rows of x over its active samples, left where they are: a copy would be one of the three panels in memory."""

    def __init__(self, x: Floats, active: Flags) -> None:
        self._x = x
        self._active = np.flatnonzero(active)
        self.samples = len(self._active)

    def take(self, rows: Indices) -> Floats:
        """As of Panels."""
        some = self._x[rows]
        return (
            some if self.samples == some.shape[1] else np.ascontiguousarray(some[:, self._active])
        )

    def panels(self) -> Panels:
        """All of them."""
        made = Panels(len(self._x), self.samples)
        for some in _few(len(self._x)):
            made.put(self.take(some), some)
        return made


def _few(rows: int) -> list[Indices]:
    """Numbers of rows, ROWS_AT_ONCE or less at a time."""
    return np.array_split(np.arange(rows), -(-rows // ROWS_AT_ONCE) or 1)


class _Batch:
    """A rank's state of one batch.

    y: its distinct rows at a boundary, over `active`, the samples that live in one of them, ascending.
    """

    def __init__(self, comm: Any, x: Floats, bias: float, cap: float, accumulate: bool) -> None:
        self.comm, self.rank = comm, comm.rank
        self.bias, self.cap = bias, cap
        self.accumulate = accumulate
        self.caller = (
            ThreadPoolExecutor(1, "smpi-exchange") if accumulate and _threads_allowed() else None
        )
        self.samples = x.shape[1]
        self.active: Flags = np.asarray(np.any(x, axis=0))
        self.y: Panels | _Input = _Input(x, self.active)

    def run(
        self, parts: Sequence[Part], watch: Callable[[int], None]
    ) -> tuple[Floats, Indices, list[LayerStatistics]]:
        """All layers: as `infer`."""
        taken = []
        for number, part in enumerate(parts):
            watch(number)
            taken.append(self.step(part))
        watch(len(taken))
        if self.caller:
            self.caller.shutdown()
        sets = [
            codec.decode_set(one, self.samples)
            for one in self.comm.allgather(codec.encode_set(self.active))
        ]
        active = np.logical_or.reduce(sets)
        y = np.zeros((len(part.row_of_neuron), np.count_nonzero(active)), np.float32)
        y[:, self.active[active]] = self.own().take(part.row_of_neuron.astype(np.int64))
        return y, np.flatnonzero(active), taken

    def step(self, part: Part) -> LayerStatistics:
        """One layer."""
        took = LayerStatistics(active_samples=int(np.count_nonzero(self.active)))
        began = time.perf_counter()
        messages = self.messages(part, took) if part.exchange is not Exchange.NONE else []
        took.send_s = time.perf_counter() - began
        if self.accumulate:
            still_active = self.add(part, messages, took)
        else:
            panel = self.y = self.panel(
                part, self.exchange(part, messages, took)
            )  # what y was is needed no more
            self.y, still_active = layer(part.weights, panel, self.bias, self.cap)
            del panel
        if not still_active.all():
            self.active[self.active] = still_active
            self.own().keep(still_active)
        took.compute_s = time.perf_counter() - began - took.send_s - took.wait_s
        return took

    def messages(self, part: Part, took: LayerStatistics) -> list[bytes]:
        """One for all peers, or one each: the samples that live in own rows, and rows of these samples."""
        active = codec.encode_set(self.active)
        made = []
        for peer in range(1 if part.exchange == Exchange.ALLGATHER else self.comm.size):
            give = part.send_rows[part.send_offsets[peer] : part.send_offsets[peer + 1]]
            if not len(give):
                made.append(b"")
                continue
            rows = self.y.take(give.astype(np.int64))
            made.append(_HEAD.pack(len(active)) + active + codec.encode(rows))
            took.messages += 1
            took.nbytes += len(made[-1])
            took.rows += len(give)
            took.nonzeros += int(np.count_nonzero(rows))
        return made

    def exchange(self, part: Part, messages: Sequence[bytes], took: LayerStatistics) -> list[bytes]:
        """What each rank sent, in one collective call where most have something for each other; [] if nobody has."""
        began = time.perf_counter()
        received: list[bytes] = []
        if part.exchange == Exchange.ALLGATHER:
            received = self.comm.allgather(messages[0])
        elif part.exchange == Exchange.ALLTOALL:
            received = self.comm.alltoall(messages)
        elif part.exchange == Exchange.PAIRWISE:
            sends = [
                self.comm.isend(message, dest=peer)
                for peer, message in enumerate(messages)
                if message
            ]
            senders = np.diff(part.recv_offsets).tolist()
            received = [
                self.comm.recv(source=peer) if rows else b"" for peer, rows in enumerate(senders)
            ]
            for send in sends:
                send.wait()
        took.wait_s += time.perf_counter() - began
        return received

    def arrived(self, part: Part, received: Sequence[bytes]) -> list[tuple[int, Flags, memoryview]]:
        """(sender, samples that live in its rows, the rows' bytes) of what this rank needs; those samples join `active`."""
        made = []
        for peer, message in enumerate(received):
            if peer == self.rank or part.recv_offsets[peer] == part.recv_offsets[peer + 1]:
                continue
            with _blamed(peer):
                (length,) = _HEAD.unpack_from(message)
                active = codec.decode_set(
                    memoryview(message)[_HEAD.size : _HEAD.size + length], self.samples
                )
            made.append((peer, active, memoryview(message)[_HEAD.size + length :]))
        for _, active, _ in made:
            self.active |= active
        return made

    def rows(self, part: Part, peer: int, active: Flags, body: memoryview) -> Floats:
        """The rows of a sender that this rank needs, over its active samples."""
        begin, end = part.recv_offsets[peer : peer + 2].tolist()
        with _blamed(peer):
            rows = codec.decode(body, (int(part.recv_counts[peer]), int(np.count_nonzero(active))))
        if part.exchange == Exchange.ALLGATHER:
            rows = rows[part.recv_index[begin:end]]
        return self.spread(rows, active)

    def spread(self, rows: Floats, of: Flags) -> Floats:
        """Rows over the samples `of`, as rows over those that live."""
        here = of[self.active]
        if here.all():
            return np.ascontiguousarray(rows)
        made = np.zeros((len(rows), len(here)), np.float32)
        made[:, here] = rows
        return made

    def own(self) -> Panels:
        """y in panels."""
        if isinstance(self.y, _Input):
            self.y = self.y.panels()
        return self.y

    def panel(self, part: Part, received: Sequence[bytes]) -> Panels:
        """The layer's input, of the samples that live in one of its rows."""
        if not part.recv_offsets[-1]:
            return self.own()
        before = self.active.copy()
        came = self.arrived(part, received)
        panel = Panels(part.columns, int(np.count_nonzero(self.active)))
        if isinstance(self.y, Panels) and panel.samples == self.y.samples:
            panel.data[:, : part.own] = self.y.data
        else:
            for some in _few(part.own):
                panel.put(self.spread(self.y.take(some), before), some)
        for peer, active, body in came:
            begin, end = part.own + part.recv_offsets[peer : peer + 2]
            panel.put(self.rows(part, peer, active, body), np.arange(begin, end))
        return panel

    def add(self, part: Part, messages: Sequence[bytes], took: LayerStatistics) -> Flags:
        """The layer by blocks: own rows while messages are on their way, then each sender's, added in their order."""
        if not part.recv_offsets[-1]:
            self.exchange(part, messages, took)
            self.y, still_active = layer(part.weights, self.own(), self.bias, self.cap)
            return still_active
        coming = (
            self.caller.submit(self.exchange, part, messages, LayerStatistics())
            if self.caller
            else None
        )
        total = multiply(part.blocks[OWN], self.own()) if OWN in part.blocks else None
        began = time.perf_counter()
        received = coming.result() if coming else self.exchange(part, messages, LayerStatistics())
        took.wait_s += time.perf_counter() - began
        before = self.active.copy()
        came = self.arrived(part, received)
        if total is not None and not (before == self.active).all():
            total = Panels.of(self.spread(total.take(), before))
        for peer, active, body in came[:-1]:
            more = total is not None
            total = multiply(
                part.blocks[peer], Panels.of(self.rows(part, peer, active, body)), total, more
            )
        peer, active, body = came[-1]
        last = Panels.of(self.rows(part, peer, active, body))
        self.y, still_active = layer(
            part.blocks[peer], last, self.bias, self.cap, total, accumulate=total is not None
        )
        return still_active


@contextmanager
def _blamed(peer: int) -> Iterator[None]:
    try:
        yield
    except (struct.error, IndexError, ValueError) as error:
        raise ValueError(
            f"rank {peer} sent what does not fit: {error}; all ranks must run the same partition"
        ) from error
