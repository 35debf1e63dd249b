"""The CloudFormation template of a stack: a pure function of its layout.

- What is slow to change is created here, once: SNS takes up to 15 minutes to apply a filter policy,
  so a job creates no subscription, and leases queues that have theirs.
- Names come from `layout.py`, prefixes of the bucket from `stack/bucket.py`. The roles grant by
  these; `policies.py` grants by them to people.
- What a launcher must know is an output, which `stack.Stack.find` reads. If you add one, read it
  there.
- A resource that does not work before another names it in DependsOn.

References
----------
AWS CloudFormation Template Reference:
https://docs.aws.amazon.com/AWSCloudFormation/latest/TemplateReference/introduction.html
"Subscription filter policies", Amazon SNS Developer Guide:
https://docs.aws.amazon.com/sns/latest/dg/sns-subscription-filter-policies.html
"""

from __future__ import annotations

import json
from typing import Any

from serverless_mpi import __version__
from serverless_mpi.aws import limits, sqs
from serverless_mpi.aws.sns import TO
from serverless_mpi.errors import UsageError
from serverless_mpi.job import FRAMES
from serverless_mpi.stack import bucket, express
from serverless_mpi.stack import layout as names
from serverless_mpi.stack.layout import Layout

HANDLER = "serverless_mpi.launch.function.handler"
REPORTER = "serverless_mpi.launch.handler.report"
ECHOER = "serverless_mpi.launch.echo.handler"
RETENTION_S = 3600  # what a dead job left in a queue of the pool is deleted after this
# an event that no function was free for is given up after this
EVENT_AGE_S = limits.LAMBDA_EVENT_AGE_S.value
REPORT_MB, REPORT_S = 256, 30
ECHO_MB, ECHO_S = limits.LAMBDA_LEAST_MB.value, 3
ALIAS = "live"  # of the version that has a snapshot
MAX_RESOURCES = limits.STACK_RESOURCES.value

Resource = dict[str, Any]


def _sub(text: str) -> dict[str, str]:
    return {"Fn::Sub": text}


def _arn(service: str, name: str) -> dict[str, str]:
    return _sub(f"arn:${{AWS::Partition}}:{service}:${{AWS::Region}}:${{AWS::AccountId}}:{name}")


def build(layout: Layout, only_bucket: bool = False, release: str = "") -> dict[str, Any]:
    """Return the template of a stack.

    Parameters
    ----------
    layout
        What the stack is to have.
    only_bucket
        Return the template of the first operation, when there is no bucket for the zips yet.
    release
        Letters and digits that change with the package, so that a new version of each function is
        published for its snapshot.

    Returns
    -------
    dict
        Its parameters CodeBucket, FunctionKey and LayerKey name the two zips.

    Raises
    ------
    UsageError
        The layout needs more resources than a stack may have.
    """
    template: dict[str, Any] = {
        "AWSTemplateFormatVersion": "2010-09-09",
        "Description": f"serverless_mpi {__version__}: MPI programs on Lambda",
        "Resources": {**_bucket(layout)},
        "Outputs": {"Bucket": {"Value": {"Ref": "Bucket"}}},
    }
    if only_bucket:
        return template
    template["Parameters"] = {
        "CodeBucket": {
            "Type": "String",
            "Description": "bucket with the two zips, in the stack's region",
        },
        "FunctionKey": {"Type": "String", "Description": "key of function.zip"},
        "LayerKey": {"Type": "String", "Description": "key of layer.zip"},
    }
    template["Resources"].update(
        {
            **_queues(layout),
            **express.resources(layout.express),
            **_roles(layout),
            **_functions(layout, release),
        }
    )
    template["Outputs"].update(_outputs(layout))
    if len(template["Resources"]) > MAX_RESOURCES:
        raise UsageError(
            f"--ranks {layout.ranks} --jobs {layout.jobs} with {len(layout.memory_mb)} sizes of"
            f" memory need {len(template['Resources'])} resources, and a stack has at most"
            f" {MAX_RESOURCES}: use fewer ranks or jobs"
        )
    return template


def _tags(layout: Layout) -> list[dict[str, str]]:
    return [{"Key": names.TAG, "Value": layout.name}]


def _tls_only(resource: Any, action: str) -> dict[str, Any]:
    return {
        "Sid": "TlsOnly",
        "Effect": "Deny",
        "Principal": "*",
        "Action": action,
        "Resource": resource,
        "Condition": {"Bool": {"aws:SecureTransport": "false"}},
    }


def _bucket(layout: Layout) -> dict[str, Resource]:
    arn = {"Fn::GetAtt": ["Bucket", "Arn"]}
    # not code/: CloudFormation reads the zips of the last deploy again to roll an update back
    days = [
        {
            "Id": prefix.rstrip("/"),
            "Status": "Enabled",
            "Prefix": prefix,
            "ExpirationInDays": 1,
            "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 1},
        }
        for prefix in bucket.SHORT_LIVED
    ]
    return {
        "Bucket": {
            "Type": "AWS::S3::Bucket",
            "DeletionPolicy": "Delete",
            "UpdateReplacePolicy": "Delete",
            "Properties": {
                "BucketEncryption": {
                    "ServerSideEncryptionConfiguration": [
                        {"ServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}}
                    ]
                },
                "PublicAccessBlockConfiguration": {
                    "BlockPublicAcls": True,
                    "BlockPublicPolicy": True,
                    "IgnorePublicAcls": True,
                    "RestrictPublicBuckets": True,
                },
                "OwnershipControls": {"Rules": [{"ObjectOwnership": "BucketOwnerEnforced"}]},
                "LifecycleConfiguration": {"Rules": days},
                "Tags": _tags(layout),
            },
        },
        "BucketPolicy": {
            "Type": "AWS::S3::BucketPolicy",
            "Properties": {
                "Bucket": {"Ref": "Bucket"},
                "PolicyDocument": {
                    "Version": "2012-10-17",
                    "Statement": [_tls_only([arn, {"Fn::Join": ["", [arn, "/*"]]}], "s3:*")],
                },
            },
        },
    }


def _queue(layout: Layout, name: dict[str, str]) -> Resource:
    return {
        "Type": "AWS::SQS::Queue",
        "DeletionPolicy": "Delete",
        "UpdateReplacePolicy": "Delete",
        "Properties": {
            "QueueName": name,
            "VisibilityTimeout": sqs.VISIBILITY_S,
            "MessageRetentionPeriod": RETENTION_S,
            "SqsManagedSseEnabled": True,
            "Tags": _tags(layout),
        },
    }


def _queues(layout: Layout) -> dict[str, Resource]:
    """Return the pool: queues, topics, and the subscriptions that join them."""
    stack = "${AWS::StackName}"
    resources: dict[str, Resource] = {}
    for number in range(layout.jobs):
        resources[f"Console{number}"] = _queue(layout, _sub(names.console_name(stack, number)))
    for number in range(layout.topics):
        resources.update(_topic(layout, number))
    for slot in range(layout.ranks):
        resources[f"Queue{slot}"] = _queue(layout, _sub(names.queue_name(stack, slot)))
        resources[f"Subscription{slot}"] = _subscription(slot)
    return {**resources, **_queue_policies(layout)}


def _topic(layout: Layout, number: int) -> dict[str, Resource]:
    stack, topic = "${AWS::StackName}", {"Ref": f"Topic{number}"}
    return {
        f"Topic{number}": {
            "Type": "AWS::SNS::Topic",
            "Properties": {
                "TopicName": _sub(names.topic_name(stack, number)),
                "Tags": _tags(layout),
            },
        },
        # one for each topic: the policy of a topic must name that topic alone, and no pattern
        f"Topic{number}Policy": {
            "Type": "AWS::SNS::TopicPolicy",
            "Properties": {
                "Topics": [topic],
                "PolicyDocument": {
                    "Version": "2012-10-17",
                    "Statement": [_tls_only(topic, "sns:Publish")],
                },
            },
        },
    }


def _subscription(slot: int) -> Resource:
    return {
        "Type": "AWS::SNS::Subscription",
        # SNS drops what the queue does not allow yet, without a report
        "DependsOn": ["QueuePolicy"],
        "Properties": {
            "TopicArn": {"Ref": f"Topic{slot // names.FILTERS_PER_TOPIC}"},
            "Protocol": "sqs",
            "Endpoint": {"Fn::GetAtt": [f"Queue{slot}", "Arn"]},
            "RawMessageDelivery": True,
            "FilterPolicy": {TO: [str(slot)]},
        },
    }


def _queue_policies(layout: Layout) -> dict[str, Resource]:
    """Return who may send to the queues: the stack's topics, and whom a role permits, over TLS."""
    stack = "${AWS::StackName}"
    queues = _arn("sqs", f"{stack}-{names.QUEUE}-*")
    topics = _arn("sns", f"{stack}-{names.TOPIC}-*")
    from_topics = {
        "Sid": "FromTopics",
        "Effect": "Allow",
        "Principal": {"Service": "sns.amazonaws.com"},
        "Action": "sqs:SendMessage",
        "Resource": queues,
        "Condition": {"ArnLike": {"aws:SourceArn": topics}},
    }
    consoles = _arn("sqs", f"{stack}-{names.CONSOLE}-*")
    return {
        "QueuePolicy": _queue_policy(
            [f"Queue{slot}" for slot in range(layout.ranks)],
            [from_topics, _tls_only(queues, "sqs:*")],
        ),
        "ConsolePolicy": _queue_policy(
            [f"Console{number}" for number in range(layout.jobs)], [_tls_only(consoles, "sqs:*")]
        ),
    }


def _queue_policy(queues: list[str], statements: list[dict[str, Any]]) -> Resource:
    return {
        "Type": "AWS::SQS::QueuePolicy",
        "Properties": {
            "Queues": [{"Ref": queue} for queue in queues],
            "PolicyDocument": {"Version": "2012-10-17", "Statement": statements},
        },
    }


def _role(
    layout: Layout, function: str, statements: list[dict[str, Any]], managed: tuple[str, ...] = ()
) -> Resource:
    """Return the role of functions; managed: ARNs of further policies."""
    logs = {
        "Effect": "Allow",
        "Action": ["logs:CreateLogStream", "logs:PutLogEvents"],
        "Resource": _arn("logs", f"log-group:/aws/lambda/${{AWS::StackName}}-{function}:*"),
    }
    return {
        "Type": "AWS::IAM::Role",
        "Properties": {
            "AssumeRolePolicyDocument": {
                "Version": "2012-10-17",
                "Statement": [
                    {
                        "Effect": "Allow",
                        "Principal": {"Service": "lambda.amazonaws.com"},
                        "Action": "sts:AssumeRole",
                    }
                ],
            },
            "Policies": [
                {
                    "PolicyName": "stack",
                    "PolicyDocument": {"Version": "2012-10-17", "Statement": [*statements, logs]},
                }
            ],
            **({"ManagedPolicyArns": list(managed)} if managed else {}),
            "Tags": _tags(layout),
        },
    }


def _roles(layout: Layout) -> dict[str, Resource]:
    """Return what functions may do with the stack's resources, and nothing else.

    Of the bucket, a rank may touch what `stack/bucket.py` lists. Of other buckets it may read those
    that the layout names. One role serves every job of a stack, so its jobs can reach each other's
    queues and objects.
    """
    stack = "${AWS::StackName}"
    arn = {"Fn::GetAtt": ["Bucket", "Arn"]}

    def allow(actions: list[str], *resources: Any) -> dict[str, Any]:
        return {"Effect": "Allow", "Action": actions, "Resource": list(resources)}

    def below(*prefixes: str) -> list[dict[str, Any]]:
        return [{"Fn::Join": ["", [arn, f"/{prefix}*"]]} for prefix in prefixes]

    queues, consoles = (_arn("sqs", f"{stack}-{kind}-*") for kind in (names.QUEUE, names.CONSOLE))
    of_ranks = [f"{bucket.JOBS}*/{name}" for name in (bucket.RANK, bucket.TRACE, bucket.STOP)]
    ranks = [
        allow(["s3:GetObject"], *below(FRAMES, bucket.PROGRAMS, bucket.DATA, *of_ranks)),
        allow(["s3:PutObject"], *below(FRAMES, bucket.DATA, *of_ranks)),
        allow(["s3:DeleteObject", "s3:AbortMultipartUpload"], *below(FRAMES, bucket.DATA)),
        # of the whole bucket: with a condition on the prefix, a missing object would be 403
        allow(["s3:ListBucket"], arn),
        allow(["sqs:SendMessage", "sqs:ReceiveMessage", "sqs:DeleteMessage"], queues),
        allow(["sqs:SendMessage"], consoles),
        allow(["sns:Publish"], _arn("sns", f"{stack}-{names.TOPIC}-*")),
        allow(
            ["lambda:InvokeFunction"],
            _arn("lambda", f"function:{stack}-{names.RANK}-*"),
            _arn("lambda", f"function:{stack}-{names.REPORT}"),
        ),
        # a URL asks for both: "Control access to Lambda function URLs", Lambda Developer Guide
        allow(
            ["lambda:InvokeFunctionUrl", "lambda:InvokeFunction"],
            _arn("lambda", f"function:{stack}-{names.ECHO}"),
        ),
        *express.statements(layout.express),
    ]
    if layout.read_buckets:
        buckets = [_sub(f"arn:${{AWS::Partition}}:s3:::{name}") for name in layout.read_buckets]
        objects = [_sub(f"arn:${{AWS::Partition}}:s3:::{name}/*") for name in layout.read_buckets]
        ranks += [allow(["s3:ListBucket"], *buckets), allow(["s3:GetObject"], *objects)]
    reports = [
        allow(["s3:GetObject", "s3:PutObject"], *below(f"{bucket.JOBS}*/{bucket.STOP}")),
        allow(["sqs:SendMessage"], consoles),
    ]
    return {
        "RankRole": _role(layout, f"{names.RANK}-*", ranks, layout.policies),
        "ReportRole": _role(layout, names.REPORT, reports),
        "EchoRole": _role(layout, names.ECHO, []),
    }


def _function(
    layout: Layout, name: Any, handler: str, memory_mb: int, timeout_s: int, role: str, log: str
) -> Resource:
    properties = {
        "FunctionName": name,
        "Runtime": f"python{layout.python}",
        "Architectures": [layout.arch],
        "Handler": handler,
        "Code": {"S3Bucket": {"Ref": "CodeBucket"}, "S3Key": {"Ref": "FunctionKey"}},
        "Layers": [{"Ref": "Layer"}],
        "MemorySize": memory_mb,
        "Timeout": timeout_s,
        "Role": {"Fn::GetAtt": [role, "Arn"]},
        "Tags": _tags(layout),
    }
    return {"Type": "AWS::Lambda::Function", "DependsOn": [log], "Properties": properties}


def _log(name: str) -> Resource:
    return {
        "Type": "AWS::Logs::LogGroup",
        "DeletionPolicy": "Delete",
        "UpdateReplacePolicy": "Delete",
        "Properties": {
            "LogGroupName": _sub(f"/aws/lambda/{name}"),
            "RetentionInDays": names.LOG_DAYS,
        },
    }


def _functions(layout: Layout, release: str) -> dict[str, Resource]:
    """Return a function for each memory size, and those that report failures and addresses."""
    stack = "${AWS::StackName}"
    report, echo = f"{stack}-{names.REPORT}", f"{stack}-{names.ECHO}"
    resources: dict[str, Resource] = {
        "Layer": {
            "Type": "AWS::Lambda::LayerVersion",
            "Properties": {
                "LayerName": _sub(f"{stack}-packages"),
                "CompatibleRuntimes": [f"python{layout.python}"],
                "CompatibleArchitectures": [layout.arch],
                "Content": {"S3Bucket": {"Ref": "CodeBucket"}, "S3Key": {"Ref": "LayerKey"}},
            },
        },
        "ReportLog": _log(report),
        "Report": _function(
            layout, _sub(report), REPORTER, REPORT_MB, REPORT_S, "ReportRole", "ReportLog"
        ),
        "EchoLog": _log(echo),
        "Echo": _function(layout, _sub(echo), ECHOER, ECHO_MB, ECHO_S, "EchoRole", "EchoLog"),
        # costs nothing while nobody asks; only roles of the account may, by their policies
        "EchoUrl": {
            "Type": "AWS::Lambda::Url",
            "Properties": {"AuthType": "AWS_IAM", "TargetFunctionArn": {"Ref": "Echo"}},
        },
    }
    for size in layout.memory_mb:
        resources.update(_rank_function(layout, size, release))
    return resources


def _rank_function(layout: Layout, size: int, release: str) -> dict[str, Resource]:
    """Return the function that runs ranks with `size` MB, and what belongs to it."""
    function, log = f"Rank{size}", f"Rank{size}Log"
    name = names.function_name("${AWS::StackName}", size)
    ranks = _function(layout, _sub(name), HANDLER, size, names.TIME_LIMIT_S, "RankRole", log)
    resources = {log: _log(name), function: ranks}
    qualifier = "$LATEST"
    if layout.snapstart:
        qualifier = ALIAS
        ranks["Properties"]["SnapStart"] = {"ApplyOn": "PublishedVersions"}
        # A version is immutable: its logical name changes with the package, so that a new one is
        # published.
        version = f"{function}Version{release}"
        resources[version] = {
            "Type": "AWS::Lambda::Version",
            "Properties": {"FunctionName": {"Ref": function}},
        }
        resources[f"{function}Alias"] = {
            "Type": "AWS::Lambda::Alias",
            "Properties": {
                "FunctionName": {"Ref": function},
                "Name": ALIAS,
                "FunctionVersion": {"Fn::GetAtt": [version, "Version"]},
            },
        }
    resources[f"{function}Events"] = {
        "Type": "AWS::Lambda::EventInvokeConfig",
        **({"DependsOn": [f"{function}Alias"]} if layout.snapstart else {}),
        "Properties": {
            "FunctionName": {"Ref": function},
            "Qualifier": qualifier,
            "MaximumRetryAttempts": 0,
            "MaximumEventAgeInSeconds": EVENT_AGE_S,
            "DestinationConfig": {"OnFailure": {"Destination": {"Fn::GetAtt": ["Report", "Arn"]}}},
        },
    }
    return resources


def _outputs(layout: Layout) -> dict[str, Any]:
    """Return what `stack.Stack` reads."""
    alias = f":{ALIAS}" if layout.snapstart else ""
    return {
        "Version": {"Value": __version__},
        "Python": {"Value": layout.python},
        "Arch": {"Value": layout.arch},
        "Ranks": {"Value": str(layout.ranks)},
        "Jobs": {"Value": str(layout.jobs)},
        "Functions": {
            "Value": _sub(
                json.dumps(
                    {
                        str(size): names.function_name("${AWS::StackName}", size) + alias
                        for size in layout.memory_mb
                    }
                )
            )
        },
        "EchoUrl": {"Value": {"Fn::GetAtt": ["EchoUrl", "FunctionUrl"]}},
        "QueueUrl": {"Value": {"Ref": "Queue0"}},
        "ConsoleUrl": {"Value": {"Ref": "Console0"}},
        "TopicArn": {"Value": {"Ref": "Topic0"}},
        "ReadBuckets": {"Value": json.dumps(layout.read_buckets)},
        "Policies": {"Value": json.dumps(layout.policies)},
        **express.outputs(layout.express),
    }
