"""Row-partitioned inference over a communicator, mpi4py's or this package's.

Each rank holds some rows (neurons) of every layer. Before a layer, the ranks exchange activation
rows: each sends those that other ranks' weights read, and places the received ones behind its own,
sender after sender. That is one collective call per layer, which a channel can serve with few
requests, unless so few pairs of ranks exchange rows that messages are cheaper (`Exchange`).

Invariant: a sum is computed in the order of the row's entries, wherever their inputs are. So its
bits are those of the serial kernel, on any number of ranks and with any partition. Only
`accumulate` gives this up: a rank then multiplies its own rows while others are in transit and adds
the products of received rows in the order of senders, so the bits depend on the partition too.

Samples whose activations are all zero are pruned after each layer. A layer that makes other numbers
of zeros, by a bias or a sigmoid, first gets all samples back.
Equal samples: samples that are equal in all rows of all ranks stay equal, so one of them stands
for the others from there on (`merge`). Every rank sends which of its samples are equal in its own
rows, and all combine these in the same way, so they merge the same samples at the same layers; a
hash only finds candidates. At the end each sample gets the output of the one that stands for it.

The ranks of a batch may have different active samples, so a message begins with the set of its own.

Several batches are in flight, each with a thread and a communicator of its own: one computes while
another waits. If you change the order of collective calls, it must stay equal on all ranks.
"""

from __future__ import annotations

import struct
import time
import zlib
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
from serverless_mpi.inference.communicator import Communicator
from serverless_mpi.sparse import (
    CAP,
    Activation,
    Ending,
    Panels,
    SparseRows,
    ended_layer,
    layer,
    multiply,
)
from serverless_mpi.sparse.endings import highest_of, softmax, softmax_sums
from serverless_mpi.sparse.equal import Schedule, originals, resolved

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]
Flags = NDArray[np.bool_]

ROWS_AT_ONCE = 64  # rows that are copied together, which bounds the memory of the copy
IN_FLIGHT = 2  # concurrent batches: one computes while the other waits
OWN = -1  # key of the block of own rows in `Part.blocks`
# A message: length of its set of active samples, the set, the coded rows over these samples.
_HEAD = struct.Struct("<I")


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
    ending
        Bias and activation of the rank's distinct rows; None for the challenge's, with the bias and
        the cap of the run.
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
    ending: Ending | None = None

    @property
    def keeps_zero(self) -> bool:
        """Whether inputs that are all 0 have outputs that are all 0."""
        return self.ending is None or self.ending.keeps_zero

    @property
    def rows(self) -> int:
        """Distinct rows."""
        return len(self.indptr) - 1

    @property
    def own(self) -> int:
        """Panel rows that are the rank's own."""
        return self.columns - int(self.recv_offsets[-1])

    def check(self, ranks: int, own: int) -> None:
        """Check that the arrays fit each other, as those of a stored part might not.

        Parameters
        ----------
        ranks
            Number of ranks of a replica.
        own
                Distinct rows that the rank has before the layer.

        Raises
        ------
        ValueError
            The arrays contradict each other.
        """
        per_rank = (self.send_offsets, self.recv_offsets, self.recv_counts)
        integers = all(array.dtype.kind in "iu" for array in (self.indptr, self.indices, *per_rank))
        lengths = [len(array) for array in per_rank]
        if not integers or not len(self.indptr) or lengths != [ranks + 1, ranks + 1, ranks]:
            raise ValueError("arrays of wrong length or type")
        for offsets, end in (
            (self.indptr, len(self.indices)),
            (self.send_offsets, len(self.send_rows)),
            (self.recv_offsets, self.columns - own),
        ):
            if int(offsets[0]) or int(offsets[-1]) != end or (offsets[1:] < offsets[:-1]).any():
                raise ValueError("offsets that do not rise from 0 to the number of rows")
        received = np.diff(self.recv_offsets)
        senders = np.repeat(np.arange(ranks), received)
        shared = self.exchange == Exchange.ALLGATHER
        for numbers, below in (
            (self.indices, self.columns),
            (self.row_of_neuron, self.rows),
            (self.send_rows, own),
            (self.recv_index, self.recv_counts[senders] if shared else 0),
        ):
            if numbers.dtype.kind not in "iu" or (
                len(numbers) and (numbers.min() < 0 or (numbers >= below).any())
            ):
                raise ValueError("numbers of rows that do not exist")
        if (
            len(self.recv_index) != (len(senders) if shared else 0)
            or (self.recv_counts < received).any()
            or (not shared and (self.recv_counts != received).any())
        ):
            raise ValueError("an exchange that does not fit")
        if self.values.dtype != np.float32 or len(self.values) not in (1, len(self.indices)):
            raise ValueError("values of wrong number or type")
        if not np.isfinite(self.values).all():
            raise ValueError("values have NaN or infinity")
        if self.ending is not None:
            self.ending.check(self.rows)

    @cached_property
    def weights(self) -> SparseRows:
        """The matrix, over the same memory."""
        return SparseRows(self.indptr, self.indices, self._values(slice(None)), self.columns)

    @cached_property
    def blocks(self) -> dict[int, SparseRows]:
        """The matrix by sender: its columns are that sender's rows; OWN: the rank's own rows.

        Blocks without entries are omitted; a row's entries keep their order in each block.
        """
        # Columns are own rows, then received rows sender after sender: a block is a range of them.
        bounds = np.concatenate([[0], self.own + self.recv_offsets])
        # Of equal bounds the last one counts: it belongs to a sender that has rows.
        block_of_entry = np.searchsorted(bounds, self.indices, side="right") - 2
        row_of_entry = np.repeat(np.arange(self.rows), np.diff(self.indptr))
        blocks = {}
        for sender in np.unique(block_of_entry).tolist():
            entries = np.flatnonzero(block_of_entry == sender)
            lengths = np.bincount(row_of_entry[entries], minlength=self.rows)
            first, last = bounds[sender + 1 : sender + 3]
            blocks[sender] = SparseRows(
                np.concatenate([[0], np.cumsum(lengths)]),
                self.indices[entries] - first.astype(self.indices.dtype),
                self._values(entries),
                int(last - first),
            )
        return blocks

    def _values(self, entries: slice | Indices) -> Floats | np.float32:
        """Return the values of some entries; one number if all entries have the same value."""
        if len(self.values) == 1:
            constant: np.float32 = self.values[0]
            return constant
        return self.values[entries]


@dataclass
class LayerStatistics:
    """What a layer took on one rank.

    Attributes
    ----------
    send_s, wait_s, compute_s
        Seconds to make messages, to wait for the messages of peers, and for everything else.
    rows, nonzeros, nbytes, messages
        What the rank sent. A message that all peers share counts once, and so do its rows.
    active_samples
        Samples with a nonzero activation before the layer.
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
        """Add the numbers of another layer, batch or rank.

        Parameters
        ----------
        other
            Its statistics; not changed.
        """
        for field_ in fields(self):
            name = field_.name
            setattr(self, name, getattr(self, name) + getattr(other, name))


@dataclass
class Statistics:
    """What inference took on one rank.

    Attributes
    ----------
    layers
        Statistics of each layer.
    merged
        Number of samples for which an equal one was computed, in all batches.
    """

    layers: list[LayerStatistics] = field(default_factory=list)
    merged: int = 0

    def total(self) -> LayerStatistics:
        """Return the sum over the layers."""
        total = LayerStatistics()
        for layer_statistics in self.layers:
            total.add(layer_statistics)
        return total


_Outcome = tuple[Floats, Indices, Statistics]  # of a batch


def infer(
    comm: Communicator,
    parts: Sequence[Part],
    x: Floats,
    bias: float,
    cap: float = CAP,
    *,
    batches: int = 1,
    accumulate: bool = False,
    merge: bool = False,
    watch: Callable[[int, int], None] | None = None,
) -> tuple[Floats, Indices, Statistics]:
    """Run samples through the network; collective over the communicator.

    Parameters
    ----------
    comm
        Communicator of the ranks that hold the parts; mpi4py's or this package's.
    parts
        This rank's part of each layer.
    x
        (own rows, samples) float32, C-contiguous: the rank's neurons of boundary 0. Borrowed.
    bias, cap
        A layer whose part has no ending is y = min(max(W x + bias, 0), cap), with the bias only
        where W x is not 0.
    batches
        Number of equal shares of the samples; the same on all ranks. IN_FLIGHT run concurrently.
    accumulate
        Add the products of received rows to those of own rows; equal on all ranks.
    merge
        Compute equal samples once, where searching pays; equal on all ranks. Same output.
    watch
        Called with (batch, layer), at the end with the number of layers; from several threads.

    Returns
    -------
    y : ndarray
        (own neurons at the last boundary, active samples) float32.
    samples : ndarray
        Numbers of the samples that are active at the end on some rank, ascending; int64.
    statistics : Statistics

    Raises
    ------
    ValueError
        There are no layers, x is not as above or not finite, or a peer's message does not fit.

    Notes
    -----
    A batch takes a collective call per layer (or messages), one at the end, and one per search.
    """
    _check(parts, x)
    bounds = _bounds(x.shape[1], batches)

    def run_batch(lane: Communicator, batch: int) -> _Outcome:
        share = np.ascontiguousarray(x[:, bounds[batch] : bounds[batch + 1]])
        on_layer = partial(watch, batch) if watch else lambda layer: None
        return _Batch(lane, share, bias, cap, accumulate, merge).run(parts, on_layer)

    return _joined(_in_lanes(comm, run_batch, len(bounds) - 1), bounds, len(parts))


def _bounds(samples: int, batches: int) -> list[int]:
    """Return where each batch begins, and where the last ends; no batch is empty."""
    batches = max(1, min(batches, samples))
    return [samples * batch // batches for batch in range(batches + 1)]


def _in_lanes(
    comm: Communicator, run_batch: Callable[[Communicator, int], _Outcome], batches: int
) -> list[_Outcome]:
    """Run all batches, up to IN_FLIGHT of them concurrently; return their outcomes in order."""
    lanes = min(IN_FLIGHT, batches) if _threads_allowed() else 1
    # Concurrent batches must not mix their messages, so each lane has a communicator.
    comms = [comm] + [comm.Dup() for _ in range(lanes - 1)]

    def run_lane(number: int) -> list[_Outcome]:
        # Every rank runs these batches in this order.
        return [run_batch(comms[number], batch) for batch in range(number, batches, lanes)]

    results = _in_threads(run_lane, lanes)
    for lane_comm in comms[1:]:
        lane_comm.Free()
    return [results[batch % lanes][batch // lanes] for batch in range(batches)]


def _joined(
    outcomes: Sequence[_Outcome], bounds: Sequence[int], layers: int
) -> tuple[Floats, Indices, Statistics]:
    """Join the outcomes of batches; batch b has the samples from `bounds[b]` on."""
    statistics = Statistics([LayerStatistics() for _ in range(layers)])
    for _, _, of_batch in outcomes:
        statistics.merged += of_batch.merged
        for total, layer_statistics in zip(statistics.layers, of_batch.layers, strict=True):
            total.add(layer_statistics)
    outputs = [y for y, _, _ in outcomes]
    whole = outputs[0] if len(outputs) == 1 else np.concatenate(outputs, axis=1)
    numbers = [samples + start for start, (_, samples, _) in zip(bounds, outcomes)]
    return whole, np.concatenate(numbers), statistics


def _check(parts: Sequence[Part], x: Floats) -> None:
    """Raise ValueError for arguments of `infer` that it cannot run."""
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
    from serverless_mpi import MPI  # not at the top: under mpirun this initializes the real MPI

    return bool(MPI.Query_thread() == MPI.THREAD_MULTIPLE)


def _in_threads(call: Callable[[int], Any], count: int) -> list[Any]:
    """Return [call(0), call(1), ...], computed in parallel; raise the first error."""
    if count == 1:
        return [call(0)]
    with ThreadPoolExecutor(count, "smpi-batch") as pool:
        return [future.result() for future in [pool.submit(call, n) for n in range(count)]]


class _Input:
    """The active samples of x. They are not copied: the copy would be a third panel in memory."""

    def __init__(self, x: Floats, active: Flags) -> None:
        self._x = x
        self._active = np.flatnonzero(active)
        self.samples = len(self._active)

    def take(self, rows: Indices) -> Floats:
        """Return a copy of those rows over the active samples, as `Panels.take`."""
        values = self._x[rows]
        if self.samples == values.shape[1]:
            return values
        return np.ascontiguousarray(values[:, self._active])

    def panels(self) -> Panels:
        """Return all rows as panels."""
        panels = Panels(len(self._x), self.samples)
        for rows in _row_blocks(len(self._x)):
            panels.put(self.take(rows), rows)
        return panels


def _row_blocks(rows: int) -> list[Indices]:
    """Numbers of all rows, at most ROWS_AT_ONCE in a block."""
    return np.array_split(np.arange(rows), -(-rows // ROWS_AT_ONCE) or 1)


class _Batch:
    """A rank's state of one batch.

    Invariants: `y` has the rank's distinct rows at the current boundary, over the samples that
    `active` flags. After each layer these are the samples with a nonzero in one of these rows, of
    those that `computed` flags; sample s of the others is equal to sample `of[s]`. `computed` and
    `of` are equal on all ranks.
    """

    def __init__(
        self, comm: Communicator, x: Floats, bias: float, cap: float, accumulate: bool, merge: bool
    ) -> None:
        self.comm, self.rank = comm, comm.rank
        self.bias, self.cap = bias, cap
        self.accumulate = accumulate
        self.caller = (
            ThreadPoolExecutor(1, "smpi-exchange") if accumulate and _threads_allowed() else None
        )
        self.samples = x.shape[1]
        self.active: Flags = np.asarray(np.any(x, axis=0))
        self.computed: Flags = np.ones(self.samples, np.bool_)
        self.of: Indices = np.arange(self.samples)
        self.schedule = Schedule(exchanged=comm.size > 1) if merge else None
        self.y: Panels | _Input = _Input(x, self.active)

    def run(self, parts: Sequence[Part], watch: Callable[[int], None]) -> _Outcome:
        """Run all layers; return (y, samples, statistics by layer) as `infer` does."""
        statistics = Statistics()
        for number, part in enumerate(parts):
            watch(number)
            statistics.layers.append(self.step(part))
            if self.schedule and self.schedule.due(number + 1) and number + 1 < len(parts):
                self.merge(number + 1, statistics.layers[-1])
        watch(len(parts))
        if self.caller:
            self.caller.shutdown()
        sets = [
            codec.decode_set(coded, self.samples)
            for coded in self.comm.allgather(codec.encode_set(self.active))
        ]
        active = np.logical_or.reduce(sets)
        y = np.zeros((len(part.row_of_neuron), np.count_nonzero(active)), np.float32)
        y[:, self.active[active]] = self.own().take(part.row_of_neuron.astype(np.int64))
        if part.ending is not None and part.ending.activation == Activation.SOFTMAX:
            self.softmax(y)
        statistics.merged = int(np.count_nonzero(~self.computed))
        if statistics.merged:
            of = resolved(self.of)
            place = np.cumsum(active) - 1
            y = np.ascontiguousarray(y[:, place[of[active[of]]]])
            active = active[of]
        return y, np.flatnonzero(active), statistics

    def merge(self, layers: int, statistics: LayerStatistics) -> None:
        """Keep one of all samples that are equal in the rows of all ranks.

        Each rank sends its active samples, and for each of these how far before it the first one is
        that equals it in the rank's rows. Samples that have equal ones on every rank are equal.
        """
        assert self.schedule is not None
        began = time.perf_counter()
        own, active = self.own(), np.flatnonzero(self.active)
        first = np.arange(self.samples)
        first[active] = active[originals(own)]
        messages = [b""] * self.comm.size
        if self.comm.size > 1:
            flags = codec.encode_set(self.active)
            distances = (active - first[active]).astype("<u4").tobytes()
            message = _HEAD.pack(len(flags)) + flags + zlib.compress(distances, 1)
            statistics.messages += 1
            statistics.nbytes += len(message)
            waited = time.perf_counter()
            messages = self.comm.allgather(message)
            statistics.wait_s += time.perf_counter() - waited
            began += time.perf_counter() - waited
        classes = np.zeros(self.samples, np.int64)
        somewhere = np.zeros(self.samples, np.bool_)
        for peer, message in enumerate(messages):
            there, firsts = (
                (self.active, first) if peer == self.rank else self.equal_on(peer, message)
            )
            somewhere |= there
            # Samples that are all 0 on a rank are equal there.
            labels = np.where(there, firsts + 1, 0)
            classes = np.unique(classes * (self.samples + 1) + labels, return_inverse=True)[1]
        computed = np.flatnonzero(self.computed)
        _, heads, which = np.unique(classes[computed], return_index=True, return_inverse=True)
        self.of[computed] = computed[heads[which]]
        self.computed = np.zeros(self.samples, np.bool_)
        self.computed[computed[heads]] = True
        distinct = int(np.count_nonzero(somewhere & self.computed))
        self.schedule.searched(layers, int(np.count_nonzero(somewhere)), distinct)
        kept = self.computed[active]
        if not kept.all():
            self.own().keep(kept)
            self.active &= self.computed
        statistics.compute_s += time.perf_counter() - began

    def equal_on(self, peer: int, message: bytes) -> tuple[Flags, Indices]:
        """Return a peer's active samples, and the first sample that equals each one there."""
        with _blamed(peer):
            (length,) = _HEAD.unpack_from(message)
            body = memoryview(message)[_HEAD.size :]
            there = codec.decode_set(body[:length], self.samples)
            inflate = zlib.decompressobj()
            try:
                data = inflate.decompress(body[length:], 4 * np.count_nonzero(there) + 1)
            except zlib.error as error:
                raise ValueError("its equal samples are damaged") from error
            if len(data) != 4 * np.count_nonzero(there):
                raise ValueError("its equal samples are not those of its active ones")
            firsts = np.arange(self.samples)
            firsts[there] -= np.frombuffer(data, "<u4")
            if (firsts < 0).any() or (there & ~self.computed).any():
                raise ValueError("its equal samples do not exist")
        return there, firsts

    def softmax(self, y: Floats) -> None:
        """Replace the last layer's numbers by their softmax over the neurons of all ranks.

        Both collective calls combine numbers whose order does not matter: maxima, and sums in fixed
        point. So the bits are those of one rank.
        """
        highest = np.max(self.comm.allgather(highest_of(y)), axis=0)
        sums = np.sum(self.comm.allgather(softmax_sums(y, highest)), axis=0)
        softmax(y, highest, sums)

    def step(self, part: Part) -> LayerStatistics:
        """Run one layer: exchange, multiply, prune."""
        statistics = LayerStatistics(active_samples=int(np.count_nonzero(self.active)))
        began = time.perf_counter()
        messages = self.messages(part, statistics) if part.exchange is not Exchange.NONE else []
        statistics.send_s = time.perf_counter() - began
        if self.accumulate:
            still_active = self.add(part, messages, statistics)
        else:
            # y is replaced at once: its old rows are freed before the layer's output exists.
            panel = self.y = self.panel(part, self.exchange(part, messages, statistics))
            self.y, still_active = self.finished(part, part.weights, panel)
            del panel
        if not still_active.all():
            self.active[self.active] = still_active
            self.own().keep(still_active)
        statistics.compute_s = time.perf_counter() - began - statistics.send_s - statistics.wait_s
        return statistics

    def finished(
        self, part: Part, weights: SparseRows, x: Panels, sums: Panels | None = None
    ) -> tuple[Panels, Flags]:
        """Return the layer's output, and for each sample whether it has a nonzero.

        `sums` are those of earlier entries of the rows, which are continued.
        """
        more = sums is not None
        if part.ending is None:
            return layer(weights, x, self.bias, self.cap, sums, accumulate=more)
        return ended_layer(weights, x, part.ending, sums, accumulate=more)

    def messages(self, part: Part, statistics: LayerStatistics) -> list[bytes]:
        """Return one message for all peers, or one for each: active samples, and rows over them."""
        active = codec.encode_set(self.active)
        messages: list[bytes] = []
        for peer in range(1 if part.exchange == Exchange.ALLGATHER else self.comm.size):
            sent = part.send_rows[part.send_offsets[peer] : part.send_offsets[peer + 1]]
            if not len(sent):
                messages.append(b"")
                continue
            rows = self.y.take(sent.astype(np.int64))
            messages.append(_HEAD.pack(len(active)) + active + codec.encode(rows))
            statistics.messages += 1
            statistics.nbytes += len(messages[-1])
            statistics.rows += len(sent)
            statistics.nonzeros += int(np.count_nonzero(rows))
        return messages

    def exchange(
        self, part: Part, messages: Sequence[bytes], statistics: LayerStatistics
    ) -> list[bytes]:
        """Return the message of each rank, b"" where there is none; [] without an exchange."""
        began = time.perf_counter()
        received: list[bytes] = []
        if part.exchange == Exchange.ALLGATHER:
            received = self.comm.allgather(messages[0])
        elif part.exchange == Exchange.ALLTOALL:
            received = self.comm.alltoall(messages)
        elif part.exchange == Exchange.PAIRWISE:
            # All sends start before the first receive, so no pair of ranks can deadlock.
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
        statistics.wait_s += time.perf_counter() - began
        return received

    def arrived(self, part: Part, received: Sequence[bytes]) -> list[tuple[int, Flags, memoryview]]:
        """Return (sender, its active samples, coded rows) of the senders that this rank needs.

        Their active samples become active here, too.
        """
        messages = []
        for peer, message in enumerate(received):
            if peer == self.rank or part.recv_offsets[peer] == part.recv_offsets[peer + 1]:
                continue
            with _blamed(peer):
                (length,) = _HEAD.unpack_from(message)
                active = codec.decode_set(
                    memoryview(message)[_HEAD.size : _HEAD.size + length], self.samples
                )
            messages.append((peer, active, memoryview(message)[_HEAD.size + length :]))
        for _, active, _ in messages:
            self.active |= active
        if not part.keeps_zero:
            self.active |= self.computed
        return messages

    def rows(self, part: Part, peer: int, active: Flags, body: memoryview) -> Floats:
        """Return the needed rows of a sender's message, over this rank's active samples."""
        begin, end = part.recv_offsets[peer : peer + 2].tolist()
        with _blamed(peer):
            rows = codec.decode(body, (int(part.recv_counts[peer]), int(np.count_nonzero(active))))
        if part.exchange == Exchange.ALLGATHER:
            rows = rows[part.recv_index[begin:end]]
        return self.spread(rows, active)

    def spread(self, rows: Floats, given: Flags) -> Floats:
        """Return rows over `given` samples as rows over the active ones, 0 for the others."""
        present = given[self.active]
        if present.all():
            return np.ascontiguousarray(rows)
        spread = np.zeros((len(rows), len(present)), np.float32)
        spread[:, present] = rows
        return spread

    def own(self) -> Panels:
        """Return y as panels."""
        if isinstance(self.y, _Input):
            self.y = self.y.panels()
        return self.y

    def own_for(self, part: Part) -> Panels:
        """Return y as panels, over all samples if the layer needs those of zeros."""
        if part.keeps_zero or (self.active == self.computed).all():
            return self.own()
        before = self.active.copy()
        self.active |= self.computed
        return Panels.of(self.spread(self.own().take(), before))

    def panel(self, part: Part, received: Sequence[bytes]) -> Panels:
        """Return the layer's input over the samples that are active in one of its rows."""
        if not part.recv_offsets[-1]:
            return self.own_for(part)
        # Samples that are active on a sender only become active here; own rows are 0 for them.
        before = self.active.copy()
        messages_in = self.arrived(part, received)
        panel = Panels(part.columns, int(np.count_nonzero(self.active)))
        # The common case, in which the samples are the same, copies whole panels.
        if isinstance(self.y, Panels) and panel.samples == self.y.samples:
            panel.data[:, : part.own] = self.y.data
        else:
            for block in _row_blocks(part.own):
                panel.put(self.spread(self.y.take(block), before), block)
        for peer, active, body in messages_in:
            begin, end = part.own + part.recv_offsets[peer : peer + 2]
            panel.put(self.rows(part, peer, active, body), np.arange(begin, end))
        return panel

    def add(self, part: Part, messages: Sequence[bytes], statistics: LayerStatistics) -> Flags:
        """Run the layer by blocks: own rows while messages are in transit, then each sender's.

        Return for each sample whether it is still active.
        """
        if not part.recv_offsets[-1]:
            self.exchange(part, messages, statistics)
            self.y, still_active = self.finished(part, part.weights, self.own_for(part))
            return still_active
        # The exchange blocks, so a thread makes it while this one multiplies the own rows.
        pending = (
            self.caller.submit(self.exchange, part, messages, LayerStatistics())
            if self.caller
            else None
        )
        total = multiply(part.blocks[OWN], self.own()) if OWN in part.blocks else None
        began = time.perf_counter()
        received = pending.result() if pending else self.exchange(part, messages, LayerStatistics())
        statistics.wait_s += time.perf_counter() - began
        before = self.active.copy()
        messages_in = self.arrived(part, received)
        # The own products are 0 for samples that only senders have.
        if total is not None and not (before == self.active).all():
            total = Panels.of(self.spread(total.take(), before))
        for peer, active, body in messages_in[:-1]:
            more = total is not None
            total = multiply(
                part.blocks[peer], Panels.of(self.rows(part, peer, active, body)), total, more
            )
        # Only the last block adds the bias and the limits: they apply to the complete sums.
        peer, active, body = messages_in[-1]
        last = Panels.of(self.rows(part, peer, active, body))
        self.y, still_active = self.finished(part, part.blocks[peer], last, total)
        return still_active


@contextmanager
def _blamed(peer: int) -> Iterator[None]:
    """Name the sender in errors about its message."""
    try:
        yield
    except (struct.error, IndexError, ValueError) as error:
        raise ValueError(
            f"rank {peer} sent a message that does not fit: {error}; "
            "all ranks must run the same partition"
        ) from error
