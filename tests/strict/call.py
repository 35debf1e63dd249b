"""Requests of the AWS protocols, parsed by botocore's service models.

A `Call` is one request: its service, its action, and its parameters as boto3 would take
them (blobs are bytes, numbers are numbers).  What the model does not know is kept in
`Call.unknown`, so that the rule of request shapes can refuse it.

Sources: the models of botocore (`botocore/data/*/service-2.json`); "Smithy AWS protocols",
https://smithy.io/2.0/aws/protocols/.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit
from xml.etree import ElementTree

import botocore.session
from botocore.model import OperationModel, ServiceModel, Shape

SERVICES = {  # name in a credential scope -> name of botocore's model
    name: name for name in ("sqs", "sns", "s3", "lambda", "cloudformation", "iam", "logs", "sts")
}
_SCOPE = re.compile(r"Credential=[^/]+/[0-9]{8}/([a-z0-9-]+)/([a-z0-9-]+)/aws4_request")
_SESSION = botocore.session.get_session()


class Malformed(Exception):
    """The request cannot be parsed by its protocol."""


@dataclass(frozen=True)
class Request:
    """An HTTP request; header names are in lower case; `function` is the Lambda function that sent it."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes
    function: str = ""


@dataclass(frozen=True)
class Answer:
    """An HTTP answer."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Call:
    """A parsed request.

    Attributes
    ----------
    request
        As it arrived.
    service, region, action
        Names of the service, the region of the signature, the operation of the model.
    params
        Parameters by the model's names.
    unknown
        Parts of the request that the model does not have.
    """

    request: Request
    service: str
    region: str
    action: str
    params: dict[str, Any]
    unknown: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Return "service.Action"."""
        return f"{self.service}.{self.action}"

    @property
    def operation(self) -> OperationModel:
        """Return the model of the action."""
        return model(self.service).operation_model(self.action)


@lru_cache
def model(service: str) -> ServiceModel:
    """Return botocore's model of a service."""
    return _SESSION.get_service_model(SERVICES[service])


def parse(request: Request) -> Call:
    """Parse a request.

    Raises
    ------
    Malformed
        It is not signed for a known service, or violates the service's protocol.
    """
    scope = _SCOPE.search(request.headers.get("authorization", ""))
    if scope is None or scope[2] not in SERVICES:
        raise Malformed("the request is not signed for a service that is known here")
    region, service = scope[1], scope[2]
    protocol = model(service).metadata["protocol"]
    try:
        if protocol == "json":
            action = request.headers.get("x-amz-target", "").rpartition(".")[2]
            return _typed(request, service, region, action, json.loads(request.body or b"{}"))
        if protocol == "query":
            return _from_query(request, service, region)
        return _from_rest(request, service, region)
    except (ValueError, KeyError, ElementTree.ParseError) as error:
        raise Malformed(f"{service}: {error}") from error


def _typed(request: Request, service: str, region: str, action: str, fields: Any) -> Call:
    """Return a call whose parameters are the fields of a JSON text."""
    if action not in model(service).operation_names:
        raise Malformed(f"{service} has no action {action!r}")
    shape = model(service).operation_model(action).input_shape
    return Call(request, service, region, action, _from_json(fields, shape) if shape else {})


def _from_json(value: Any, shape: Shape) -> Any:
    """Decode the blobs of a JSON value."""
    if shape.type_name == "structure" and isinstance(value, dict):
        return {
            name: _from_json(item, shape.members[name]) if name in shape.members else item
            for name, item in value.items()
        }
    if shape.type_name == "list" and isinstance(value, list):
        return [_from_json(item, shape.member) for item in value]
    if shape.type_name == "map" and isinstance(value, dict):
        return {key: _from_json(item, shape.value) for key, item in value.items()}
    return _blob(value) if shape.type_name == "blob" and isinstance(value, str) else value


def _blob(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise Malformed(f"not base64: {text[:40]!r}") from error


def _scalar(text: str, shape: Shape) -> Any:
    """Convert a text of a query, a header or XML to the type of a shape."""
    if shape.type_name in ("integer", "long"):
        return int(text)
    if shape.type_name in ("float", "double"):
        return float(text)
    if shape.type_name == "boolean":
        if text not in ("true", "false"):
            raise Malformed(f"{text!r} is not true or false")
        return text == "true"
    return _blob(text) if shape.type_name == "blob" else text


# --- query: SNS, CloudFormation, IAM, STS ----------------------------------------------------


def _from_query(request: Request, service: str, region: str) -> Call:
    pairs = parse_qsl(
        request.body.decode(), keep_blank_values=True, strict_parsing=bool(request.body)
    )
    form = dict(pairs)
    action, version = form.pop("Action", ""), form.pop("Version", "")
    if action not in model(service).operation_names or version != model(service).api_version:
        raise Malformed(f"{service} has no action {action!r} of version {version!r}")
    shape = model(service).operation_model(action).input_shape
    params = _from_form(form, "", shape) if shape else {}
    return Call(request, service, region, action, params or {}, tuple(form))


def _from_form(form: dict[str, str], prefix: str, shape: Shape) -> Any:
    """Take a value out of a form; None if it is not there."""
    if shape.type_name == "structure":
        found = {}
        for name, member in shape.members.items():
            wire_name = member.serialization.get("name", name)
            value = _from_form(form, f"{prefix}.{wire_name}" if prefix else wire_name, member)
            if value is not None:
                found[name] = value
        return found or None
    if shape.type_name == "list":
        member_name = shape.member.serialization.get("name", "member")
        start = prefix if shape.serialization.get("flattened") else f"{prefix}.{member_name}"
        if form.get(prefix) == "":  # boto3's form of an empty list
            del form[prefix]
            return []
        items = []
        while (item := _from_form(form, f"{start}.{len(items) + 1}", shape.member)) is not None:
            items.append(item)
        return items or None
    if shape.type_name == "map":
        key_name = shape.key.serialization.get("name", "key")
        value_name = shape.value.serialization.get("name", "value")
        start = prefix if shape.serialization.get("flattened") else f"{prefix}.entry"
        table: dict[str, Any] = {}
        while (key := form.pop(f"{start}.{len(table) + 1}.{key_name}", None)) is not None:
            table[key] = _from_form(form, f"{start}.{len(table) + 1}.{value_name}", shape.value)
        return table or None
    text = form.pop(prefix, None)
    return None if text is None else _scalar(text, shape)


# --- REST: S3 (XML), Lambda (JSON) -----------------------------------------------------------


@dataclass(frozen=True)
class _Route:
    """How the requests of an operation look."""

    action: str
    method: str
    path: re.Pattern[str]
    constants: dict[str, str]  # of the query
    required: frozenset[tuple[str, str]]  # (location, wire name) of members that must be there

    def score(self, request: Request, path: str, query: dict[str, str]) -> int:
        """Return how well a request fits; -1 if it does not."""
        if request.method != self.method or not self.path.fullmatch(path):
            return -1
        if any(query.get(name) != value for name, value in self.constants.items()):
            return -1
        for location, name in self.required:
            if name not in (query if location == "querystring" else request.headers):
                return -1
        return 2 * len(self.constants) + len(self.required)


@lru_cache
def _routes(service: str) -> list[_Route]:
    routes = []
    for action in model(service).operation_names:
        operation = model(service).operation_model(action)
        path, _, query = operation.http["requestUri"].partition("?")
        pattern = re.escape(path).replace(r"\{", "{").replace(r"\}", "}").replace(r"\+", "+")
        pattern = re.sub(r"\{(\w+)\+\}", r"(?P<\1>.+)", pattern)
        pattern = re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", pattern)
        shape = operation.input_shape
        required = {
            (place, member.serialization.get("name", name).lower())
            if place == "header"
            else (place, member.serialization.get("name", name))
            for name, member in (shape.members if shape else {}).items()
            if name in shape.required_members
            and (place := member.serialization.get("location")) in ("querystring", "header")
        }
        constants = dict(parse_qsl(query, keep_blank_values=True))
        routes.append(
            _Route(
                action,
                operation.http["method"],
                re.compile(pattern + "/?"),
                constants,
                frozenset(required),
            )
        )
    return routes


def _from_rest(request: Request, service: str, region: str) -> Call:
    parts = urlsplit(request.target)
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    best = max(_routes(service), key=lambda route: route.score(request, parts.path, query))
    if best.score(request, parts.path, query) < 0:
        raise Malformed(f"{service} has no action for {request.method} {request.target}")
    shape = model(service).operation_model(best.action).input_shape
    matched = best.path.fullmatch(parts.path)
    assert matched is not None and shape is not None
    labels = {name: unquote(value) for name, value in matched.groupdict().items()}
    left = {name: value for name, value in query.items() if name not in best.constants}
    left.pop("x-id", None)  # of the SDKs, for logs
    params: dict[str, Any] = {}
    for name, member in shape.members.items():
        place = member.serialization.get("location")
        wire_name = member.serialization.get("name", name)
        text: str | None = None
        if place == "uri":
            text = labels.get(wire_name)
        elif place == "querystring":
            text = left.pop(wire_name, None)
        elif place == "header":
            text = request.headers.get(wire_name.lower())
        if text is not None:
            params[name] = _scalar(text, member)
    payload = shape.serialization.get("payload")
    if payload is not None and request.body:
        member = shape.members[payload]
        if member.type_name == "structure":
            params[payload] = _from_xml(ElementTree.fromstring(request.body), member)
        else:
            params[payload] = request.body
    elif payload is None and request.body and service == "lambda":
        params.update(_from_json(json.loads(request.body), shape))
    return Call(request, service, region, best.action, params, tuple(left))


def _from_xml(element: ElementTree.Element, shape: Shape) -> Any:
    """Convert an XML element by its shape."""
    if shape.type_name != "structure":
        return _scalar(element.text or "", shape)
    found: dict[str, Any] = {}
    names = {
        member.serialization.get("name", name): (name, member)
        for name, member in shape.members.items()
    }
    for child in element:
        tag = child.tag.rpartition("}")[2]
        name, member = names[tag]  # KeyError: not in the model
        if member.type_name == "list" and member.serialization.get("flattened"):
            found.setdefault(name, []).append(_from_xml(child, member.member))
        elif member.type_name == "list":
            found[name] = [_from_xml(item, member.member) for item in child]
        else:
            found[name] = _from_xml(child, member)
    return found
