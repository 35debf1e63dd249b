"""Rules of SQS and SNS."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import urlencode
from xml.sax.saxutils import escape

from tests.strict import iam
from tests.strict.call import Answer, Call
from tests.strict.rules import Proceed, acts, checks
from tests.strict.world import Refusal, Subscription, World, queue_arn

MAX_ENTRIES = 10
SQS_BYTES = 1 << 20
SNS_BYTES = 256 << 10
FILTERS_PER_TOPIC = 200
SAME_NAME_S = 60.0
VISIBILITY_S = 30.0  # of a queue without a VisibilityTimeout
_SQS = "AWSSimpleQueueService/latest/SQSDeveloperGuide/"
_SQS_API = "AWSSimpleQueueService/latest/APIReference/"
_ID = re.compile(r"[A-Za-z0-9_-]{1,80}")
_QUEUE = re.compile(r"[A-Za-z0-9_-]{1,80}")
_ATTRIBUTE = re.compile(r"(?!(?i:aws|amazon)\.)(?!\.)[A-Za-z0-9_.-]{1,256}(?<!\.)")
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_BATCHES = "sqs.*Batch sns.PublishBatch"


def entries(call: Call) -> list[dict[str, Any]]:
    """Return the entries of a batch, or the one message of another call."""
    name = "PublishBatchRequestEntries" if call.service == "sns" else "Entries"
    found = call.params.get(name) if call.action.endswith("Batch") else [call.params]
    return list(found or ())


def nbytes(entry: Mapping[str, Any]) -> int:
    """Return the bytes of a message: body, and names, types and values of its attributes."""
    total = len(str(entry.get("MessageBody", entry.get("Message", ""))).encode())
    for name, attribute in (entry.get("MessageAttributes") or {}).items():
        value = attribute.get("BinaryValue", b"") or str(attribute.get("StringValue", "")).encode()
        total += len(name) + len(attribute["DataType"]) + len(value)
    return total


@checks("batch-entries", _BATCHES, _SQS + "quotas-messages.html", "A batch has 1 to 10 entries.")
def batch_entries(call: Call, world: World) -> None:
    count = len(entries(call))
    if not 1 <= count <= MAX_ENTRIES:
        code = "TooManyEntriesInBatchRequest" if count else "EmptyBatchRequest"
        raise Refusal(code, f"a batch of {count} entries")


@checks(
    "batch-ids",
    _BATCHES,
    _SQS_API + "API_SendMessageBatchRequestEntry.html",
    "Ids of a batch are distinct, and have 1 to 80 letters, digits, hyphens and underscores.",
)
def batch_ids(call: Call, world: World) -> None:
    ids = [entry["Id"] for entry in entries(call)]
    if len(set(ids)) < len(ids):
        raise Refusal("BatchEntryIdsNotDistinct", f"ids {ids}")
    for one in ids:
        if not _ID.fullmatch(one):
            raise Refusal("InvalidBatchEntryId", f"id {one!r}")


@checks(
    "message-bytes",
    "sqs.SendMessage* sns.Publish*",
    _SQS + "quotas-messages.html",
    "A message with its attributes, and all messages of a batch, have at most 1 MiB on SQS and 256 KiB on SNS.",
)
def message_bytes(call: Call, world: World) -> None:
    total, limit = (
        sum(map(nbytes, entries(call))),
        SNS_BYTES if call.service == "sns" else SQS_BYTES,
    )
    if total > limit:
        batch = "BatchRequestTooLong" if call.action.endswith("Batch") else "InvalidParameterValue"
        raise Refusal(batch, f"{total} bytes, at most {limit}")


@checks(
    "message-characters",
    "sqs.SendMessage* sns.Publish*",
    _SQS_API + "API_SendMessage.html",
    "A body has at least one character, and only those that XML 1.0 allows.",
)
def message_characters(call: Call, world: World) -> None:
    for entry in entries(call):
        body = str(entry.get("MessageBody", entry.get("Message", "")))
        if not body or _NOT_XML.search(body):
            code = "InvalidMessageContents" if call.service == "sqs" else "InvalidParameter"
            raise Refusal(code, f"body {body[:20]!r}")


@checks(
    "message-attributes",
    "sqs.SendMessage* sns.Publish*",
    _SQS + "sqs-message-metadata.html",
    "A message has at most 10 attributes (SNS drops others on the way to a queue), each with a name of 1 to 256"
    " letters, digits, _, - and ., a type, and a value that is not empty.",
)
def message_attributes(call: Call, world: World) -> bool | None:
    tables = [entry.get("MessageAttributes") or {} for entry in entries(call)]
    for table in tables:
        if len(table) > MAX_ENTRIES:
            raise Refusal("InvalidParameterValue", f"{len(table)} attributes")
        for name, attribute in table.items():
            kind = attribute["DataType"].partition(".")[0]
            value = attribute.get("BinaryValue" if kind == "Binary" else "StringValue")
            if not _ATTRIBUTE.fullmatch(name) or kind not in ("String", "Number", "Binary"):
                raise Refusal("InvalidParameterValue", f"attribute {name!r} of type {kind!r}")
            if not value:
                raise Refusal("InvalidParameterValue", f"attribute {name!r} has no value")
    return any(tables)


@checks(
    "sns-string-array",
    "sns.Publish*",
    "sns/latest/dg/sns-message-attributes.html",
    "A String.Array is a JSON list of texts, numbers, true, false or null.",
)
def sns_string_array(call: Call, world: World) -> bool | None:
    found = False
    for entry in entries(call):
        for name, attribute in (entry.get("MessageAttributes") or {}).items():
            if attribute["DataType"] == "String.Array":
                found = True
                try:
                    values = json.loads(attribute.get("StringValue") or "")
                except ValueError:
                    values = None
                if not isinstance(values, list) or any(
                    isinstance(one, list | dict) for one in values
                ):
                    raise Refusal("InvalidParameter", f"attribute {name} is not a list")
    return found


@checks(
    "sqs-receive",
    "sqs.ReceiveMessage",
    _SQS_API + "API_ReceiveMessage.html",
    "A receive asks for 1 to 10 messages, waits 0 to 20 s, and hides them for 0 to 43,200 s.",
)
def sqs_receive(call: Call, world: World) -> None:
    for name, least, most in (
        ("MaxNumberOfMessages", 1, 10),
        ("WaitTimeSeconds", 0, 20),
        ("VisibilityTimeout", 0, 43_200),
    ):
        value = call.params.get(name, least)
        if not least <= value <= most:
            raise Refusal("InvalidParameterValue", f"{name} is {value}")


@checks(
    "sqs-in-flight",
    "sqs.ReceiveMessage",
    _SQS + "quotas-queues.html",
    "At most about 120,000 messages of a queue are received and not deleted; a short poll is then refused.",
)
def sqs_in_flight(call: Call, world: World) -> None:
    now = world.clock.now()
    with world.lock:
        held = world.in_flight.setdefault(call.params["QueueUrl"], {})
        for handle in [one for one, until in held.items() if until <= now]:
            del held[handle]
        count = len(held)
    if count >= world.settings.in_flight and not call.params.get("WaitTimeSeconds"):
        raise Refusal("OverLimit", f"{count} messages are in flight", 403)


@checks(
    "sqs-queue-name",
    "sqs.CreateQueue",
    _SQS_API + "API_CreateQueue.html",
    "A queue's name has 1 to 80 letters, digits, hyphens and underscores.",
)
def sqs_queue_name(call: Call, world: World) -> None:
    if not _QUEUE.fullmatch(call.params["QueueName"]):
        raise Refusal("InvalidParameterValue", f"queue name {call.params['QueueName']!r}")


@checks(
    "sqs-same-name",
    "sqs.CreateQueue sqs.DeleteQueue",
    _SQS_API + "API_DeleteQueue.html",
    "A queue can be created 60 s after one of the same name was deleted, not before; also by a stack.",
)
def sqs_same_name(call: Call, world: World) -> None:
    now = world.clock.now()
    if call.action == "DeleteQueue":
        world.deleted_queues[call.params["QueueUrl"].rpartition("/")[2]] = now
    elif recently_deleted([call.params["QueueName"]], world):
        raise Refusal("QueueDeletedRecently", "you must wait 60 seconds after deleting a queue")


def recently_deleted(names: Iterable[str], world: World) -> list[str]:
    """Return the names of queues that were deleted less than 60 s ago."""
    now = world.clock.now()
    return [name for name in names if now - world.deleted_queues.get(name, -1e9) < SAME_NAME_S]


# --- topics, filters and policies ------------------------------------------------------------


@checks(
    "sns-filters",
    "sns.Subscribe",
    "general/latest/gr/sns.html",
    "A topic has at most 200 filter policies.",
)
def sns_filters(call: Call, world: World) -> bool | None:
    if "FilterPolicy" not in call.params.get("Attributes", {}):
        return False
    if len(world.filters.get(call.params["TopicArn"], ())) >= FILTERS_PER_TOPIC:
        raise Refusal("FilterPolicyLimitExceeded", "the topic has 200 filter policies", 403)
    return None


@checks(
    "sns-topic-policy",
    "sns.CreateTopic sns.SetTopicAttributes",
    "sns/latest/dg/sns-access-policy-language-api-permissions-reference.html",
    "The policy of a topic covers this topic only, by its ARN; also in a stack.",
)
def sns_topic_policy(call: Call, world: World) -> bool | None:
    text = call.params.get("Attributes", {}).get("Policy")
    if call.params.get("AttributeName") == "Policy":
        text = call.params.get("AttributeValue")
    if text is None:
        return False
    for statement in json.loads(text)["Statement"]:
        if not names_one_topic(statement.get("Resource")):
            raise Refusal("InvalidParameter", "Policy statement must apply to a single resource!")
    return None


def names_one_topic(resource: Any) -> bool:
    """Return whether the resource of a statement is one ARN without a pattern."""
    if isinstance(resource, list) and len(resource) == 1:
        resource = resource[0]
    return isinstance(resource, str) and resource.startswith("arn:") and "*" not in resource


@acts(
    "sns-filter-delay",
    "sns.Subscribe sns.Unsubscribe sns.SetSubscriptionAttributes sns.Publish*",
    "sns/latest/dg/sns-subscription-filter-policies.html",
    "A new or changed filter policy takes up to 15 minutes to apply; a publish before may reach nobody.",
)
def sns_filter_delay(call: Call, world: World, proceed: Proceed) -> Answer:
    now = world.clock.now()
    if call.action == "Subscribe":
        with world.lock:
            made = Subscription(call.params["Endpoint"], now)
            world.filters.setdefault(call.params["TopicArn"], []).append(made)
    elif call.action.startswith("Publish"):
        with world.lock:
            young = [
                one
                for one in world.filters.get(call.params["TopicArn"], ())
                if now - one.since < world.settings.filter_s
            ]
        world.count("sns-filter-delay", int(call.params["TopicArn"] in world.filters))
        if young:
            return published(call)
    return proceed(call)


@acts(
    "sns-queue-policy",
    "sqs.SetQueueAttributes sns.Publish*",
    "sns/latest/dg/sns-dead-letter-queues.html",
    "A queue's policy must allow its topics to send, up to 60 s before they do; what a queue refuses is lost"
    " without a word.",
)
def sns_queue_policy(call: Call, world: World, proceed: Proceed) -> Answer:
    now = world.clock.now()
    if call.action == "SetQueueAttributes":
        text = call.params["Attributes"].get("Policy")
        if text is not None:
            with world.lock:
                world.queue_policies[queue_arn(call.params["QueueUrl"])] = (text, now)
        return proceed(call)
    topic = call.params.get("TopicArn", "")
    with world.lock:
        queues = [one.queue for one in world.filters.get(topic, ())]
        policies = {queue: world.queue_policies.get(queue, ("", 0.0)) for queue in queues}
    for queue, (text, since) in policies.items():
        world.count("sns-queue-policy")
        if now - since < world.settings.policy_s or not _lets(text, queue, topic):
            return published(call)
    return proceed(call)


def _lets(policy: str, queue: str, topic: str) -> bool:
    """Return whether a queue's policy lets a topic send to it."""
    for statement in json.loads(policy)["Statement"] if policy else ():
        if statement.get("Principal") not in ({"Service": "sns.amazonaws.com"}, "*"):
            continue
        plain = {name: value for name, value in statement.items() if name != "Condition"}
        patterns = [
            pattern
            for operator, keys in statement.get("Condition", {}).items()
            for key, pattern in keys.items()
            if operator in ("ArnEquals", "ArnLike") and key == "aws:SourceArn"
        ]
        limited = [{"Effect": "Allow", "Action": "*", "Resource": patterns or ["*"]}]
        if iam.allows([plain], "sqs:SendMessage", queue) and iam.allows(limited, "*", topic):
            return True
    return False


@checks(
    "sns-quota",
    "sns.Publish*",
    "general/latest/gr/sns.html",
    "An account publishes so many messages per second in a region: 30,000, 9,000, 1,500 or 300.",
)
def sns_quota(call: Call, world: World) -> None:
    count = len(entries(call))
    if not world.admits("sns", world.settings.published_per_s, count):
        raise Refusal("Throttled", "Rate exceeded", 429)


# --- adversity -------------------------------------------------------------------------------


@acts(
    "entry-failures",
    "sqs.SendMessageBatch sqs.DeleteMessageBatch sns.PublishBatch",
    _SQS_API + "API_SendMessageBatch.html",
    "Entries of a batch may fail one by one, and the batch is then answered with 200.",
)
def entry_failures(call: Call, world: World, proceed: Proceed) -> Answer:
    chance, share = world.chance(call.name), world.settings.failing_entries
    all_entries = entries(call)
    failed = [entry["Id"] for entry in all_entries if share and chance.random() < share]
    if not failed:
        return proceed(call)
    world.count("entry-failures", len(failed))
    name = "PublishBatchRequestEntries" if call.service == "sns" else "Entries"
    left = [entry for entry in all_entries if entry["Id"] not in failed]
    if left:
        answer = proceed(replace(call, params={**call.params, name: left}))
        if answer.status != 200:
            return answer
    else:
        answer = published(call, ()) if call.service == "sns" else Answer(200, b"{}")
    return _with_failed(call, answer, failed)


def _with_failed(call: Call, answer: Answer, failed: list[str]) -> Answer:
    if call.service == "sns":
        members = "".join(
            f"<member><Id>{one}</Id><Code>InternalError</Code><Message>try again</Message>"
            "<SenderFault>false</SenderFault></member>"
            for one in failed
        )
        body = answer.body.decode().replace("<Failed/>", f"<Failed>{members}</Failed>")
        return replace(answer, body=body.encode())
    fields = json.loads(answer.body or b"{}")
    fields["Failed"] = list(fields.get("Failed") or ()) + [
        {"Id": one, "SenderFault": False, "Code": "InternalError", "Message": "try again"}
        for one in failed
    ]
    return replace(answer, body=json.dumps(fields).encode())


@acts(
    "at-least-once",
    "sqs.SendMessage* sns.Publish*",
    _SQS + "standard-queues-at-least-once-delivery.html",
    "A message of a standard queue may be delivered more than once.",
)
def at_least_once(call: Call, world: World, proceed: Proceed) -> Answer:
    answer = proceed(call)
    if world.strikes(f"at-least-once {call.name}", world.settings.duplicates):
        world.count("at-least-once")
        proceed(call)
    return answer


@acts(
    "any-order",
    "sqs.SendMessageBatch sns.PublishBatch",
    _SQS + "standard-queues.html",
    "Messages of a standard queue may be delivered in another order than they were sent in.",
)
def any_order(call: Call, world: World, proceed: Proceed) -> Answer:
    shuffled = entries(call)
    if world.settings.reordered and len(shuffled) > 1:
        world.chance("any-order").shuffle(shuffled)
        world.count("any-order")
        name = "PublishBatchRequestEntries" if call.service == "sns" else "Entries"
        call = replace(call, params={**call.params, name: shuffled})
    return proceed(call)


@acts(
    "short-polls",
    "sqs.ReceiveMessage",
    _SQS + "sqs-short-and-long-polling.html",
    "A short poll asks some of the servers, so it may not return messages that are there.",
)
def short_polls(call: Call, world: World, proceed: Proceed) -> Answer:
    if not call.params.get("WaitTimeSeconds"):
        if world.strikes("short-polls", world.settings.short_polls):
            world.count("short-polls")
            # with the header by which an emulator announces long polls that AWS's equal
            return Answer(200, b"{}", {"x-prompt-long-poll": "1"})
    return proceed(call)


@acts(
    "visibility",
    "sqs.ReceiveMessage sqs.DeleteMessage*",
    _SQS + "sqs-visibility-timeout.html",
    "A message that was not deleted within its visibility timeout is received again.",
)
def visibility(call: Call, world: World, proceed: Proceed) -> Answer:
    queue = call.params["QueueUrl"]
    if call.action != "ReceiveMessage":
        with world.lock:
            for entry in entries(call):
                world.in_flight.setdefault(queue, {}).pop(entry["ReceiptHandle"], None)
        return proceed(call)
    hidden_s = float(call.params.get("VisibilityTimeout", VISIBILITY_S))
    if world.strikes("visibility", world.settings.reappearing):
        hidden_s = 0.0
        call = replace(call, params={**call.params, "VisibilityTimeout": 0})
    answer = proceed(call)
    if answer.status == 200 and answer.body:
        messages = json.loads(answer.body).get("Messages") or ()
        if messages and not hidden_s:
            world.count("visibility")
        with world.lock:
            held = world.in_flight.setdefault(queue, {})
            until = world.clock.now() + hidden_s
            held.update({one["ReceiptHandle"]: until for one in messages})
    return answer


@acts(
    "stale-handle",
    "sqs.ReceiveMessage sqs.DeleteMessage*",
    _SQS_API + "API_DeleteMessage.html",
    "A delete by a handle that is not the newest of its message succeeds, and may delete nothing.",
)
def stale_handle(call: Call, world: World, proceed: Proceed) -> Answer:
    """The emulator reports such a handle as invalid."""
    answer = proceed(call)
    if call.action == "ReceiveMessage":
        if answer.status == 200 and answer.body:
            messages = json.loads(answer.body).get("Messages") or ()
            with world.lock:
                world.handles.update(one["ReceiptHandle"] for one in messages)
        return answer
    if not call.action.endswith("Batch"):
        stale = answer.status != 200 and call.params["ReceiptHandle"] in world.handles
        if stale:
            world.count("stale-handle")
        return Answer(200, b"{}") if stale else answer
    fields = json.loads(answer.body or b"{}")
    known = {one["Id"] for one in entries(call) if one["ReceiptHandle"] in world.handles}
    stale_ids = [one["Id"] for one in fields.get("Failed") or () if one["Id"] in known]
    if answer.status != 200 or not stale_ids:
        return answer
    world.count("stale-handle", len(stale_ids))
    fields["Failed"] = [one for one in fields["Failed"] if one["Id"] not in known]
    fields["Successful"] = [*(fields.get("Successful") or ()), *({"Id": one} for one in stale_ids)]
    return replace(answer, body=json.dumps(fields).encode())


@acts(
    "publish-batch",
    "sns.PublishBatch",
    "sns/latest/api/API_PublishBatch.html",
    "Each entry of a batch is a message of its own, with its attributes.",
)
def publish_batch(call: Call, world: World, proceed: Proceed) -> Answer:
    """The emulator loses binary attributes of a batch, so each entry is published alone."""
    for entry in entries(call):
        params = {"TopicArn": call.params["TopicArn"], **entry}
        params.pop("Id")
        answer = world.forward(replace(call.request, body=_publish_form(params)))
        if answer.status != 200:
            return answer
    world.count("publish-batch")
    return published(call)


def _publish_form(params: Mapping[str, Any]) -> bytes:
    form = {"Action": "Publish", "Version": "2010-03-31"}
    form |= {name: value for name, value in params.items() if isinstance(value, str)}
    for number, (name, value) in enumerate((params.get("MessageAttributes") or {}).items(), 1):
        start = f"MessageAttributes.entry.{number}"
        form[f"{start}.Name"] = name
        form[f"{start}.Value.DataType"] = value["DataType"]
        if "BinaryValue" in value:
            form[f"{start}.Value.BinaryValue"] = base64.b64encode(value["BinaryValue"]).decode()
        else:
            form[f"{start}.Value.StringValue"] = value["StringValue"]
    return urlencode(form).encode()


def published(call: Call, taken: Iterable[Mapping[str, Any]] | None = None) -> Answer:
    """Return the answer of SNS to a publish that it took."""
    if call.action == "Publish":
        result = "<PublishResult><MessageId>0</MessageId></PublishResult>"
    else:
        members = "".join(
            f"<member><Id>{escape(one['Id'])}</Id><MessageId>0</MessageId></member>"
            for one in (entries(call) if taken is None else taken)
        )
        result = (
            f"<PublishBatchResult><Successful>{members}</Successful><Failed/></PublishBatchResult>"
        )
    metadata = "<ResponseMetadata><RequestId>0</RequestId></ResponseMetadata>"
    space = 'xmlns="http://sns.amazonaws.com/doc/2010-03-31/"'
    text = f"<{call.action}Response {space}>{result}{metadata}</{call.action}Response>"
    return Answer(200, text.encode(), {"content-type": "text/xml"})
