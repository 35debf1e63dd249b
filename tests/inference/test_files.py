"""Reading any path ends in bounded time and memory with one line; writing replaces and follows no
link.
"""

from __future__ import annotations

import io
import json
import os
import re
import socket
import struct
import tracemalloc
import zipfile
import zlib
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serverless_mpi.errors import StoreError
from serverless_mpi.inference import codec, dataset, files, formats, page, report, store
from serverless_mpi.inference.backends import Folder
from serverless_mpi.inference.container import pack, unpack
from serverless_mpi.inference.records import RunRecord
from tests.fuzz.targets_inference import SEEDS

NEURONS = 96
MOST_BYTES = 40 << 20
BANNER = b"%%MatrixMarket matrix coordinate real general\n"


def npz(compressed: bool = False, **arrays: Any) -> bytes:
    file = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(file, **arrays)
    return file.getvalue()


def claiming(shape: tuple[int, ...], name: str = "images", kind: str = "<f4") -> bytes:
    """An npz of one array that has a few bytes, and whose header claims that shape."""
    file, header = io.BytesIO(), io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": kind, "fortran_order": False, "shape": shape}
    )
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(f"{name}.npy", header.getvalue() + bytes(64))
    return file.getvalue()


def patched(data: bytes, *changes: tuple[int, int, bytes]) -> bytes:
    """Bytes written at offsets from the first local header, and from the first entry of the
    directory.
    """
    made = bytearray(data)
    entry = data.index(b"PK\x01\x02")
    for local, central, new in changes:
        made[local : local + len(new)] = new
        made[entry + central : entry + central + len(new)] = new
    return bytes(made)


def nested(depth: int) -> bytes:
    """An npz whose header is an expression so deep."""
    file = io.BytesIO()
    text = b"{'descr': " + b"-" * depth + b"1}"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("images.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text)
    return file.getvalue()


IMAGES = np.ones((4, NEURONS), np.float32)
GOOD = npz(True, images=IMAGES)
CSR = {"format": np.array(b"csr"), "shape": np.array([2, NEURONS])}
FLIPPED = bytearray(GOOD)
FLIPPED[60] ^= 0xFF
HOSTILE: dict[str, tuple[str, bytes, str]] = {
    "half a zip": (".npz", GOOD[: len(GOOD) // 2], "is not an npz"),
    "junk": (".npz", bytes(range(256)) * 9, "is not an npz"),
    "nothing in a zip": (".npz", b"", "is not an npz"),
    "a broken stream": (".npz", bytes(FLIPPED), "is damaged"),
    "a wrong sum": (".npz", patched(GOOD, (14, 16, b"abcd")), "is damaged"),
    "encrypted": (".npz", patched(GOOD, (6, 8, b"\x01")), "is encrypted"),
    "lzma": (".npz", patched(GOOD, (8, 10, b"\x0e")), "another method than deflate"),
    "a header of TiB": (".npz", claiming((1 << 40, NEURONS)), "claims"),
    "a header of bits": (".npz", claiming((1 << 44, 12), "bits", "|u1"), "claims"),
    "a header below 0": (".npz", claiming((-5, NEURONS)), "impossible shape"),
    "a header of objects": (".npz", claiming((2, NEURONS), kind="|O"), "not numbers in"),
    "a nested header": (".npz", nested(9000), "is damaged"),
    "a bomb": (".npz", npz(True, images=np.zeros((1 << 16, NEURONS), np.uint8)), "--memory"),
    "rows of a csc": (
        ".npz",
        npz(
            format=np.array(b"csc"),
            shape=np.array([1 << 40, NEURONS]),
            data=np.ones(1),
            indices=np.array([7]),
            indptr=np.array([0] + [1] * NEURONS),
        ),
        "mistyped",
    ),
    "an indptr of its own": (
        ".npz",
        npz(**CSR, data=np.ones(1), indices=np.zeros(1, int), indptr=np.array([0, 1 << 50, 1])),
        "indptr does not fit",
    ),
    "places with fractions": (
        ".npz",
        npz(**CSR, data=np.ones(1), indices=np.array([0.5]), indptr=np.array([0, 1, 1])),
        "not numbers in",
    ),
    "imaginary values": (
        ".npz",
        npz(**CSR, data=np.array([1j]), indices=np.array([0]), indptr=np.array([0, 1, 1])),
        "not numbers in",
    ),
    "beyond float32": (".npz", npz(images=np.full((1, NEURONS), 1e300)), "beyond float32"),
    "one line": (".tsv", b"4000000000000\t1\t1\n", "mistyped"),
    "one line below 2^31": (".tsv", b"40000000\t1\t1\n", "mistyped"),
    "three lines": (".mtx", BANNER + b"99999999999 96 1\n1 1 1\n", "mistyped"),
    "sizes below 0": (".mtx", BANNER + b"-3 96 1\n1 1 1\n", "line 2"),
    "an endless line": (".tsv", b"1" * (1 << 22), "line 1: longer than"),
    "an endless line below": (".tsv", b"1\t1\t1\n" * 9 + bytes(1 << 22), "line 10: longer than"),
    "a long number": (".mtx", BANNER + b"9" * 5000 + b" 96 1\n", "line 2"),
    "npy": (".npy", b"\x93NUMPY\x01\x00", "numpy.savez"),
    "gzip": (".tsv", b"\x1f\x8b\x08\x00", "unpack it first"),
    "utf-16": (".tsv", "1\t1\t1\n".encode("utf-16"), "save it as UTF-8"),
    "latin-1": (".tsv", b"1\t1\t1\n1\t2\t\xe9\n", "line 2"),
    "grouped digits": (".tsv", b"1\t1\t1\n1\t2\t1_0\n", "line 2"),
    "no images": (".tsv", b"\n", "has no images"),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_by_name_and_takes_little_memory(
    tmp_path: Path, name: str
) -> None:
    suffix, data, message = HOSTILE[name]
    path = tmp_path / f"hostile{suffix}"
    path.write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=re.escape(str(path))) as caught:
            dataset.read_images(path, NEURONS, limit=16 << 20)
        assert tracemalloc.get_traced_memory()[1] < MOST_BYTES
    finally:
        tracemalloc.stop()
    assert message in str(caught.value) and len(str(caught.value)) < len(str(path)) + 300


@pytest.mark.parametrize("suffix", ["", ".tsv", ".npz", ".mtx"])
def test_only_regular_files_are_read(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"folder{suffix}").mkdir()
    (tmp_path / f"zero{suffix}").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / f"pipe{suffix}")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / f"socket{suffix}"))
    for name, message in (
        ("folder", "a folder"),
        ("zero", "a device"),
        ("pipe", "a pipe"),
        ("socket", "a socket"),
    ):
        path = tmp_path / f"{name}{suffix}"
        with pytest.raises(ValueError, match=f"is {message}, not a regular file"):
            dataset.read_images(path, NEURONS)
        with pytest.raises(ValueError, match=f"is {message}, not a regular file"):
            dataset.read_categories(path)
        with pytest.raises(StoreError, match=f"is {message}, not a regular file"):
            Folder(tmp_path).get(path.name)


def test_a_file_without_a_real_size_ends(tmp_path: Path) -> None:
    for path in ("/proc/self/status", "/proc/self/mem"):  # regular, of 0 bytes, and without end
        with pytest.raises(ValueError, match="has no images"):
            dataset.read_images(path, NEURONS)
    path = tmp_path / "sparse.tsv"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ValueError, match="longer than|--memory"):
        dataset.read_images(path, NEURONS)


def test_what_a_file_grows_by_is_not_read() -> None:
    """A log that is written to all the time would have no end."""
    source = files.Source("log", io.BytesIO(b"1 1 1\n" * 1000), 12, 1 << 20)
    assert sum(len(lines) for _, lines in files.Text(source).blocks()) == 2


def test_a_few_bytes_of_deflate_do_not_become_many() -> None:
    bomb = zlib.compress(bytes(200 << 20), 9)
    section = struct.pack("<BI", 1, len(bomb)) + bomb
    general = struct.pack("<BBBI", 3, 1, 2, 8) + section
    repeated = struct.pack("<BI", 2, 2) + section
    messages = [general, repeated, repeated * 50]
    tracemalloc.start()
    try:
        for data in messages:
            with pytest.raises(ValueError, match="more than"):
                codec.decode(data, (4, 16))
        with pytest.raises(ValueError, match="more than"):
            codec.decode_set(section, 16)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_rows_that_are_distinct_rows_of_distinct_rows_and_so_on() -> None:
    """Deeper than calls may be nested; the same rows come out."""
    depth, rows = 3000, 3003
    data = b""
    for heads in range(rows - 1, rows - 1 - depth, -1):
        index = np.minimum(np.arange(heads + 1), heads - 1).astype(np.uint16).tobytes()
        packed = zlib.compress(index, 1)
        data += struct.pack("<BI", 2, heads) + struct.pack("<BI", 1, len(packed)) + packed
    data += struct.pack("<BI", 1, 7)
    assert (codec.decode(data, (rows, 2)).view(np.uint32) == 7).all()


def test_an_error_quotes_numbers_and_nothing_else(tmp_path: Path) -> None:
    secret = "someone:$6$Xy7:19000:0:99999:7:::"
    for name in ("a.tsv", "a.mtx", "a.npz", "a"):
        (tmp_path / name).write_text(secret + "\n")
        with pytest.raises(ValueError) as caught:
            dataset.read_images(tmp_path / name, NEURONS)
        assert not any(word in str(caught.value) for word in ("someone", "Xy7", "19000"))
    with pytest.raises(ValueError) as caught:
        dataset.read_categories(tmp_path / "a")
    assert "someone" not in str(caught.value)


def test_text_takes_a_few_times_its_size(tmp_path: Path) -> None:
    path = tmp_path / "images.tsv"
    lines = "".join(f"{n // 96 + 1}\t{n % 96 + 1}\t1\n" for n in range(400_000))
    path.write_text(lines)
    tracemalloc.start()
    try:
        entries = formats.read(path, None, NEURONS)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(entries.rows) == 400_000 and peak < 4 * len(lines) + (64 << 20)


def test_a_bom_and_every_end_of_line_are_read(tmp_path: Path) -> None:
    path = tmp_path / "images.tsv"
    for text in (b"\xef\xbb\xbf1 1 1\r\n2 2 1\r\n", b"1 1 1\r2 2 1", b"\n1 1 1\n\n2 2 1\n\n"):
        path.write_bytes(text)
        assert dataset.read_images(path, 8).sum() == 2


# --- writing --------------------------------------------------------------------------------------


def test_a_file_is_replaced_atomically_and_no_link_is_followed(tmp_path: Path) -> None:
    target, victim = tmp_path / "out", tmp_path / "victim"
    victim.write_text("mine")
    for link in (target, tmp_path / f"out.{os.getpid()}.new"):
        link.symlink_to(victim)
    Folder(tmp_path).put("out", [memoryview(b"theirs")])
    assert victim.read_text() == "mine"
    assert target.read_text() == "theirs" and not target.is_symlink()
    with pytest.raises(RuntimeError), files.replacing(target) as file:
        file.write(b"half")
        raise RuntimeError
    assert target.read_text() == "theirs"
    assert sorted(one.name for one in tmp_path.iterdir()) == sorted(
        ["out", "victim", f"out.{os.getpid()}.new"]
    )


def test_a_temporary_name_cannot_be_taken_in_advance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files.secrets, "token_hex", lambda size: "foreseen")
    victim = tmp_path / "victim"
    (tmp_path / ".foreseen.new").symlink_to(victim)
    with pytest.raises(OSError, match="out"), files.replacing(tmp_path / "out") as file:
        file.write(b"x")
    assert not victim.exists() and not (tmp_path / "out").exists()


def test_a_device_is_written_to_as_it_is() -> None:
    with files.replacing("/dev/null") as file:
        file.write(b"x")
    assert not Path("/dev/null").is_file()


# --- the store ------------------------------------------------------------------------------------


def test_what_was_loaded_does_not_change_with_its_file(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.put("a", pack("a thing", {}, {"x": np.arange(5000, dtype=np.uint16)}))
    array = folder.read("a", "a thing")[1]["x"]
    with (tmp_path / "a").open("r+b") as file:
        file.write(bytes(20000))
        file.truncate(0)
    assert (array == np.arange(5000)).all() and not array.flags.writeable


@pytest.mark.parametrize(
    "facts, arrays",
    [
        ({}, {}),
        ({"model": "m"}, {"first": np.zeros(4, np.uint16)}),
        ({**dict.fromkeys(store._INDEX_FACTS, 1)}, {}),
        ({**dict.fromkeys(store._INDEX_FACTS, [[]])}, {}),
    ],
)
def test_an_index_of_anything_is_refused(tmp_path: Path, facts: Any, arrays: Any) -> None:
    Folder(tmp_path).put(store.INDEX, pack("a model's index", facts, arrays))
    with pytest.raises(StoreError, match="index.smpi is damaged"):
        store.read_index(Folder(tmp_path))


@pytest.mark.parametrize(
    "field", ["indices", "give", "take_from", "expand", "come", "how", "columns"]
)
def test_a_part_that_does_not_fit_together_is_refused(tmp_path: Path, field: str) -> None:
    """The checksums are right: somebody made the file so."""
    from serverless_mpi.inference import networks, partition

    network = networks.randomnet(48, 3, seed=1)
    folder = Folder(tmp_path)
    index = store.write_model(folder, network, partition.make(network, 2, "random", 1), bias=-0.1)
    name = store.part_name(0)
    facts, arrays = folder.read(name, "a part of a model")
    changed = arrays[field].copy()
    changed[len(changed) // 2] = 60000 if field != "how" else 9
    folder.put(name, pack("a part of a model", facts, {**arrays, field: changed}))
    with pytest.raises(StoreError, match=f"{name} is damaged"):
        store.load_part(folder, index, 0)


@pytest.mark.parametrize(
    "change",
    [
        lambda row: [[f"{n}", *row[1:]] for n in range(1000)],  # many arrays of the same bytes
        lambda row: [row, row],
        lambda row: [[*row[:3], [1 << 62, 1 << 62], *row[4:]]],
        lambda row: [[*row[:3], [-4], *row[4:]]],
        lambda row: [[row[0], "|O", "|O", *row[3:]]],
        lambda row: [[row[0], row[1], "<f8", *row[3:]]],
        lambda row: [[*row[:4], 64, row[5]]],
        lambda row: [[*row[:4], True, row[5]]],
        lambda row: [row[:3]],
        lambda row: {"a": row},
        lambda row: None,
    ],
)
def test_a_header_of_impossible_sections_is_refused(change: Any) -> None:
    data = b"".join(pack("a thing", {}, {"x": np.arange(64, dtype=np.uint32)}))
    length = struct.unpack_from("<I", data, 12)[0]
    header = json.loads(data[32 : 32 + length])
    header["sections"] = change(header["sections"][0])
    text = json.dumps(header).encode()
    digest = blake2b(text, digest_size=16).digest()
    made = (data[:12] + struct.pack("<I", len(text)) + digest + text).ljust(
        -(-(32 + len(text)) // 64) * 64
    ) + data[-128:]
    with pytest.raises(StoreError, match="file is damaged: its header has impossible sections"):
        unpack("file", memoryview(made), "a thing")


# --- the report -----------------------------------------------------------------------------------


def _leaves(value: Any, way: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    children = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    return [way, *(leaf for key, child in children for leaf in _leaves(child, (*way, key)))]


def test_no_field_of_a_record_can_add_to_the_page(tmp_path: Path) -> None:
    """Every field in turn is a hostile text, or of another type: the page has its tags and no
    others, or there is none.
    """
    record = json.loads(SEEDS["report"][0])
    record["categories"] = 1
    whole = RunRecord.from_json(record)
    tags = re.findall(r"<\s*/?\w+", page.html(whole))
    hostile = "\"><script>alert(1)</script>'&<svg onload=x>"
    path, shown = tmp_path / "r.json", 0
    values = [
        hostile,
        [hostile],
        {hostile: hostile},
        1e308,
        -1,
        10**30,
        True,
        None,
        float("nan"),
        "",
    ]
    for way in _leaves(record):
        for value in values:
            changed = json.loads(json.dumps(record))
            at = changed
            for key in way[:-1]:
                at = at[key]
            if way:
                at[way[-1]] = value
            else:
                changed = value
            path.write_text(json.dumps(changed))
            try:
                read = report.read(path)
            except report.UsageError:
                continue
            shown += value == hostile
            made = page.html(read)
            assert re.findall(r"<\s*/?\w+", made) == tags and "<script" not in made, way
            report.text(read)
    assert shown >= 5  # texts that may be anything are among them
    with pytest.raises(ValueError):  # and the page itself takes nothing for a number that is none
        page._map(np.ones((1, 2)), [replace(whole.workers[0], rank=hostile)])
