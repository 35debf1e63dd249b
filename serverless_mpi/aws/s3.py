"""S3: objects put, read whole or by ranges, listed and deleted.

Source: Amazon S3 API Reference.
"""

from __future__ import annotations

import base64
import contextlib
import re
from collections.abc import Callable, Mapping, Sequence
from hashlib import md5
from html import escape, unescape
from urllib.parse import quote

from serverless_mpi.aws.http import Answer, Busy, Client
from serverless_mpi.aws.retry import BUDGET_S
from serverless_mpi.errors import ChannelError

MAX_DELETED = 1000  # keys of one DeleteObjects
PART_BYTES = 16 << 20  # of a multipart upload and of a range; parts of less than 5 MiB are refused
DELETE_BUDGET_S = 2.0  # a delete that fails is tried again later, with others
MAX_DIGITS = 20  # of a size
_ERROR = re.compile(rb"<Error>(.*?)</Error>", re.DOTALL)
_KEY = re.compile(rb"<Key>([^<]*)</Key>")
_COMPLETIONS = 4  # how often an upload is asked to be completed when it is not known whether it is
Parallel = Callable[[Callable[[int], str], Sequence[int]], list[str]]


class S3:
    """The calls of the data path, on one bucket."""

    def __init__(self, client: Client, bucket: str) -> None:
        self._client = client
        self._bucket = bucket

    def _path(self, key: str) -> str:
        return f"/{self._bucket}/{quote(key, safe='-_.~/')}"

    def _refuse(self, what: str, answer: Answer) -> ChannelError:
        return self._client.refused(f"{what} in bucket {self._bucket}", answer)

    def put(self, key: str, parts: Sequence[memoryview]) -> None:
        """Make an object of `parts`."""
        nbytes = sum(part.nbytes for part in parts)
        answer = self._client.request(
            "PUT", "PUT", self._path(key), body=parts, nbytes=nbytes, messages=1
        )
        if answer.status != 200:
            raise self._refuse(f"put {key}", answer)

    def create(self, key: str, body: bytes) -> bool:
        """Make an object if there is none of that name yet; whether this call made it.

        An attempt whose answer was lost is tried again and then finds its own object: the body tells whose it is,
        so it must be unlike any other caller's.
        Source: "Conditional writes", Amazon S3 User Guide.
        """
        patience = self._client.patience()
        while True:
            answer = self._client.request(
                "PUT",
                "PUT",
                self._path(key),
                headers={"if-none-match": "*"},
                body=body,
                nbytes=len(body),
                messages=1,
            )
            if answer.status != 409:
                break
            pause = patience.pause()  # another write of the same name: S3 asks to try again
            if pause is None:
                break
            self._client.sleep(pause)
        if answer.status == 412:
            there = self.get(key)
            return there is not None and bytes(there[0]) == body
        if answer.status != 200:
            raise self._refuse(f"create {key}", answer)
        return True

    def put_multipart(
        self, key: str, parts: Sequence[Sequence[memoryview]], parallel: Parallel
    ) -> None:
        """Make a large object of `parts`, each of byte views and of at least 5 MiB but the last, sent at the same time.

        What was sent of an object that fails is removed again, since it would be billed.
        """
        answer = self._client.request(
            "CreateMultipartUpload", "POST", self._path(key), {"uploads": ""}, billed_as="PUT"
        )
        if answer.status != 200:
            raise self._refuse(f"begin {key}", answer)
        found = re.search(rb"<UploadId>([^<]*)</UploadId>", bytes(answer.body))
        if found is None:
            raise self._client.garbled(f"begin {key}", answer.body)
        upload = unescape(found.group(1).decode(errors="replace"))

        def send(number: int) -> str:
            part = parts[number]
            nbytes = sum(piece.nbytes for piece in part)
            answer = self._client.request(
                "PUT",
                "PUT",
                self._path(key),
                {"partNumber": str(number + 1), "uploadId": upload},
                body=part,
                nbytes=nbytes,
            )
            if answer.status != 200:
                raise self._refuse(f"put part {number + 1} of {key}", answer)
            tag = answer.headers.get("etag")
            if tag is None:
                raise self._client.garbled(f"put part {number + 1} of {key}", b"no ETag")
            return tag

        try:
            tags = parallel(send, range(len(parts)))
            self._complete(key, upload, tags, sum(piece.nbytes for part in parts for piece in part))
        except BaseException:
            with contextlib.suppress(ChannelError):  # what failed is what the caller is told
                self._client.request(
                    "DELETE",
                    "DELETE",
                    self._path(key),
                    {"uploadId": upload},
                    budget_s=DELETE_BUDGET_S,
                )
            raise

    def _complete(self, key: str, upload: str, tags: Sequence[str], nbytes: int) -> None:
        listing = "".join(
            f"<Part><PartNumber>{number}</PartNumber><ETag>{escape(tag)}</ETag></Part>"
            for number, tag in enumerate(tags, 1)
        )
        body = f"<CompleteMultipartUpload>{listing}</CompleteMultipartUpload>".encode()
        patience = self._client.patience()
        lost = 0
        while True:
            try:
                answer = self._client.request(
                    "CompleteMultipartUpload",
                    "POST",
                    self._path(key),
                    {"uploadId": upload},
                    body=body,
                    messages=0 if lost or patience.troubles else 1,
                    billed_as="PUT",
                )
            except Busy:  # it has been asked for long enough
                raise
            except ChannelError:  # nobody knows whether it was done: the next attempt shows it
                lost += 1
                if lost == _COMPLETIONS:
                    raise
                continue
            text = bytes(answer.body)
            if answer.status == 200 and b"<Error>" not in text:
                return
            if answer.status == 404 and self._size(key) == nbytes:
                return  # an attempt before had done it
            trouble = self._refuse(f"complete {key}", answer)
            if answer.status != 200 and answer.status < 500:
                raise trouble
            pause = patience.pause()
            if pause is None:
                raise trouble
            self._client.sleep(pause)

    def _size(self, key: str) -> int | None:
        """Bytes of an object, None if there is none."""
        answer = self._client.request("GET", "HEAD", self._path(key))
        return _size(answer.headers) if answer.status == 200 else None

    def get(
        self,
        key: str,
        start: int = 0,
        length: int | None = None,
        into: memoryview | Callable[[int], memoryview] | None = None,
        come: Callable[[int], None] | None = None,
        budget_s: float = BUDGET_S,
    ) -> tuple[memoryview, int] | None:
        """(bytes from `start` on, size of the whole object); None if there is no such object.

        into: memory for the bytes, or what names it, given the size of the whole object; come: told how many bytes are
        there, again from the first after another attempt; budget_s: as for `Client.request`, 0 for who polls.
        An object that ends before `start + length` gives fewer bytes.
        """
        headers = {}
        if length is not None:
            headers["range"] = f"bytes={start}-{start + length - 1}"
        named = (lambda headers: into(_size(headers))) if callable(into) else into
        answer = self._client.request(
            "GET", "GET", self._path(key), headers=headers, into=named, come=come, budget_s=budget_s
        )
        if answer.status == 404:
            return None
        if answer.status == 416:  # the object ends before the range
            return memoryview(bytearray()), _size(answer.headers) if start else 0
        if answer.status not in (200, 206):
            raise self._refuse(f"get {key}", answer)
        self._client.meter.count(
            "s3", "GET", requests=0, nbytes=answer.body.nbytes, messages=1 if start == 0 else 0
        )
        return answer.body, _size(answer.headers)

    def list(self, prefix: str, after: str = "", budget_s: float = BUDGET_S) -> list[str]:
        """Up to 1000 keys below `prefix` that come after `after`, in order."""
        query = {"list-type": "2", "prefix": prefix}
        if after:
            query["start-after"] = after
        answer = self._client.request("LIST", "GET", f"/{self._bucket}", query, budget_s=budget_s)
        if answer.status != 200:
            raise self._refuse(f"list {prefix}", answer)
        body = bytes(answer.body)
        keys = [_key(text) for text in _KEY.findall(body)]
        # a page of other keys than those asked for would be asked for again and again
        if b"</ListBucketResult>" not in body or not all(
            key > after and key.startswith(prefix) for key in keys
        ):
            raise self._client.garbled(f"list {prefix}", body)
        return keys

    def delete(self, keys: Sequence[str]) -> Sequence[str]:
        """Delete up to 1000 objects in one request; returns the keys of those that were not deleted."""
        listing = "".join(f"<Object><Key>{escape(key)}</Key></Object>" for key in keys)
        body = f"<Delete><Quiet>true</Quiet>{listing}</Delete>".encode()
        answer = self._client.request(
            "DELETE",
            "POST",
            f"/{self._bucket}",
            {"delete": ""},
            headers={
                "content-md5": base64.b64encode(md5(body, usedforsecurity=False).digest()).decode()
            },
            body=body,
            budget_s=DELETE_BUDGET_S,
        )
        if answer.status != 200:
            raise self._refuse(f"delete {len(keys)} objects", answer)
        failed: list[str] = []
        for error in _ERROR.findall(bytes(answer.body)):
            named = _KEY.search(error)
            if named is None:  # the whole request failed
                return list(keys)
            if b"<Code>NoSuchKey</Code>" not in error:
                failed.append(_key(named.group(1)))
        return failed


def _key(text: bytes) -> str:
    return unescape(text.decode(errors="replace"))


def _size(headers: Mapping[str, str]) -> int:
    """Of the whole object, whether all of it or a range was asked for; 0 where the headers do not say it."""
    whole = headers.get("content-range", "").rpartition("/")[2]
    text = whole if whole.isdecimal() else headers.get("content-length", "0")
    return int(text) if text.isdecimal() and len(text) < MAX_DIGITS else 0
