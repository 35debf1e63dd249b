"""A profile as text, for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from serverless_mpi.profile.analysis import Profile, SiteSums, ranks_text

MOST_SITES = 20  # lines of the table of sites
MOST_RANKS = 32  # lines of the table of ranks: the first and last in the order of their MPI time
MOST_CELLS = 12  # ranks of which the matrix is printed; else the busiest pairs are


def lines(profile: Profile) -> Iterator[str]:
    """Yield the lines of a report.

    Parameters
    ----------
    profile
        What `analysis.merge` returned.
    """
    if not profile.ranks:
        yield "profile: no rank left one; a rank writes it when it finalizes MPI"
        return
    messages = sum(row[1] for row in profile.sizes)
    nbytes = sum(row[2] for row in profile.sizes)
    yield (
        f"profile of {profile.program}: {profile.size} ranks on {profile.channel},"
        f" {profile.wall_s:.3f} s, {profile.mpi_share:.1%} of it in MPI,"
        f" imbalance {profile.imbalance:.1%}"
    )
    requests = sum(site.requests for site in profile.sites)
    yield (
        f"{messages:,} messages, {nbytes:,} bytes, {requests:,} requests,"
        f" {profile.requests_usd:.8f} USD for requests ({profile.prices})" + _time_price(profile)
    )
    if profile.missing:
        yield f"without a profile: rank {ranks_text(profile.missing)}"
    yield from _ranks(profile)
    yield from _sites(profile)
    yield from _calls(profile)
    yield from _sizes(profile)
    yield from _matrix(profile)
    if profile.dropped:
        yield (
            f"late senders and receivers: of {profile.events:,} messages the oldest"
            f" {profile.dropped:,} are not looked at"
        )


def _time_price(profile: Profile) -> str:
    if not profile.rank_usd_per_s:
        return ""
    usd = profile.time_usd(sum(rank.seconds for rank in profile.ranks))
    return f", {usd:.8f} USD for the ranks' time"


def _ranks(profile: Profile) -> Iterator[str]:
    yield ""
    yield (
        f"{'rank':>6}{'seconds':>11}{'program':>11}{'MPI':>11}{'MPI %':>8}{'late send':>11}"
        f"{'late recv':>11}{'rest':>11}"
    )
    shown = profile.ranks
    if len(shown) > MOST_RANKS:
        by_share = sorted(shown, key=lambda rank: rank.mpi_s)
        shown = by_share[: MOST_RANKS // 2] + by_share[-MOST_RANKS // 2 :]
    for rank in shown:
        yield (
            f"{rank.rank:>6}{rank.seconds:>11.4f}{rank.own_s:>11.4f}{rank.mpi_s:>11.4f}"
            f"{100 * rank.mpi_s / (rank.seconds or 1):>8.1f}{rank.late_sender_s:>11.4f}"
            f"{rank.late_receiver_s:>11.4f}{rank.rest_s:>11.4f}"
        )
    if len(shown) < len(profile.ranks):
        yield f"   ... {len(profile.ranks) - len(shown)} ranks between these"


def _sites(profile: Profile) -> Iterator[str]:
    yield ""
    timed = bool(profile.rank_usd_per_s)
    yield (
        f"{'call site':<34}{'calls':>9}{'seconds':>11}{'wall %':>8}{'longest':>10}{'late send':>11}"
        f"{'late recv':>11}{'messages':>10}{'bytes':>15}{'requests':>10}{'USD':>13}"
        + (f"{'USD of time':>13}" if timed else "")
    )
    total = sum(rank.seconds for rank in profile.ranks) or 1.0
    for site in profile.sites[:MOST_SITES]:
        name = f"{site.call} {site.place}".strip()
        yield (
            f"{name[-33:]:<34}{site.count:>9,}{site.seconds:>11.4f}"
            f"{100 * site.seconds / total:>8.1f}{site.longest_s:>10.4f}{site.late_sender_s:>11.4f}"
            f"{site.late_receiver_s:>11.4f}{site.sent:>10,}{site.sent_bytes:>15,}"
            f"{site.requests:>10,}{site.usd:>13.8f}"
            + (f"{profile.time_usd(site.seconds):>13.8f}" if timed else "")
        )
    rest = len(profile.sites) - MOST_SITES
    if rest > 0:
        yield f"... and {rest} more call sites"


def _calls(profile: Profile) -> Iterator[str]:
    calls = profile.by_call()
    if len(calls) == len(profile.sites):
        return  # one line per call: the table above says it all
    yield ""
    yield f"{'call':<34}{'calls':>9}{'seconds':>11}{'bytes':>15}{'USD':>13}"
    for site in calls[:MOST_SITES]:
        yield f"{site.call:<34}{site.count:>9,}{site.seconds:>11.4f}{_traffic(site)}"


def _traffic(site: SiteSums) -> str:
    return f"{site.sent_bytes:>15,}{site.usd:>13.8f}"


def size_name(bits: int) -> str:
    """Return the lengths of a class of messages, as "256 to 511 B".

    Parameters
    ----------
    bits
        `int.bit_length` of the lengths.
    """
    if bits <= 1:
        return f"{bits} B"
    low, high = 1 << (bits - 1), 1 << bits
    for power, unit in ((30, "GB"), (20, "MB"), (10, "KB")):
        if low >= 1 << power:
            return f"{low >> power} to {high >> power} {unit}"
    return f"{low} to {high - 1} B"


def _sizes(profile: Profile) -> Iterator[str]:
    if not profile.sizes:
        return
    yield ""
    yield f"{'length of messages':<20}{'messages':>12}{'bytes':>18}"
    most = max(row[1] for row in profile.sizes)
    for bits, messages, nbytes in profile.sizes:
        bar = "#" * round(30 * messages / most)
        yield f"{size_name(bits):<20}{messages:>12,}{nbytes:>18,}  {bar}".rstrip()


def _matrix(profile: Profile) -> Iterator[str]:
    if not profile.matrix:
        return
    yield ""
    if profile.size > MOST_CELLS:
        yield f"{'bytes':>15}{'messages':>12}   the busiest of {len(profile.matrix)} pairs"
        busiest = sorted(profile.matrix, key=lambda row: -row[3])[:MOST_SITES]
        for source, dest, messages, nbytes in busiest:
            yield f"{nbytes:>15,}{messages:>12,}   rank {source} to {dest}"
        return
    cells = {(source, dest): nbytes for source, dest, _, nbytes in profile.matrix}
    yield "bytes from (down) to (across)"
    yield f"{'':>6}" + "".join(f"{dest:>14}" for dest in range(profile.size))
    for source in range(profile.size):
        row = "".join(f"{cells.get((source, dest), 0):>14,}" for dest in range(profile.size))
        yield f"{source:>6}{row}"
