"""A launcher of bare processes, written from docs/how-to/add-a-launcher.md alone."""

import os
import signal
import subprocess
import threading
import time
from dataclasses import replace
from typing import IO

from serverless_mpi import channels, plugins
from serverless_mpi.channels.base import Channel
from serverless_mpi.errors import UsageError
from serverless_mpi.job import JobSpec
from serverless_mpi.launch.base import EXIT_TIMEOUT, Launcher, Plan, Program
from serverless_mpi.launch.local import command
from serverless_mpi.launch.output import LineWriter, say

writing = threading.Lock()


class BareLauncher(Launcher):
    """Processes on this machine, without an emulator."""

    honors = frozenset({"timeout_s", "tag_output", "algorithms"})

    def run(self, plan: Plan) -> int:
        channel = channels.load(plan.channel)
        if channel.services:
            raise UsageError(f"platform bare has no AWS for channel {plan.channel}; direct works")
        spec = JobSpec.new(plan.size, plan.channel, plugins=plugins.algorithm_modules())
        spec = replace(spec, algorithms=plan.algorithms)
        ranks: list[subprocess.Popen[bytes]] = []
        readers: list[threading.Thread] = []
        writers = {
            "stdout": LineWriter(1, plan.tag_output),
            "stderr": LineWriter(2, plan.tag_output),
        }
        try:
            spec = replace(spec, settings=channel.provision(spec))
            programs = [program for program in plan.programs for _ in range(program.ranks)]
            for number, program in enumerate(programs):
                ranks.append(start(program, spec.with_rank(number), channel))
                for name, writer in writers.items():
                    source = (getattr(ranks[-1], name), number, writer)
                    readers.append(threading.Thread(target=pass_on, args=source))
                    readers[-1].start()
            for number in range(plan.size):  # a socket lives as long as its rank
                for fd in channel.inherited(spec.with_rank(number)):
                    os.close(fd)
            return wait(ranks, plan.timeout_s)
        except KeyboardInterrupt:
            return 128 + signal.SIGINT
        finally:
            for rank in ranks:  # each leads a group, with what it started
                try:
                    os.killpg(rank.pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
                rank.wait()
            for reader in readers:
                reader.join()
            channel.destroy(spec)

    def cleanup(self, endpoint: str | None, region: str) -> list[str]:
        return []  # it writes no files


def start(program: Program, spec: JobSpec, channel: type[Channel]) -> subprocess.Popen[bytes]:
    environ = {**os.environ, **program.variables, **spec.to_env()}
    return subprocess.Popen(
        command(program),
        cwd=program.folder,
        env=environ,
        stdin=None if spec.rank == 0 else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=channel.inherited(spec),
        start_new_session=True,
    )


def pass_on(pipe: IO[bytes], number: int, writer: LineWriter) -> None:
    with pipe:
        while data := os.read(pipe.fileno(), 1 << 16):
            with writing:
                writer.feed(number, data)
    with writing:
        writer.finish(number)


def wait(ranks: list[subprocess.Popen[bytes]], timeout_s: float | None) -> int:
    began = time.monotonic()
    while any(rank.returncode is None for rank in ranks):
        for number, rank in enumerate(ranks):
            if code := rank.poll():
                say(f"rank {number} ended with exit code {code}")
                return code if code > 0 else 128 - code
        if timeout_s is not None and time.monotonic() - began > timeout_s:
            say(f"the job ran longer than --timeout {timeout_s:g} s")
            return EXIT_TIMEOUT
        time.sleep(0.01)
    return 0
