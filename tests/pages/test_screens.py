"""Every HTML page in a browser: nothing is cut or unreadable, on a desk or a phone, light or dark.

The screenshots are left in the folder that the variable SCREENSHOTS names, if it is set.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from serverless_mpi.compare import page as comparison_page
from serverless_mpi.compare.measure import SYSTEMS, Comparison, Result
from serverless_mpi.profile import page as profile_page
from serverless_mpi.profile.analysis import Profile, RankSums, SiteSums
from tests.pages import browser

pytestmark = pytest.mark.skipif(
    browser.installed() is None, reason="needs Chromium: apt install chromium-headless-shell"
)

# What is wrong with a page: elements beyond its edges outside of what scrolls, texts of plots that
# are beyond their plots, scrolling on a desk, and texts that hardly differ from the background.
FAULTS = """(() => {
  const wide = innerWidth, faults = [];
  const channels = colour => colour.match(/[\\d.]+/g).slice(0, 3).map(Number);
  const light = colour => channels(colour).map(v => v / 255)
    .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const back = light(getComputedStyle(document.body).backgroundColor);
  if (document.documentElement.scrollWidth > wide) faults.push("the page scrolls sideways");
  for (const element of document.body.querySelectorAll("*")) {
    const box = element.getBoundingClientRect(), style = getComputedStyle(element);
    const scroller = element.closest(".wide");
    const name = `${element.tagName} ${element.textContent.slice(0, 40)}`;
    if (!scroller && box.width && (box.left < 0 || box.right > wide + 0.5))
      faults.push(`beyond the edge: ${name}`);
    if (element === scroller && wide >= 1280 && element.scrollWidth > element.clientWidth + 1)
      faults.push(`scrolls: ${name}`);
    if (element === scroller && style.overflowX !== "auto") faults.push(`cannot scroll: ${name}`);
    if (element.tagName === "text") {
      const plot = element.ownerSVGElement.viewBox.baseVal, own = element.getBBox();
      if (own.x < -1 || own.x + own.width > plot.width + 1 || own.y + own.height > plot.height + 1)
        faults.push(`beyond its plot: ${name}`);
    }
    if (element.childElementCount === 0 && element.textContent.trim() && element.tagName !== "title") {
      const own = light(element.tagName === "text" ? style.fill : style.color);
      const contrast = (Math.max(own, back) + 0.05) / (Math.min(own, back) + 0.05);
      if (contrast < 4) faults.push(`hard to read (${contrast.toFixed(1)}): ${name}`);
    }
  }
  return faults;
})()"""


def profile() -> Profile:
    """A profile with much in it."""
    made = Profile("a_program_with_a_long_name.py", 300, "hybrid", "lambda", rank_usd_per_s=3e-5)
    made.ranks = [RankSums(rank, 123.4, 60 + rank / 10, rank / 10, 5.0) for rank in range(300)]
    for number in range(40):
        site = SiteSums("Neighbor_alltoallw", f"/x/a_module_{number}.py", 1000, "Class.method", 300)
        site.count, site.seconds, site.longest_s = 1_234_567, 12_345.6 / (number + 1), 99.9
        site.late_sender_s, site.late_receiver_s = site.seconds / 2, site.seconds / 4
        site.sent, site.sent_bytes, site.requests = 10**7, 10**12, 10**7
        site.usd = 12.345678
        made.sites.append(site)
    made.sizes = [(bits, 10**bits % 97 + 1, 10**9) for bits in range(31)]
    made.matrix = [(rank, (rank + 1) % 300, 10, 1000) for rank in range(300)]
    made.prices, made.missing, made.dropped, made.events = "us-east-1, today", [7], 5, 10**6
    return made


def comparison() -> Comparison:
    """A comparison of all systems."""
    made = Comparison("a_program.py --with many --arguments 1 2 3", 2, 1769)
    for ranks in (1, 2, 4, 8, 64):
        for number, system in enumerate(SYSTEMS):
            seconds = [10.0**number / ranks, 11.0**number / ranks]
            result = Result(
                system, ranks, seconds, 12.0, 123.4, 10**9, 10**6, 1.5, 0.5, "same lines"
            )
            made.results.append(result)
    made.results[5] = Result("routed", 1, error="one rank has no other node")
    return made


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Browser]:
    with browser.Browser(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("kind", ["profile", "comparison"])
def test_a_page(kind: str, width: int, shown: browser.Browser, tmp_path: Path) -> None:
    path = tmp_path / f"{kind}.html"
    path.write_text(
        profile_page.html(profile()) if kind == "profile" else comparison_page.html(comparison())
    )
    pixels = {}
    for scheme in ("light", "dark"):
        shown.show(path, width, scheme)
        assert shown.value(FAULTS) == []
        back = shown.value("getComputedStyle(document.body).backgroundColor")
        assert (back == "rgb(255, 255, 255)") == (scheme == "light")
        png = pixels[scheme] = shown.screenshot()
        folder = Path(os.environ.get("SCREENSHOTS", tmp_path))
        (folder / f"{kind}-{width}-{scheme}.png").write_bytes(png)
        size = struct.unpack(">II", png[16:24])
        assert png.startswith(b"\x89PNG") and size[0] == width and size[1] > 900
    assert pixels["light"] != pixels["dark"]


def test_the_check_sees_what_is_cut(shown: browser.Browser, tmp_path: Path) -> None:
    path = tmp_path / "wrong.html"
    path.write_text(
        "<body style='background: #fff; color: #ccc'><p style='width: 2000px'>wide</p>"
        "<svg viewBox='0 0 10 10'><text x='9' y='9'>long text</text></svg></body>"
    )
    shown.show(path, 400, "light")
    faults = " ".join(shown.value(FAULTS))
    for fault in ("scrolls sideways", "beyond the edge: P", "beyond its plot", "hard to read"):
        assert fault in faults
