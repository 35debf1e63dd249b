"""Equal samples computed once, compared with each on its own: the serial run, with the same bits.

    python -m benchmarks.merged            1024 neurons x 120 and x 1920 layers, real images and digits
    python -m benchmarks.merged quick      x 120 alone

One core, in seconds of its time, so that other programs matter less. `forward` and `forward_distinct` take turns; the weights are stored as they are, so equal rows
are not merged. The bound beside a ratio is that of the work: living samples before each layer, over those
of them that differ. It is counted, not timed, so it holds for any implementation of this idea. Real
images: ../shared/data, 10,000 of the Graph Challenge; the digits are bundled. Last, a random network,
in which no samples become equal: what the searches cost.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.interleave import in_turns, ratio
from benchmarks.table import Row, render
from serverless_mpi.inference import dataset, networks
from serverless_mpi.sparse import Panels, SparseRows, forward, forward_distinct, layer
from serverless_mpi.sparse.equal import originals

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT.parent / "shared" / "data" / "graphchallenge_images_1024_first10k.npz"
TARGETS = {120: 8.0, 1920: 50.0}
ROUNDS = {120: 7, 1920: 3}
RANDOM = (1024, 120, 1000, 9)  # neurons, layers, samples, rounds
LOSS = 0.01
STEADY = 60  # layers after which neither count changes any more on these networks


def bound(layers: Sequence[SparseRows], x: Any, bias: float) -> float:
    """Living samples before every layer, over the distinct ones of them."""
    panels = Panels.of(x)
    living = distinct = 0
    left = different = 0
    for number, matrix in enumerate(layers):
        if number <= STEADY:
            left = panels.samples
            different = len(np.unique(originals(panels)))
        living += left
        distinct += different
        if number < STEADY:
            panels, active = layer(matrix, panels, bias, threads=1)
            panels.keep(active)
    return living / max(1, distinct)


def _timed(call: Callable[..., Any], *arguments: Any) -> Callable[[], float]:
    def measure() -> float:
        started = time.process_time()
        call(*arguments, threads=1)
        return time.process_time() - started

    return measure


def _row(
    what: str, layers: list[SparseRows], x: Any, bias: float, rounds: int
) -> tuple[Row, float]:
    plain, kept = forward(layers, x, bias, threads=1)
    merged, same = forward_distinct(layers, x, bias, threads=1)
    if kept.tolist() != same.tolist() or plain.tobytes() != merged.tobytes():
        raise ValueError(f"{what}: the outputs differ")
    times = in_turns(
        {
            "each": _timed(forward, layers, x, bias),
            "merged": _timed(forward_distinct, layers, x, bias),
        },
        rounds,
    )
    value, spread = ratio(times["each"], times["merged"])
    seconds = statistics.median(times["merged"])
    return Row(what, seconds, "s", value, spread), value


def run(depths: Sequence[int] = (120, 1920)) -> list[Row]:
    """Measure; a ratio is the time without merging over that with it."""
    images = [("digits", dataset.digits(1024))]
    if IMAGES.exists():
        images.insert(0, ("10,000 real images", dataset.read_images(IMAGES, 1024)))
    rows = []
    for depth in depths:
        network = networks.radixnet(1024, depth)
        for name, x in images:
            row, value = _row(f"1024 x {depth}, {name}", network, x, -0.3, ROUNDS[depth])
            most = bound(network, x, -0.3)
            real = name != "digits"
            met = value >= TARGETS[depth] if real else None
            rows.append(
                Row(
                    row.what,
                    row.value,
                    row.unit,
                    value,
                    row.spread,
                    f"at least {TARGETS[depth]:g}" if real else "",
                    met,
                    f"the distinct samples allow {most:.1f} times less work",
                )
            )
    neurons, depth, samples, rounds = RANDOM
    x = np.random.default_rng(0).random((neurons, samples), np.float32)
    row, value = _row(
        f"random {neurons} x {depth}, {samples} samples",
        networks.randomnet(neurons, depth),
        x,
        0.0,
        rounds,
    )
    rows.append(
        Row(row.what, row.value, row.unit, value, row.spread, "at least 0.99", value >= 1 - LOSS)
    )
    return rows


if __name__ == "__main__":
    print(render(run((120,) if "quick" in sys.argv[1:] else (120, 1920))))
