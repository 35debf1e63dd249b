"""Times and limits of the services: every figure with its source.

Limits are those of an account in a region as AWS grants them by default. Where AWS states a range,
the figure is its middle or its lower end.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from serverless_mpi.aws import s3express, sns
from serverless_mpi.channels import object, queue


@dataclass(frozen=True)
class Latency:
    """Times of requests, and limits of the services.

    Attributes
    ----------
    *_s
        Seconds of one request, without the transfer of its bytes.
    *_Bps
        Bytes per second of one connection.
    *_per_s
        Requests or messages per second of all ranks together; 0: no limit.
    pauses_s
        Between two looks for an object that is not there.
    starts_per_10_s
        Functions that start in 10 s.
    topic_entries
        Messages of one PublishBatch.
    aws
        Whether these are the figures of AWS, not of an emulator.
    store
        Where objects are, as requests to it are priced: "s3" or "s3express".
    """

    sqs_send_s: float
    sqs_receive_s: float
    sqs_Bps: float
    sns_publish_s: float
    sns_deliver_s: float
    sns_per_s: float
    s3_put_s: float
    s3_get_s: float
    s3_Bps: float
    s3_puts_per_s: float
    s3_gets_per_s: float
    pauses_s: object.Pauses
    start_s: float
    starts_per_10_s: int
    topic_entries: int
    aws: bool
    store: str = "s3"


# Sources, all of docs.aws.amazon.com or aws.amazon.com:
# sqs_send_s, sqs_receive_s: "typical latencies ... in the tens or low hundreds of milliseconds"
#   (Amazon SQS FAQs); here the lower end, for ranks in the same region. sqs_Bps: no figure is
#   published; assumed is a message of 256 KB in 10 ms. A receive waits `sqs.MAX_LONG_POLL_S` for
#   messages that are not there (20 s, "Amazon SQS standard queue quotas", which also states 120,000
#   messages in flight per queue: a rank deletes what it has received, and holds 10 per request).
# sns_publish_s, sns_deliver_s: AWS's guides state no figure; estimates, together 55 ms from the
#   call to the queue. sns_per_s: see sns.PUBLISHED_PER_S.
# s3_put_s, s3_get_s: "roughly 100-200 milliseconds". s3_puts_per_s, s3_gets_per_s: "at least 3,500
#   PUT/COPY/POST/DELETE or 5,500 GET/HEAD requests per second per partitioned prefix" ("Best
#   practices design patterns: optimizing Amazon S3 performance"; a new bucket is one partition).
#   s3_Bps: "85-90 MB/s" per request ("Performance design patterns for Amazon S3").
# starts_per_10_s: 1,000 execution environments every 10 s per function ("Lambda scaling behavior").
#   start_s: half a second, an estimate with the imports of this package; AWS states none.
AWS = Latency(
    sqs_send_s=0.015,
    sqs_receive_s=0.015,
    sqs_Bps=25e6,
    sns_publish_s=0.025,
    sns_deliver_s=0.03,
    sns_per_s=30_000,
    s3_put_s=0.1,
    s3_get_s=0.1,
    s3_Bps=9e7,
    s3_puts_per_s=3500,
    s3_gets_per_s=5500,
    pauses_s=object.AWS_PAUSES_S,
    start_s=0.5,
    starts_per_10_s=1000,
    topic_entries=sns.MAX_ENTRIES,
    aws=True,
)
# S3 Express One Zone, in the zone of the ranks: "consistent single-digit millisecond" first bytes,
# and per directory bucket "up to 2 million reads and up to 200,000 writes per second" ("Optimizing
# S3 Express One Zone performance", Amazon S3 User Guide).
EXPRESS = replace(
    AWS,
    s3_put_s=0.005,
    s3_get_s=0.005,
    s3_puts_per_s=200_000,
    s3_gets_per_s=2_000_000,
    pauses_s=object.EXPRESS_PAUSES_S,
    store=s3express.SERVICE,
)
# The embedded emulator: about 0.4 ms per call, one at a time, as measured.
EMULATOR = Latency(
    sqs_send_s=0.0004,
    sqs_receive_s=0.0004,
    sqs_Bps=8e7,
    sns_publish_s=0.0004,
    sns_deliver_s=0.0,
    sns_per_s=2500,
    s3_put_s=0.0004,
    s3_get_s=0.0004,
    s3_Bps=6.5e8,
    s3_puts_per_s=2500,
    s3_gets_per_s=2500,
    pauses_s=object.EMULATOR_PAUSES_S,
    start_s=0.3,
    starts_per_10_s=0,
    topic_entries=queue.EMULATOR_TOPIC_ENTRIES,
    aws=False,
)
LATENCIES = {"aws": AWS, "express": EXPRESS, "emulator": EMULATOR}


def in_region(latency: Latency, region: str) -> Latency:
    """Return the latency with the quotas of an AWS region; an emulator has none."""
    return replace(latency, sns_per_s=sns.published_per_s(region)) if latency.aws else latency
