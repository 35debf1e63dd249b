"""The services as the simulation sees them: times of requests, and limits on their rate.

Figures and limits of AWS are those of `aws/limits.py`, or measured ones (`latency_of`); here they
are only brought into the form that the models compute with.  The emulator's are measured on it.
"""

from __future__ import annotations

from dataclasses import dataclass

from serverless_mpi.aws import limits, s3express, sns
from serverless_mpi.aws.limits import Figures
from serverless_mpi.channels import object, queue


@dataclass(frozen=True)
class Latency:
    """Times of requests, and limits of the services.

    Attributes
    ----------
    sqs_send_s, sqs_receive_s, sns_publish_s, s3_put_s, s3_get_s
        Seconds of one request, without the transfer of its bytes.
    sqs_deliver_s, sns_deliver_s
        Seconds from the begin of a send or publish until a reader that waits has the message.
    sqs_Bps, s3_Bps
        Bytes per second of one connection.
    network_Bps
        Bytes per second of all connections of a rank; 0: no limit.
    *_per_s
        Requests or messages per second of all ranks together; 0: no limit.
    pauses_s
        Seconds between two looks for an object that is not there: first and longest.
    start_s
        Seconds from an invocation to the program's first statement.
    starts_per_10_s
        Functions that start in 10 s.
    topic_entries
        Messages of one PublishBatch.
    figures
        The figures of AWS that these are; None for an emulator.
    store
        Where objects are, as requests to it are priced: "s3" or "s3express".
    """

    sqs_send_s: float
    sqs_receive_s: float
    sqs_deliver_s: float
    sqs_Bps: float
    sns_publish_s: float
    sns_deliver_s: float
    sns_per_s: float
    s3_put_s: float
    s3_get_s: float
    s3_Bps: float
    network_Bps: float
    s3_puts_per_s: float
    s3_gets_per_s: float
    pauses_s: object.Pauses
    start_s: float
    starts_per_10_s: int
    topic_entries: int
    figures: Figures | None = None
    store: str = "s3"

    @property
    def aws(self) -> bool:
        """Whether these are figures of AWS, not of an emulator."""
        return self.figures is not None


def latency_of(figures: Figures, region: str, store: str = "s3") -> Latency:
    """Return the times and rates of AWS in a region in the form that the models compute with.

    Parameters
    ----------
    figures
        Times and rates of AWS, perhaps measured.
    region
        Name of the AWS region, whose quota of SNS applies.
    store
        Where objects are: "s3" or "s3express".
    """
    express = store == s3express.SERVICE
    of_store = figures.of_store(store)
    return Latency(
        sqs_send_s=figures.sqs_send_s.value,
        sqs_receive_s=figures.sqs_receive_s.value,
        sqs_deliver_s=figures.sqs_deliver_s.value,
        sqs_Bps=figures.sqs_Bps.value,
        sns_publish_s=figures.sns_publish_s.value,
        sns_deliver_s=figures.sns_deliver_s.value,
        sns_per_s=limits.publishes_per_s(region),
        s3_put_s=of_store.s3_put_s.value,
        s3_get_s=of_store.s3_get_s.value,
        s3_Bps=figures.s3_Bps.value,
        network_Bps=figures.network_Bps.value,
        s3_puts_per_s=(limits.EXPRESS_PUTS_PER_S if express else limits.S3_PUTS_PER_S).value,
        s3_gets_per_s=(limits.EXPRESS_GETS_PER_S if express else limits.S3_GETS_PER_S).value,
        pauses_s=object.EXPRESS_PAUSES_S if express else object.AWS_PAUSES_S,
        start_s=figures.cold_start_s.value + figures.import_s.value,
        starts_per_10_s=limits.LAMBDA_STARTS_PER_10_S.value,
        topic_entries=sns.MAX_ENTRIES,
        figures=figures,
        store=store,
    )


AWS = latency_of(limits.AWS, "us-east-1")
# S3 Express One Zone, in the zone of the ranks.
EXPRESS = latency_of(limits.AWS, "us-east-1", s3express.SERVICE)
# The embedded emulator: about 0.4 ms per call, one at a time, as measured.
EMULATOR = Latency(
    sqs_send_s=0.0004,
    sqs_receive_s=0.0004,
    sqs_deliver_s=0.0008,
    sqs_Bps=8e7,
    sns_publish_s=0.0004,
    sns_deliver_s=0.0008,
    sns_per_s=2500,
    s3_put_s=0.0004,
    s3_get_s=0.0004,
    s3_Bps=6.5e8,
    network_Bps=0.0,
    s3_puts_per_s=2500,
    s3_gets_per_s=2500,
    pauses_s=object.EMULATOR_PAUSES_S,
    start_s=0.3,
    starts_per_10_s=0,
    topic_entries=queue.EMULATOR_TOPIC_ENTRIES,
)
LATENCIES = {"aws": AWS, "express": EXPRESS, "emulator": EMULATOR}


def in_region(latency: Latency, region: str) -> Latency:
    """Return the latency with the quotas of an AWS region; an emulator has none.

    Parameters
    ----------
    latency
        Times of AWS for any region, or of an emulator, which are returned unchanged.
    region
        Name of the AWS region.
    """
    if latency.figures is None:
        return latency
    return latency_of(latency.figures, region, latency.store)
