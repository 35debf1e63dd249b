"""Making and removing the queues, topics and buckets of a job: the one place that uses boto3.

Everything is named after the job, `smpi-<job id>...`, so that leftovers can be found.
"""

from __future__ import annotations

import contextlib
import json
import re
import textwrap
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from serverless_mpi.aws.credentials import DUMMY, emulator_keys
from serverless_mpi.aws.sigv4 import Keys
from serverless_mpi.aws.sns import FILTERS_PER_TOPIC, TO
from serverless_mpi.errors import ChannelError
from serverless_mpi.job import JobSpec

PREFIX = "smpi-"
_OF_JOB = re.compile(PREFIX + r"([0-9a-f]{16})(?:-|$)")
VISIBILITY_S = 60  # a frame that was received but not stored comes again after this
RETENTION_S = 86400  # what a killed launcher leaves is forgotten after a day
_AT_ONCE = 8
_CONNECT_TIMEOUT_S = 5
_ERROR_CHARACTERS = 300


def client(service: str, endpoint: str | None, region: str, keys: Keys = DUMMY) -> Any:
    """A boto3 client; with an endpoint its credentials are `keys`."""
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
    """Send the body's hash in a header, so that an emulator can check the signature before it reads the body."""
    from botocore.auth import SigV4Auth

    request.headers["X-Amz-Content-SHA256"] = SigV4Auth(None, "", "").payload(request)


def _of_job(service: str, spec: JobSpec) -> Any:
    return client(service, spec.endpoint, spec.region, emulator_keys(spec.key))


def _all(call: Any, items: Iterable[Any]) -> list[Any]:
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(call, items))


@contextlib.contextmanager
def _explaining(endpoint: str | None, region: str) -> Iterator[None]:
    """What goes wrong inside is a ChannelError that names the place."""
    try:
        yield
    except Exception as error:  # botocore has no common base of its own and the socket's errors
        raise ChannelError(
            f"{endpoint or f'AWS in {region}'} did not list or remove what jobs left there: {_line(error)}"
        ) from error


def _explained(spec: JobSpec, error: Exception) -> ChannelError:
    where = spec.endpoint or f"AWS in {spec.region}"
    return ChannelError(
        f"{where} did not make or remove what job {spec.job_id} needs: {_line(error)}"
    )


def _line(error: Exception) -> str:
    """The error in one line: what is no AWS may answer with a page of HTML."""
    return textwrap.shorten(str(error), _ERROR_CHARACTERS)


def make_queues(spec: JobSpec) -> dict[str, str]:
    """A queue for each rank, and topics that serve 200 ranks each; returns their addresses as settings."""
    try:
        sqs, sns = (_of_job(service, spec) for service in ("sqs", "sns"))
        attributes = {
            "VisibilityTimeout": str(VISIBILITY_S),
            "MessageRetentionPeriod": str(RETENTION_S),
        }

        def make_queue(rank: int) -> tuple[str, str]:
            url = sqs.create_queue(
                QueueName=f"{PREFIX}{spec.job_id}-{rank}", Attributes=attributes
            )["QueueUrl"]
            answer = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])
            return url, answer["Attributes"]["QueueArn"]

        queues = _all(make_queue, range(spec.size))
        topics = []
        if spec.size > 1:
            count = -(-spec.size // FILTERS_PER_TOPIC)
            topics = _all(
                lambda n: sns.create_topic(Name=f"{PREFIX}{spec.job_id}-{n}")["TopicArn"],
                range(count),
            )

        def subscribe(rank: int) -> None:
            url, arn = queues[rank]
            topic = topics[rank // FILTERS_PER_TOPIC]
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
                Attributes={
                    "RawMessageDelivery": "true",
                    "FilterPolicy": json.dumps({TO: [str(rank)]}),
                },
            )

        if topics:
            _all(subscribe, range(spec.size))
    except Exception as error:
        raise _explained(spec, error) from error
    return {"queues": json.dumps([url for url, _ in queues]), "topics": json.dumps(topics)}


def remove_queues(spec: JobSpec) -> None:
    """Remove the job's queues and topics, whatever there is of them."""
    _remove_queues(spec.endpoint, spec.region, f"{PREFIX}{spec.job_id}-")


def _remove_queues(endpoint: str | None, region: str, prefix: str) -> int:
    with _explaining(endpoint, region):
        sqs, sns = (client(service, endpoint, region) for service in ("sqs", "sns"))
        queues = list(_paged(sqs, "list_queues", "QueueUrls", QueueNamePrefix=prefix))
        topics = [
            t["TopicArn"]
            for t in _paged(sns, "list_topics", "Topics")
            if _name(t["TopicArn"]).startswith(prefix)
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
    """A bucket for the job's objects."""
    try:
        s3 = _of_job("s3", spec)
        bucket = f"{PREFIX}{spec.job_id}"
        where = (
            {}
            if spec.region == "us-east-1"
            else {"CreateBucketConfiguration": {"LocationConstraint": spec.region}}
        )
        s3.create_bucket(Bucket=bucket, **where)
    except Exception as error:
        raise _explained(spec, error) from error
    return {"bucket": bucket}


def remove_bucket(spec: JobSpec) -> None:
    """Remove the job's bucket and everything in it, if it is there."""
    _remove_bucket(spec.endpoint, spec.region, f"{PREFIX}{spec.job_id}")


def _remove_bucket(endpoint: str | None, region: str, bucket: str) -> int:
    with _explaining(endpoint, region):
        s3 = client("s3", endpoint, region)
        if bucket not in [one["Name"] for one in s3.list_buckets()["Buckets"]]:
            return 0
        for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket):
            keys = [{"Key": one["Key"]} for one in page.get("Contents", [])]
            if keys:
                s3.delete_objects(Bucket=bucket, Delete={"Objects": keys, "Quiet": True})
        s3.delete_bucket(Bucket=bucket)
        return 1


def leftovers(endpoint: str | None, region: str) -> list[str]:
    """Ids of the jobs that have queues, topics or buckets there; what a deployed stack owns has no job's id in its name."""
    with _explaining(endpoint, region):
        sqs, sns, s3 = (client(service, endpoint, region) for service in ("sqs", "sns", "s3"))
        names = [
            _name(url) for url in _paged(sqs, "list_queues", "QueueUrls", QueueNamePrefix=PREFIX)
        ]
        names += [_name(topic["TopicArn"]) for topic in _paged(sns, "list_topics", "Topics")]
        names += [bucket["Name"] for bucket in s3.list_buckets()["Buckets"]]
        return sorted({found.group(1) for found in map(_OF_JOB.match, names) if found})


def remove(endpoint: str | None, region: str, job_id: str) -> int:
    """Remove everything of a job; how many things that were."""
    return _remove_queues(endpoint, region, f"{PREFIX}{job_id}-") + _remove_bucket(
        endpoint, region, f"{PREFIX}{job_id}"
    )


def _name(address: str) -> str:
    return address.replace("/", ":").rpartition(":")[2]


def _paged(service: Any, call: str, field: str, **arguments: Any) -> Iterator[Any]:
    while True:
        page = getattr(service, call)(**arguments)
        yield from page.get(field) or ()
        token = page.get("NextToken")
        if not token:
            return
        arguments["NextToken"] = token
