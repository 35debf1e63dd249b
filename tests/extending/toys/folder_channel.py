"""A channel whose frames are files in a folder, written from the documentation alone."""

import contextlib
import itertools
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from serverless_mpi.channels.base import (
    Channel,
    CostParameters,
    Delivery,
    ExpectedFrame,
    Limits,
    OutgoingFrame,
)
from serverless_mpi.errors import ChannelError
from serverless_mpi.job import JobSpec
from serverless_mpi.metering import Meter

PAUSE_S = 0.0005  # between two looks into the folder


class FolderChannel(Channel):
    """A folder per rank, in which each file is a frame that the rank has not read yet."""

    platforms = frozenset({"local"})
    limits = Limits(max_frame_bytes=16 << 20, async_put=False)
    figures = CostParameters(
        latency_s=PAUSE_S, bandwidth_Bps=5e8, put_usd=0, get_usd=0, fanout=False, batch=1
    )
    model = "serverless_mpi.simulation.media:Parametric"

    @classmethod
    def provision(cls, spec: JobSpec) -> dict[str, str]:
        folder = cls._folder(spec)
        try:
            folder.mkdir(mode=0o700)
            for rank in range(spec.size):
                (folder / str(rank)).mkdir()
        except OSError as error:
            raise ChannelError(f"channel folder cannot create {folder}: {error}") from error
        return {"folder": str(folder)}

    @classmethod
    def destroy(cls, spec: JobSpec) -> None:
        try:
            shutil.rmtree(cls._folder(spec))
        except FileNotFoundError:
            pass  # destroyed before, or never provisioned
        except OSError as error:
            raise ChannelError(f"channel folder cannot remove its files: {error}") from error

    @staticmethod
    def _folder(spec: JobSpec) -> Path:
        """Return where a job's frames are: after a failed provision only its id is known."""
        default = Path(tempfile.gettempdir(), f"smpi-folder-{spec.job_id}")
        return Path(spec.settings.get("folder", default))

    def __init__(self, spec: JobSpec, meter: Meter) -> None:
        super().__init__(spec, meter)
        self._root = self._folder(spec)
        self._inbox = self._root / str(spec.rank)
        self._numbers = itertools.count()
        self._woken = threading.Event()

    def put(self, parcels: Sequence[OutgoingFrame]) -> None:
        for frame in parcels:
            for dest in frame.dests:
                name = f"{self.spec.rank}-{next(self._numbers)}"
                hidden = self._root / f"{name}.part"
                try:
                    hidden.write_bytes(b"".join(frame.parts))
                    os.rename(hidden, self._root / str(dest) / name)  # readers see whole files
                except OSError as error:
                    raise ChannelError(f"channel folder cannot write: {error}") from error
                self.meter.count("folder", "put", nbytes=frame.nbytes, messages=1)

    def get(self, max_wait_s: float, wanted: Callable[[], list[ExpectedFrame]]) -> list[Delivery]:
        deadline = time.monotonic() + max_wait_s
        while True:
            deliveries = self._read()
            if deliveries or time.monotonic() >= deadline or self._woken.wait(PAUSE_S):
                self._woken.clear()
                return deliveries

    def _read(self) -> list[Delivery]:
        deliveries = []
        with contextlib.suppress(FileNotFoundError):  # the job is over
            for file in sorted(self._inbox.iterdir()):
                deliveries.append(Delivery(memoryview(bytearray(file.read_bytes())), None))
                file.unlink()
        return deliveries

    def wake(self) -> None:
        self._woken.set()

    def close(self) -> None:
        pass
