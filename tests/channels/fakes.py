"""SQS, SNS and S3 in this process, in the places of `aws/sqs.py`, `aws/sns.py` and `aws/s3.py`."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from serverless_mpi.aws.http import Busy
from serverless_mpi.aws.sqs import Received, frames_of
from serverless_mpi.channels import hybrid, object, queue
from serverless_mpi.channels.base import Channel
from serverless_mpi.errors import ChannelError
from serverless_mpi.job import JobSpec
from serverless_mpi.metering import Meter


@dataclass
class Cloud:
    """What is stored, and the troubles that the next calls have."""

    objects: dict[str, bytes] = field(default_factory=dict)
    queues: dict[str, list[Any]] = field(default_factory=lambda: defaultdict(list))
    most_bytes: int = 0  # of all objects at one time
    live_bytes: int = 0
    deleted: int = 0  # messages and objects
    trouble: Callable[[str, str], Exception | None] = lambda action, name: None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def ask(self, action: str, name: str) -> None:
        if (error := self.trouble(action, name)) is not None:
            raise error

    def store(self, key: str, body: bytes) -> None:
        with self.lock:
            self.live_bytes += len(body) - len(self.objects.pop(key, b""))
            self.objects[key] = body
            self.most_bytes = max(self.most_bytes, self.live_bytes)


class FakeSqs:
    """The calls of `aws.sqs.Sqs`; a queue's name is its rank's number."""

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud
        self.prompt = False

    def send(self, queue: str, frames: Sequence[bytes], budget_s: float = 0.0) -> None:
        self._cloud.ask("send", queue)
        self._cloud.queues[queue] += [bytearray(frame) for frame in frames]

    def receive(self, queue: str, wait_s: int) -> list[Received]:
        self._cloud.ask("receive", queue)
        with self._cloud.lock:
            taken = self._cloud.queues[queue][:10]
            del self._cloud.queues[queue][:10]
        return [
            frames_of([one])[0] if isinstance(one, dict) else Received(memoryview(one), "handle")
            for one in taken
        ]

    def delete(self, queue: str, handles: Sequence[str]) -> list[str]:
        self._cloud.ask("delete", queue)
        with self._cloud.lock:
            self._cloud.deleted += len(handles)
        return []


class FakeSns:
    """The calls of `aws.sns.Sns`."""

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud

    def publish(
        self, topic: str, messages: Sequence[tuple[bytes, Sequence[int]]], budget_s: float = 0.0
    ) -> None:
        self._cloud.ask("publish", topic)
        for frame, dests in messages:
            for dest in dests:
                self._cloud.queues[str(dest)].append(bytearray(frame))


class FakeS3:
    """The calls of `aws.s3.S3`."""

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud

    def put(self, key: str, parts: Sequence[memoryview]) -> None:
        self._cloud.ask("put", key)
        self._cloud.store(key, b"".join(parts))

    def get(
        self,
        key: str,
        start: int = 0,
        length: int | None = None,
        into: Any = None,
        come: Any = None,
        budget_s: float = 0.0,
    ) -> tuple[memoryview, int] | None:
        self._cloud.ask("get", key)
        whole = self._cloud.objects.get(key)
        if whole is None:
            return None
        part = whole[start:] if length is None else whole[start : start + length]
        memory = into(len(whole)) if callable(into) else into
        if memory is None or memory.nbytes < len(part):
            return memoryview(bytearray(part)), len(whole)
        memory[: len(part)] = part
        return memory[: len(part)], len(whole)

    def list(self, prefix: str, after: str = "", budget_s: float = 0.0) -> Sequence[str]:
        self._cloud.ask("list", prefix)
        with self._cloud.lock:
            keys = [key for key in self._cloud.objects if key.startswith(prefix) and key > after]
        return sorted(keys)[:1000]

    def list_all(self, prefix: str, budget_s: float = 0.0) -> Sequence[str]:
        return self.list(prefix)

    def delete(self, keys: Sequence[str]) -> Sequence[str]:
        self._cloud.ask("delete", keys[0])
        with self._cloud.lock:
            for key in keys:
                self._cloud.deleted += 1
                self._cloud.live_bytes -= len(self._cloud.objects.pop(key, b""))
        return []


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> Cloud:
    """Return a cloud that the channels made in this test use."""
    return installed(monkeypatch)


def installed(monkeypatch: pytest.MonkeyPatch) -> Cloud:
    """Return a cloud that channels use from now on, until `monkeypatch` is undone."""
    made = Cloud()
    monkeypatch.setattr(queue.sqs, "Sqs", lambda client: FakeSqs(made))
    monkeypatch.setattr(queue.sns, "Sns", lambda client: FakeSns(made))
    monkeypatch.setattr(object, "S3", lambda client, bucket: FakeS3(made))
    return made


def job(name: str, size: int) -> JobSpec:
    """A job on channel `name` whose services nobody asks."""
    settings = {
        "queues": "[" + ",".join(f'"{rank}"' for rank in range(size)) + "]",
        "topics": '["topic"]',
        "bucket": "bucket",
    }
    return replace(JobSpec.new(size, name, endpoint="http://127.0.0.1:1"), settings=settings)


KINDS = {
    "queue": queue.QueueChannel,
    "object": object.ObjectChannel,
    "hybrid": hybrid.HybridChannel,
}


def ranks(name: str, size: int) -> list[Any]:
    """The channels of a job."""
    spec = job(name, size)
    made: list[Channel] = [KINDS[name](spec.with_rank(rank), Meter()) for rank in range(size)]
    return made


def busy(action: str, name: str) -> Exception:
    return Busy(f"{action} {name}: SlowDown")


def denied(action: str, name: str) -> Exception:
    return ChannelError(f"{action} {name}: AccessDenied")
