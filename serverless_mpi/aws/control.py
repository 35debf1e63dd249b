"""Creation and removal of the queues, topics and buckets of a job at an emulator, by boto3.

- Everything is named after the job, `smpi-<job id>...`, so that leftovers can be found.
- `client` makes every boto3 client of the package. Jobs on AWS use the pool of a deployed stack
  (`deploy/`) and create nothing.
- A rank never imports this module: boto3 takes longer to import than all the rest.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from serverless_mpi.aws.credentials import DUMMY, emulator_keys
from serverless_mpi.aws.refusals import explained
from serverless_mpi.aws.sigv4 import Keys
from serverless_mpi.aws.sns import FILTERS_PER_TOPIC, TO
from serverless_mpi.aws.sqs import VISIBILITY_S as VISIBILITY_S
from serverless_mpi.job import JobSpec

PREFIX = "smpi-"
_OF_JOB = re.compile(PREFIX + r"([0-9a-f]{16})(?:-|$)")
RETENTION_S = 86400  # what a killed launcher leaves is forgotten after a day
_AT_ONCE = 8
_CONNECT_TIMEOUT_S = 5
_DELETES = 5  # attempts at the keys of one listing; a key fails for a moment


def client(service: str, endpoint: str | None, region: str, keys: Keys = DUMMY) -> Any:
    """Return a boto3 client of a service.

    Parameters
    ----------
    service
        boto3's name of the service, as "sqs".
    endpoint
        URL of an emulator; None for AWS.
    region
        AWS region.
    keys
        Access key for `endpoint`; not used for AWS, where boto3 looks up the user's credentials.
    """
    import boto3
    from botocore.config import Config

    config = Config(
        connect_timeout=_CONNECT_TIMEOUT_S,
        retries={"max_attempts": 3, "mode": "standard"},
        s3={"addressing_style": "path"},
    )
    if endpoint is None:
        return boto3.client(service, region_name=region, config=config)
    made = boto3.client(
        service,
        endpoint_url=endpoint,
        region_name=region,
        config=config,
        aws_access_key_id=keys.access,
        aws_secret_access_key=keys.secret,
    )
    if service != "s3":  # which does it by itself
        made.meta.events.register(f"before-sign.{service}", _state_payload_hash)
    return made


def _state_payload_hash(request: Any, **_: Any) -> None:
    """Send the body's hash in a header: an emulator then verifies the signature before the body."""
    from botocore.auth import SigV4Auth

    request.headers["X-Amz-Content-SHA256"] = SigV4Auth(None, "", "").payload(request)


def _of_job(service: str, spec: JobSpec) -> Any:
    """Return a client of a service with the keys of a job."""
    return client(service, spec.endpoint, spec.region, emulator_keys(spec.key))


def _all(call: Any, items: Iterable[Any]) -> list[Any]:
    """Return [call(item) for item in items], several at a time."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(call, items))


def _explaining(endpoint: str | None, region: str) -> contextlib.AbstractContextManager[None]:
    return explained("list or remove what jobs left there", endpoint, region)


def _making(spec: JobSpec) -> contextlib.AbstractContextManager[None]:
    return explained(f"make what job {spec.job_id} needs", spec.endpoint, spec.region)


def make_queues(spec: JobSpec) -> dict[str, str]:
    """Create a queue for each rank, and a topic for every 200 ranks.

    Parameters
    ----------
    spec
        The job: its id names them, its size states how many, its endpoint and region where.

    Returns
    -------
    dict
        Settings: `queues` (URLs by rank) and `topics` (ARNs; none for a lone rank), as JSON lists.

    Raises
    ------
    UsageError, ChannelError
        Something cannot be created; what was created is for `remove_queues`.
    """
    with _making(spec):
        sqs, sns = (_of_job(service, spec) for service in ("sqs", "sns"))
        queues = _all(lambda rank: _make_queue(sqs, spec, rank), range(spec.size))
        topics: list[str] = []
        if spec.size > 1:  # a lone rank has no other to publish to
            topics = _all(
                lambda number: sns.create_topic(Name=f"{PREFIX}{spec.job_id}-{number}")["TopicArn"],
                range(-(-spec.size // FILTERS_PER_TOPIC)),
            )
            _all(
                lambda rank: _subscribe(
                    sqs, sns, queues[rank], topics[rank // FILTERS_PER_TOPIC], rank
                ),
                range(spec.size),
            )
    return {"queues": json.dumps([url for url, _ in queues]), "topics": json.dumps(topics)}


def _make_queue(sqs: Any, spec: JobSpec, rank: int) -> tuple[str, str]:
    """Create a rank's queue; return its URL and ARN."""
    attributes = {
        "VisibilityTimeout": str(VISIBILITY_S),
        "MessageRetentionPeriod": str(RETENTION_S),
    }
    name = f"{PREFIX}{spec.job_id}-{rank}"
    url = sqs.create_queue(QueueName=name, Attributes=attributes)["QueueUrl"]
    answer = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])
    return url, answer["Attributes"]["QueueArn"]


def _subscribe(sqs: Any, sns: Any, queue: tuple[str, str], topic: str, rank: int) -> None:
    """Let a topic send to a rank's queue (URL, ARN), filtered by the rank's number."""
    url, arn = queue
    policy = {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Effect": "Allow",
                "Principal": {"Service": "sns.amazonaws.com"},
                "Action": "sqs:SendMessage",
                "Resource": arn,
                "Condition": {"ArnEquals": {"aws:SourceArn": topic}},
            }
        ],
    }
    sqs.set_queue_attributes(QueueUrl=url, Attributes={"Policy": json.dumps(policy)})
    sns.subscribe(
        TopicArn=topic,
        Protocol="sqs",
        Endpoint=arn,
        Attributes={"RawMessageDelivery": "true", "FilterPolicy": json.dumps({TO: [str(rank)]})},
    )


def remove_queues(spec: JobSpec) -> None:
    """Remove the queues and topics of a job that exist.

    Parameters
    ----------
    spec
        The job; used are its id, endpoint and region.

    Raises
    ------
    UsageError, ChannelError
        The service refused to list or remove them, or cannot be reached.
    """
    _remove_queues(spec.endpoint, spec.region, f"{PREFIX}{spec.job_id}-")


def _remove_queues(endpoint: str | None, region: str, prefix: str) -> int:
    """Remove queues and topics whose names begin with `prefix`; return their number."""
    with _explaining(endpoint, region):
        sqs, sns = (client(service, endpoint, region) for service in ("sqs", "sns"))
        queues = list(_paged(sqs, "list_queues", "QueueUrls", QueueNamePrefix=prefix))
        topics = [
            topic["TopicArn"]
            for topic in _paged(sns, "list_topics", "Topics")
            if _name(topic["TopicArn"]).startswith(prefix)
        ]
        _all(lambda url: sqs.delete_queue(QueueUrl=url), queues)
        for topic in topics:
            for subscription in _paged(
                sns, "list_subscriptions_by_topic", "Subscriptions", TopicArn=topic
            ):
                sns.unsubscribe(SubscriptionArn=subscription["SubscriptionArn"])
            sns.delete_topic(TopicArn=topic)
        return len(queues) + len(topics)


def make_bucket(spec: JobSpec) -> dict[str, str]:
    """Create a bucket for the objects of a job.

    Parameters
    ----------
    spec
        The job: its id names the bucket, its endpoint and region state where.

    Returns
    -------
    dict
        The setting `bucket`, the bucket's name.

    Raises
    ------
    UsageError, ChannelError
        The bucket cannot be created.
    """
    with _making(spec):
        s3 = _of_job("s3", spec)
        bucket = f"{PREFIX}{spec.job_id}"
        location = (
            {}  # us-east-1 is the default, and must not be named
            if spec.region == "us-east-1"
            else {"CreateBucketConfiguration": {"LocationConstraint": spec.region}}
        )
        s3.create_bucket(Bucket=bucket, **location)
    return {"bucket": bucket}


def remove_bucket(spec: JobSpec) -> None:
    """Remove the bucket of a job and everything in it, if it exists.

    Parameters
    ----------
    spec
        The job; used are its id, endpoint and region.

    Raises
    ------
    UsageError, ChannelError
        S3 refused to list or remove it, or cannot be reached.
    """
    _remove_bucket(spec.endpoint, spec.region, f"{PREFIX}{spec.job_id}")


def _remove_bucket(endpoint: str | None, region: str, bucket: str) -> int:
    """Remove a bucket and everything in it; return 0 if it does not exist, else 1."""
    with _explaining(endpoint, region):
        s3 = client("s3", endpoint, region)
        if bucket not in [listed["Name"] for listed in s3.list_buckets()["Buckets"]]:
            return 0
        for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket):
            keys = [listed["Key"] for listed in page.get("Contents", [])]
            delete_objects(s3.delete_objects, bucket, keys)
        s3.delete_bucket(Bucket=bucket)
        return 1


def delete_objects(
    call: Callable[..., Mapping[str, list[dict[str, str]]]], bucket: str, keys: list[str]
) -> dict[str, str]:
    """Delete objects with boto3, and again those that fail although the request succeeds.

    Parameters
    ----------
    call
        `delete_objects` of a client of S3.
    bucket, keys
        At most 1,000 keys.

    Returns
    -------
    key -> error code of the objects that S3 did not delete in five attempts.
    """
    failed: dict[str, str] = dict.fromkeys(keys, "")
    for _ in range(_DELETES):
        if not failed:
            break
        objects = {"Objects": [{"Key": key} for key in failed], "Quiet": True}
        answer = call(Bucket=bucket, Delete=objects)
        failed = {error["Key"]: error.get("Code", "") for error in answer.get("Errors") or ()}
    return failed


def leftovers(endpoint: str | None, region: str) -> list[str]:
    """Return the ids of jobs that have queues, topics or buckets there.

    Parameters
    ----------
    endpoint
        URL of an emulator; None for AWS.
    region
        AWS region.

    Returns
    -------
    list of str
        Ids, sorted.  What a deployed stack owns is not among them: its names contain no job's id.

    Raises
    ------
    UsageError, ChannelError
        A service refused a listing, or cannot be reached.
    """
    with _explaining(endpoint, region):
        sqs, sns, s3 = (client(service, endpoint, region) for service in ("sqs", "sns", "s3"))
        names = [
            _name(url) for url in _paged(sqs, "list_queues", "QueueUrls", QueueNamePrefix=PREFIX)
        ]
        names += [_name(topic["TopicArn"]) for topic in _paged(sns, "list_topics", "Topics")]
        names += [bucket["Name"] for bucket in s3.list_buckets()["Buckets"]]
        return sorted({match.group(1) for match in map(_OF_JOB.match, names) if match})


def remove(endpoint: str | None, region: str, job_id: str) -> int:
    """Remove the queues, topics and bucket of a job.

    Parameters
    ----------
    endpoint
        URL of an emulator; None for AWS.
    region
        AWS region.
    job_id
        Id of the job, as `leftovers` returns it.

    Returns
    -------
    int
        Number of removed queues, topics and buckets.

    Raises
    ------
    UsageError, ChannelError
        A service refused a request, or cannot be reached.
    """
    return _remove_queues(endpoint, region, f"{PREFIX}{job_id}-") + _remove_bucket(
        endpoint, region, f"{PREFIX}{job_id}"
    )


def _name(address: str) -> str:
    """Return the last part of a URL or ARN."""
    return address.replace("/", ":").rpartition(":")[2]


def _paged(service: Any, call: str, field: str, **arguments: Any) -> Iterator[Any]:
    """Yield the items of all pages of a listing."""
    while True:
        page = getattr(service, call)(**arguments)
        yield from page.get(field) or ()
        token = page.get("NextToken")
        if not token:
            return
        arguments["NextToken"] = token
