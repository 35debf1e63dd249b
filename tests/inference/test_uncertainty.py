"""The planner's bounds follow from the ranges of figures, and name the one that matters most."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from serverless_mpi.aws import figures as files
from serverless_mpi.aws.limits import AWS, Figures
from serverless_mpi.inference import cli, plan
from serverless_mpi.inference.cost import BilledModel
from serverless_mpi.inference.plan import Deployment, Work
from serverless_mpi.inference.uncertainty import Uncertainty, uncertainty

MODEL = BilledModel()
LARGE = Work.random(16384, 120, 10_000)


def bounds(work: Work, way: Deployment, figures: Figures = AWS) -> tuple[Uncertainty, float, float]:
    platform = plan.place("lambda", figures)
    found = plan.predict(work, replace(platform, limit_s=1e9), way, MODEL)
    assert found is not None
    return uncertainty(work, platform, found, MODEL), found.seconds, found.usd


@pytest.mark.parametrize(
    ("work", "way", "most"),
    [
        (LARGE, Deployment(1, 1, None, 10240), "kernel_per_s"),
        (LARGE, Deployment(64, 1, None, 10240), "network_Bps"),
        (Work.radix(1024, 120, 1000), Deployment(1, 8, "queue", 1769), "sqs_deliver_s"),
        (Work.radix(1024, 120, 1000), Deployment(1, 8, "object", 1769), "s3_put_s"),
        (Work.radix(1024, 1, 32), Deployment(1, 1, None, 512), "cold_start_s"),
    ],
)
def test_the_figure_that_matters_most_is_named(work: Work, way: Deployment, most: str) -> None:
    bound, seconds, usd = bounds(work, way)
    first = bound.assumptions[0]
    assert first.figure == most and most in bound.text()
    assert bound.seconds[0] < seconds < bound.seconds[1] and bound.usd[0] < usd < bound.usd[1]
    effects = [each.effect for each in bound.assumptions]
    assert effects == sorted(effects, reverse=True)
    for each in bound.assumptions:  # one figure alone does not exceed all of them together
        assert bound.seconds[0] <= each.seconds[0] <= seconds <= each.seconds[1]
        assert each.seconds[1] <= bound.seconds[1] and each.usd[1] <= bound.usd[1]
    # alone, the figure explains more than any other
    others = AWS.exactly(**{most: getattr(AWS, most).value})
    known, _, _ = bounds(work, way, others)
    assert known.seconds[1] - known.seconds[0] < bound.seconds[1] - bound.seconds[0]
    assert all(each.figure != most for each in known.assumptions)


def test_known_figures_leave_no_uncertainty() -> None:
    exact = AWS.exactly(**{name: figure.value for name, figure in AWS.items()})
    bound, seconds, usd = bounds(LARGE, Deployment(2, 2, "hybrid", 10240), exact)
    assert bound.seconds == (seconds, seconds) and bound.usd == (usd, usd)
    assert not bound.assumptions and "matters" not in bound.text()


def test_the_plan_prints_it_and_uses_a_file_of_figures(
    tmp_path, capsys: pytest.CaptureFixture[str]
) -> None:  # type: ignore[no-untyped-def]
    words = ["plan", "--samples", "1000", "--max-workers", "8"]
    assert cli.main(words) == 0
    text = capsys.readouterr().out
    assert "with the ranges of the package's own figures" in text
    assert "knee: " in text and "what matters most is " in text
    path = tmp_path / "figures.json"
    slow = replace(AWS.exactly(cold_start_s=5.0), stack="s", measured="2026-11-01T12:00:00Z")
    path.write_text(files.to_json(slow))
    found = {}
    for name, more in (("package", []), ("file", ["--figures", str(path)])):
        assert cli.main([*words, "--json", *more]) == 0
        found[name] = json.loads(capsys.readouterr().out)
    assert found["file"]["knee"]["start_s"] >= 5 > found["package"]["knee"]["start_s"]
    assert found["file"]["figures"].startswith("figures measured on stack s")
    for record in found.values():
        for way in ("cheapest", "fastest", "knee"):
            bound = record[way]["uncertainty"]
            assert bound["seconds"][0] <= record[way]["seconds"] <= bound["seconds"][1]
            assert {"figure", "unit", "range", "seconds", "usd"} == set(bound["assumptions"][0])
    assert cli.main([*words, "--rate", "1e9", "--json"]) == 0
    rated = json.loads(capsys.readouterr().out)["knee"]["uncertainty"]["assumptions"]
    assert all(each["figure"] != "kernel_per_s" for each in rated)
    assert cli.main([*words, "--figures", str(tmp_path / "none")]) == 2
    assert "none: No such file" in capsys.readouterr().err
