"""The one table of AWS facts: quotas, sizes, rates, times and bandwidths, each with its source.

Two kinds of entries.  A `Limit` is what AWS documents and enforces: it is exact, and the same for
every account unless its range says otherwise.  A `Figure` is what a request or a connection takes:
AWS states a range at best, so it has a value that the models compute with, the ends of its range,
and it may be replaced by a measurement (`smpi calibrate`, `aws/figures.py`).

Channels, the simulation, the planner, `smpi doctor` and the template of a stack read this table and
have no copy of it; `tests/aws/test_limits.py` looks for copies.  The docs page
`reference/aws-figures.md` is generated from it.  Prices are in `prices.json`.

Every rank imports this module, so it imports nothing but `dataclasses`.

To add an entry: a constant of type `Limit`, or a field of `Figures`.  If a figure can be measured,
also measure it in `launch/measure.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace

_DOCS = "https://docs.aws.amazon.com/"
_SQS_MESSAGES = _DOCS + "AWSSimpleQueueService/latest/SQSDeveloperGuide/quotas-messages.html"
_SQS_QUEUES = _DOCS + "AWSSimpleQueueService/latest/SQSDeveloperGuide/quotas-queues.html"
_SQS_FAQ = "https://aws.amazon.com/sqs/faqs/"
_SNS = _DOCS + "general/latest/gr/sns.html"
_SNS_BATCH = _DOCS + "sns/latest/api/API_PublishBatch.html"
_SNS_FILTERS = _DOCS + "sns/latest/dg/sns-subscription-filter-policies.html"
_S3_RATES = _DOCS + "AmazonS3/latest/userguide/optimizing-performance.html"
_S3_TIMES = _DOCS + "AmazonS3/latest/userguide/optimizing-performance-guidelines.html"
_S3_EXPRESS = _DOCS + "AmazonS3/latest/userguide/s3-express-performance.html"
_S3_SESSION = _DOCS + "AmazonS3/latest/API/API_CreateSession.html"
_S3_PATTERNS = _DOCS + "AmazonS3/latest/userguide/optimizing-performance-design-patterns.html"
_S3_PARTS = _DOCS + "AmazonS3/latest/userguide/qfacts.html"
_S3_LIST = _DOCS + "AmazonS3/latest/API/API_ListObjectsV2.html"
_S3_DELETE = _DOCS + "AmazonS3/latest/API/API_DeleteObjects.html"
_LAMBDA = _DOCS + "lambda/latest/dg/gettingstarted-limits.html"
_LAMBDA_MEMORY = _DOCS + "lambda/latest/dg/configuration-memory.html"
_LAMBDA_SCALING = _DOCS + "lambda/latest/dg/lambda-concurrency.html"
_LAMBDA_EVENTS = _DOCS + "lambda/latest/dg/invocation-async-error-handling.html"
_IAM = _DOCS + "IAM/latest/UserGuide/reference_iam-quotas.html"
_CLOUDFORMATION = _DOCS + "AWSCloudFormation/latest/UserGuide/cloudformation-limits.html"
_ESTIMATE = "estimate: AWS states no figure"
_READ = "2026-11"  # when the sources were read

KB, MB, GB = 1 << 10, 1 << 20, 1 << 30


@dataclass(frozen=True)
class Limit:
    """What AWS enforces.

    Attributes
    ----------
    value
        The limit of an account that has asked for nothing.
    unit
        Of the value: "bytes", "messages", "per second", ...
    meaning
        What is limited.
    source
        Address of the page that states it.
    date
        When the page was read.
    low, high
        What it can be for other accounts or regions; None if it is the same for all.
    """

    value: int
    unit: str
    meaning: str
    source: str
    date: str = _READ
    low: int | None = None
    high: int | None = None


@dataclass(frozen=True)
class Figure:
    """What a request or a connection takes.

    Attributes
    ----------
    value
        What the models compute with.
    low, high
        Ends of its range; the value lies within.
    unit
        "s", or something of which more is better: "B/s", "per second".
    meaning
        What is measured, from when to when.
    source
        Address of a page, or how it was estimated or measured.
    date
        When the source was read, or the measurement made.
    """

    value: float
    low: float
    high: float
    unit: str
    meaning: str
    source: str
    date: str = _READ

    @property
    def best(self) -> float:
        """The favourable end of the range."""
        return self.low if self.unit == "s" else self.high

    @property
    def worst(self) -> float:
        """The unfavourable end of the range."""
        return self.high if self.unit == "s" else self.low


# --- SQS, SNS -------------------------------------------------------------------------------------

SQS_BATCH_ENTRIES = Limit(10, "messages", "one batch request, or one receive", _SQS_MESSAGES)
SQS_MESSAGE_BYTES = Limit(MB, "bytes", "a message, and a batch of messages", _SQS_MESSAGES)
SQS_LONG_POLL_S = Limit(20, "s", "the longest wait of one receive", _SQS_QUEUES)
SQS_IN_FLIGHT = Limit(120_000, "messages", "received from one queue and not deleted", _SQS_QUEUES)
SNS_BATCH_ENTRIES = Limit(10, "messages", "one PublishBatch", _SNS_BATCH)
SNS_MESSAGE_BYTES = Limit(
    256 * KB,
    "bytes",
    "a message, and a batch of messages; more with the topic's MaximumMessageSize",
    _SNS_BATCH,
    high=MB,
)
SNS_FILTERS_PER_TOPIC = Limit(200, "filter policies", "one topic", _SNS)
SNS_FILTER_DELAY_S = Limit(900, "s", "until a change of a filter policy applies", _SNS_FILTERS)
# By Publish and PublishBatch together, of all topics of an account in a region.
SNS_PUBLISHES_PER_S = Limit(
    300, "messages per second", "published in a region; more in those below", _SNS, high=30_000
)
SNS_PUBLISHES_PER_S_IN = {
    "us-east-1": 30_000,
    "us-west-2": 9_000,
    "eu-west-1": 9_000,
    **dict.fromkeys(
        (
            "us-east-2",
            "us-west-1",
            "ap-south-1",
            "ap-northeast-1",
            "ap-northeast-2",
            "ap-southeast-1",
            "ap-southeast-2",
            "eu-central-1",
        ),
        1_500,
    ),
}
BILLED_CHUNK_BYTES = Limit(
    64 * KB,
    "bytes",
    "of a payload of SQS or SNS that are billed as one request",
    "https://aws.amazon.com/sqs/pricing/",
)


def publishes_per_s(region: str) -> int:
    """Return how many messages per second an account may publish in a region.

    Parameters
    ----------
    region
        AWS region.

    Returns
    -------
    int
        Default quota; that of most regions if the table does not list `region`.
    """
    return SNS_PUBLISHES_PER_S_IN.get(region, SNS_PUBLISHES_PER_S.value)


# --- S3 -------------------------------------------------------------------------------------------

S3_PUTS_PER_S = Limit(3_500, "requests per second", "PUT, of one partition of prefixes", _S3_RATES)
S3_GETS_PER_S = Limit(5_500, "requests per second", "GET, of one partition of prefixes", _S3_RATES)
# Of a directory bucket of S3 Express One Zone.
EXPRESS_PUTS_PER_S = Limit(200_000, "requests per second", "PUT, of one bucket", _S3_EXPRESS)
EXPRESS_GETS_PER_S = Limit(2_000_000, "requests per second", "GET, of one bucket", _S3_EXPRESS)
EXPRESS_SESSION_S = Limit(300, "s", "the life of a session's keys", _S3_SESSION)
S3_PUT_BYTES = Limit(5 * GB, "bytes", "an object that is put in one request", _S3_PARTS)
S3_PART_BYTES = Limit(5 * MB, "bytes", "the least of a part, except the last", _S3_PARTS)
S3_LIST_KEYS = Limit(1_000, "keys", "one page of a LIST", _S3_LIST)
S3_DELETE_KEYS = Limit(1_000, "keys", "one DeleteObjects", _S3_DELETE)

# --- Lambda, CloudFormation -----------------------------------------------------------------------

LAMBDA_EVENT_BYTES = Limit(MB, "bytes", "the payload of an asynchronous invocation", _LAMBDA)
LAMBDA_PAYLOAD_BYTES = Limit(6 * MB, "bytes", "the payload of a synchronous invocation", _LAMBDA)
# Managed instances run longer; a stack does not use them.
LAMBDA_TIME_S = Limit(900, "s", "the longest run of a function", _LAMBDA)
LAMBDA_LEAST_MB = Limit(128, "MB", "the least memory of a function", _LAMBDA)
LAMBDA_MOST_MB = Limit(10_240, "MB", "the most memory of a function", _LAMBDA, low=3_008)
LAMBDA_VCPU_MB = Limit(1_769, "MB", "memory that comes with one vCPU", _LAMBDA_MEMORY)
LAMBDA_UNPACKED_BYTES = Limit(250 * MB, "bytes", "a function and its layers, unpacked", _LAMBDA)
LAMBDA_TMP_BYTES = Limit(512 * MB, "bytes", "/tmp, unless more is paid for", _LAMBDA)
LAMBDA_CONCURRENCY = Limit(1_000, "functions", "that run at a time in a region", _LAMBDA, low=10)
LAMBDA_STARTS_PER_10_S = Limit(
    1_000, "functions", "of one name that start within 10 s", _LAMBDA_SCALING
)
LAMBDA_EVENT_AGE_S = Limit(
    60,
    "s",
    "the least after which an event that no function was free for is dropped",
    _LAMBDA_EVENTS,
    high=21_600,
)
ROLE_POLICIES = Limit(10, "managed policies", "of one role", _IAM, high=20)
STACK_RESOURCES = Limit(500, "resources", "one template", _CLOUDFORMATION)
TEMPLATE_BYTES = Limit(51_200, "bytes", "a template that travels in the request", _CLOUDFORMATION)


def all_limits() -> Iterator[tuple[str, Limit]]:
    """Yield (name of the constant, limit) of the whole table."""
    for name, entry in globals().items():
        if isinstance(entry, Limit):
            yield name, entry


# --- figures --------------------------------------------------------------------------------------


def _seconds(value: float, low: float, high: float, meaning: str, source: str) -> Figure:
    return Figure(value, low, high, "s", meaning, source)


def _rate(value: float, low: float, high: float, unit: str, meaning: str, source: str) -> Figure:
    return Figure(value, low, high, unit, meaning, source)


_TYPICAL = _SQS_FAQ + ' ("tens or low hundreds of milliseconds")'


@dataclass(frozen=True)
class Figures:
    """Every figure that can be measured; the defaults are the package's own.

    A request is timed in a function, in the region of the service.

    Attributes
    ----------
    stack, region, measured
        Stack and region in which they were measured, and when (ISO 8601, UTC); "" for the
        package's own.
    starts
        Memory of a function in MB -> (seconds of a cold start, of a warm start), as measured.
    """

    sqs_send_s: Figure = _seconds(
        0.015, 0.008, 0.05, "SendMessageBatch of one small message", _TYPICAL
    )
    sqs_receive_s: Figure = _seconds(
        0.015, 0.008, 0.05, "ReceiveMessage while a message is there", _TYPICAL
    )
    sqs_deliver_s: Figure = _seconds(
        0.03, 0.016, 0.1, "from the send until a reader that waits has the message", _TYPICAL
    )
    sqs_Bps: Figure = _rate(
        25e6,
        12e6,
        5e7,
        "B/s",
        "bytes of one request to SQS or SNS",
        _ESTIMATE + "; assumed is a message of 256 KB in 10 ms",
    )
    sns_publish_s: Figure = _seconds(0.025, 0.015, 0.1, "Publish of one small message", _ESTIMATE)
    sns_deliver_s: Figure = _seconds(
        0.07, 0.05, 0.2, "from the publish until a reader that waits has the message", _ESTIMATE
    )
    s3_put_s: Figure = _seconds(
        0.1, 0.02, 0.2, "PUT of a small object", _S3_TIMES + ' ("100-200 milliseconds")'
    )
    s3_get_s: Figure = _seconds(
        0.1,
        0.015,
        0.2,
        "GET of a small object, or of a range",
        _S3_TIMES + ' ("100-200 milliseconds")',
    )
    s3_list_s: Figure = _seconds(
        0.1, 0.03, 0.3, "LIST of a few keys", _S3_TIMES + ' ("100-200 milliseconds")'
    )
    express_s: Figure = _seconds(
        0.005,
        0.003,
        0.009,
        "PUT, GET or LIST of a small object in a directory bucket of the function's zone",
        _S3_EXPRESS + ' ("consistent single-digit millisecond")',
    )
    s3_Bps: Figure = _rate(
        9e7, 6e7, 9e7, "B/s", "one connection to S3", _S3_PATTERNS + ' ("85-90 MB/s")'
    )
    # 625 Mbps; "up to 3,000 Mbps" on request, so more than the value is not a matter of luck
    network_Bps: Figure = _rate(
        625e6 / 8,
        4e7,
        625e6 / 8,
        "B/s",
        "all connections of one function together",
        _LAMBDA + ' ("625 Mbps", more on request; the low end is assumed)',
    )
    invoke_s: Figure = _seconds(0.025, 0.01, 0.04, "the call that starts a function", _ESTIMATE)
    cold_start_s: Figure = _seconds(
        0.4, 0.2, 1.0, "from the call to the first statement, in a new environment", _ESTIMATE
    )
    warm_start_s: Figure = _seconds(
        0.05, 0.02, 0.1, "from the call to the first statement, in one that ran before", _ESTIMATE
    )
    import_s: Figure = _seconds(
        0.1, 0.05, 0.3, "from the first statement to that of the program", _ESTIMATE
    )
    kernel_per_s: Figure = _rate(
        2e9,
        1.4e9,
        3.7e9,
        "per second",
        "nonzeros x active samples of the sparse kernel on one vCPU",
        "measured on a core of an EPYC with neighbours; a vCPU is half a core",
    )
    starts: dict[int, tuple[float, float]] = field(default_factory=dict)
    stack: str = ""
    region: str = ""
    measured: str = ""

    def items(self) -> Iterator[tuple[str, Figure]]:
        """Yield (name, figure) in the order of the table."""
        for each in fields(self):
            figure = getattr(self, each.name)
            if isinstance(figure, Figure):
                yield each.name, figure

    def changed(self, changes: Mapping[str, Figure]) -> Figures:
        """Return the figures with other ones under some of the names.

        Parameters
        ----------
        changes
            Name of a figure -> its replacement.

        Raises
        ------
        TypeError
            A name is not that of a field.
        """
        return replace(self, **changes)  # type: ignore[arg-type]

    def values_at(self, **values: float) -> Figures:
        """Return the figures with other values, ranges unchanged.

        Parameters
        ----------
        **values
            Name of a figure -> its value, in the figure's unit.
        """
        return self.changed(
            {name: replace(getattr(self, name), value=at) for name, at in values.items()}
        )

    def exactly(self, **values: float) -> Figures:
        """Return the figures with values that are known, so that their ranges are points.

        Parameters
        ----------
        **values
            Name of a figure -> its value, in the figure's unit.
        """
        return self.changed(
            {
                name: replace(getattr(self, name), value=at, low=at, high=at)
                for name, at in values.items()
            }
        )

    def of_store(self, store: str) -> Figures:
        """Return the figures with the times of a store as those of S3.

        Parameters
        ----------
        store
            "s3" or "s3express".

        Returns
        -------
        Figures
            The object itself for "s3"; otherwise a copy whose PUT, GET and LIST take `express_s`.
        """
        if store == "s3":
            return self
        return replace(
            self, s3_put_s=self.express_s, s3_get_s=self.express_s, s3_list_s=self.express_s
        )

    @property
    def connection_Bps(self) -> float:
        """Bytes per second of one connection to S3, which the function's network bounds."""
        return min(self.s3_Bps.value, self.network_Bps.value)


AWS = Figures()
