"""S3: put, read (whole or by ranges), list and delete objects.

Pitfalls:

- A write whose answer was lost may have been done.  A PUT is repeated, since it writes
  the same bytes; `create` recognises its own object by the body; a multipart upload that
  is gone is compared by length.
- S3 may answer 200 with an <Error> in the body.
- 404 is also the status of a bucket that does not exist, which no pause will change.

What a directory bucket does differently is in `s3express.py`, whose class derives from `S3`.

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

from serverless_mpi.aws import limits
from serverless_mpi.aws.http import Answer, Busy, Client
from serverless_mpi.aws.retry import BUDGET_S
from serverless_mpi.errors import ChannelError

MAX_DELETED = limits.S3_DELETE_KEYS.value
MAX_LISTED = limits.S3_LIST_KEYS.value
PART_BYTES = 16 << 20  # of a multipart upload and of a range; S3 refuses less than S3_PART_BYTES
DELETE_BUDGET_S = 2.0  # a delete that fails is tried again later, with others
MAX_DIGITS = 20  # of an object's size
_ERROR = re.compile(rb"<Error>(.*?)</Error>", re.DOTALL)
_KEY = re.compile(rb"<Key>([^<]*)</Key>")
_PAGE = 1000  # keys of one listing
_COMPLETIONS = 4  # attempts to complete an upload when the answers are lost
Parallel = Callable[[Callable[[int], str], Sequence[int]], list[str]]


class S3:
    """The calls of the data path, on one bucket.  Thread-safe."""

    def __init__(self, client: Client, bucket: str) -> None:
        self._client = client
        self._bucket = bucket

    def _path(self, key: str = "") -> str:
        """Return the percent-encoded path of an object; without a key, of the bucket."""
        return f"/{self._bucket}/{quote(key, safe='-_.~/')}" if key else f"/{self._bucket}"

    def _checksum(self, body: bytes) -> Mapping[str, str]:
        """Return the header that DeleteObjects requires."""
        digest = md5(body, usedforsecurity=False).digest()
        return {"content-md5": base64.b64encode(digest).decode()}

    def _refuse(self, what: str, answer: Answer) -> ChannelError:
        """Return the error for an answer whose status is not success."""
        return self._client.refused(f"{what} in bucket {self._bucket}", answer)

    def put(self, key: str, parts: Sequence[memoryview]) -> None:
        """Create or replace an object.

        Parameters
        ----------
        key
            Name of the object.
        parts
            Byte views that are sent one after the other; borrowed until the call returns.

        Raises
        ------
        Busy
            The service was busy for the whole budget.
        ChannelError
            S3 refused it, or cannot be reached.
        """
        nbytes = sum(part.nbytes for part in parts)
        answer = self._client.request(
            "PUT", "PUT", self._path(key), body=parts, nbytes=nbytes, messages=1
        )
        if answer.status != 200:
            raise self._refuse(f"put {key}", answer)

    def create(self, key: str, body: bytes) -> bool:
        """Create an object unless it exists; return whether this call created it.

        Parameters
        ----------
        key
            Name of the object.
        body
            Must differ from any other caller's: after an answer was lost, the attempt that
            follows recognises its own object by it.

        References
        ----------
        "Conditional writes", Amazon S3 User Guide.
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
            # A concurrent write of that name: S3 asks to try again.  Many ranks may be told so
            # at the same time, and a GET costs a twelfth of a PUT.
            pause = patience.pause()
            if pause is None:
                break
            self._client.sleep(pause)
            there = self.get(key)
            if there is not None:
                return bytes(there[0]) == body
        if answer.status == 412:
            there = self.get(key)
            return there is not None and bytes(there[0]) == body
        if answer.status != 200:
            raise self._refuse(f"create {key}", answer)
        return True

    def replace(self, key: str, body: bytes, match: str) -> bool:
        """Replace an object if it still has a tag; return whether this call did.

        Parameters
        ----------
        key
            Name of the object.
        body
            Must differ from any other caller's, as for `create`.
        match
            Tag of the object that is replaced.

        References
        ----------
        "Conditional writes", Amazon S3 User Guide.
        """
        answer = self._client.request(
            "PUT", "PUT", self._path(key), headers={"if-match": match}, body=body, nbytes=len(body)
        )
        if answer.status in (404, 409, 412):  # another write came first, or was this one
            there = self.get(key)
            return there is not None and bytes(there[0]) == body
        if answer.status != 200:
            raise self._refuse(f"replace {key}", answer)
        return True

    def put_multipart(
        self, key: str, parts: Sequence[Sequence[memoryview]], parallel: Parallel
    ) -> None:
        """Create a large object from parts that are sent at the same time.

        Parameters
        ----------
        key
            Name of the object.
        parts
            Byte views of each part; every part but the last has at least 5 MiB.  Borrowed.
        parallel
            parallel(call, numbers) returns [call(number) for number in numbers].

        Notes
        -----
        The upload is aborted after any error, since its parts would be billed.
        """
        upload = self.begin_upload(key)
        try:
            tags = parallel(
                lambda number: self.put_part(key, upload, number + 1, parts[number]),
                range(len(parts)),
            )
            nbytes = sum(piece.nbytes for part in parts for piece in part)
            self.complete_upload(key, upload, list(enumerate(tags, 1)), nbytes)
        except BaseException:
            with contextlib.suppress(ChannelError):  # the first error is the one that matters
                self.abort_upload(key, upload)
            raise

    def begin_upload(self, key: str) -> str:
        """Begin a multipart upload; return its id.

        Parameters
        ----------
        key
            Name of the object.

        Notes
        -----
        Its parts are billed until it is completed or aborted.
        """
        answer = self._client.request(
            "CreateMultipartUpload", "POST", self._path(key), {"uploads": ""}, billed_as="PUT"
        )
        if answer.status != 200:
            raise self._refuse(f"begin {key}", answer)
        found = re.search(rb"<UploadId>([^<]*)</UploadId>", bytes(answer.body))
        if found is None:
            raise self._client.garbled(f"begin {key}", answer.body)
        return unescape(found.group(1).decode(errors="replace"))

    def put_part(self, key: str, upload: str, number: int, part: Sequence[memoryview]) -> str:
        """Upload a part; return its tag.

        Parameters
        ----------
        key, upload
            Name of the object, and id of its upload.
        number
            Of the part, from 1 to 10,000.
        part
            Byte views that are sent one after the other; borrowed until the call returns.
        """
        nbytes = sum(piece.nbytes for piece in part)
        answer = self._client.request(
            "PUT",
            "PUT",
            self._path(key),
            {"partNumber": str(number), "uploadId": upload},
            body=part,
            nbytes=nbytes,
        )
        if answer.status != 200:
            raise self._refuse(f"put part {number} of {key}", answer)
        tag = answer.headers.get("etag")
        if tag is None:
            raise self._client.garbled(f"put part {number} of {key}", b"no ETag")
        return tag

    def copy_part(
        self, key: str, upload: str, number: int, start: int, end: int, match: str
    ) -> str:
        """Make a part of bytes of the object that the upload will replace; return its tag.

        Parameters
        ----------
        key, upload, number
            As for `put_part`.
        start, end
            Bytes of the object; `end` is exclusive.
        match
            Tag of the object, which must not have been replaced.
        """
        answer = self._client.request(
            "PUT",
            "PUT",
            self._path(key),
            {"partNumber": str(number), "uploadId": upload},
            headers={
                "x-amz-copy-source": quote(f"{self._bucket}/{key}", safe="-_.~/"),
                "x-amz-copy-source-range": f"bytes={start}-{end - 1}",
                "x-amz-copy-source-if-match": match,
            },
        )
        body = bytes(answer.body)
        if answer.status != 200 or b"<Error>" in body:
            raise self._refuse(f"copy part {number} of {key}", answer)
        found = re.search(rb"<ETag>([^<]*)</ETag>", body)
        if found is None:
            raise self._client.garbled(f"copy part {number} of {key}", answer.body)
        return unescape(found.group(1).decode(errors="replace"))

    def abort_upload(self, key: str, upload: str) -> None:
        """Abort a multipart upload, so that its parts are no longer billed.

        Parameters
        ----------
        key, upload
            Name of the object, and id of its upload.
        """
        self._client.request(
            "DELETE", "DELETE", self._path(key), {"uploadId": upload}, budget_s=DELETE_BUDGET_S
        )

    def complete_upload(
        self, key: str, upload: str, tags: Sequence[tuple[int, str]], nbytes: int
    ) -> None:
        """Complete a multipart upload, although answers may be lost.

        Parameters
        ----------
        key, upload
            Name of the object, and id of its upload.
        tags
            (number, tag) of each part, by rising number.
        nbytes
            Length of the object.
        """
        listing = "".join(
            f"<Part><PartNumber>{number}</PartNumber><ETag>{escape(tag)}</ETag></Part>"
            for number, tag in tags
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
            except Busy:  # its budget is spent
                raise
            except ChannelError:  # it may have been done: the next attempt shows it
                lost += 1
                if lost == _COMPLETIONS:
                    raise
                continue
            text = bytes(answer.body)
            if answer.status == 200 and b"<Error>" not in text:
                return
            if answer.status == 404 and self._size(key) == nbytes:
                return  # an earlier attempt completed it
            trouble = self._refuse(f"complete {key}", answer)
            if answer.status != 200 and answer.status < 500:
                raise trouble
            pause = patience.pause()
            if pause is None:
                raise trouble
            self._client.sleep(pause)

    def _size(self, key: str) -> int | None:
        """Return the length of an object in bytes; None if it does not exist."""
        answer = self._client.request("GET", "HEAD", self._path(key))
        return _size(answer.headers) if answer.status == 200 else None

    def head(self, key: str) -> tuple[int, str] | None:
        """Return the length of an object in bytes, and its tag; None if it does not exist.

        Parameters
        ----------
        key
            Name of the object.
        """
        answer = self._client.request("GET", "HEAD", self._path(key))
        if answer.status == 404:
            return None
        if answer.status != 200:
            raise self._refuse(f"look at {key}", answer)
        return _size(answer.headers), answer.headers.get("etag", "")

    def get(
        self,
        key: str,
        start: int = 0,
        length: int | None = None,
        into: memoryview | Callable[[int], memoryview] | None = None,
        come: Callable[[int], None] | None = None,
        budget_s: float = BUDGET_S,
        match: str = "",
    ) -> tuple[memoryview, int] | None:
        """Read an object or a range of it.

        Parameters
        ----------
        key
            Name of the object.
        start, length
            Range in bytes; `length` None reads all.
        into
            Memory for the bytes, or a function of the object's size that returns it.
        come
            Called with the number of bytes that have arrived, from 0 again in another attempt.
        budget_s
            As for `Client.request`; 0 for a poll.
        match
            Tag that the object must have; "" for any.

        Returns
        -------
        (bytes, size of the whole object); fewer bytes than `length` if the object ends before.
        None if it does not exist.

        Raises
        ------
        ChannelError
            S3 refused it, or the bucket does not exist.
        Busy
            The service was busy for `budget_s` seconds.
        """
        headers = {"if-match": match} if match else {}
        if length is not None:
            headers["range"] = f"bytes={start}-{start + length - 1}"
        named = (lambda headers: into(_size(headers))) if callable(into) else into
        answer = self._client.request(
            "GET", "GET", self._path(key), headers=headers, into=named, come=come, budget_s=budget_s
        )
        if answer.status == 404 and b"NoSuchBucket" not in bytes(answer.body):
            return None
        if answer.status == 416:  # the object ends before the range
            return memoryview(bytearray()), _size(answer.headers) if start else 0
        if answer.status not in (200, 206):
            raise self._refuse(f"get {key}", answer)
        self._client.meter.count(
            self._client.service,
            "GET",
            requests=0,
            nbytes=answer.body.nbytes,
            messages=1 if start == 0 else 0,
        )
        return answer.body, _size(answer.headers)

    def list(self, prefix: str, after: str = "", budget_s: float = BUDGET_S) -> Sequence[str]:
        """Return one page of the keys that begin with a prefix, in order.

        Parameters
        ----------
        prefix
            Beginning of the keys.
        after
            Only keys that sort after this one; "" for the first page.
        budget_s
            Seconds for which a busy service is asked again.

        Returns
        -------
        sequence of str
            Up to 1000 keys; fewer on the last page.

        Raises
        ------
        Busy
            The service was busy for `budget_s` seconds.
        ChannelError
            S3 refused it, or answered with keys that were not asked for.
        """
        keys, body = self._list(prefix, {"start-after": after} if after else {}, budget_s)
        # a caller would request a page of wrong keys again and again
        if not all(key > after for key in keys):
            raise self._client.garbled(f"list {prefix}", body)
        return keys

    def list_all(self, prefix: str, budget_s: float = BUDGET_S) -> Sequence[str]:
        """Return every key that begins with a prefix.

        Parameters
        ----------
        prefix
            Beginning of the keys.
        budget_s
            Seconds for which a busy service is asked again, for each page.

        Raises
        ------
        Busy
            The service was busy for `budget_s` seconds.
        ChannelError
            S3 refused it, or answered with keys that were not asked for.

        Notes
        -----
        One request per 1000 keys.
        """
        keys: Sequence[str] = []
        while True:
            page = self.list(prefix, keys[-1] if keys else "", budget_s)
            keys = [*keys, *page]
            if len(page) < _PAGE:
                return keys

    def _list(
        self, prefix: str, query: Mapping[str, str], budget_s: float
    ) -> tuple[Sequence[str], bytes]:
        """Return the keys of one page of a listing, and the answer's body."""
        query = {"list-type": "2", "prefix": prefix, **query}
        answer = self._client.request("LIST", "GET", self._path(), query, budget_s=budget_s)
        if answer.status != 200:
            raise self._refuse(f"list {prefix}", answer)
        body = bytes(answer.body)
        keys = [_key(text) for text in _KEY.findall(body)]
        if b"</ListBucketResult>" not in body or not all(key.startswith(prefix) for key in keys):
            raise self._client.garbled(f"list {prefix}", body)
        return keys, body

    def delete(self, keys: Sequence[str]) -> Sequence[str]:
        """Delete objects in one request.

        Parameters
        ----------
        keys
            Up to 1000 keys; an object that does not exist counts as deleted.

        Returns
        -------
        sequence of str
            Keys of the objects that S3 did not delete.

        Raises
        ------
        Busy
            The service was busy for DELETE_BUDGET_S.
        ChannelError
            S3 refused the request, or cannot be reached.
        """
        listing = "".join(f"<Object><Key>{escape(key)}</Key></Object>" for key in keys)
        body = f"<Delete><Quiet>true</Quiet>{listing}</Delete>".encode()
        answer = self._client.request(
            "DELETE",
            "POST",
            self._path(),
            {"delete": ""},
            headers=self._checksum(body),
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
    """Return a key from its form in XML."""
    return unescape(text.decode(errors="replace"))


def _size(headers: Mapping[str, str]) -> int:
    """Return the size of the whole object by the headers of any GET; 0 if they do not state it."""
    whole = headers.get("content-range", "").rpartition("/")[2]
    text = whole if whole.isdecimal() else headers.get("content-length", "0")
    return int(text) if text.isdecimal() and len(text) < MAX_DIGITS else 0
