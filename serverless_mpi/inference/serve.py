"""`smpi-infer serve`: workers that stay warm between queries; and its client, `smpi-infer query`.

A client connects to a Unix socket, which only its owner may do, and sends one JSON object per line.
The service replies to each with one line:

    {"images": "/path/or/s3://url", "samples": 100}
    {"input": "name of a stored input"}
    {"status": true}

    {"categories": [...], "scores": [...], "neurons": [...], "checksum": "...", "images": 100,
     "seconds": 0.1, "waited": 0.0}
    {"error": "what is wrong, and what would work"}

Rank 0 listens. Queries wait in a bounded queue; each of a few lanes takes one at a time, on a
communicator of its own, so that one query computes while another waits for its exchange.

Clients are bounded. Rank 0 parses a query and reads its file before any other rank receives it; a
fault until then is reported to that client, and the next query is served. A connection has a
bounded buffer and a time limit for each line and each reply. If MOST_CONNECTIONS are open, a new
connection replaces the one that is idle the longest; it is refused, with a reply, only if all are
busy.

The end. SIGTERM and SIGINT first remove the socket's file, so that it cannot be left behind.
Running queries are answered within STOP_S, which is less than the time that smpirun waits before it
kills. Waiting queries get an error, and so do those that take longer: the job is then aborted,
since a lane cannot be interrupted.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import queue
import signal
import socket
import socketserver
import stat
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serverless_mpi.errors import UsageError
from serverless_mpi.inference import engine, plan, sources, store, worker
from serverless_mpi.inference.communicator import Communicator
from serverless_mpi.inference.options import ServeOptions
from serverless_mpi.inference.worker import FAULTS, Answer

Floats = NDArray[np.float32]
MOST_LINE_BYTES = 1 << 16  # a path has at most 4096 bytes
CHUNK_BYTES = 1 << 16
MOST_CONNECTIONS = 64
IDLE_S = 600.0  # time limit for the next line of a client
LEAST_IDLE_S = 1.0  # idle time after which a new connection may replace another
REPLY_S = 30.0  # time limit for a client to read a reply
STOP_S = 2.0  # from a signal to the exit; smpirun kills after 3 s
LAST_REPLIES_S = 0.3  # least share of STOP_S for the last replies
POLL_S = 0.1  # period in which the accepting thread checks whether to end
ACCEPT_PAUSE_S = 0.1  # after an accept that failed
PROBE_S = 2.0  # time limit for the probe of an existing socket
LOCK_S = 5.0  # time limit for the lock of the socket's folder
FIELDS = {"images", "input", "samples", "status"}
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Ending:
    """Handles SIGTERM and SIGINT: rank 0 waits for them; the other ranks, which it stops, do not.

    A signal may arrive in any thread, so it is written to a pipe. Make it in the main thread.

    Parameters
    ----------
    rank
        World rank of this process.
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

    def wait(self) -> int:
        """Wait for the first signal and return its number."""
        return os.read(self._fd, 1)[0]


@dataclass(eq=False)
class Query:
    """A query that was checked without its files, and its reply.

    Attributes
    ----------
    images, input
        Path or URL of images, or name of a stored input; one of them is None.
    samples
        Number of images to use, the first ones; None for all.
    asked
        When it arrived, in seconds of the monotonic clock.
    reply
        Future of the reply.
    """

    images: str | None
    input: str | None
    samples: int | None
    asked: float = field(default_factory=time.monotonic)
    reply: Future[dict[str, Any]] = field(default_factory=Future)


def parse(line: bytes) -> Query | None:
    """Parse a line of JSON.

    Parameters
    ----------
    line
        A line that a client sent.

    Returns
    -------
    Query or None
        None if the line asks for the status.

    Raises
    ------
    UsageError
        The line is not a query; the message shows what one looks like.
    """
    try:
        text = json.loads(line)
    except (ValueError, RecursionError) as error:
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
            "a query has either images, a path or an s3:// URL, or input, the name of a stored "
            "input"
        )
    if samples is not None and (
        not isinstance(samples, int) or isinstance(samples, bool) or samples < 1
    ):
        shown = repr(samples)[:40]
        raise UsageError(f"samples is {shown}, not a whole number above 0")
    return Query(images, name, samples)


class Service:
    """A rank of the service: its part of the model, and its lanes.

    A lane is a thread with a communicator of its own. At rank 0 it takes queries from the queue and
    broadcasts each as an order; at the other ranks it executes the orders.

    Parameters
    ----------
    comm
        Communicator of all workers.
    options
        Options of the service, equal on all ranks.
    model
        This rank's part of the model.

    Attributes
    ----------
    waiting
        Queries that no lane has taken; None ends a lane.
    at_failure
        Called before the job is aborted.
    stopping
        Whether further queries are refused.
    counts
        Numbers of queries by outcome.
    """

    def __init__(self, comm: Communicator, options: ServeOptions, model: sources.Model) -> None:
        self._comm, self._options, self._model = comm, options, model
        self._batch_size = _batch_size(options, model, comm.size)
        # Half of a rank's memory is for images that are read, divided among the lanes.
        self._limit = _memory_mb(options, comm.size) * plan.MB // (2 * options.lanes)
        # Places for all queries that may wait, and for the end of each lane.
        self.waiting: queue.Queue[Query | None] = queue.Queue(options.queue + options.lanes)
        self._lanes = [
            threading.Thread(target=self._run, args=(comm.Dup(),), name=f"lane-{n}")
            for n in range(options.lanes)
        ]
        self._lock = threading.Lock()
        self._running: set[Query] = set()
        self.at_failure: Callable[[], None] = lambda: None
        self.stopping = False
        self.counts = {"answered": 0, "refused": 0, "failed": 0}
        for lane in self._lanes:
            lane.start()

    # -- rank 0: called by the threads of connections

    def ask(self, query: Query) -> dict[str, Any]:
        """Queue a query and wait for its reply.

        Parameters
        ----------
        query
            The query.

        Returns
        -------
        dict
            The reply; an error if the service is full or stopping.
        """
        with self._lock:
            full = self.waiting.qsize() >= self._options.queue
            if self.stopping or full:
                self.counts["refused"] += 1
                reason = (
                    "the service is stopping"
                    if self.stopping
                    else f"{self._options.queue} queries are waiting already; ask again later"
                )
                return {"error": reason}
            self.waiting.put_nowait(query)  # under the lock, so that `stop` misses no query
        reply = query.reply.result()
        with self._lock:
            self.counts["failed" if "error" in reply else "answered"] += 1
        return reply

    def status(self) -> dict[str, Any]:
        """Return the model, the workers, and the counts of queries, as JSON values."""
        model = self._model
        return {
            "model": model.name,
            "neurons": model.neurons,
            "layers": model.layers,
            "workers": self._comm.size,
            "lanes": len(self._lanes),
            "waiting": self.waiting.qsize(),
            **self.counts,
        }

    def stop(self) -> None:
        """Refuse waiting queries and let the lanes of all ranks end after the running ones.

        Called at rank 0.
        """
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

    def join(self, deadline: float = math.inf) -> bool:
        """Wait until every lane has ended, or until a deadline.

        Parameters
        ----------
        deadline
            Time of the monotonic clock, in seconds.

        Returns
        -------
        bool
            Whether all lanes have ended.
        """
        for lane in self._lanes:
            left = deadline - time.monotonic()
            lane.join(None if left == math.inf else max(0.0, left))
        return not any(lane.is_alive() for lane in self._lanes)

    def give_up(self) -> None:
        """Reply with an error to the queries that are still being computed."""
        with self._lock:
            running, self._running = self._running, set()
        for query in running:
            query.reply.set_result({"error": "the service is stopping; the query took too long"})

    def _answer(self, query: Query, reply: dict[str, Any]) -> None:
        with self._lock:
            if query not in self._running:  # `give_up` has answered it
                return
            self._running.remove(query)
        query.reply.set_result(reply)

    # -- a lane

    def _run(self, lane: Communicator) -> None:
        try:
            if lane.rank == 0:
                while (query := self.waiting.get()) is not None:
                    with self._lock:
                        self._running.add(query)
                    self._answer(query, self._lead(lane, query))
                lane.bcast(None)
            else:
                while (order := lane.bcast(None)) is not None:
                    self._work(lane, order, None)
        except BaseException:  # the communicator has failed, or a bug: no lane can continue alone
            traceback.print_exc()
            self.at_failure()
            self._comm.Abort(1)

    def _lead(self, lane: Communicator, query: Query) -> dict[str, Any]:
        """Run a query on all ranks and return the reply; called at rank 0."""
        started = time.monotonic()
        try:
            x = self._read(query)
        except Exception as error:  # any fault of a file; no other rank has the query yet
            return {"error": _error_text(error)}
        order = {
            "input": query.input,
            "samples": query.samples,
            "count": None if x is None else x.shape[1],
        }
        lane.bcast(order)
        try:
            answer, count = self._work(lane, order, x)
        except UsageError as error:  # some rank could not load its rows, and all ranks skip it
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
        """Read and check the images of a file; None if every rank loads its rows from the store."""
        if query.input is not None:
            if not self._options.store:
                raise UsageError(
                    "this service has no store, so it has no stored inputs: send images"
                )
            return None
        x = sources.read_images(
            self._options, str(query.images), self._model.neurons, query.samples, self._limit
        )
        store.check_images(x, self._model.neurons)
        return x

    def _work(
        self, lane: Communicator, order: Mapping[str, Any], whole: Floats | None
    ) -> tuple[Answer | None, int]:
        """Run the images of an order; return the answer (at rank 0) and the number of images.

        Called at every rank, in the same order in each lane.
        """
        model, problem = self._model, ""
        x = np.zeros((0, 0), np.float32)
        # Images of a file are scattered by rank 0; those of the store are read by every rank.
        if order["count"] is None:
            try:
                x = sources.stored_images(
                    self._options, order["input"], lane.rank, order["samples"]
                )
            except Exception as error:  # reported before anything is computed, as in `_lead`
                problem = _error_text(error)
            problems = [text for text in lane.allgather(problem) if text]
            if problems:
                if lane.rank:
                    return None, 0
                raise UsageError(problems[0])
        else:
            x = lane.scatter(
                None
                if whole is None
                else [_packed(whole[model.first == part]) for part in range(lane.size)]
            )
            x = _unpacked(x, order["count"])
        answers = []
        for start in range(0, x.shape[1], self._batch_size):
            batch = np.ascontiguousarray(x[:, start : start + self._batch_size])
            y, samples, _ = engine.infer(lane, model.own, batch, model.bias, model.cap)
            share = worker.answer(lane, model, y, samples, lane.rank, self._options.top)
            if share is not None:
                answers.append((start, share))
        return (worker.joined(answers) if answers else None), x.shape[1]


def _error_text(error: Exception) -> str:
    """Return the error for a client; log the traceback of an error that users cannot cause."""
    if isinstance(error, FAULTS):
        return str(error)
    traceback.print_exc()
    kind = "not enough memory" if isinstance(error, MemoryError) else type(error).__name__
    return f"the images could not be read ({kind})"


def _packed(rows: Floats) -> Floats | NDArray[np.uint8]:
    """Return rows of 0 and 1 as bits, other rows unchanged."""
    return np.packbits(rows != 0, axis=1) if ((rows == 0) | (rows == 1)).all() else rows


def _unpacked(rows: Floats | NDArray[np.uint8], samples: int) -> Floats:
    if rows.dtype == np.float32:
        return np.asarray(rows, np.float32)
    return np.unpackbits(rows.astype(np.uint8), axis=1, count=samples).astype(np.float32)


def _batch_size(options: ServeOptions, model: sources.Model, ranks: int) -> int:
    """Return the samples per batch with which the panels of all lanes fit a worker's memory."""
    platform = plan.place(options.platform)
    limit = _memory_mb(options, ranks)
    work = plan.Work(model.neurons, model.layers, 1, model.nonzeros, model.nbytes)
    plan.check_memory(work, ranks, limit, platform.base_mb)
    fixed_mb = plan.worker_mb(work, ranks, 0, platform.base_mb)
    sample_mb = (plan.worker_mb(work, ranks, 1000, platform.base_mb) - fixed_mb) / 1000
    return max(plan.LEAST_BATCH, int((limit - fixed_mb) / sample_mb / options.lanes))


def _memory_mb(options: ServeOptions, ranks: int) -> int:
    """Return the memory of a rank in MiB."""
    most = max(plan.place(options.platform).memory_sizes)
    return int(options.memory or most // (ranks if options.platform == "local" else 1))


# --- the socket -----------------------------------------------------------------------------------


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """A server with a thread per connection, at most MOST_CONNECTIONS of them."""

    request_queue_size = 64
    daemon_threads = True
    block_on_close = False
    service: Service

    def __init__(self, path: str) -> None:
        self._lock = threading.Lock()
        # Connection -> when it became idle, by the monotonic clock; None while it is busy.
        self._idle_since: dict[socket.socket, float | None] = {}
        self._client_threads: set[threading.Thread] = set()
        super().__init__(path, _Client)
        self._path, self._file = path, _identity(path)

    # -- the thread that accepts

    def get_request(self) -> tuple[socket.socket, object]:
        """Accept the next connection; the base class calls it."""
        try:
            return super().get_request()
        except OSError:  # no descriptor is left: without a pause this would spin
            self._drop_the_most_idle()
            time.sleep(ACCEPT_PAUSE_S)
            raise

    def verify_request(self, request: Any, client_address: object) -> bool:
        """Return whether to serve a connection, and reply if not; the base class calls it."""
        with self._lock:
            full = len(self._idle_since) >= MOST_CONNECTIONS
        if full and not self._drop_the_most_idle():
            request.setblocking(False)
            _send(
                request, {"error": f"{MOST_CONNECTIONS} clients are being served; ask again later"}
            )
            return False
        with self._lock:
            self._idle_since[request] = time.monotonic()
        return True

    def _drop_the_most_idle(self) -> bool:
        """Close the connection that is idle the longest; False if none is idle for LEAST_IDLE_S."""
        before = time.monotonic() - LEAST_IDLE_S
        with self._lock:
            idle = [
                (since, connection)
                for connection, since in self._idle_since.items()
                if since and since <= before
            ]
            if not idle:
                return False
            chosen = min(idle, key=lambda pair: pair[0])[1]
            del self._idle_since[chosen]
        _shut(chosen, socket.SHUT_RD)  # its thread replies with the reason and ends
        return True

    def process_request_thread(self, request: Any, client_address: object) -> None:
        """Serve a connection, and record its thread meanwhile; the base class calls it."""
        with self._lock:
            self._client_threads.add(threading.current_thread())
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._lock:
                self._client_threads.discard(threading.current_thread())
                self._idle_since.pop(request, None)

    # -- threads of connections

    def mark(self, connection: socket.socket, busy: bool) -> bool:
        """Record whether a connection is busy.

        Parameters
        ----------
        connection
            The connection.
        busy
            Whether a query of it is being answered.

        Returns
        -------
        bool
            False if the connection has been dropped for another one.
        """
        with self._lock:
            if connection not in self._idle_since:
                return False
            self._idle_since[connection] = None if busy else time.monotonic()
            return True

    # -- the main thread

    def stop_listening(self) -> None:
        """Accept no more connections, and remove the socket's file."""
        self.shutdown()
        self.server_close()
        self.remove_file()

    def remove_file(self) -> None:
        """Remove the socket's file, unless another service has replaced it."""
        with contextlib.suppress(OSError):
            if _identity(self._path) == self._file:
                os.unlink(self._path)

    def end(self, deadline: float) -> None:
        """Wait until the finished replies are written, and close all connections.

        Parameters
        ----------
        deadline
            Time of the monotonic clock after which replies are abandoned, in seconds.
        """
        with self._lock:
            connections, threads = list(self._idle_since), list(self._client_threads)
        for connection in connections:
            _shut(connection, socket.SHUT_RD)
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        for connection in connections:
            _shut(connection, socket.SHUT_RDWR)  # of a client that does not read


def _identity(path: str) -> tuple[int, int, int]:
    """Return what distinguishes a file from others that had its name."""
    status = os.lstat(path)
    # The time as well, since the inode of a removed file is used again.
    return (status.st_dev, status.st_ino, status.st_mtime_ns)


def _shut(connection: socket.socket, how: int) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(how)


def _send(connection: socket.socket, reply: Mapping[str, Any]) -> bool:
    """Write a reply; False if the client has disconnected or does not read."""
    try:
        connection.sendall(json.dumps(reply).encode() + b"\n")
    except OSError:
        return False
    return True


class _Client(socketserver.BaseRequestHandler):
    """A connection: one reply per line, in order."""

    request: socket.socket
    server: _Server

    def handle(self) -> None:
        """Serve until the client disconnects, is idle for too long, or does not read."""
        self._buffer = bytearray()
        while (line := self._line()) is not None:
            if not self.server.mark(self.request, busy=True):
                return
            reply = self._reply(line)
            # Before the reply: a client that has received it may rely on being idle.
            self.server.mark(self.request, busy=False)
            if not self._send_reply(reply):
                return

    def _reply(self, line: bytes) -> dict[str, Any]:
        service = self.server.service
        try:
            query = parse(line)
            return service.status() if query is None else service.ask(query)
        except UsageError as error:
            return {"error": str(error)}

    def _send_reply(self, reply: Mapping[str, Any]) -> bool:
        self.request.settimeout(REPLY_S)
        return _send(self.request, reply)

    def _line(self) -> bytes | None:
        """Return the next line, or an unterminated rest; None if the connection is to be closed."""
        # The limit is for the whole line: a client that sends a byte now and then is idle, too.
        deadline, looked = time.monotonic() + IDLE_S, 0
        while (end := self._buffer.find(b"\n", looked)) < 0:
            looked = len(self._buffer)
            if looked > MOST_LINE_BYTES:
                break
            try:
                self.request.settimeout(max(0.001, deadline - time.monotonic()))
                chunk = self.request.recv(CHUNK_BYTES)
            except TimeoutError:
                self._send_reply({"error": f"no query arrived within {IDLE_S:g} s; connect again"})
                return None
            except OSError:
                return None
            if not chunk:
                if not self.server.mark(self.request, busy=False):
                    self._send_reply(
                        {
                            "error": "this idle connection was closed in favour of others; "
                            "connect again"
                        }
                    )
                    return None
                rest, self._buffer = bytes(self._buffer), bytearray()
                return rest or None
            self._buffer += chunk
        if end < 0 or end > MOST_LINE_BYTES:
            self._send_reply(
                {"error": f"a query has at most {MOST_LINE_BYTES} bytes; name a file instead"}
            )
            return None
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, so that no other service starts between the probe and the bind."""
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise UsageError(
            f"--socket in {folder}: {error.strerror}; name a new file in a folder of yours"
        ) from error
    try:
        give_up = time.monotonic() + LOCK_S
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if time.monotonic() > give_up:
                    raise UsageError(
                        f"--socket in {folder}: another process holds the lock of that folder; "
                        "name a new file in a folder of yours"
                    ) from error
                time.sleep(0.01)
        yield
    finally:
        os.close(fd)


def listen(path: str) -> _Server:
    """Listen on a Unix socket that only its owner may use.

    Parameters
    ----------
    path
        The socket's file; that of a killed service is replaced.

    Returns
    -------
    _Server
        Its service is not set yet.

    Raises
    ------
    UsageError
        Another service listens there, or the socket cannot be made.
    """
    with _alone_in(Path(path).parent):
        if _is_abandoned(path):
            os.unlink(path)
        # The umask gives the socket's file its mode before anyone can connect.
        old = os.umask(0o177)
        try:
            return _Server(path)
        except OSError as error:
            raise UsageError(
                f"--socket {path}: {error.strerror or error}; name a new file in a folder of yours"
            ) from error
        finally:
            os.umask(old)


def _is_abandoned(path: str) -> bool:
    """Return whether a path is a socket without a listener; raise UsageError if it has one.

    Only a refused connection proves that: one that must wait may be that of a busy service.
    """
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return False
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(PROBE_S)
            probe.connect(path)
    except (ConnectionRefusedError, FileNotFoundError) as error:
        return isinstance(error, ConnectionRefusedError)
    except (TimeoutError, BlockingIOError):
        pass
    except OSError as error:
        raise UsageError(f"--socket {path}: {error.strerror or error}") from error
    raise UsageError(f"{path}: another service is listening there")


def serve(comm: Communicator, options: ServeOptions) -> int:
    """Serve until a signal arrives; collective over the communicator.

    Parameters
    ----------
    comm
        Communicator of all workers; its size is the number of parts.
    options
        Options of the service, equal on all ranks.

    Returns
    -------
    int
        Exit code, 0.

    Raises
    ------
    SystemExit
        A rank cannot load its part, or rank 0 cannot listen.
    """
    ending = Ending(comm.rank)
    problem, server = "", None
    try:
        model = sources.model(options, comm.size, comm.rank)
        _batch_size(options, model, comm.size)  # raises if the model does not fit the memory
        if comm.rank == 0:
            server = listen(options.socket)
    except FAULTS as error:
        problem = str(error)
    try:
        worker.agree(comm, problem)
    except SystemExit:
        if server is not None:
            server.server_close()
            server.remove_file()
        raise
    service = Service(comm, options, model)
    if server is not None:
        _run_until_signal(comm, ending, server, service, model)
    service.join()
    return 0


def _run_until_signal(
    comm: Communicator, ending: Ending, server: _Server, service: Service, model: sources.Model
) -> None:
    """Serve at rank 0; abort the job if a running query does not end within STOP_S."""
    server.service = service
    service.at_failure = server.remove_file
    accepting = threading.Thread(target=server.serve_forever, args=(POLL_S,), daemon=True)
    try:
        accepting.start()
        print(
            f"{model.name} network of {model.neurons} neurons, {model.layers} layers, on "
            f"{comm.size} workers: ready at {server.server_address!s}",
            flush=True,
        )
        number = ending.wait()
    finally:
        server.remove_file()  # first: a launcher may kill this process at any time
    deadline = time.monotonic() + STOP_S
    with contextlib.suppress(OSError):  # the terminal may be closed
        print("smpi-infer: stopping", file=sys.stderr, flush=True)
    server.stop_listening()
    service.stop()
    done = service.join(deadline)
    service.give_up()
    server.end(max(deadline, time.monotonic() + LAST_REPLIES_S))
    if not done:
        comm.Abort(128 + number)


# --- its client -----------------------------------------------------------------------------------


def ask(path: str, question: Mapping[str, Any]) -> dict[str, Any]:
    """Send a query to a service and return its reply.

    Parameters
    ----------
    path
        Socket of the service.
    question
        The query, as JSON values.

    Returns
    -------
    dict
        The reply, as JSON values.

    Raises
    ------
    UsageError
        No service listens at `path`, or it ended before it replied.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(path)
        except OSError as error:
            raise UsageError(
                f"no service listens at {path} ({error.strerror or error}): start `smpi-infer "
                f"serve --socket {path}`"
            ) from error
        with contextlib.suppress(OSError):  # a service that refuses may reply before it reads
            connection.sendall(json.dumps(question).encode() + b"\n")
        try:
            with connection.makefile("rb") as lines:
                line = lines.readline()
        except OSError:
            line = b""
        if not line:
            raise UsageError(f"the service at {path} ended before it replied")
        reply: dict[str, Any] = json.loads(line)
        return reply
