"""`smpi-infer serve`: workers that stay warm between queries; and `query`, its client.

A client connects to a Unix socket, which only its owner may do, and sends lines of JSON; each is answered by one line:

    {"images": "/path/or/s3://url", "samples": 100}     or {"input": "name of a stored input"}     or {"status": true}
    {"categories": [...], "scores": [...], "neurons": [...], "checksum": "...", "images": 100, "seconds": 0.1, "waited": 0.0}
    {"error": "what is wrong, and what would work"}

Rank 0 listens.  Queries wait in a bounded queue; each of a few lanes takes one at a time, on a communicator of its own, so
that while one query waits for its exchange another computes.  SIGTERM and SIGINT end it: what is being computed is
answered, what waits is told.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import queue
import signal
import socket
import socketserver
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serverless_mpi.errors import UsageError
from serverless_mpi.inference import engine, plan, sources, store, worker
from serverless_mpi.inference.worker import FAULTS, Answer

Floats = NDArray[np.float32]
MOST_LINE_BYTES = 1 << 20
FIELDS = {"images", "input", "samples", "status"}
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Ending:
    """SIGTERM and SIGINT, noted at rank 0 in whatever thread they come, and nothing to the others: rank 0 tells them.

    Called in the main thread.
    """

    def __init__(self, rank: int) -> None:
        self._fd = -1
        if rank:
            for number in SIGNALS:
                signal.signal(number, signal.SIG_IGN)
            return
        self._fd, write = os.pipe()
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        for number in SIGNALS:
            signal.signal(number, lambda *_: None)

    def wait(self) -> None:
        """Until one has come."""
        os.read(self._fd, 1)


@dataclass
class Query:
    """One question, checked as far as that needs no file, and where its answer goes."""

    images: str | None
    input: str | None
    samples: int | None
    asked: float = field(default_factory=time.monotonic)
    reply: Future[dict[str, Any]] = field(default_factory=Future)


def parse(line: bytes) -> Query | None:
    """The query in a line; None asks for the status.

    Raises
    ------
    UsageError
        It is none; the text says what one looks like.
    """
    try:
        text = json.loads(line)
    except ValueError as error:
        raise UsageError(
            f'a query is a line of JSON such as {{"images": "file.tsv"}}: {error}'
        ) from None
    if not isinstance(text, dict) or not text.keys() <= FIELDS:
        raise UsageError(f"a query is a JSON object with some of {', '.join(sorted(FIELDS))}")
    if text.get("status"):
        return None
    images, name, samples = (text.get(key) for key in ("images", "input", "samples"))
    if not isinstance(images if name is None else name, str) or (
        images is not None and name is not None
    ):
        raise UsageError(
            "a query has either images, a path or an s3:// URL, or input, the name of a stored input"
        )
    if samples is not None and (
        not isinstance(samples, int) or isinstance(samples, bool) or samples < 1
    ):
        raise UsageError(f"samples is {samples!r}, not a whole number above 0")
    return Query(images, name, samples)


class Service:
    """A rank's side: its part of the model, and its lanes.

    At rank 0 a lane takes queries; at the others it follows what its rank 0 tells.
    """

    def __init__(self, comm: Any, options: argparse.Namespace, mine: sources.Model) -> None:
        self._comm, self._options, self._mine = comm, options, mine
        self._room = _room(options, mine, comm.size)
        self.waiting: queue.Queue[Query | None] = queue.Queue(
            options.queue + options.lanes
        )  # the latter for ends of lanes
        self._lanes = [
            threading.Thread(target=self._run, args=(comm.Dup(),), name=f"lane-{n}")
            for n in range(options.lanes)
        ]
        self._lock = threading.Lock()
        self.stopping = False
        self.counts = {"answered": 0, "refused": 0, "failed": 0}
        for lane in self._lanes:
            lane.start()

    # -- rank 0: what the socket's threads call

    def ask(self, query: Query) -> dict[str, Any]:
        """The reply to a query, when it is there."""
        with self._lock:
            full = self.waiting.qsize() >= self._options.queue
            if self.stopping or full:
                self.counts["refused"] += 1
                told = (
                    "the service is stopping"
                    if self.stopping
                    else f"{self._options.queue} queries wait already; ask again later"
                )
                return {"error": told}
            self.waiting.put_nowait(query)
        reply = query.reply.result()
        with self._lock:
            self.counts["failed" if "error" in reply else "answered"] += 1
        return reply

    def status(self) -> dict[str, Any]:
        """What it is, and what it has done."""
        mine = self._mine
        return {
            "model": mine.name,
            "neurons": mine.neurons,
            "layers": mine.layers,
            "workers": self._comm.size,
            "lanes": len(self._lanes),
            "waiting": self.waiting.qsize(),
            **self.counts,
        }

    def stop(self) -> None:
        """At rank 0: refuse what waits, finish what runs, end the lanes everywhere."""
        with self._lock:
            self.stopping = True
        while True:
            try:
                query = self.waiting.get_nowait()
            except queue.Empty:
                break
            if query is not None:
                query.reply.set_result({"error": "the service is stopping"})
        for _ in self._lanes:
            self.waiting.put(None)

    def join(self) -> None:
        """Until every lane has ended."""
        for lane in self._lanes:
            lane.join()

    # -- a lane

    def _run(self, lane: Any) -> None:
        try:
            if lane.rank == 0:
                while (query := self.waiting.get()) is not None:
                    query.reply.set_result(self._lead(lane, query))
                lane.bcast(None)
            else:
                while (order := lane.bcast(None)) is not None:
                    self._work(lane, order, None)
        except BaseException:  # a communicator that failed, or a bug: no lane can go on alone
            traceback.print_exc()
            self._comm.Abort(1)

    def _lead(self, lane: Any, query: Query) -> dict[str, Any]:
        """At rank 0: the reply to a query."""
        started = time.monotonic()
        try:
            x = self._read(query)
        except FAULTS as error:
            return {"error": str(error)}
        order = {
            "input": query.input,
            "samples": query.samples,
            "count": None if x is None else x.shape[1],
        }
        lane.bcast(order)
        try:
            answer, count = self._work(lane, order, x)
        except UsageError as error:  # some rank could not load its rows; all know
            return {"error": str(error)}
        assert answer is not None
        now = time.monotonic()
        return {
            **answer.as_dict(),
            "images": count,
            "seconds": now - started,
            "waited": started - query.asked,
        }

    def _read(self, query: Query) -> Floats | None:
        """Checked images of a file, or None where every rank loads its own rows."""
        if query.input is not None:
            if not self._options.store:
                raise UsageError(
                    "this service has no store, so it has no stored inputs: send images"
                )
            return None
        x = sources.read_images(self._options, str(query.images), self._mine.neurons, query.samples)
        store.check_images(x, self._mine.neurons)
        return x

    def _work(
        self, lane: Any, order: Mapping[str, Any], whole: Floats | None
    ) -> tuple[Answer | None, int]:
        """Every rank: run an order's images; (the answer at rank 0, images)."""
        mine, problem = self._mine, ""
        x = np.zeros((0, 0), np.float32)
        if order["count"] is None:
            try:
                x = sources.stored_images(
                    self._options, order["input"], lane.rank, order["samples"]
                )
            except FAULTS as error:
                problem = str(error)
            found = [text for text in lane.allgather(problem) if text]
            if found:
                if lane.rank:
                    return None, 0
                raise UsageError(found[0])
        else:
            x = lane.scatter(
                None
                if whole is None
                else [_packed(whole[mine.first == part]) for part in range(lane.size)]
            )
            x = _unpacked(x, order["count"])
        answers = []
        for start in range(0, x.shape[1], self._room):
            batch = np.ascontiguousarray(x[:, start : start + self._room])
            y, samples, _ = engine.infer(lane, mine.own, batch, mine.bias, mine.cap)
            one = worker.answer(lane, mine, y, samples, lane.rank)
            if one is not None:
                answers.append((start, one))
        return (worker.joined(answers) if answers else None), x.shape[1]


def _packed(rows: Floats) -> Floats | NDArray[np.uint8]:
    """Rows of 0 and 1 as bits."""
    return np.packbits(rows != 0, axis=1) if ((rows == 0) | (rows == 1)).all() else rows


def _unpacked(rows: Floats | NDArray[np.uint8], samples: int) -> Floats:
    if rows.dtype == np.float32:
        return np.asarray(rows, np.float32)
    return np.unpackbits(rows.astype(np.uint8), axis=1, count=samples).astype(np.float32)


def _room(options: argparse.Namespace, mine: sources.Model, ranks: int) -> int:
    """Samples of a batch, so that the lanes' panels fit the worker's memory together."""
    place = plan.place(options.platform)
    limit = options.memory or max(place.memory_sizes) // (
        ranks if options.platform == "local" else 1
    )
    work = plan.Work(mine.neurons, mine.layers, 1, mine.nonzeros, mine.nbytes)
    plan.check_memory(work, ranks, limit, place.base_mb)
    fixed = plan.worker_mb(work, ranks, 0, place.base_mb)
    a_sample = (plan.worker_mb(work, ranks, 1000, place.base_mb) - fixed) / 1000
    return max(plan.LEAST_BATCH, int((limit - fixed) / a_sample / options.lanes))


# --- the socket -------------------------------------------------------------------------------------------------------


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """A thread a connection; `end` lets each write the reply it has, and no connection keeps it from ending."""

    request_queue_size = 64
    service: Service

    def __init__(self, path: str) -> None:
        self.connections: set[socket.socket] = set()
        super().__init__(path, _Client)

    def end(self) -> None:
        """Hear nobody any more, and wait for the replies that are being written."""
        self.shutdown()
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RD)
        self.server_close()


class _Client(socketserver.StreamRequestHandler):
    """A connection: a reply a line, in order."""

    def handle(self) -> None:
        assert isinstance(self.server, _Server)
        self.server.connections.add(self.connection)
        service = self.server.service
        while line := self.rfile.readline(MOST_LINE_BYTES + 1):
            if len(line) > MOST_LINE_BYTES:
                self._say(
                    {"error": f"a query has at most {MOST_LINE_BYTES} bytes; name a file instead"}
                )
                return
            try:
                query = parse(line)
                reply = service.status() if query is None else service.ask(query)
            except UsageError as error:
                reply = {"error": str(error)}
            self._say(reply)

    def _say(self, reply: Mapping[str, Any]) -> None:
        with contextlib.suppress(OSError):  # the client has left
            self.wfile.write(json.dumps(reply).encode() + b"\n")

    def finish(self) -> None:
        assert isinstance(self.server, _Server)
        self.server.connections.discard(self.connection)
        super().finish()


def listen(path: str) -> _Server:
    """A server on a socket that only its owner may use.

    Raises
    ------
    UsageError
        Another service is there, or no socket can be made.
    """
    place = Path(path)
    if place.is_socket():
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(path)
            except OSError:  # nobody is left behind it
                place.unlink(missing_ok=True)
            else:
                raise UsageError(f"{path}: a service listens there already")
    old = os.umask(0o177)
    try:
        return _Server(path)
    except OSError as error:
        raise UsageError(
            f"--socket {path}: {error.strerror or error}; name a new file in a folder of yours"
        ) from error
    finally:
        os.umask(old)


def serve(comm: Any, options: argparse.Namespace) -> int:
    """A rank of a service, until a signal ends it; returns the exit code."""
    ending = Ending(comm.rank)
    problem, server = "", None
    try:
        mine = sources.model(options, comm.size, comm.rank)
        _room(options, mine, comm.size)
        if comm.rank == 0:
            server = listen(options.socket)
    except FAULTS as error:
        problem = str(error)
    try:
        worker.agree(comm, problem)
    except SystemExit:
        if server is not None:
            server.server_close()
            Path(options.socket).unlink(missing_ok=True)
        raise
    service = Service(comm, options, mine)
    if server is not None:
        try:
            server.service = service
            threading.Thread(target=server.serve_forever, daemon=True).start()
            print(
                f"{mine.name} network of {mine.neurons} neurons, {mine.layers} layers, on {comm.size} workers: "
                f"ready at {options.socket}",
                flush=True,
            )
            ending.wait()
            print("smpi-infer: stopping", file=sys.stderr, flush=True)
            service.stop()
            service.join()
        finally:
            server.end()
            Path(options.socket).unlink(missing_ok=True)
    service.join()
    return 0


# --- its client -------------------------------------------------------------------------------------------------------


def ask(path: str, question: Mapping[str, Any]) -> dict[str, Any]:
    """A service's reply to one query.

    Raises
    ------
    UsageError
        Nobody listens at `path`, or the service ended before it answered.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(path)
        except OSError as error:
            raise UsageError(
                f"no service listens at {path} ({error.strerror or error}): start `smpi-infer serve --socket {path}`"
            ) from error
        try:
            connection.sendall(json.dumps(question).encode() + b"\n")
            with connection.makefile("rb") as lines:
                line = lines.readline()
        except OSError:
            line = b""
        if not line:
            raise UsageError(f"the service at {path} ended before it answered")
        reply: dict[str, Any] = json.loads(line)
        return reply
