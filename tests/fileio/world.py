"""Ranks that are threads, and an S3 in memory, for backends without a job or a server."""

from __future__ import annotations

import hashlib
import pickle
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any

from serverless_mpi.errors import ChannelError

GIVE_UP_S = 60.0  # only reached by a failure


class Hub:
    """What the threads of one group share."""

    def __init__(self, size: int, free: bool) -> None:
        self.size, self.free = size, free
        self.barrier = threading.Barrier(size)
        self.values: list[Any] = [None] * size
        self.boxes: dict[tuple[int, int], queue.Queue[Any]] = {
            (source, dest): queue.Queue() for source in range(size) for dest in range(size)
        }


class ThreadRanks:
    """`fileio.base.Ranks` of a thread; what is sent is pickled, as between processes."""

    def __init__(self, hub: Hub, rank: int) -> None:
        self._hub = hub
        self.rank, self.size = rank, hub.size

    def allgather(self, value: Any) -> list[Any]:
        hub = self._hub
        hub.values[self.rank] = pickle.dumps(value)
        hub.barrier.wait(GIVE_UP_S)
        values = [pickle.loads(one) for one in hub.values]
        hub.barrier.wait(GIVE_UP_S)
        return values

    def send(self, value: Any, dest: int) -> Callable[[], None]:
        buffers: list[Any] = []
        stream = pickle.dumps(value, 5, buffer_callback=buffers.append)
        self._hub.boxes[self.rank, dest].put((stream, [bytes(one) for one in buffers]))
        return lambda: None

    def recv(self, source: int) -> Any:
        stream, buffers = self._hub.boxes[source, self.rank].get(timeout=GIVE_UP_S)
        return pickle.loads(stream, buffers=buffers)

    def exchange_is_free(self) -> bool:
        return self._hub.free


def on_ranks(size: int, body: Callable[[ThreadRanks], Any], *, free: bool = True) -> list[Any]:
    """Return body(ranks) of each of `size` threads; raises what the first failing one raised."""
    hub = Hub(size, free)
    results: list[Any] = [None] * size
    failures: list[BaseException] = []

    def one(rank: int) -> None:
        try:
            results[rank] = body(ThreadRanks(hub, rank))
        except BaseException as error:
            failures.append(error)
            hub.barrier.abort()

    threads = [threading.Thread(target=one, args=(rank,), daemon=True) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(GIVE_UP_S)
    for error in failures:
        if not isinstance(error, threading.BrokenBarrierError):
            raise error
    assert not failures and not any(thread.is_alive() for thread in threads)
    return results


class MemoryS3:
    """The calls of `aws.s3.S3` that files use, on a dictionary; it counts requests.

    Attributes
    ----------
    refuse
        Action -> error code that the next request of it is refused with.
    """

    def __init__(self, least_part: int = 1) -> None:
        self.objects: dict[str, bytes] = {}
        self.uploads: dict[str, dict[int, tuple[bytes, str]]] = {}
        self.requests: list[str] = []
        self.refuse: dict[str, str] = {}
        self._least_part = least_part
        self._lock = threading.Lock()

    def _do(self, action: str) -> None:
        with self._lock:
            self.requests.append(action)
            code = self.refuse.pop(action, "")
        if code:
            raise ChannelError(f"S3 refused to {action}: {code}", code=code)

    def head(self, key: str) -> tuple[int, str] | None:
        self._do("head")
        body = self.objects.get(key)
        return None if body is None else (len(body), _tag(body))

    def list(self, prefix: str) -> Sequence[str]:
        self._do("list")
        return [key for key in self.objects if key.startswith(prefix)]

    def get(
        self, key: str, start: int = 0, length: int | None = None, into: Any = None,
        match: str = "",
    ) -> tuple[memoryview, int] | None:  # fmt: skip
        self._do("get")
        body = self.objects.get(key)
        if body is None:
            return None
        if match and match != _tag(body):
            raise ChannelError("S3 refused to get: replaced", code="PreconditionFailed")
        end = len(body) if length is None else start + length
        return memoryview(bytearray(body[start:end])), len(body)

    def put(self, key: str, parts: Sequence[memoryview]) -> None:
        self._do("put")
        self.objects[key] = b"".join(parts)

    def create(self, key: str, body: bytes) -> bool:
        self._do("create")
        with self._lock:
            if key in self.objects:
                return False
            self.objects[key] = body
            return True

    def replace(self, key: str, body: bytes, match: str) -> bool:
        self._do("replace")
        with self._lock:
            if _tag(self.objects.get(key, b"")) != match:
                return False
            self.objects[key] = body
            return True

    def begin_upload(self, key: str) -> str:
        self._do("begin")
        self.uploads[key] = {}
        return key

    def put_part(self, key: str, upload: str, number: int, part: Sequence[memoryview]) -> str:
        self._do("put_part")
        body = b"".join(part)
        self.uploads[upload][number] = body, _tag(body)
        return _tag(body)

    def copy_part(
        self, key: str, upload: str, number: int, start: int, end: int, match: str
    ) -> str:
        self._do("copy_part")
        body = self.objects[key]
        assert _tag(body) == match and 0 <= start < end <= len(body)
        self.uploads[upload][number] = body[start:end], _tag(body[start:end])
        return _tag(body[start:end])

    def complete_upload(
        self, key: str, upload: str, tags: Sequence[tuple[int, str]], nbytes: int
    ) -> None:
        self._do("complete")
        parts = self.uploads.pop(upload)
        numbers = [number for number, _ in tags]
        assert numbers == sorted(set(numbers))
        assert all(parts[number][1] == tag for number, tag in tags)
        bodies = [parts[number][0] for number in numbers]
        assert all(len(body) >= self._least_part for body in bodies[:-1])
        self.objects[key] = b"".join(bodies)
        assert len(self.objects[key]) == nbytes

    def abort_upload(self, key: str, upload: str) -> None:
        self._do("abort")
        self.uploads.pop(upload, None)

    def delete(self, keys: Sequence[str]) -> Sequence[str]:
        self._do("delete")
        for key in keys:
            self.objects.pop(key, None)
        return []

    def close(self) -> None:
        """As the client's."""


def _tag(body: bytes) -> str:
    return hashlib.md5(body, usedforsecurity=False).hexdigest()
