"""Files on the S3 of the embedded emulator: requests that only a server answers."""

from __future__ import annotations

import numpy as np
import pytest

from serverless_mpi.aws import control
from serverless_mpi.aws.credentials import DUMMY
from serverless_mpi.errors import ERR_NO_SUCH_FILE, MPIException
from serverless_mpi.fileio import s3
from serverless_mpi.fileio.base import Mode, Where
from serverless_mpi.fileio.pieces import places
from serverless_mpi.metering import Meter
from tests.fileio.world import ThreadRanks, on_ranks

MB = 1 << 20
BOTH = Mode(read=True, write=True, create=True, exclusive=False)


def test_parts_copies_and_the_counter(
    ministack_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "emulator_keys", lambda key: DUMMY)
    client = control.client("s3", ministack_endpoint, "us-east-1")
    client.create_bucket(Bucket="files-of-ranks")
    where = Where(ministack_endpoint, "us-east-1", bytes(32), "", Meter())
    hints = {"striping_unit": str(5 * MB)}
    expected = np.repeat(np.arange(3, dtype=np.uint8), 6 * MB)

    def body(ranks: ThreadRanks) -> list[int]:
        file = s3.Bucket.open("files-of-ranks/f", BOTH, hints, ranks, where)
        own = memoryview(expected[ranks.rank * 6 * MB :][: 6 * MB])
        file.write_all(places((ranks.rank * 6 * MB, 6 * MB)), own)
        file.sync()
        if ranks.rank == 1:
            file.write(places((11 * MB, 3)), memoryview(b"abc"))
        counts = [file.counter(1, 1) for _ in range(3)]
        file.close(False)  # fills one part from the object, and has S3 copy the others
        file = s3.Bucket.open("files-of-ranks/f", BOTH, hints, ranks, where)
        got = memoryview(bytearray(18 * MB))
        assert file.read_all(places((0, 18 * MB)), got) == 18 * MB
        changed = expected.copy()
        changed[11 * MB : 11 * MB + 3] = list(b"abc")
        assert (np.frombuffer(got, np.uint8) == changed).all()
        file.close(True)
        return counts

    counts = on_ranks(3, body)
    assert sorted(count for some in counts for count in some) == [*range(9)]
    assert client.list_objects_v2(Bucket="files-of-ranks")["KeyCount"] == 0
    assert not client.list_multipart_uploads(Bucket="files-of-ranks").get("Uploads")
    with pytest.raises(MPIException) as caught:
        s3.Bucket.delete("files-of-ranks/f", where)
    assert caught.value.Get_error_class() == ERR_NO_SUCH_FILE

    def nowhere(ranks: ThreadRanks) -> None:
        s3.Bucket.open("no-such-bucket-here/f", BOTH, hints, ranks, where)

    with pytest.raises(MPIException) as caught:
        on_ranks(2, nowhere)
    assert caught.value.Get_error_class() == ERR_NO_SUCH_FILE
