"""IAM policies for people: one who deploys stacks, one who only runs jobs on a stack.

CloudFormation calls SQS, SNS, S3, Lambda, IAM and Logs with the keys of whoever deploys, so that
person needs the permissions to create, change, tag and delete each kind of resource in the
template. `OF_RESOURCES` lists them by kind; `tests/deploy/test_policies.py` compares it with the
template, and the other tables with the calls that a deploy and a job really make.

Permissions are limited to names that begin with the stack's, as `layout.py` makes them.
CloudFormation chooses the names of bucket and roles; they begin with the stack's name, too. What
has no resource (listing, quotas) is permitted for "*".

References
----------
"Actions, resources, and condition keys for AWS services", Service Authorization Reference:
https://docs.aws.amazon.com/service-authorization/latest/reference/
"""

from __future__ import annotations

from serverless_mpi.stack import layout as names
from serverless_mpi.stack import pool
from serverless_mpi.stack.bucket import FIGURES, SHORT_LIVED

Statement = dict[str, str | list[str]]
Policy = dict[str, str | list[Statement]]

# What CloudFormation does to create, read, update and delete a resource of a kind.
OF_RESOURCES: dict[str, tuple[str, ...]] = {
    "AWS::S3::Bucket": (
        "s3:CreateBucket",
        "s3:DeleteBucket",
        "s3:GetBucketOwnershipControls",
        "s3:GetBucketPublicAccessBlock",
        "s3:GetBucketTagging",
        "s3:GetEncryptionConfiguration",
        "s3:GetLifecycleConfiguration",
        "s3:PutBucketOwnershipControls",
        "s3:PutBucketPublicAccessBlock",
        "s3:PutBucketTagging",
        "s3:PutEncryptionConfiguration",
        "s3:PutLifecycleConfiguration",
    ),
    "AWS::S3::BucketPolicy": ("s3:DeleteBucketPolicy", "s3:GetBucketPolicy", "s3:PutBucketPolicy"),
    "AWS::S3Express::DirectoryBucket": (
        "s3express:CreateBucket",
        "s3express:DeleteBucket",
        "s3express:GetEncryptionConfiguration",
        "s3express:GetLifecycleConfiguration",
        "s3express:ListTagsForResource",
        "s3express:PutEncryptionConfiguration",
        "s3express:PutLifecycleConfiguration",
        "s3express:TagResource",
        "s3express:UntagResource",
    ),
    "AWS::S3Express::BucketPolicy": (
        "s3express:DeleteBucketPolicy",
        "s3express:GetBucketPolicy",
        "s3express:PutBucketPolicy",
    ),
    "AWS::SQS::Queue": (
        "sqs:CreateQueue",
        "sqs:DeleteQueue",
        "sqs:GetQueueAttributes",
        "sqs:GetQueueUrl",
        "sqs:ListQueueTags",
        "sqs:SetQueueAttributes",
        "sqs:TagQueue",
        "sqs:UntagQueue",
    ),
    "AWS::SQS::QueuePolicy": ("sqs:GetQueueAttributes", "sqs:SetQueueAttributes"),
    "AWS::SNS::Topic": (
        "sns:CreateTopic",
        "sns:DeleteTopic",
        "sns:GetDataProtectionPolicy",
        "sns:GetTopicAttributes",
        "sns:ListSubscriptionsByTopic",
        "sns:ListTagsForResource",
        "sns:SetTopicAttributes",
        "sns:TagResource",
        "sns:UntagResource",
    ),
    "AWS::SNS::TopicPolicy": ("sns:GetTopicAttributes", "sns:SetTopicAttributes"),
    "AWS::SNS::Subscription": (
        "sns:GetSubscriptionAttributes",
        "sns:ListSubscriptionsByTopic",
        "sns:SetSubscriptionAttributes",
        "sns:Subscribe",
        "sns:Unsubscribe",
    ),
    "AWS::IAM::Role": (
        "iam:AttachRolePolicy",
        "iam:CreateRole",
        "iam:DeleteRole",
        "iam:DeleteRolePolicy",
        "iam:DetachRolePolicy",
        "iam:GetRole",
        "iam:GetRolePolicy",
        "iam:ListAttachedRolePolicies",
        "iam:ListRolePolicies",
        "iam:PassRole",
        "iam:PutRolePolicy",
        "iam:TagRole",
        "iam:UntagRole",
        "iam:UpdateAssumeRolePolicy",
    ),
    "AWS::Logs::LogGroup": (
        "logs:CreateLogGroup",
        "logs:DeleteLogGroup",
        "logs:DeleteRetentionPolicy",
        "logs:ListTagsForResource",
        "logs:PutRetentionPolicy",
        "logs:TagResource",
        "logs:UntagResource",
    ),
    "AWS::Lambda::Function": (
        "lambda:CreateFunction",
        "lambda:DeleteFunction",
        "lambda:GetFunction",
        "lambda:GetFunctionCodeSigningConfig",
        "lambda:GetFunctionConfiguration",
        "lambda:GetRuntimeManagementConfig",
        "lambda:ListTags",
        "lambda:TagResource",
        "lambda:UntagResource",
        "lambda:UpdateFunctionCode",
        "lambda:UpdateFunctionConfiguration",
    ),
    "AWS::Lambda::Url": (
        "lambda:CreateFunctionUrlConfig",
        "lambda:DeleteFunctionUrlConfig",
        "lambda:GetFunctionUrlConfig",
        "lambda:UpdateFunctionUrlConfig",
    ),
    "AWS::Lambda::LayerVersion": (
        "lambda:DeleteLayerVersion",
        "lambda:GetLayerVersion",
        "lambda:PublishLayerVersion",
    ),
    "AWS::Lambda::EventInvokeConfig": (
        "lambda:DeleteFunctionEventInvokeConfig",
        "lambda:GetFunctionEventInvokeConfig",
        "lambda:PutFunctionEventInvokeConfig",
        "lambda:UpdateFunctionEventInvokeConfig",
    ),
    "AWS::Lambda::Version": (
        "lambda:DeleteFunction",
        "lambda:GetFunctionConfiguration",
        "lambda:ListVersionsByFunction",
        "lambda:PublishVersion",
    ),
    "AWS::Lambda::Alias": (
        "lambda:CreateAlias",
        "lambda:DeleteAlias",
        "lambda:GetAlias",
        "lambda:UpdateAlias",
    ),
}
_OBJECTS = ("s3:GetObject", "s3:PutObject", "s3:DeleteObject")
# What `smpi` itself calls to deploy, beyond what a runner needs.
_CLOUDFORMATION = (
    "cloudformation:ContinueUpdateRollback",
    "cloudformation:CreateStack",
    "cloudformation:DeleteStack",
    "cloudformation:DescribeStackEvents",
    "cloudformation:TagResource",
    "cloudformation:UpdateStack",
)


def runner(stack: str, region: str, account: str) -> Policy:
    """Return the policy of a person who runs jobs on a deployed stack, and looks after them.

    Parameters
    ----------
    stack
        Name of the stack.
    region, account
        Where it is; "*" for any.

    Returns
    -------
    dict
        A policy document: smpirun --platform lambda, and smpi doctor, hello, jobs, logs, cost,
        clean.
    """
    bucket = _bucket(stack)
    # not code/: what the functions run is for the deployer alone
    objects = (*(f"{bucket}/{prefix}*" for prefix in SHORT_LIVED), f"{bucket}/{pool.KEY}")
    statements = _common(stack, region, account)
    statements.append(_allow(_OBJECTS, *objects))
    statements.append(_allow(("s3:GetObject",), f"{bucket}/{FIGURES}"))
    return _policy(statements)


def deployer(stack: str, region: str, account: str) -> Policy:
    """Return the policy of a person who deploys and destroys a stack; it contains `runner`'s.

    Parameters
    ----------
    stack
        Name of the stack.
    region, account
        Where it is; "*" for any.

    Returns
    -------
    dict
        A policy document. It lets a person create roles with names that begin with the stack's, and
        give them any permission; to bound that, attach a permissions boundary.
    """
    statements = _common(stack, region, account)
    statements.append(
        _allow(_CLOUDFORMATION, _arn("cloudformation", region, account, f"stack/{stack}/*"))
    )
    for prefix, arns in _resources(stack, region, account).items():
        actions = {
            action
            for kind in OF_RESOURCES.values()
            for action in kind
            if action.startswith(f"{prefix}:")
        }
        statements.append(_allow(sorted(actions), *arns))
    # The zips go into the bucket, and everything is removed with it.  The probe publishes as a
    # rank does.
    statements.append(_allow(_OBJECTS, f"{_bucket(stack)}/*"))
    statements.append(
        _allow(("sns:Publish",), _arn("sns", region, account, f"{stack}-{names.TOPIC}-*"))
    )
    statements.append(
        _allow(
            ("sqs:ReceiveMessage", "sqs:DeleteMessage"),
            _arn("sqs", region, account, f"{stack}-{names.QUEUE}-*"),
        )
    )
    return _policy(statements)


def _common(stack: str, region: str, account: str) -> list[Statement]:
    """Return what both persons may do; which objects they may use differs."""
    bucket = _bucket(stack)
    functions = _arn("lambda", region, account, f"function:{stack}-{names.RANK}-*")
    consoles = _arn("sqs", region, account, f"{stack}-{names.CONSOLE}-*")
    logs = _arn("logs", region, account, f"log-group:/aws/lambda/{stack}-{names.RANK}-*")
    return [
        _allow(
            ("cloudformation:DescribeStacks",),
            _arn("cloudformation", region, account, f"stack/{stack}/*"),
        ),
        _allow(("s3:ListBucket",), bucket),
        # frames that a job left in a directory bucket
        _allow(("s3express:CreateSession",), _express(stack, region, account)),
        _allow(("sqs:ReceiveMessage", "sqs:DeleteMessage"), consoles),
        _allow(("lambda:InvokeFunction",), functions),
        _allow(("logs:FilterLogEvents",), logs, f"{logs}:*"),
        # without a resource: the quota of functions, and what `smpi doctor` asks
        _allow(
            (
                "lambda:GetAccountSettings",
                "logs:DescribeLogGroups",
                "s3:ListAllMyBuckets",
                "servicequotas:ListAWSDefaultServiceQuotas",
                "servicequotas:ListServiceQuotas",
                "sns:ListTopics",
                "sqs:ListQueues",
                "sts:GetCallerIdentity",
            ),
            "*",
        ),
    ]


def _resources(stack: str, region: str, account: str) -> dict[str, list[str]]:
    """Return the ARNs of a stack's resources, by the service's prefix of actions."""
    functions = [
        _arn("lambda", region, account, f"function:{stack}-*"),
        _arn("lambda", region, account, f"layer:{stack}-packages"),
        _arn("lambda", region, account, f"layer:{stack}-packages:*"),
    ]
    logs = _arn("logs", region, account, f"log-group:/aws/lambda/{stack}-*")
    return {
        "s3": [_bucket(stack)],
        "s3express": [_express(stack, region, account)],
        "sqs": [_arn("sqs", region, account, f"{stack}-*")],
        "sns": [_arn("sns", region, account, f"{stack}-*")],
        "iam": [f"arn:*:iam::{account}:role/{stack}-*"],
        "logs": [logs, f"{logs}:*"],
        "lambda": functions,
    }


def _bucket(stack: str) -> str:
    return f"arn:*:s3:::{stack}-bucket-*"  # CloudFormation: STACK-LOGICALNAME-RANDOM


def _express(stack: str, region: str, account: str) -> str:
    return _arn("s3express", region, account, f"bucket/{stack}-*--x-s3")


def _arn(service: str, region: str, account: str, name: str) -> str:
    return f"arn:*:{service}:{region}:{account}:{name}"


def _allow(actions: tuple[str, ...] | list[str], *resources: str) -> Statement:
    return {"Effect": "Allow", "Action": list(actions), "Resource": list(resources)}


def _policy(statements: list[Statement]) -> Policy:
    return {"Version": "2012-10-17", "Statement": statements}
