"""The properties of a channel are attributes of its class; no other code compares channel names."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import serverless_mpi
from serverless_mpi import channels
from serverless_mpi.channels.base import Channel
from serverless_mpi.errors import UsageError
from serverless_mpi.metering import Meter, Prices
from serverless_mpi.simulation import AWS, media

PACKAGE = Path(serverless_mpi.__file__).parent


def test_no_file_outside_of_channels_compares_names() -> None:
    found = []
    for path in PACKAGE.rglob("*.py"):
        if path.parent.name == "channels":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Compare):
                constants = {
                    part.value for part in ast.walk(node) if isinstance(part, ast.Constant)
                }
                if constants & set(channels.CHANNELS):
                    found.append(f"{path.relative_to(PACKAGE)}:{node.lineno}")
    assert not found


@pytest.mark.parametrize("name", channels.CHANNELS)
def test_every_channel_states_its_limits_and_costs(name: str) -> None:
    kind = channels.load(name)
    assert kind.limits.max_frame_bytes > 84
    for aws in (True, False):
        assert kind.cost(aws=aws, prices=Prices.load()).latency_s > 0


@pytest.mark.parametrize("name", ["direct", "memory"])
def test_a_platform_that_a_channel_excludes_is_refused(name: str) -> None:
    with pytest.raises(UsageError) as refused:
        channels.load_for(name, "lambda", 1)
    assert str(refused.value) == (
        f"channel {name} does not work on platform lambda; these do: hybrid, queue, object, routed"
    )


def test_threads_of_one_process_are_not_several_processes() -> None:
    assert channels.load_for("memory", "local", 1).one_process
    with pytest.raises(UsageError, match="threads of one process: use -n 1"):
        channels.load_for("memory", "local", 2)


def test_a_channel_states_its_model(monkeypatch: pytest.MonkeyPatch) -> None:
    kind: type[Channel] = channels.load("direct")
    model, figures, longest = media.channel_model("direct", AWS, Meter(), Prices.load())
    assert isinstance(model, media.Parametric)
    assert (figures, longest) == (kind.figures, kind.limits.max_frame_bytes)
    monkeypatch.setattr(kind, "model", "serverless_mpi.simulation.media:NoSuch")
    with pytest.raises(UsageError, match=r"model of channel direct \(.*NoSuch\) cannot be"):
        media.channel_model("direct", AWS, Meter(), Prices.load())
    monkeypatch.setattr(kind, "model", None)
    with pytest.raises(UsageError, match="channel direct has no simulation model"):
        media.channel_model("direct", AWS, Meter(), Prices.load())
