"""Jobs of the last day, from a stack's bucket and logs: list, logs, bill, stop, forget.

The launcher writes `job.json` when it starts a job and `end.json` when the job has ended; each rank
writes how it ended. All of it lies below the job's prefix (`stack/bucket.py`), where any job of the
stack may write, so an object that cannot be read counts as not written. A lifecycle rule expires it
after a day.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from serverless_mpi.errors import UsageError
from serverless_mpi.job import frames_prefix
from serverless_mpi.metering import Prices
from serverless_mpi.stack import bill, bucket, pool
from serverless_mpi.stack.stack import Stack, empty, explained, own_region

FOLLOW_S = 2.0
OBJECT_BYTES = 16 << 20  # the most that is read of an object about a job
STOP_S = 20.0  # for ranks to find the stop message (2 s), to stop, and to report
_JOB = re.compile(r"[0-9a-f]{16}")
_JOB_JSON = re.compile(re.escape(bucket.JOBS) + r"([0-9a-f]{16})/job\.json")
_RANK = re.compile(re.escape(bucket.RANK) + r"([0-9]{1,6})")


@dataclass(frozen=True)
class Job:
    """What is known of a job.

    Attributes
    ----------
    job_id
        Its id.
    start, end
        What its launcher wrote at the start and at the end; end: None while it runs.
    ranks
        What each rank wrote last, by rank.
    """

    job_id: str
    start: dict[str, Any]
    end: dict[str, Any] | None
    ranks: dict[int, dict[str, Any]]

    @property
    def state(self) -> str:
        """Describe the state in words."""
        if self.end is not None:
            return (
                "ended with 0"
                if not self.end["code"]
                else f"ended with {self.end['code']}: {self.end['reason']}"
            )
        over = sum("code" in facts for facts in self.ranks.values())
        if over == self.start["size"]:
            return "all ranks ended; their launcher left"
        late = time.time() > self.start["until"]
        return f"{over} of {self.start['size']} ranks ended" + (
            "; its time is over" if late else "; it runs"
        )


def of_stack(name: str, endpoint: str | None, region: str) -> History:
    """Return the jobs of a deployed stack.

    Parameters
    ----------
    name, endpoint
        Of the stack.
    region
        "" for that of AWS's own settings.
    """
    return History(Stack.find(name, endpoint, own_region(region, endpoint)))


class History:
    """The jobs of one stack.

    Parameters
    ----------
    stack
        Which.
    """

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._s3 = stack.client("s3")

    def _explained(self, what: str) -> contextlib.AbstractContextManager[None]:
        return explained(what, self._stack.endpoint, self._stack.region)

    def _keys(self, prefix: str) -> list[str]:
        pages = self._s3.get_paginator("list_objects_v2").paginate(
            Bucket=self._stack.bucket, Prefix=prefix
        )
        return [one["Key"] for page in pages for one in page.get("Contents", ())]

    def _read(self, key: str) -> dict[str, Any]:
        body = self._s3.get_object(Bucket=self._stack.bucket, Key=key)["Body"]
        found = json.loads(body.read(OBJECT_BYTES))
        if not isinstance(found, dict):
            raise ValueError(f"{key} in bucket {self._stack.bucket} is damaged")
        return found

    def jobs(self) -> list[Job]:
        """Return the jobs of the last day, the oldest first."""
        with self._explained("list jobs"):
            found = (_JOB_JSON.fullmatch(key) for key in self._keys(bucket.JOBS))
            jobs = [self._job(match[1]) for match in found if match]
            return sorted(jobs, key=lambda job: float(job.start["began"]))

    def job(self, job_id: str) -> Job:
        """Return one job.

        Parameters
        ----------
        job_id
            Id of the job.

        Raises
        ------
        UsageError
            The bucket has no such job, or no longer.
        """
        with self._explained(f"read job {job_id}"):
            start = bucket.job_key(job_id, "job.json")
            if not _JOB.fullmatch(job_id) or start not in self._keys(start):
                raise UsageError(
                    f"stack {self._stack.name} has no job {job_id!r};"
                    " `smpi jobs` lists those of the last day"
                )
            return self._job(job_id)

    def _job(self, job_id: str) -> Job:
        """Read what the launcher and the ranks wrote, as far as it can be read."""
        ranks, end = {}, None
        below = bucket.job_key(job_id, "")
        start = self._read(below + "job.json")
        for key in self._keys(below):
            name = key.removeprefix(below)
            if match := _RANK.fullmatch(name):
                with contextlib.suppress(ValueError):  # as if the rank had not reported
                    ranks[int(match[1])] = self._read(key)
            elif name == "end.json":
                end = self._read(key)
        return Job(job_id, start, end, {n: ranks[n] for n in sorted(ranks) if n < start["size"]})

    def bill(self, job_id: str, prices: Prices) -> dict[str, Any]:
        """Return the bill of a job, as far as its ranks have reported.

        Parameters
        ----------
        job_id
            Id of the job.
        prices
            Price table.

        Returns
        -------
        dict
            What `bill.summary` returns, and `cost_explorer`: the command that prints what AWS
            charged.

        Raises
        ------
        UsageError
            The bucket has no such job, or no longer.
        """
        job = self.job(job_id)
        ranks = [
            {**facts} if "code" in facts else {}
            for facts in (job.ranks.get(rank, {}) for rank in range(job.start["size"]))
        ]
        launcher = job.end["launcher"] if job.end is not None else {}
        summary = bill.summary(ranks, launcher, job.start["memory_mb"], job.start["arch"], prices)
        query = bill.cost_explorer_query(self._stack.name, float(job.start["began"]))
        return {**summary, "cost_explorer": query}

    def logs(
        self,
        job_id: str,
        rank: int | None,
        follow: bool,
        sleep: Callable[[float], None] = time.sleep,
    ) -> Iterator[str]:
        """Yield the lines that a job's ranks wrote to the functions' logs.

        Parameters
        ----------
        job_id
            Id of the job.
        rank
            Only of this rank; None for all.
        follow
            Also yield lines that are still written, until the job has ended.
        sleep
            Pause in seconds between two looks at the logs; tests replace it.

        Raises
        ------
        UsageError
            The bucket has no such job, or no longer.
        """
        job = self.job(job_id)
        begins = f"smpi {job_id} rank " + ("" if rank is None else f"{rank} ")
        group = f"/aws/lambda/{self._stack.functions[job.start['memory_mb']].partition(':')[0]}"
        client = self._stack.client("logs")
        seen: set[str] = set()
        while True:
            over = not follow or self.job(job_id).end is not None
            with (
                self._explained("read logs"),
                contextlib.suppress(client.exceptions.ResourceNotFoundException),
            ):
                pages = client.get_paginator("filter_log_events").paginate(
                    logGroupName=group,
                    filterPattern=f'"{job_id}"',
                    startTime=int(job.start["began"] * 1000) - 60_000,
                )
                for page in pages:
                    for event in page["events"]:
                        # an emulator may give its events no id
                        identity = str(event.get("eventId") or event)
                        if identity not in seen and event["message"].startswith(begins):
                            seen.add(identity)
                            yield event["message"].rstrip("\n").removeprefix(f"smpi {job_id} ")
            if over:
                return
            sleep(FOLLOW_S)

    def stop(self, job_id: str, sleep: Callable[[float], None] = time.sleep) -> bool:
        """Stop a job's ranks and give back its queues.

        Parameters
        ----------
        job_id
            Id of the job.
        sleep
            Pause in seconds between two looks at the ranks; tests replace it.

        Returns
        -------
        bool
            Whether all ranks that had started have reported their end.

        Raises
        ------
        UsageError
            The bucket has no such job, or no longer.
        """
        job = self.job(job_id)
        with (
            self._explained(f"stop job {job_id}"),
            # a job that ended before its launcher could leave one, or was cleaned before
            contextlib.suppress(self._s3.exceptions.NoSuchKey),
        ):
            there = self._s3.get_object(
                Bucket=self._stack.bucket, Key=bucket.stop_for_clean_key(job_id)
            )
            self._s3.put_object(
                Bucket=self._stack.bucket,
                Key=bucket.job_key(job_id, bucket.STOP),
                Body=there["Body"].read(),
            )
        deadline = time.monotonic() + STOP_S
        while (left := self._running(job)) and time.monotonic() < deadline:
            sleep(0.5)
            job = self.job(job_id)
        lease = pool.held(self._stack).get(job_id)
        if lease is not None:
            slots = lease["slots"]
            pool.give_back(self._stack, job_id, [slots[rank] for rank in left if rank < len(slots)])
        return not left

    @staticmethod
    def _running(job: Job) -> list[int]:
        """Return the ranks that have started and not ended; one that starts later exits."""
        return [rank for rank, facts in job.ranks.items() if "code" not in facts]

    def forget(self, job_id: str) -> int:
        """Remove a job's objects, also those in directory buckets.

        Parameters
        ----------
        job_id
            Id of the job.

        Returns
        -------
        int
            Number of removed objects.

        Raises
        ------
        UsageError, ChannelError
            S3 did not remove one of them.
        """
        with self._explained(f"remove job {job_id}"):
            return sum(
                empty(self._s3, self._stack.bucket, prefix)
                for prefix in (
                    frames_prefix(job_id),
                    bucket.job_key(job_id, ""),
                    bucket.stop_for_clean_key(job_id),
                )
            ) + sum(
                empty(self._s3, name, frames_prefix(job_id))
                for name in self._stack.express.values()
            )
