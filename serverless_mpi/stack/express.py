"""Directory buckets of S3 Express in a stack's template, one per zone of the layout.

A bucket's name states account and zone, since it must be unique in its zone.  Its lifecycle
rule deletes what a job left after a day, as that of the stack's bucket does.  For a directory
bucket the rule works only if the bucket's policy lets S3 Lifecycle create sessions.

Sources: AWS::S3Express::DirectoryBucket, CloudFormation Template Reference; "Working with S3
Lifecycle for directory buckets", Amazon S3 User Guide.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from serverless_mpi.aws import s3express
from serverless_mpi.errors import UsageError
from serverless_mpi.job import FRAMES

SESSION = "s3express:CreateSession"


def zones(wanted: str | None, region: str, endpoint: str | None) -> tuple[str, ...]:
    """Return the zones that option --express names.

    Parameters
    ----------
    wanted
        Value of the option: "auto", or ids of zones separated by commas; None without it.
    region
        AWS region.
    endpoint
        URL of an emulator; None for AWS.

    Returns
    -------
    tuple of str
        Ids of zones; empty without the option.

    Raises
    ------
    UsageError
        There is no S3 Express there.
    """
    if wanted is None:
        return ()
    if endpoint is not None:
        raise UsageError("--express: emulators have no S3 Express; omit --endpoint or --express")
    return s3express.zones(wanted, region)


def bucket_name(zone: str) -> str:
    """Return the name of the directory bucket in a zone, for Fn::Sub.

    Parameters
    ----------
    zone
        Id of an Availability Zone.
    """
    return f"${{AWS::StackName}}-${{AWS::AccountId}}--{zone}--x-s3"


def resources(zones: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the resources of the directory buckets.

    Parameters
    ----------
    zones
        Ids of Availability Zones, each of which gets a bucket.

    Returns
    -------
    dict
        Logical name -> resource: a bucket and its policy for each zone.
    """
    made: dict[str, dict[str, Any]] = {}
    for number, zone in enumerate(zones):
        made[f"Express{number}"] = {
            "Type": "AWS::S3Express::DirectoryBucket",
            "DeletionPolicy": "Delete",
            "UpdateReplacePolicy": "Delete",
            "Properties": {
                "BucketName": {"Fn::Sub": bucket_name(zone)},
                "DataRedundancy": "SingleAvailabilityZone",
                "LocationName": zone,
                "LifecycleConfiguration": {
                    "Rules": [
                        {
                            "Id": "frames",
                            "Status": "Enabled",
                            "Prefix": FRAMES,
                            "ExpirationInDays": 1,
                            "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 1},
                        }
                    ]
                },
            },
        }
        made[f"Express{number}Policy"] = {
            "Type": "AWS::S3Express::BucketPolicy",
            "Properties": {
                "Bucket": {"Ref": f"Express{number}"},
                "PolicyDocument": {
                    "Version": "2012-10-17",
                    "Statement": [
                        {
                            "Effect": "Allow",
                            "Principal": {"Service": "lifecycle.s3.amazonaws.com"},
                            "Action": SESSION,
                            "Resource": _arn(number),
                            "Condition": {"StringEquals": {"s3express:SessionMode": "ReadWrite"}},
                        }
                    ],
                },
            },
        }
    return made


def statements(zones: Sequence[str]) -> list[dict[str, Any]]:
    """Return what the role of ranks is granted: sessions of these buckets, and nothing else.

    Parameters
    ----------
    zones
        Ids of the Availability Zones that `resources` was called with.

    Returns
    -------
    list of dict
        Statements of an IAM policy; empty without zones.
    """
    if not zones:
        return []
    return [
        {"Effect": "Allow", "Action": [SESSION], "Resource": [_arn(n) for n in range(len(zones))]}
    ]


def outputs(zones: Sequence[str]) -> dict[str, Any]:
    """Return the output of the template that names the directory buckets.

    Parameters
    ----------
    zones
        Ids of the Availability Zones that `resources` was called with.

    Returns
    -------
    dict
        The output `Express`, a JSON object of zone -> name; empty without zones.
    """
    if not zones:
        return {}
    buckets = json.dumps({zone: bucket_name(zone) for zone in zones})
    return {"Express": {"Value": {"Fn::Sub": buckets}}}


def of_stack(found: Mapping[str, Any]) -> dict[str, str]:
    """Return the directory buckets of a stack.

    Parameters
    ----------
    found
        What CloudFormation describes of the stack (`stack.describe`).

    Returns
    -------
    dict
        Zone -> name; empty if the stack has none.
    """
    for one in found.get("Outputs") or ():
        if one["OutputKey"] == "Express":
            buckets: dict[str, str] = json.loads(one["OutputValue"])
            return buckets
    return {}


def dropped(found: Mapping[str, Any], template: Mapping[str, Any]) -> list[str]:
    """Return the directory buckets that a stack has and a template does not.

    Parameters
    ----------
    found
        What CloudFormation describes of the stack (`stack.describe`).
    template
        Template that the stack is to be updated to.

    Returns
    -------
    list of str
        Names of buckets.
    """
    output = template.get("Outputs", {}).get("Express", {}).get("Value", {})
    kept = json.loads(output.get("Fn::Sub", "{}"))
    return [name for zone, name in of_stack(found).items() if zone not in kept]


def _arn(number: int) -> dict[str, Any]:
    return {"Fn::GetAtt": [f"Express{number}", "Arn"]}
