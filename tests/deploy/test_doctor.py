"""smpi doctor: the publish quota and the figures of a stack, without an account."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from serverless_mpi.aws import control
from serverless_mpi.aws.limits import AWS
from serverless_mpi.deploy import doctor
from serverless_mpi.stack import stored_figures

OTHER = {"QuotaName": "Topics per Account", "Value": 100_000.0}
PUBLISH = {"QuotaName": "Messages Published per Second", "Value": 1500.0}


class Quotas:
    """A client of Service Quotas whose calls answer what a test says; a missing one is refused."""

    def __init__(self, answers: dict[str, list[dict[str, Any]]]) -> None:
        self._answers = answers

    def get_paginator(self, call: str) -> Any:
        def paginate(**_: object) -> list[dict[str, Any]]:
            if call not in self._answers:
                raise RuntimeError("AccessDenied")
            return [{"Quotas": [OTHER]}, {"Quotas": self._answers[call]}]

        return SimpleNamespace(paginate=paginate)


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ({"list_service_quotas": [PUBLISH]}, "Messages Published per Second 1500"),
        (
            {"list_service_quotas": [], "list_aws_default_service_quotas": [PUBLISH]},
            "Messages Published per Second 1500",
        ),
        ({"list_aws_default_service_quotas": [PUBLISH]}, "Messages Published per Second 1500"),
        ({}, "300 messages published per second, by default"),
        (
            {"list_service_quotas": [], "list_aws_default_service_quotas": []},
            "300 messages published per second, by default (Service Quotas names none)",
        ),
    ],
)
def test_the_publish_rate_is_the_accounts_the_default_or_the_tables(
    monkeypatch: pytest.MonkeyPatch, answers: dict[str, list[dict[str, Any]]], said: str
) -> None:
    monkeypatch.setattr(control, "client", lambda *_: Quotas(answers))
    finding = doctor._publish_rate(None, "sa-east-1")
    assert finding.good and said in finding.what


def test_figures_of_a_stack_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    stack: Any = SimpleNamespace(name="smpi", region="eu-west-1", changed=0.0)
    found: list[Any] = [None]
    monkeypatch.setattr(stored_figures, "read", lambda _: found[0])
    finding = doctor._figures(stack)
    assert finding.good and "smpi calibrate --stack smpi" in finding.remedy
    measured = replace(AWS, stack="smpi", region="eu-west-1", measured="2026-11-01T12:00:00Z")
    found[0] = measured
    finding = doctor._figures(stack)
    assert finding.good and finding.what == "figures: measured 2026-11-01T12:00:00Z"
    found[0] = measured.exactly(s3_put_s=3.0)
    assert "outside of the package's range: s3_put_s 3 s (0.02 to 0.2)" in str(
        doctor._figures(stack)
    )
    found[0] = replace(measured, region="us-east-1")
    finding = doctor._figures(stack)
    assert finding.good is False and "measured in us-east-1" in finding.what
