"""Faults of services that the proxy injects: damaged, late and repeated messages; throttling,
errors, resets.

What befalls a request is a function of the seed, its kind, the queue or object it names, and how many such requests
came before.  The timing of ranks does not enter, except for windows, which are measured on the clock.

A message that is damaged is delivered in addition to the true one, as a third party with access to a queue would do
it, and before it.  An object is damaged in the first answer that carries it.
"""

from __future__ import annotations

import base64
import json
import random
import re
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable
from typing import Any

Forward = Callable[[bytes], bytes]
PROXY_HANDLE = "smpi-fault-"  # handles of messages that the emulator does not have
HELD_PAUSE_S = 0.02  # of a receive while messages are held back
SHARE = 0.25  # of messages and requests that a fault strikes
DATA_PATH = re.compile(r"sqs\.(SendMessageBatch|ReceiveMessage|DeleteMessageBatch)|sns\.Publish|s3")
_KEY = re.compile(rb"^[A-Z]+ /[^/ ?]+/([^ ?]+)[^ ]* HTTP")


class NoHarm:
    """Passes everything on; the base of all faults.

    injected: how many faults there have been; channel: of the job, set before it begins.
    """

    channel = ""

    def __init__(self, seed: int, window_s: float = 0.0) -> None:
        self.seed = seed
        self.window_s = window_s
        self.injected = 0
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    def chance(self, name: str) -> random.Random:
        """The randomness of the next event of that name."""
        with self._lock:
            number = self._counts[name]
            self._counts[name] += 1
        return random.Random(zlib.crc32(f"{self.seed}/{name}/{number}".encode()))

    def strike(self, count: int = 1) -> None:
        with self._lock:
            self.injected += count

    def exchange(self, kind: str, request: bytes, forward: Forward) -> bytes | None:
        return forward(request)


# --- messages -------------------------------------------------------------------------------------


class Messages(NoHarm):
    """Changes what ReceiveMessage and GET return; the base of the faults of messages."""

    def exchange(self, kind: str, request: bytes, forward: Forward) -> bytes | None:
        if kind == "sqs.ReceiveMessage":
            asked = json.loads(_body(request))
            queue = str(asked["QueueUrl"])
            if self.holds(queue):  # the emulator's long poll does not know of what is held here
                asked["WaitTimeSeconds"] = 0
                request = _with_body(request, json.dumps(asked).encode())
                time.sleep(HELD_PAUSE_S)
            answer = forward(request)
            fields = _fields(answer)
            if not _succeeded(answer) or fields is None:
                return answer
            fields["Messages"] = self.received(queue, list(fields.get("Messages") or []))
            return _with_body(answer, json.dumps(fields).encode())
        if kind == "sqs.DeleteMessageBatch":
            return _without_own_handles(request, forward)
        if kind == "s3":
            found = _KEY.match(request)
            if found is not None and b"?" not in request.split(b" ", 2)[1]:
                return self.object(found[1].decode(), request, forward)
            if b"list-type=2" in request.split(b" ", 2)[1]:
                return self.listing(request, forward(request))
        return forward(request)

    def holds(self, queue: str) -> bool:
        """Whether messages of `queue` are held back."""
        return False

    def received(self, queue: str, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """What a receive of `queue` returns in place of `messages`."""
        return messages

    def object(self, key: str, request: bytes, forward: Forward) -> bytes | None:
        """The answer to a GET, PUT, HEAD or DELETE of an object."""
        return forward(request)

    def listing(self, request: bytes, answer: bytes) -> bytes:
        """The answer to a LIST."""
        return answer


class Duplicated(Messages):
    """Each message may come again, at once and in a later answer; each PUT is done again a moment later."""

    def __init__(self, seed: int, window_s: float = 0.0) -> None:
        super().__init__(seed, window_s)
        self._again: dict[str, list[dict[str, Any]]] = {}

    def holds(self, queue: str) -> bool:
        return bool(self._again.get(queue))

    def received(self, queue: str, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        with self._lock:
            old = self._again.pop(queue, [])
        result = list(old)
        for message in messages:
            chance = self.chance(queue)
            times = chance.choice((1, 1, 2, 3))
            result += [message] * times
            if chance.random() < SHARE:
                with self._lock:
                    self._again.setdefault(queue, []).append(message)
                times += 1
            self.strike(times - 1)
        return result

    def object(self, key: str, request: bytes, forward: Forward) -> bytes | None:
        answer = forward(request)
        if request.startswith(b"PUT ") and self.chance(key).random() < 2 * SHARE:
            self.strike()
            return forward(request)
        return answer


class Reordered(Messages):
    """Messages of an answer in any order; some wait for a later answer."""

    def __init__(self, seed: int, window_s: float = 0.0) -> None:
        super().__init__(seed, window_s)
        self._held: dict[str, list[dict[str, Any]]] = {}

    def holds(self, queue: str) -> bool:
        return bool(self._held.get(queue))

    def received(self, queue: str, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        chance = self.chance(queue)
        with self._lock:
            mixed = messages + self._held.pop(queue, [])
            before = list(mixed)
            chance.shuffle(mixed)
            if messages and len(mixed) > 1:  # what comes alone is not held back without end
                keep = chance.randrange(len(mixed))
                self._held[queue], mixed = mixed[:keep], mixed[keep:]
            self.injected += mixed != before
        return mixed

    def listing(self, request: bytes, answer: bytes) -> bytes:
        """A LIST that does not show every object yet."""
        body = _body(answer)
        if not re.search(
            rb"[?&]prefix=[^& ]*%2Fr%2F|[?&]prefix=[^& ]*/r/", request.split(b"\r\n")[0]
        ):
            return answer  # not a rank's
        keys = re.findall(rb"<Contents>.*?</Contents>", body, re.DOTALL)
        chance = self.chance("list")
        hidden = [key for key in keys if chance.random() < SHARE]
        if not hidden or not _succeeded(answer):
            return answer
        for key in hidden:
            body = body.replace(key, b"")
        self.strike(len(hidden))
        return _with_body(answer, body)


class Delayed(Messages):
    """Messages that come later, some by the whole window; objects that are not there at first."""

    LONG = (
        2  # messages of a queue that are delayed by the whole window; the others by up to a second
    )

    def __init__(self, seed: int, window_s: float = 0.0) -> None:
        super().__init__(seed, window_s)
        self._held: dict[str, list[tuple[float, dict[str, Any]]]] = {}
        self._since: dict[str, float] = {}  # object -> when it shows itself

    def _delay_s(self, name: str) -> float:
        chance = self.chance(name)
        with self._lock:
            long = self._counts[name] in (3, 4)
        if long:
            return self.window_s
        return chance.uniform(0.0, min(1.0, self.window_s)) if chance.random() < SHARE else 0.0

    def holds(self, queue: str) -> bool:
        return bool(self._held.get(queue))

    def received(self, queue: str, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        now = time.monotonic()
        result = []
        for message in messages:
            delay_s = self._delay_s(queue)
            if delay_s:
                self.strike()
                with self._lock:
                    self._held.setdefault(queue, []).append((now + delay_s, message))
            else:
                result.append(message)
        with self._lock:
            held = self._held.get(queue, [])
            result += [message for at, message in held if at <= now]
            self._held[queue] = [pair for pair in held if pair[0] > now]
        return result

    def object(self, key: str, request: bytes, forward: Forward) -> bytes | None:
        answer = forward(request)
        # the reference to an object of the hybrid channel is sent when the object is there for all: S3 is consistent
        if self.channel == "hybrid" or not request.startswith(b"GET ") or not _succeeded(answer):
            return answer
        now = time.monotonic()
        with self._lock:
            known = key in self._since
        if not known:
            reader = re.sub(
                r"^(?:f/)?[0-9a-f]+/(r/\d+|m)/.*", r"\1", key
            )  # LONG objects of each reader
            delay_s = self._delay_s(reader)
            self.strike(delay_s > 0)
            with self._lock:
                self._since[key] = now + delay_s
        with self._lock:
            early = now < self._since[key]
        return _NOT_FOUND if early else answer


class Dropped(Messages):
    """Answers whose first messages are lost on the way: they come again after the visibility timeout."""

    LOST = 2  # messages of each queue

    def received(self, queue: str, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        result = []
        for message in messages:
            with self._lock:
                number = self._counts[queue]
                self._counts[queue] += 1
            if 1 <= number <= self.LOST:
                self.strike()
            else:
                result.append(message)
        return result


class Damaged(Messages):
    """A damaged copy of a message in front of it; the first answer of an object damaged."""

    def __init__(self, seed: int, window_s: float = 0.0) -> None:
        super().__init__(seed, window_s)
        self._seen: set[str] = set()

    def damage(self, frame: bytes, chance: random.Random) -> bytes:
        """The frame as it arrives."""
        raise NotImplementedError

    def received(self, queue: str, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        result = []
        for message in messages:
            chance = self.chance(queue)
            frame = _frame(message)
            if frame and chance.random() < 2 * SHARE:
                self.strike()
                result.append(_message(self.damage(frame, chance), self.injected))
            result.append(message)
        return result

    def object(self, key: str, request: bytes, forward: Forward) -> bytes | None:
        answer = forward(request)
        if not request.startswith(b"GET ") or not _succeeded(answer):
            return answer
        chance = self.chance("objects")
        with self._lock:
            first = key not in self._seen
            self._seen.add(key)
        if not first or chance.random() >= SHARE or not _body(answer):
            return answer
        self.strike()
        return _with_body(answer, self.damage(_body(answer), chance))


class Truncated(Damaged):
    """Cut short."""

    def damage(self, frame: bytes, chance: random.Random) -> bytes:
        if (
            len(frame) > 200 and chance.random() < 0.5
        ):  # the header, and nothing or a digest's length
            return frame[: 84 + chance.choice((0, 16, 32))]
        return frame[: chance.randrange(len(frame))]


class Extended(Damaged):
    """With more bytes behind it."""

    def damage(self, frame: bytes, chance: random.Random) -> bytes:
        return frame + chance.randbytes(chance.choice((1, 16, 4096)))


class Replaced(Damaged):
    """Replace bytes and keep the length: in the header, the tag or the body, or the body by its digest."""

    def damage(self, frame: bytes, chance: random.Random) -> bytes:
        if len(frame) > 20_000 and chance.random() < 0.5:
            from serverless_mpi.core.wire import digests

            leaves = digests((memoryview(frame)[84:],))
            return frame[:84] + b"".join(leaves)
        changed = bytearray(frame)
        place = chance.randrange(min(len(frame), chance.choice((84, len(frame)))))
        changed[place] ^= 1 << chance.randrange(8)
        return bytes(changed)


class Foreign(Messages):
    """Messages that no rank of the job made: of other programs, of other jobs, of no sense; objects of such."""

    def received(self, queue: str, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        result = list(messages)
        chance = self.chance(queue)
        if messages or chance.random() < SHARE:
            for _ in range(chance.randrange(1, 3)):
                self.strike()
                message = _message(chance.randbytes(chance.choice((0, 3, 84, 500))), self.injected)
                _strange(message, chance)
                result.insert(chance.randrange(len(result) + 1), message)
        return result

    def object(self, key: str, request: bytes, forward: Forward) -> bytes | None:
        chance = self.chance(key)
        found = re.fullmatch(r"(.*/r/.*/)([0-9a-f]{12})(\.\d+)", key)
        if request.startswith(b"PUT ") and found and chance.random() < SHARE:
            other = f"{found[1]}{int(found[2], 16) + 1000:012x}{found[3]}"
            head = request.partition(b"\r\n\r\n")[0].replace(key.encode(), other.encode())
            self.strike()
            forward(_with_body(head + b"\r\n\r\n", chance.randbytes(chance.choice((0, 84, 300)))))
        return forward(request)


class Swapped(Damaged):
    """One message of each queue is lost for good: only a damaged copy comes, under the true handle."""

    def damage(self, frame: bytes, chance: random.Random) -> bytes:
        return frame[:-1] + bytes([frame[-1] ^ 1])

    def received(self, queue: str, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        result = []
        for message in messages:
            frame = _frame(message)
            with self._lock:
                self._counts[queue] += bool(frame)
                third = self._counts[queue] == 3
            if frame and third:
                self.strike()
                damaged = _message(self.damage(frame, random.Random(0)), 0)
                damaged["ReceiptHandle"] = message["ReceiptHandle"]
                message = damaged
            result.append(message)
        return result

    def object(self, key: str, request: bytes, forward: Forward) -> bytes | None:
        answer = forward(request)
        if not request.startswith(b"GET ") or not _succeeded(answer) or not _body(answer):
            return answer
        with self._lock:
            self._seen.add(key)
            if len(self._seen) < 3:
                return answer
            if len(self._seen) == 3:
                self._swapped = key
            if key != self._swapped:
                return answer
        self.strike()
        return _with_body(answer, self.damage(_body(answer), random.Random(0)))


# --- requests -------------------------------------------------------------------------------------


class Window(NoHarm):
    """From the third request of the data path to a service on, all of them are answered by an error, for a while."""

    def __init__(self, seed: int, window_s: float, service: str, answers: dict[str, bytes]) -> None:
        super().__init__(seed, window_s)
        self._service = service
        self._answer = answers[service]
        self._number = 0
        self._end = 0.0

    def exchange(self, kind: str, request: bytes, forward: Forward) -> bytes | None:
        if kind.partition(".")[0] == self._service and DATA_PATH.match(kind):
            now = time.monotonic()
            with self._lock:
                self._number += 1
                if self._number == 3:
                    self._end = now + self.window_s
                inside = now < self._end
            if inside:
                self.strike()
                return self._answer
        return forward(request)

    def left_s(self) -> float:
        """Seconds until the window ends."""
        return max(0.0, self._end - time.monotonic())


class Partial(NoHarm):
    """Batches of which some entries fail: they are not done, or done and reported as failed."""

    def exchange(self, kind: str, request: bytes, forward: Forward) -> bytes | None:
        if kind in ("sqs.SendMessageBatch", "sqs.DeleteMessageBatch"):
            return self._sqs(kind, request, forward)
        if kind == "sns.PublishBatch":
            answer = forward(request)
            names = re.findall(rb"<Id>([^<]*)</Id>", _body(answer))
            failed = [name for name in names if self.chance(kind).random() < SHARE]
            if not failed:
                return answer
            self.strike(len(failed))
            listing = b"".join(
                b"<member><Id>%b</Id><Code>InternalError</Code><SenderFault>false</SenderFault></member>"
                % name
                for name in failed
            )
            body = re.sub(rb"<Failed\s*/>|<Failed>.*?</Failed>", b"", _body(answer))
            body = body.replace(
                b"</PublishBatchResult>", b"<Failed>%b</Failed></PublishBatchResult>" % listing
            )
            return _with_body(answer, body)
        if kind == "s3" and request.startswith(b"POST ") and b"?delete" in request.split(b" ")[1]:
            keys = re.findall(rb"<Key>([^<]*)</Key>", _body(request))
            failed = [key for key in keys if self.chance("delete").random() < SHARE]
            answer = forward(request)
            if not failed or not _succeeded(answer):
                return answer
            self.strike(len(failed))
            errors = b"".join(
                b"<Error><Key>%b</Key><Code>InternalError</Code><Message>try again</Message></Error>"
                % key
                for key in failed
            )
            return _with_body(answer, b"<DeleteResult>" + errors + b"</DeleteResult>")
        return forward(request)

    def _sqs(self, kind: str, request: bytes, forward: Forward) -> bytes:
        fields = json.loads(_body(request))
        kept, failed = [], []
        for entry in fields["Entries"]:
            chance = self.chance(f"{kind} {fields['QueueUrl']}")
            strikes = chance.random() < SHARE
            if strikes:
                failed.append(entry["Id"])
            if not strikes or chance.random() < 0.5:
                kept.append(entry)
        if not failed:
            return forward(request)
        self.strike(len(failed))
        done = []
        if kept:
            answer = forward(_with_body(request, json.dumps({**fields, "Entries": kept}).encode()))
            if not _succeeded(answer):
                return answer
            done = (_fields(answer) or {}).get("Successful") or []
        result = {
            "Successful": [entry for entry in done if entry["Id"] not in failed],
            "Failed": [
                {"Id": name, "Code": "InternalError", "SenderFault": False} for name in failed
            ],
        }
        return _answer(200, json.dumps(result).encode(), "application/x-amz-json-1.0")


class Reset(NoHarm):
    """Connections that are reset, before the emulator has read the request or after it has done it.

    The messages of a receive that is lost so come again after the visibility timeout, so there is one of each queue.
    """

    LOST = 1

    def __init__(self, seed: int, window_s: float, after: bool) -> None:
        super().__init__(seed, window_s)
        self._after = after

    def exchange(self, kind: str, request: bytes, forward: Forward) -> bytes | None:
        if DATA_PATH.match(kind) is None or self.chance(kind).random() >= SHARE / 2:
            return forward(request)
        if self._after and kind == "sqs.ReceiveMessage":
            queue = str(json.loads(_body(request))["QueueUrl"])
            with self._lock:
                self._counts[queue] += 1
                spared = self._counts[queue] > self.LOST
            if spared:
                return forward(request)
        self.strike()
        if self._after:
            forward(request)
        return None


# --- HTTP -----------------------------------------------------------------------------------------


def _answer(status: int, body: bytes, kind: str = "application/xml") -> bytes:
    return (
        f"HTTP/1.1 {status} x\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n"
    ).encode() + body


_NOT_FOUND = _answer(404, b"<Error><Code>NoSuchKey</Code><Message>none</Message></Error>")
_JSON = "application/x-amz-json-1.0"
THROTTLED = {
    "sqs": _answer(400, b'{"__type":"com.amazonaws.sqs#RequestThrottled","message":"slow"}', _JSON),
    "sns": _answer(
        400,
        b"<ErrorResponse><Error><Code>Throttling</Code><Message>slow</Message></Error></ErrorResponse>",
    ),
    "s3": _answer(503, b"<Error><Code>SlowDown</Code><Message>slow</Message></Error>"),
}
FAILED = {
    "sqs": _answer(500, b'{"__type":"com.amazonaws.sqs#InternalError","message":"broken"}', _JSON),
    "sns": _answer(
        500, b"<ErrorResponse><Error><Code>InternalFailure</Code></Error></ErrorResponse>"
    ),
    "s3": _answer(500, b"<Error><Code>InternalError</Code><Message>broken</Message></Error>"),
}


def _body(message: bytes) -> bytes:
    head, _, body = message.partition(b"\r\n\r\n")
    if b"transfer-encoding: chunked" in head.lower():
        whole = b""
        while True:
            size, _, body = body.partition(b"\r\n")
            length = int(size, 16)
            if not length:
                return whole
            whole, body = whole + body[:length], body[length + 2 :]
    return body


def _with_body(message: bytes, body: bytes) -> bytes:
    lines = message.partition(b"\r\n\r\n")[0].split(b"\r\n")
    dropped = (b"content-length:", b"transfer-encoding:", b"content-range:")
    kept = [line for line in lines if not line.lower().startswith(dropped)]
    ranges = [line for line in lines if line.lower().startswith(b"content-range:")]
    return b"\r\n".join([*kept, *ranges, b"content-length: %d" % len(body), b"", body])


def _succeeded(answer: bytes) -> bool:
    return answer.split(b" ", 2)[1].startswith(b"2")


def _fields(answer: bytes) -> dict[str, Any] | None:
    body = _body(answer)
    try:
        fields = json.loads(body) if body else {}
    except ValueError:
        return None
    return fields if isinstance(fields, dict) else None


def _frame(message: dict[str, Any]) -> bytes:
    attribute = (message.get("MessageAttributes") or {}).get("f") or {}
    return base64.b64decode(attribute.get("BinaryValue", ""))


def _message(frame: bytes, number: int) -> dict[str, Any]:
    return {
        "MessageId": f"{number:08x}-0000-4000-8000-000000000000",
        "ReceiptHandle": f"{PROXY_HANDLE}{number}",
        "MD5OfBody": "5058f1af8388633f609cadb75a75dc9d",
        "Body": ".",
        "MessageAttributes": {
            "f": {"DataType": "Binary", "BinaryValue": base64.b64encode(frame).decode()}
        },
    }


def _strange(message: dict[str, Any], chance: random.Random) -> None:
    """Make a message of a kind that no sender of this package makes."""
    kind = chance.randrange(6)
    if kind == 0:
        del message["MessageAttributes"]
    elif kind == 1:
        message["MessageAttributes"] = {"f": {"DataType": "String", "StringValue": "text"}}
    elif kind == 2:
        message["MessageAttributes"] = {"f": {"DataType": "Binary", "BinaryValue": "!not base64"}}
    elif kind == 3:
        message["MessageAttributes"] = {"other": {"DataType": "String", "StringValue": "x"}}
        message["Body"] = "a message for somebody else " * 100
    elif kind == 4:
        message["MessageAttributes"] = {}


def _without_own_handles(request: bytes, forward: Forward) -> bytes:
    """Delete what the emulator has; handles of messages that the proxy made succeed."""
    fields = json.loads(_body(request))
    own = [one for one in fields["Entries"] if one["ReceiptHandle"].startswith(PROXY_HANDLE)]
    rest = [one for one in fields["Entries"] if one not in own]
    if not own:
        return forward(request)
    done = [{"Id": one["Id"]} for one in own]
    if rest:
        answer = forward(_with_body(request, json.dumps({**fields, "Entries": rest}).encode()))
        if not _succeeded(answer):
            return answer
        held = _fields(answer) or {}
        done += held.get("Successful") or []
        failed = held.get("Failed") or []
    else:
        failed = []
    return _answer(200, json.dumps({"Successful": done, "Failed": failed}).encode(), _JSON)
