"""Rules of S3."""

from __future__ import annotations

import re
from dataclasses import replace
from urllib.parse import parse_qsl, urlencode, urlsplit
from xml.sax.saxutils import escape

from tests.strict.call import Answer, Call
from tests.strict.rules import Proceed, acts, checks
from tests.strict.rules_common import missing_grants
from tests.strict.world import Refusal, World

MAX_KEY_BYTES = 1024
MAX_LISTED = 1000
MAX_DELETED = 1000
LEAST_PART_BYTES = 5 << 20
MAX_PARTS = 10_000
_GUIDE = "AmazonS3/latest/userguide/"
_API = "AmazonS3/latest/API/"
_WRITES = (
    "s3.PutObject s3.UploadPart s3.*MultipartUpload s3.CopyObject s3.DeleteObject s3.DeleteObjects"
)
_READS = "s3.GetObject s3.HeadObject s3.ListObjectsV2"


@checks(
    "s3-write-rate",
    _WRITES,
    _GUIDE + "optimizing-performance.html",
    "A new bucket is one partition, which takes 3,500 writes per second; more are answered with 503.",
)
def s3_write_rate(call: Call, world: World) -> None:
    if not world.admits(f"write {call.params['Bucket']}", world.settings.s3_writes_per_s):
        raise Refusal("SlowDown", "Please reduce your request rate.", 503)


@checks(
    "s3-read-rate",
    _READS,
    _GUIDE + "optimizing-performance.html",
    "A new bucket is one partition, which takes 5,500 reads per second; more are answered with 503.",
)
def s3_read_rate(call: Call, world: World) -> None:
    if not world.admits(f"read {call.params['Bucket']}", world.settings.s3_reads_per_s):
        raise Refusal("SlowDown", "Please reduce your request rate.", 503)


@checks(
    "s3-key",
    "s3.PutObject s3.CreateMultipartUpload s3.CopyObject",
    _GUIDE + "object-keys.html",
    "A key has at most 1,024 bytes.",
)
def s3_key(call: Call, world: World) -> None:
    if len(call.params["Key"].encode()) > MAX_KEY_BYTES:
        raise Refusal("KeyTooLongError", "Your key is too long")


@checks(
    "s3-length",
    "s3.PutObject s3.UploadPart",
    _API + "API_PutObject.html",
    "The length of a body is stated.",
)
def s3_length(call: Call, world: World) -> None:
    if "content-length" not in call.request.headers:
        raise Refusal("MissingContentLength", "You must provide the Content-Length header", 411)


@checks(
    "s3-parts",
    "s3.UploadPart s3.CompleteMultipartUpload",
    _GUIDE + "qfacts.html",
    "An upload has parts 1 to 10,000 in ascending order, each but the last of at least 5 MiB.",
)
def s3_parts(call: Call, world: World) -> None:
    sizes = world.parts.setdefault(call.params["UploadId"], {})
    if call.action == "UploadPart":
        number = call.params["PartNumber"]
        if not 1 <= number <= MAX_PARTS:
            raise Refusal("InvalidArgument", f"part number {number}")
        sizes[number] = len(call.params.get("Body", b""))
        return
    numbers = [part["PartNumber"] for part in call.params["MultipartUpload"]["Parts"]]
    if numbers != sorted(set(numbers)):
        raise Refusal("InvalidPartOrder", "The list of parts was not in ascending order")
    if any(sizes.get(number, LEAST_PART_BYTES) < LEAST_PART_BYTES for number in numbers[:-1]):
        raise Refusal("EntityTooSmall", "Your proposed upload is smaller than the minimum size")


@checks(
    "s3-delete",
    "s3.DeleteObjects",
    _API + "API_DeleteObjects.html",
    "A DeleteObjects names 1 to 1,000 keys and carries a checksum of its body.",
)
def s3_delete(call: Call, world: World) -> None:
    if not 1 <= len(call.params["Delete"]["Objects"]) <= MAX_DELETED:
        raise Refusal("MalformedXML", "The XML you provided was not well-formed")
    headers = call.request.headers
    if "content-md5" not in headers and not any(
        name.startswith("x-amz-checksum-") for name in headers
    ):
        raise Refusal("InvalidRequest", "Missing required header for this request: Content-MD5")


@acts(
    "s3-listing",
    "s3.ListObjectsV2",
    _API + "API_ListObjectsV2.html",
    "A listing returns at most 1,000 keys, whatever is asked for.",
)
def s3_listing(call: Call, world: World, proceed: Proceed) -> Answer:
    if call.params.get("MaxKeys", MAX_LISTED) > MAX_LISTED:
        parts = urlsplit(call.request.target)
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        target = f"{parts.path}?{urlencode({**query, 'max-keys': str(MAX_LISTED)})}"
        call = replace(call, request=replace(call.request, target=target))
    world.count("s3-listing")
    return proceed(call)


@acts(
    "s3-missing",
    "s3.GetObject s3.HeadObject",
    _API + "API_GetObject.html",
    "An object that does not exist is answered with 404 to a role that may list the bucket, with 403 to another.",
)
def s3_missing(call: Call, world: World, proceed: Proceed) -> Answer:
    answer = proceed(call)
    if answer.status != 404:
        return answer
    world.count("s3-missing")
    listing = replace(call, action="ListObjectsV2", params={"Bucket": call.params["Bucket"]})
    if call.request.function and missing_grants(listing, world):
        return Answer(
            403, b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
        )
    return answer


@acts(
    "s3-conditional",
    "s3.PutObject",
    _GUIDE + "conditional-writes.html",
    "A conditional write is answered with 412 if the object exists, and with 409 if another write of the key is"
    " under way.",
)
def s3_conditional(call: Call, world: World, proceed: Proceed) -> Answer:
    if "IfNoneMatch" not in call.params and "IfMatch" not in call.params:
        return proceed(call)
    key = f"{call.params['Bucket']}/{call.params['Key']}"
    conflict = world.strikes("s3-conditional", world.settings.conflicts)
    with world.lock:
        conflict = conflict or key in world.writing
        if not conflict:
            world.writing.add(key)
    world.count("s3-conditional")
    if conflict:
        text = "<Error><Code>ConditionalRequestConflict</Code><Message>try again</Message></Error>"
        return Answer(409, text.encode())
    try:
        return proceed(call)
    finally:
        with world.lock:
            world.writing.discard(key)


@acts(
    "s3-delete-failures",
    "s3.DeleteObjects",
    _API + "API_DeleteObjects.html",
    "Keys of a DeleteObjects may fail one by one, and the request is then answered with 200.",
)
def s3_delete_failures(call: Call, world: World, proceed: Proceed) -> Answer:
    chance, share = world.chance("s3-delete-failures"), world.settings.failing_entries
    keys = [one["Key"] for one in call.params["Delete"]["Objects"]]
    failed = [key for key in keys if share and chance.random() < share]
    if not failed:
        return proceed(call)
    world.count("s3-delete-failures", len(failed))
    body = call.request.body
    for key in failed:
        body = body.replace(f"<Object><Key>{escape(key)}</Key></Object>".encode(), b"")
    answer = Answer(200, b"<DeleteResult></DeleteResult>", {"content-type": "text/xml"})
    if b"<Object>" in body:
        headers = {
            name: value for name, value in call.request.headers.items() if name != "content-md5"
        }
        answer = proceed(replace(call, request=replace(call.request, body=body, headers=headers)))
    errors = "".join(
        f"<Error><Key>{escape(key)}</Key><Code>InternalError</Code><Message>x</Message></Error>"
        for key in failed
    )
    if re.search(rb"</DeleteResult>\s*$", answer.body):
        text = answer.body.decode().replace("</DeleteResult>", f"{errors}</DeleteResult>")
    else:  # empty, by the emulator
        text = f"<DeleteResult>{errors}</DeleteResult>"
    return replace(answer, body=text.encode())


@acts(
    "s3-completion",
    "s3.CompleteMultipartUpload",
    _API + "API_CompleteMultipartUpload.html",
    "A completion may be answered with 200 and an error in the body.",
)
def s3_completion(call: Call, world: World, proceed: Proceed) -> Answer:
    if world.strikes("s3-completion", world.settings.failing_completions):
        world.count("s3-completion")
        text = "<Error><Code>InternalError</Code><Message>try again</Message></Error>"
        return Answer(200, text.encode())
    return proceed(call)
