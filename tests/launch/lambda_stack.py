"""A deployed stack for tests, on an emulator of its own on 127.0.0.1."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from serverless_mpi.job import JobSpec
from serverless_mpi.launch import console
from serverless_mpi.launch.invocation import Invocation, Task
from serverless_mpi.stack.stack import Stack
from tests.harness import GIVE_UP_S, ROOT, smpirun

RANKS = 8
SIZES = (512, 1024)


def smpi(
    *words: object, stdin: str = "", env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """The command, to its end."""
    command = [sys.executable, "-m", "serverless_mpi.deploy.cli", *map(str, words)]
    return subprocess.run(
        command, input=stdin, capture_output=True, text=True, timeout=GIVE_UP_S, cwd=ROOT, env=env
    )


# of AWS, what a stack and its jobs take; CloudFormation makes what belongs to all of them
SERVICES = ("cloudformation", "iam", "lambda", "logs", "s3", "sns", "sqs", "sts")


class Deployed:
    """A stack at an emulator."""

    def __init__(self, endpoint: str, name: str = "smpi") -> None:
        self.endpoint = endpoint
        self.name = name

    @property
    def stack(self) -> Stack:
        """What the launcher finds."""
        return Stack.find(self.name, self.endpoint, "us-east-1")

    def run(self, *words: object, **more: Any) -> subprocess.CompletedProcess[str]:
        """smpirun on it."""
        return smpirun(
            "--platform",
            "lambda",
            "--endpoint",
            self.endpoint,
            "--stack",
            self.name,
            *words,
            **more,
        )

    def job_keys(self) -> list[str]:
        """Objects that are a job's messages: whatever is not code, a program, the leases, or what is kept of jobs for a day."""
        s3 = self.stack.client("s3")
        found = s3.list_objects_v2(Bucket=self.stack.bucket).get("Contents", [])
        kept = ("code/", "programs/", "jobs/", "stops/", "data/", "pool.json", "figures.json")
        return [one["Key"] for one in found if not one["Key"].startswith(kept)]

    def order(self, folder: Path, text: str, size: int, lease: Any) -> Invocation:
        """An order to rank 0, as the launcher makes it, for a program with that text."""
        from serverless_mpi.launch.base import Program
        from serverless_mpi.launch.bundle import pack

        stack = self.stack
        (folder / "prog.py").write_text(text)
        bundle = pack(Program(("prog.py",), size, folder=str(folder)), False)
        stack.client("s3").put_object(Bucket=stack.bucket, Key=bundle.key, Body=bundle.zipped)
        settings = {
            "bucket": stack.bucket,
            "slots": str(list(lease.slots)),
            "topics": str(stack.topics()).replace("'", '"'),
            "queues": str([stack.queue(slot) for slot in lease.slots]).replace("'", '"'),
        }
        made = JobSpec.new(size, "hybrid", endpoint=self.endpoint, settings=settings)
        spec = JobSpec(lease.job_id, 0, size, "hybrid", made.key, self.endpoint, settings=settings)
        task = Task(bundle.kind, bundle.argv, size, bundle.key)
        return Invocation(spec, (task,), stack.function(None)[1], 2, stack.console(lease.console))

    def hear(self, order: Invocation, enough: Any) -> list[console.ConsoleMessage]:
        """Words of a job, in the order they come, until `enough(words)`."""
        sqs = self.stack.client("sqs")
        words: list[console.ConsoleMessage] = []
        for _ in range(100):
            answer = sqs.receive_message(
                QueueUrl=order.console,
                MaxNumberOfMessages=10,
                WaitTimeSeconds=1,
                MessageAttributeNames=["f"],
            )
            for message in answer.get("Messages", []):
                word = console.decode(
                    message["MessageAttributes"]["f"]["BinaryValue"],
                    order.spec.job_id,
                    order.spec.key,
                )
                assert word is not None
                words.append(word)
                sqs.delete_message(QueueUrl=order.console, ReceiptHandle=message["ReceiptHandle"])
            if enough(words):
                return words
        raise AssertionError(f"only these were heard: {words}")
