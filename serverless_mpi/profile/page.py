"""A profile as one self-contained HTML page."""

from __future__ import annotations

from html import escape

import numpy as np

from serverless_mpi import webpage
from serverless_mpi.profile.analysis import Profile, SiteSums, ranks_text
from serverless_mpi.profile.text import size_name

MOST_SITES = 200  # rows of the table of sites
MOST_CELLS = 64  # rows and columns of the map; more ranks are gathered
PARTS = (
    ("own_s", "program", "--extra"),
    ("rest_s", "MPI: transfer and work", "--compute"),
    ("late_sender_s", "MPI: late sender", "--wait"),
    ("late_receiver_s", "MPI: late receiver", "--send"),
)
CAUSES = PARTS[1:]


def html(profile: Profile) -> str:
    """Return the page.

    Parameters
    ----------
    profile
        What `analysis.merge` returned.
    """
    title = f"{profile.program}: {profile.size} ranks on {profile.channel}"
    body = [
        f"<h1>Profile of {escape(title)}</h1>",
        f"<p>Platform {escape(profile.platform)}. Prices of {escape(profile.prices)}.</p>",
        _facts(profile),
    ]
    if profile.missing:
        body.append(f"<p>Without a profile: rank {ranks_text(profile.missing)}.</p>")
    if profile.ranks:
        body += _time(profile) + _sites(profile) + _messages(profile)
    return webpage.document(f"Profile of {title}", body)


def _facts(profile: Profile) -> str:
    facts = [
        (webpage.seconds(profile.wall_s), "longest rank"),
        (f"{profile.mpi_share:.1%}", "of the time in MPI"),
        (f"{profile.imbalance:.1%}", "imbalance of the program's own work"),
        (f"{sum(row[1] for row in profile.sizes):,}", "messages"),
        (webpage.nbytes(sum(row[2] for row in profile.sizes)), "sent"),
        (f"{sum(site.requests for site in profile.sites):,}", "requests"),
        (f"{profile.requests_usd:.3g} $", "for requests"),
    ]
    if profile.rank_usd_per_s:
        usd = profile.time_usd(sum(rank.seconds for rank in profile.ranks))
        facts.append((f"{usd:.3g} $", "for the ranks' time"))
    return webpage.facts(facts)


def _time(profile: Profile) -> list[str]:
    series = [
        np.array([getattr(rank, name) for rank in profile.ranks], dtype=float)
        for name, _, _ in PARTS
    ]
    parts = [(name, colour) for _, name, colour in PARTS]
    labels = [str(rank.rank) for rank in profile.ranks]
    numbered = len(labels) > webpage.MOST_COLUMNS
    return [
        "<h2>Time by rank</h2><p>From the import of MPI to its end.</p>",
        webpage.key(parts),
        webpage.bars(series, parts, webpage.seconds, "rank", () if numbered else labels),
    ]


def _sites(profile: Profile) -> list[str]:
    shown = [site for site in profile.sites if site.count][:20]
    parts = [(name, colour) for _, name, colour in CAUSES]
    plot = []
    if shown:
        series = [
            np.array([getattr(site, name) for site in shown], dtype=float) for name, _, _ in CAUSES
        ]
        numbers = [str(number + 1) for number in range(len(shown))]
        plot = [
            "<h2>Time by call site</h2><p>All ranks together, in seconds; the numbers are those of"
            " the table.</p>",
            webpage.key(parts),
            webpage.bars(series, parts, webpage.seconds, "call site", numbers),
        ]
    heads = ["", "call", "line", "calls", "seconds", "%", "longest", "late sender"]
    heads += ["late receiver", "messages", "bytes", "requests", "USD"]
    heads += ["USD of time"] * bool(profile.rank_usd_per_s)
    total = sum(rank.seconds for rank in profile.ranks) or 1.0
    rows = []
    for number, site in enumerate(profile.sites[:MOST_SITES]):
        row = [str(number + 1), site.call, site.place, f"{site.count:,}"]
        row += [f"{site.seconds:,.3f}", f"{100 * site.seconds / total:.1f}"]
        row += [f"{site.longest_s:,.3f}", f"{site.late_sender_s:,.3f}"]
        row += [f"{site.late_receiver_s:,.3f}", *_traffic(site)]
        if profile.rank_usd_per_s:
            row.append(f"{profile.time_usd(site.seconds):.7f}")
        rows.append(row)
    calls = [
        [site.call, f"{site.count:,}", f"{site.seconds:,.3f}", f"{site.late_sender_s:,.3f}"]
        + [f"{site.late_receiver_s:,.3f}", *_traffic(site)]
        for site in profile.by_call()
    ]
    call_heads = ["call", "calls", "seconds", "late sender", "late receiver", "messages"]
    rest = len(profile.sites) - len(rows)
    return [
        *plot,
        webpage.table(heads, rows, 3),
        f"<p>{rest} more call sites are not shown.</p>" * (rest > 0),
        "<h2>Time by call</h2>",
        webpage.table([*call_heads, "bytes", "requests", "USD"], calls, 1),
    ]


def _traffic(site: SiteSums) -> list[str]:
    sent = [f"{site.sent:,}", webpage.nbytes(site.sent_bytes)]
    return [*sent, f"{site.requests:,}", f"{site.usd:.7f}"]


def _messages(profile: Profile) -> list[str]:
    if not profile.sizes:
        return ["<h2>Messages</h2><p>No message was sent.</p>"]
    counts = np.array([row[1] for row in profile.sizes], dtype=float)
    names = [size_name(row[0]) for row in profile.sizes]
    short = [name.replace(" to ", "-").replace(" ", "") for name in names]
    rows = [
        [name, f"{row[1]:,}", f"{row[2]:,}"] for name, row in zip(names, profile.sizes, strict=True)
    ]
    each = -(-profile.size // MOST_CELLS)
    count = -(-profile.size // each)
    cells = np.zeros((count, count))
    for source, dest, _, nbytes in profile.matrix:
        cells[source // each, dest // each] += nbytes
    of = "to rank" if each == 1 else f"to ranks, {each} each,"
    labels = [f"from {row * each}" for row in range(count)]
    dropped = (
        f"<p>Late senders and receivers: of {profile.events:,} messages the oldest"
        f" {profile.dropped:,} are not looked at.</p>"
    )
    return [
        "<h2>Messages by length</h2>",
        webpage.bars([counts], [("messages", "--compute")], _count, "length", short),
        webpage.table(["length", "messages", "bytes"], rows, 1),
        "<h2>Bytes from rank to rank</h2><p>A stronger colour is more.</p>",
        webpage.heat_map(cells, labels, of, webpage.nbytes),
        dropped * bool(profile.dropped),
    ]


def _count(value: float) -> str:
    return f"{value:,.0f}" if value >= 1 or not value else f"{value:.2g}"
