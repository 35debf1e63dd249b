"""The CloudFormation template of a stack: a pure function of its layout.

What may be slow to change is made here, once: SNS takes up to 15 minutes to apply a filter policy ("Amazon SNS
message filtering"), so a job brings none of its own, and leases queues that have theirs.
Sources: CloudFormation Template Reference; SNS, SQS, S3 and Lambda Developer Guides.
"""

from __future__ import annotations

import json
from typing import Any

from serverless_mpi import __version__
from serverless_mpi.aws import limits
from serverless_mpi.aws.sns import TO
from serverless_mpi.deploy import express
from serverless_mpi.deploy import layout as names
from serverless_mpi.deploy.layout import Layout
from serverless_mpi.errors import UsageError
from serverless_mpi.job import FRAMES
from serverless_mpi.stack import bucket

HANDLER = "serverless_mpi.launch.function.handler"
REPORTER = "serverless_mpi.launch.handler.report"
VISIBILITY_S = 60  # a frame that was received but not stored comes again after this
RETENTION_S = 3600  # what a dead job left in a queue of the pool is forgotten after this
# an event that no function was free for is given up after this
EVENT_AGE_S = limits.LAMBDA_EVENT_AGE_S.value
REPORT_MB = 256
MAX_RESOURCES = limits.STACK_RESOURCES.value

Resource = dict[str, Any]


def _sub(text: str) -> dict[str, str]:
    return {"Fn::Sub": text}


def _arn(service: str, name: str) -> dict[str, str]:
    return _sub(f"arn:${{AWS::Partition}}:{service}:${{AWS::Region}}:${{AWS::AccountId}}:{name}")


def build(layout: Layout, only_bucket: bool = False, release: str = "") -> dict[str, Any]:
    """The template.

    only_bucket: of the stack's first minute, when there is nowhere to put its code yet; release: letters and digits
    that change with the package, so that a new version of each function is published for its snapshot.
    Parameters of the template: CodeBucket, FunctionKey and LayerKey name the two zips.

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
            f"--ranks {layout.ranks} --jobs {layout.jobs} with {len(layout.memory_mb)} sizes of memory need"
            f" {len(template['Resources'])} resources, and a stack has at most {MAX_RESOURCES}: fewer ranks or jobs"
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
    # not code/: CloudFormation reads the zips of the last deploy again if it must roll an update back
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


def _queue(layout: Layout, name: str) -> Resource:
    return {
        "Type": "AWS::SQS::Queue",
        "DeletionPolicy": "Delete",
        "UpdateReplacePolicy": "Delete",
        "Properties": {
            "QueueName": name,
            "VisibilityTimeout": VISIBILITY_S,
            "MessageRetentionPeriod": RETENTION_S,
            "SqsManagedSseEnabled": True,
            "Tags": _tags(layout),
        },
    }


def _queues(layout: Layout) -> dict[str, Resource]:
    """The pool: queues, topics, and the subscriptions that bring a publish to the slots it names."""
    stack = "${AWS::StackName}"
    made: dict[str, Resource] = {}
    for number in range(layout.jobs):
        made[f"Console{number}"] = _queue(layout, _sub(names.console_name(stack, number)))  # type: ignore[arg-type]
    for number in range(layout.topics):
        made[f"Topic{number}"] = {
            "Type": "AWS::SNS::Topic",
            "Properties": {
                "TopicName": _sub(names.topic_name(stack, number)),
                "Tags": _tags(layout),
            },
        }
        # one for each: a topic's policy may name no other resource than its topic, and no pattern
        made[f"Topic{number}Policy"] = {
            "Type": "AWS::SNS::TopicPolicy",
            "Properties": {
                "Topics": [{"Ref": f"Topic{number}"}],
                "PolicyDocument": {
                    "Version": "2012-10-17",
                    "Statement": [_tls_only({"Ref": f"Topic{number}"}, "sns:Publish")],
                },
            },
        }
    for slot in range(layout.ranks):
        topic = {"Ref": f"Topic{slot // names.FILTERS_PER_TOPIC}"}
        made[f"Queue{slot}"] = _queue(layout, _sub(names.queue_name(stack, slot)))  # type: ignore[arg-type]
        made[f"Subscription{slot}"] = {
            "Type": "AWS::SNS::Subscription",
            # what a topic sends to a queue that does not allow it yet is lost without a word
            "DependsOn": ["QueuePolicy"],
            "Properties": {
                "TopicArn": topic,
                "Protocol": "sqs",
                "Endpoint": {"Fn::GetAtt": [f"Queue{slot}", "Arn"]},
                "RawMessageDelivery": True,
                "FilterPolicy": {TO: [str(slot)]},
            },
        }
    queues = [f"Queue{slot}" for slot in range(layout.ranks)]
    made["QueuePolicy"] = {
        "Type": "AWS::SQS::QueuePolicy",
        "Properties": {
            "Queues": [{"Ref": one} for one in queues],
            "PolicyDocument": {
                "Version": "2012-10-17",
                "Statement": [
                    {
                        "Sid": "FromTopics",
                        "Effect": "Allow",
                        "Principal": {"Service": "sns.amazonaws.com"},
                        "Action": "sqs:SendMessage",
                        "Resource": _arn("sqs", names.queue_name(stack, 0)[:-4] + "*"),
                        "Condition": {
                            "ArnLike": {
                                "aws:SourceArn": _arn("sns", names.topic_name(stack, 0)[:-4] + "*")
                            }
                        },
                    },
                    _tls_only(_arn("sqs", names.queue_name(stack, 0)[:-4] + "*"), "sqs:*"),
                ],
            },
        },
    }
    made["ConsolePolicy"] = {
        "Type": "AWS::SQS::QueuePolicy",
        "Properties": {
            "Queues": [{"Ref": f"Console{number}"} for number in range(layout.jobs)],
            "PolicyDocument": {
                "Version": "2012-10-17",
                "Statement": [
                    _tls_only(_arn("sqs", names.console_name(stack, 0)[:-4] + "*"), "sqs:*")
                ],
            },
        },
    }
    return made


def _role(layout: Layout, function: str, statements: list[dict[str, Any]]) -> Resource:
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
            "Tags": _tags(layout),
        },
    }


def _roles(layout: Layout) -> dict[str, Resource]:
    """What functions may do: touch what the stack owns, and of its bucket what `stack/bucket.py` says.

    One role serves every job of a stack, so jobs of one stack can reach each other's queues and objects.
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
        # of the whole bucket: with a condition on the prefix a missing object would be 403 and not 404
        allow(["s3:ListBucket"], arn),
        allow(["sqs:SendMessage", "sqs:ReceiveMessage", "sqs:DeleteMessage"], queues),
        allow(["sqs:SendMessage"], consoles),
        allow(["sns:Publish"], _arn("sns", f"{stack}-{names.TOPIC}-*")),
        allow(
            ["lambda:InvokeFunction"],
            _arn("lambda", f"function:{stack}-{names.RANK}-*"),
            _arn("lambda", f"function:{stack}-{names.REPORT}"),
        ),
        *express.statements(layout.express),
    ]
    reports = [
        allow(["s3:GetObject", "s3:PutObject"], *below(f"{bucket.JOBS}*/{bucket.STOP}")),
        allow(["sqs:SendMessage"], consoles),
    ]
    return {
        "RankRole": _role(layout, f"{names.RANK}-*", ranks),
        "ReportRole": _role(layout, names.REPORT, reports),
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
    """A function for each size of memory, and the one that is told of invocations that failed."""
    stack = "${AWS::StackName}"
    made: dict[str, Resource] = {
        "Layer": {
            "Type": "AWS::Lambda::LayerVersion",
            "Properties": {
                "LayerName": _sub(f"{stack}-packages"),
                "CompatibleRuntimes": [f"python{layout.python}"],
                "CompatibleArchitectures": [layout.arch],
                "Content": {"S3Bucket": {"Ref": "CodeBucket"}, "S3Key": {"Ref": "LayerKey"}},
            },
        },
        "ReportLog": _log(f"{stack}-{names.REPORT}"),
        "Report": _function(
            layout,
            _sub(f"{stack}-{names.REPORT}"),
            REPORTER,
            REPORT_MB,
            30,
            "ReportRole",
            "ReportLog",
        ),
    }
    for size in layout.memory_mb:
        name = names.function_name(stack, size)
        made[f"Rank{size}Log"] = _log(name)
        made[f"Rank{size}"] = function = _function(
            layout, _sub(name), HANDLER, size, names.TIME_LIMIT_S, "RankRole", f"Rank{size}Log"
        )
        qualifier: Any = "$LATEST"
        if layout.snapstart:
            function["Properties"]["SnapStart"] = {"ApplyOn": "PublishedVersions"}
            # a version is made once: its logical name changes with the package, so that a new one is published
            version = f"Rank{size}Version{release}"
            made[version] = {
                "Type": "AWS::Lambda::Version",
                "Properties": {"FunctionName": {"Ref": f"Rank{size}"}},
            }
            made[f"Rank{size}Alias"] = {
                "Type": "AWS::Lambda::Alias",
                "Properties": {
                    "FunctionName": {"Ref": f"Rank{size}"},
                    "Name": "live",
                    "FunctionVersion": {"Fn::GetAtt": [version, "Version"]},
                },
            }
            qualifier = "live"
        made[f"Rank{size}Events"] = {
            "Type": "AWS::Lambda::EventInvokeConfig",
            **({"DependsOn": [f"Rank{size}Alias"]} if layout.snapstart else {}),
            "Properties": {
                "FunctionName": {"Ref": f"Rank{size}"},
                "Qualifier": qualifier,
                "MaximumRetryAttempts": 0,
                "MaximumEventAgeInSeconds": EVENT_AGE_S,
                "DestinationConfig": {
                    "OnFailure": {"Destination": {"Fn::GetAtt": ["Report", "Arn"]}}
                },
            },
        }
    return made


def _outputs(layout: Layout) -> dict[str, Any]:
    """What a launcher must know: the rest follows from the names."""
    alias = ":live" if layout.snapstart else ""
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
        "QueueUrl": {"Value": {"Ref": "Queue0"}},
        "ConsoleUrl": {"Value": {"Ref": "Console0"}},
        "TopicArn": {"Value": {"Ref": "Topic0"}},
        **express.outputs(layout.express),
    }
