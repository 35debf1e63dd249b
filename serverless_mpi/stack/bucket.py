"""What lies where in a stack's bucket, and how a rank checks what it reads there.

The roles of `deploy/template.py` grant by these prefixes; change both together.  A bucket is shared
by every job of its stack, so nothing that comes from it is believed because of its place:

- a zip of programs is named by its SHA-256, the name reaches a rank in its invocation, and the rank
  compares;
- a stop message carries a tag made with the job's key.

=====================  =====================================  =====================
prefix                 what                                   a rank may
=====================  =====================================  =====================
``f/<job>/``           frames                                 read, write, delete
``jobs/<job>/rank/``   claim of a rank, then how it ended     read, write
``jobs/<job>/trace/``  traces and profiles                    write
``jobs/<job>/stop``    stop message                           read, write
``jobs/<job>/``        else: what the launcher writes         (nothing)
``programs/``          zips of programs and requirements      read
``stops/``             stop messages for `smpi clean`         (nothing)
``data/``              stores, inputs and reports of users    read, write
``code/``              the functions' own zips                (nothing)
``pool.json``          leases of queues                       (nothing)
``figures.json``       figures of AWS (`smpi calibrate`)      (nothing)
=====================  =====================================  =====================
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets

from serverless_mpi.aws import limits
from serverless_mpi.core.tags import Purpose, make, same
from serverless_mpi.errors import ServerlessMPIError
from serverless_mpi.job import FRAMES

JOBS, PROGRAMS, STOPS, DATA, CODE = "jobs/", "programs/", "stops/", "data/", "code/"
FIGURES = "figures.json"
SHORT_LIVED = (FRAMES, JOBS, PROGRAMS, STOPS, DATA)  # deleted after a day
RANK, TRACE, STOP = "rank/", "trace/", "stop"  # below a job's own prefix: written by its ranks

# Unpacked.  By default a function's /tmp has LAMBDA_TMP_BYTES: both zips fit, and leave something
# to the program.
PROGRAM_BYTES = 200 << 20
SITE_BYTES = limits.LAMBDA_UNPACKED_BYTES.value
MAX_FILES = 50_000  # in one zip

STOP_BYTES = 8 << 10  # the most that a stop message has
REASON_CHARS = 1000

_ZIP = re.compile(re.escape(PROGRAMS) + r"[0-9a-f]{64}\.zip")


def trace(rank: int) -> str:
    """Return where a rank leaves its trace, below the job's own prefix.

    Parameters
    ----------
    rank
        World rank.
    """
    return f"{TRACE}{rank}"


def profile(rank: int) -> str:
    """Return where a rank leaves its profile, below the job's own prefix.

    Parameters
    ----------
    rank
        World rank.
    """
    return f"{TRACE}profile-{rank}"


def job_key(job_id: str, name: str) -> str:
    """Return the key of an object about a job.

    Parameters
    ----------
    job_id
        Id of the job.
    name
        Name below the job's prefix, as "job.json"; "" for the prefix itself.
    """
    return f"{JOBS}{job_id}/{name}"


def stop_for_clean_key(job_id: str) -> str:
    """Return the key of the stop message for `smpi clean`, which does not have the job's key.

    Parameters
    ----------
    job_id
        Id of the job.
    """
    return f"{STOPS}{job_id}"


# -- zips, by content


def zip_key(data: bytes) -> str:
    """Return the key of a zip, which names its content.

    Parameters
    ----------
    data
        The zip.
    """
    return f"{PROGRAMS}{hashlib.sha256(data).hexdigest()}.zip"


def etag(data: bytes) -> str:
    """Return S3's tag of an object that was put in one request with S3's own keys: its MD5.

    Parameters
    ----------
    data
        Body of the object.

    Returns
    -------
    str
        32 hexadecimal digits.
    """
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def is_zip_key(key: object) -> bool:
    """Return whether a value has the form of what `zip_key` returns.

    Parameters
    ----------
    key
        Any value; it is not trusted.
    """
    return isinstance(key, str) and _ZIP.fullmatch(key) is not None


def check_zip(key: str, data: bytes | memoryview) -> None:
    """Check that a zip has the content that its key names.

    Parameters
    ----------
    key
        Key of the object, as `zip_key` made it.
    data
        The object as it was read from the bucket.

    Raises
    ------
    ServerlessMPIError
        It has another content.
    """
    found = f"{PROGRAMS}{hashlib.sha256(data).hexdigest()}.zip"
    if not hmac.compare_digest(found, key):
        raise ServerlessMPIError(
            f"{key} in the bucket is not what the launcher sent: someone has replaced it, and"
            " it was"
            " not unpacked; the next smpirun sends the program again"
        )


# -- stop messages


def stop_message(job_id: str, key: bytes, reason: str) -> bytes:
    """Return the object that ends a job.

    Parameters
    ----------
    job_id
        Id of the job.
    key
        Key of the job, 32 bytes; it authenticates the message.
    reason
        Why the job ends; cut to REASON_CHARS characters.

    Returns
    -------
    bytes
        JSON.  No two are equal, so that whoever put one recognizes it.
    """
    reason = reason[:REASON_CHARS]
    return json.dumps(
        {"reason": reason, "by": secrets.token_hex(4), "tag": _stop_tag(job_id, key, reason).hex()}
    ).encode()


def stop_reason(message: bytes | memoryview, job_id: str, key: bytes) -> str | None:
    """Return why a job has ended.

    Parameters
    ----------
    message
        The object as it was read from the bucket; it is not trusted.
    job_id
        Id of the job.
    key
        Key of the job, 32 bytes.

    Returns
    -------
    str or None
        None if the message was not made with the job's key, or is not a stop message.
    """
    try:
        found = json.loads(bytes(message))
        reason, made = found["reason"], bytes.fromhex(found["tag"])
        if not same(made, _stop_tag(job_id, key, reason)):
            return None
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return None
    return str(reason)


def _stop_tag(job_id: str, key: bytes, reason: str) -> bytes:
    # a job id has 16 characters, so the two parts cannot be cut in another way
    covered = job_id.encode() + reason.encode("utf-8", "surrogatepass")
    return make(key, Purpose.STOP, covered)
