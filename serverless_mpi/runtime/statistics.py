"""The counters that a rank leaves for the launcher when it finalizes.

The launcher reads `rank-<number>.json` in the job's folder (launch/local.py); on Lambda the handler
sends the file.  Channel `direct` takes it for a sign that the rank has finalized MPI.  If you add a
field, also add it to their reader.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serverless_mpi.metering import Snapshot


@dataclass(frozen=True)
class RankStatistics:
    """Counters of one rank.

    Attributes
    ----------
    rank : int
        World rank.
    seconds : float
        Time from the start of the runtime to its end.
    meter : dict
        `Meter.snapshot`: requests, billed units, bytes and messages per service and operation.
    dropped : int
        Frames that failed authentication or contradicted others.
    duplicates : int
        Frames that had been received before.
    collectives : list
        Per kind of a collective call: its description, the number of calls, blobs and bytes.
    """

    rank: int
    seconds: float
    meter: Snapshot
    dropped: int
    duplicates: int
    collectives: list[list[Any]]

    def write(self, folder: Path) -> None:
        """Write the file in one step, so that a reader never sees half of it.

        Parameters
        ----------
        folder
            `JobSpec.stats_dir`; the file is rank-N.json.
        """
        path = folder / f"rank-{self.rank}.json"
        draft = path.with_suffix(".tmp")
        draft.write_text(json.dumps(dataclasses.asdict(self)))
        draft.rename(path)
