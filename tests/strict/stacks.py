"""Templates of CloudFormation as the strict rules read them: names, roles, what would fail.

The emulator makes the resources; here the intrinsic functions are resolved far enough to
know which queues and functions a stack has and what its roles allow.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from tests.strict.world import ACCOUNT, REGION, StackFacts

_ARNS = {
    "AWS::SQS::Queue": ("sqs", "QueueName"),
    "AWS::SNS::Topic": ("sns", "TopicName"),
    "AWS::Lambda::Function": ("lambda:function", "FunctionName"),
}


class Resolver:
    """Resolves Ref, Fn::Sub, Fn::GetAtt and Fn::Join of one template.

    Parameters
    ----------
    name
        Of the stack.
    template
        As parsed JSON.
    parameters
        Values of the template's parameters.
    physical
        Returns the name that a resource has been given, by its logical name.
    """

    def __init__(
        self,
        name: str,
        template: Mapping[str, Any],
        parameters: Mapping[str, str],
        physical: Callable[[str], str],
    ) -> None:
        self._resources = template["Resources"]
        self._physical = physical
        self._values = {
            **parameters,
            "AWS::StackName": name,
            "AWS::Region": REGION,
            "AWS::AccountId": ACCOUNT,
            "AWS::Partition": "aws",
        }

    def value(self, node: Any) -> Any:
        """Return a node with its functions replaced by what they return."""
        if isinstance(node, list):
            return [self.value(item) for item in node]
        if not isinstance(node, dict):
            return node
        if set(node) == {"Ref"}:
            return self._ref(node["Ref"])
        if set(node) == {"Fn::Sub"}:
            return re.sub(r"\$\{([^}]+)\}", lambda name: self._ref(name[1]), node["Fn::Sub"])
        if set(node) == {"Fn::GetAtt"} and node["Fn::GetAtt"][1] == "Arn":
            return self.arn(node["Fn::GetAtt"][0])
        if set(node) == {"Fn::Join"}:
            between, parts = node["Fn::Join"]
            return between.join(map(str, self.value(parts)))
        return {key: self.value(item) for key, item in node.items()}

    def _ref(self, name: str) -> str:
        if name in self._values:
            return self._values[name]
        return (
            self.arn(name)
            if self._resources[name]["Type"] == "AWS::SNS::Topic"
            else self._name(name)
        )

    def _name(self, logical: str) -> str:
        resource = self._resources[logical]
        _, named_by = _ARNS.get(resource["Type"], ("", ""))
        given = resource.get("Properties", {}).get(named_by)
        return self._physical(logical) if given is None else str(self.value(given))

    def arn(self, logical: str) -> str:
        """Return the ARN of a resource of the template."""
        kind = self._resources[logical]["Type"]
        if kind == "AWS::S3::Bucket":
            return f"arn:aws:s3:::{self._name(logical)}"
        service = _ARNS.get(kind, ("iam::role", ""))[0]
        place, _, more = service.partition(":")
        return (
            f"arn:aws:{place}:{REGION}:{ACCOUNT}:{more + ':' if more else ''}{self._name(logical)}"
        )


def facts(
    name: str, text: str, parameters: Mapping[str, str], physical: Callable[[str], str]
) -> StackFacts:
    """Read a template."""
    template = json.loads(text)
    resolver = Resolver(name, template, parameters, physical)
    found = StackFacts(template)
    for resource in template["Resources"].values():
        kind, properties = resource["Type"], resource.get("Properties", {})
        if kind == "AWS::SQS::Queue" and "QueueName" in properties:
            found.queues.append(resolver.value(properties["QueueName"]))
        elif kind == "AWS::Lambda::Function":
            role = properties["Role"]["Fn::GetAtt"][0]
            found.functions[resolver.value(properties["FunctionName"])] = role
        elif kind == "AWS::Lambda::EventInvokeConfig":
            function = resolver.value(properties["FunctionName"])
            found.ages[function] = float(properties.get("MaximumEventAgeInSeconds", 21_600))
            found.retries[function] = int(properties.get("MaximumRetryAttempts", 2))
            target = properties.get("DestinationConfig", {}).get("OnFailure", {})
            if target:
                found.reports[function] = resolver.value(target["Destination"]).split(":")[-1]
        elif kind == "AWS::SNS::Subscription":
            pair = (resolver.value(properties["TopicArn"]), resolver.value(properties["Endpoint"]))
            found.subscriptions.append(pair)
        elif kind == "AWS::SQS::QueuePolicy":
            text = json.dumps(resolver.value(properties["PolicyDocument"]))
            for queue in properties["Queues"]:
                found.policies[resolver.arn(queue["Ref"])] = text
    return found


def statements(
    name: str,
    template: Mapping[str, Any],
    role: str,
    parameters: Mapping[str, str],
    physical: Callable[[str], str],
) -> list[dict[str, Any]]:
    """Return the resolved statements of a role's inline policies."""
    resolver = Resolver(name, template, parameters, physical)
    found: list[dict[str, Any]] = []
    for policy in template["Resources"][role]["Properties"].get("Policies", ()):
        found += resolver.value(policy["PolicyDocument"]["Statement"])
    return found
