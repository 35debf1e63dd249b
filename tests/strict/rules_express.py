"""Rules of directory buckets (S3 Express One Zone), which `express.py` keeps.

Their requests have another host than those of S3, so they reach a server of their own in
front of the layer.
"""

from __future__ import annotations

from tests.strict.rules import keeps

_API = "AmazonS3/latest/API/API_"
keeps(
    "express-session",
    f"{_API}CreateSession.html",
    "A request to a directory bucket carries the token of a session of that bucket, and no other"
    " security token.",
)
keeps(
    "express-session-life",
    f"{_API}CreateSession.html",
    "A session serves for five minutes at most, and may end before.",
)
keeps(
    "express-signature",
    f"{_API}CreateSession.html",
    "A request is signed with the keys of its session for the service s3express, its token and the"
    " hash of its body included.",
)
keeps(
    "express-list",
    f"{_API}ListObjectsV2.html",
    "A directory bucket is listed by ListObjectsV2 without StartAfter, and a prefix ends with a slash.",
)
keeps(
    "express-list-order",
    f"{_API}ListObjectsV2.html",
    "The keys of a listing come in no order, and the next page begins at a token that is not a key.",
)
keeps(
    "express-checksum",
    f"{_API}DeleteObjects.html",
    "DeleteObjects needs a checksum of its body, and a PUT has no Content-MD5.",
)
keeps(
    "express-parts",
    f"{_API}CompleteMultipartUpload.html",
    "The parts of an upload are numbered without a gap from 1.",
)
