"""Draw the plots of the documentation from recorded data: `python docs/make_plots.py`.

`--record` computes the data first: docs/data/simulated.csv with `smpirun --simulate`, and
docs/data/trace.json with `smpirun --trace` of examples/ring.py. Both are in the repository, so the
pictures can be drawn, and compared, without running anything.

- images/seconds.svg, images/dollars.svg: time and cost of one Allreduce against the number of ranks
- images/trace.svg: a rendering of the trace, with the same events that Perfetto shows
"""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot  # noqa: E402

DOCS = Path(__file__).resolve().parent
DATA, IMAGES = DOCS / "data", DOCS / "images"
CHANNELS = ("hybrid", "queue", "object")
RANKS = (2, 4, 8, 16, 32, 64, 128, 256)
CALLS = ("allreduce:1KB", "allreduce:1MB")
COLOURS = {"hybrid": "#1f77b4", "queue": "#2ca02c", "object": "#d95f02"}
STYLES = {"hybrid": (3.5, "-"), "queue": (1.6, "--"), "object": (1.6, "-")}
MEANINGS = {
    "call": "MPI call, algorithm",
    "channel": "wait",
    "sqs": "request",
    "s3": "request",
    "sns": "request",
}
EVENTS = {"MPI call, algorithm": "#4c78a8", "wait": "#c9ced6", "request": "#f2a541"}


def record() -> None:
    """Compute the data files."""
    smpirun = [sys.executable, "-m", "serverless_mpi.launch"]
    row = re.compile(r"^(\S+)\s+(\d+) (\w+)\s.* ([\d.]+)\s+([\d.]+)$")
    with (DATA / "simulated.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("channel", "call", "ranks", "algorithm", "seconds", "usd"))
        for channel in CHANNELS:
            for ranks in RANKS:
                options = ["--simulate", "-n", str(ranks), "--channel", channel, *CALLS]
                done = subprocess.run(
                    [*smpirun, *options], capture_output=True, text=True, check=True
                )
                for line in done.stdout.splitlines():
                    if (match := row.match(line)) and match[1] in CALLS:
                        call, size, algorithm, seconds, usd = match.groups()
                        writer.writerow((channel, call, size, algorithm, seconds, usd))
    program = str(DOCS.parent / "examples" / "ring.py")
    options = ["-n", "4", "--channel", "queue", "--trace", str(DATA / "trace.json"), program]
    subprocess.run([*smpirun, *options], check=True, stdout=subprocess.DEVNULL)


def curves(column: str, unit: str, path: Path) -> None:
    """Draw one column of the simulation against ranks, a panel per message size."""
    points: dict[tuple[str, str], list[tuple[int, float]]] = defaultdict(list)
    with (DATA / "simulated.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            points[row["call"], row["channel"]].append((int(row["ranks"]), float(row[column])))
    figure, panels = pyplot.subplots(1, len(CALLS), figsize=(9, 3.6), layout="constrained")
    for panel, call in zip(panels, CALLS, strict=True):
        for channel in CHANNELS:
            ranks, values = zip(*points[call, channel], strict=True)
            width, style = STYLES[channel]
            panel.plot(ranks, values, style, marker="o", markersize=4, linewidth=width,
                       color=COLOURS[channel], label=channel)  # fmt: skip
        panel.set(xscale="log", yscale="log", xlabel="ranks", ylabel=unit)
        panel.set_xticks(RANKS, [str(each) for each in RANKS])
        panel.minorticks_off()
        panel.set_title(
            f"Allreduce of {call.partition(':')[2].replace('KB', ' KB').replace('MB', ' MB')}"
        )
        panel.grid(alpha=0.3)
        panel.legend()
    _save(figure, path)


def trace(path: Path) -> None:
    """Draw the events of the recorded trace: a band per rank and thread, arrows for messages."""
    loaded = json.loads((DATA / "trace.json").read_text(encoding="utf-8"))
    events: list[dict[str, Any]] = loaded["traceEvents"] if isinstance(loaded, dict) else loaded
    timed = [event for event in events if event["ph"] == "X"]
    bands = sorted({(event["pid"], event["tid"]) for event in timed})
    level = {band: -number for number, band in enumerate(bands)}
    start = min(event["ts"] for event in timed)
    figure, panel = pyplot.subplots(figsize=(9, 0.45 * len(bands) + 1.4), layout="constrained")
    heights = {"call": 0.8, "channel": 0.5}
    for event in sorted(timed, key=lambda event: -event["dur"]):
        meaning = MEANINGS.get(event["cat"], "request")
        panel.broken_barh(
            [((event["ts"] - start) / 1e3, max(event["dur"] / 1e3, 0.02))],
            (level[event["pid"], event["tid"]] - heights.get(event["cat"], 0.3) / 2,
             heights.get(event["cat"], 0.3)),
            facecolor=EVENTS[meaning], edgecolor="white", linewidth=0.3,
        )  # fmt: skip
    ends = {event["id"]: event for event in events if event["ph"] == "f"}
    for event in events:
        if event["ph"] == "s" and (end := ends.get(event["id"])):
            panel.annotate(
                "",
                ((end["ts"] - start) / 1e3, level[end["pid"], end["tid"]]),
                ((event["ts"] - start) / 1e3, level[event["pid"], event["tid"]]),
                arrowprops={"arrowstyle": "->", "color": "#b02a37", "linewidth": 0.9},
            )
    names = {tid: "program" if tid == 0 else f"thread {tid}" for _, tid in bands}
    panel.set_yticks(list(level.values()), [f"rank {pid}, {names[tid]}" for pid, tid in bands])
    panel.set(xlabel="milliseconds")
    for meaning, colour in EVENTS.items():
        panel.plot([], [], linewidth=6, color=colour, label=meaning)
    panel.plot([], [], color="#b02a37", label="message")
    figure.legend(loc="outside upper center", ncols=4, frameon=False)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, metadata={"Date": None, "Creator": None})
    pyplot.close(figure)


def main() -> None:
    """Draw every picture."""
    # Equal input gives an equal file: fixed ids, and text as text.
    matplotlib.rcParams.update({"svg.hashsalt": "smpi", "svg.fonttype": "none", "font.size": 9})
    if "--record" in sys.argv[1:]:
        record()
    curves("seconds", "seconds", IMAGES / "seconds.svg")
    curves("usd", "US dollars", IMAGES / "dollars.svg")
    trace(IMAGES / "trace.svg")


if __name__ == "__main__":
    main()
