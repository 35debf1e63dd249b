"""Files of strangers: opened so that no kind of file, and no size, takes more memory or time than
it is worth; and replaced.

Reading: only a regular file is opened, so that a device, a pipe or a socket neither blocks nor
delivers bytes without end; and only as many bytes are read as the file had when it was opened, so
that a file that grows, and those of /proc, which have a size of 0, end too. A line has a largest
length. An npz is read without NumPy's own reader, which takes the memory that a header claims
before it looks whether the file has as many bytes.

Writing: the new bytes go to a file of a name that nobody can foresee, made with O_EXCL and
O_NOFOLLOW, which then replaces the old one: nobody sees half a file, and no link that was put there
is followed.

Every fault of a file's content is a ValueError that names the file. No text quotes what is not
data: a path may name a file that its reader should not see, such as /etc/shadow, and replies and
logs go to others.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import io
import itertools
import math
import os
import re
import secrets
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
MAX_LINE = 1 << 16  # characters
BLOCK_BYTES = 4 << 20  # of text, at a time
MAX_NPY_HEADER = 10_000  # bytes; NumPy's own limit for headers that are not trusted
MAX_LENGTH = 1 << 48  # numbers along a dimension
MAX_ZIP_END = (
    22 + 65535 + 76
)  # bytes: the last record with the longest comment, and what ZIP64 has before it
MAX_ZIP_DIRECTORY = 1 << 20  # bytes: thousands of arrays
DEFLATE_RATIO = (
    1032  # bytes that one byte of deflate can become at most (zlib, "Technical Details")
)
_SHOWN = 60  # characters of a line that are quoted
_FOREIGN = (  # first bytes of files that people try, and what to do with them
    (b"\x93NUMPY", "is a .npy file: save the array with numpy.savez(file, images=array)"),
    (b"\x1f\x8b", "is compressed by gzip: unpack it first"),
    (b"PK\x03\x04", "is a zip archive: give an npz the suffix .npz"),
    (b"\xff\xfe", "is UTF-16 text: save it as UTF-8"),
    (b"\xfe\xff", "is UTF-16 text: save it as UTF-8"),
)


def machine_bytes() -> int:
    """Memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@dataclass(frozen=True)
class Source:
    """A file's bytes that can be read from any place. name: for errors. size: bytes; more are not
    read. limit: bytes of memory that its content may take."""

    name: str
    file: BinaryIO
    size: int
    limit: int

    @classmethod
    def of(cls, name: str, data: bytes | memoryview, limit: int | None = None) -> Source:
        """Bytes in memory."""
        return cls(name, io.BytesIO(data), len(data), limit or machine_bytes())

    def refuse(self, nbytes: int, what: str) -> None:
        """Raise ValueError if `nbytes`, which `what` would take, are above the limit."""
        if nbytes > self.limit:
            raise ValueError(
                f"{self.name}: {what} would take {nbytes:,} bytes of memory; "
                f"{self.limit:,} are there for it (--memory)"
            )


@contextlib.contextmanager
def opened(path: str | Path, limit: int | None = None) -> Iterator[Source]:
    """A regular file, for reading. limit: bytes of memory for its content; the machine's if not
    given.

    Raises
    ------
    ValueError
        It is a folder, a device, a pipe or a socket, or has more bytes than the limit.
    OSError
        It is missing, or may not be read.
    """
    _check_kind(path, os.stat(path).st_mode)  # first: to open a device may have effects
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
    with open(os.open(path, flags), "rb") as file:
        found = os.fstat(file.fileno())  # of what was opened: the name may stand for another by now
        _check_kind(path, found.st_mode)
        source = Source(str(path), file, found.st_size, limit or machine_bytes())
        source.refuse(found.st_size, "the file")
        yield source


def _check_kind(path: str | Path, mode: int) -> None:
    if stat.S_ISREG(mode):
        return
    kinds = {
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    raise ValueError(f"{path} is {kinds.get(stat.S_IFMT(mode), 'special')}, not a regular file")


# --- text -----------------------------------------------------------------------------------------


class Text:
    """Lines of a source, without their ends; what is not UTF-8 becomes U+FFFD. number: lines taken
    so far.
    """

    def __init__(self, source: Source) -> None:
        self.number = 0
        self._name = source.name
        self._chunks = self._read(source)
        self._rest: Iterator[str] = iter(())

    def line(self) -> str | None:
        """The next line; None at the end."""
        while True:
            for text in self._rest:
                self.number += 1
                return text
            chunk = next(self._chunks, None)
            if chunk is None:
                return None
            self._rest = iter(chunk)

    def blocks(self) -> Iterator[tuple[int, list[str]]]:
        """What is left: (number of the line before, lines), some millions of bytes at a time."""
        for lines in itertools.chain([list(self._rest)], self._chunks):
            start, self.number = self.number, self.number + len(lines)
            yield start, lines

    def _read(self, source: Source) -> Iterator[list[str]]:
        decoder = io.IncrementalNewlineDecoder(
            codecs.getincrementaldecoder("utf-8-sig")("replace"), translate=True
        )
        left, carry, number = source.size, "", 0
        while left:
            chunk = source.file.read(min(BLOCK_BYTES, left))
            if left == source.size:
                _check_foreign(source.name, chunk)
            left = left - len(chunk) if chunk else 0  # a file that became shorter ends here
            lines = (carry + decoder.decode(chunk, final=not left)).split("\n")
            carry = lines.pop()
            if not left and carry:
                lines.append(carry)
                carry = ""
            if len(carry) > MAX_LINE or max(map(len, lines), default=0) > MAX_LINE:
                at = next(
                    (n for n, one in enumerate(lines, 1) if len(one) > MAX_LINE), len(lines) + 1
                )
                raise ValueError(
                    f"{source.name}, line {number + at}: longer than {MAX_LINE} characters; "
                    "it is no text of entries"
                )
            number += len(lines)
            yield lines


def _check_foreign(name: str, head: bytes) -> None:
    for magic, told in _FOREIGN:
        if head.startswith(magic):
            raise ValueError(f"{name} {told}")


def shown(line: str) -> str:
    """A line for an error: quoted if it is made of numbers, else nothing of it."""
    text = line.strip()
    if not re.fullmatch(r"(?:[0-9eE+\-.\s]|nan|inf)*", text):
        return "the text"
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "...")


# --- npz ------------------------------------------------------------------------------------------


class Npz:
    """Arrays of numbers in an npz, each read when it is asked for.

    Nothing is taken on trust: before memory is taken for a member, its header has to claim as many
    numbers as the member has bytes for, and that may be no more than the limit, nor than deflate
    can make of what the file holds.
    """

    def __init__(self, source: Source) -> None:
        """Raises ValueError if it is no zip archive."""
        self._source = source
        try:
            _check_directory(source)
            self._archive = zipfile.ZipFile(source.file)
            self._members = {one.filename: one for one in self._archive.infolist()}
        except Exception as error:  # what a damaged directory raises has no common base
            _raise_if_of_the_system(error)
            raise ValueError(f"{source.name} is no npz ({_told(error)})") from error

    def __contains__(self, name: str) -> bool:
        return f"{name}.npy" in self._members

    def array(self, name: str, kinds: str, ndim: int) -> Array:
        """The array `name`, read-only. kinds: of its type, as numpy.dtype.kind has it.

        Raises
        ------
        ValueError
            It is missing, encrypted, compressed in another way, damaged, of another kind or number
            of dimensions.
        """
        where = f"{self._source.name}: array {name!r}"
        if name not in self:
            raise ValueError(f"{where} is missing")
        member = self._members[f"{name}.npy"]
        if member.flag_bits & 1:
            raise ValueError(f"{where} is encrypted")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{where} is compressed, but not by deflate")
        ratio = 1 if member.compress_type == zipfile.ZIP_STORED else DEFLATE_RATIO
        if member.file_size > min(member.compress_size, self._source.size) * ratio:
            raise ValueError(f"{where} is damaged: it claims more bytes than the file can hold")
        self._source.refuse(member.file_size, f"array {name!r}")
        try:
            with self._archive.open(member) as file:
                return _read_npy(file, member.file_size, kinds, ndim)
        except _Refused as error:
            raise ValueError(f"{where} {error}") from None
        except (
            Exception
        ) as error:  # of zlib, zipfile, struct, the parser of headers: no common base
            _raise_if_of_the_system(error)
            raise ValueError(f"{where} is damaged ({_told(error)})") from error


class _Refused(Exception):
    """What is wrong with an array, in our words."""


def _check_directory(source: Source) -> None:
    """Raise if the archive's directory is larger than that of any npz: zipfile makes objects of all
    of it at once.
    """
    start = max(0, source.size - MAX_ZIP_END)
    source.file.seek(start)
    tail = source.file.read(source.size - start)
    at = tail.rfind(b"PK\x05\x06")
    if tail[-22:-18] == b"PK\x05\x06" and tail[-2:] == b"\0\0":
        at = len(tail) - 22
    if at < 0 or at + 22 > len(tail):
        raise zipfile.BadZipFile
    (size,) = struct.unpack_from("<I", tail, at + 12)
    if at >= 76 and tail[at - 20 : at - 16] == b"PK\x06\x07":  # ZIP64 has another in front of it
        (size,) = struct.unpack_from("<Q", tail, at - 36)
    if size > MAX_ZIP_DIRECTORY:
        raise zipfile.BadZipFile
    source.file.seek(0)


def _read_npy(file: Any, size: int, kinds: str, ndim: int) -> Array:
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise _Refused(f"has the unknown format {version}")
    read = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else np.lib.format.read_array_header_2_0
    )
    shape, fortran, kind = read(file, max_header_size=MAX_NPY_HEADER)
    if kind.hasobject or kind.subdtype or kind.kind not in kinds or len(shape) != ndim:
        raise _Refused(f"is {kind} of shape {shape}; wanted numbers in {ndim} dimensions")
    if any(not 0 <= one < MAX_LENGTH for one in shape):
        raise _Refused("is damaged: its header has no possible shape")
    count, left = math.prod(shape), size - file.tell()
    if count * kind.itemsize != left:
        raise _Refused(
            f"is damaged: its header claims {count * kind.itemsize:,} bytes, and {left:,} are there"
        )
    data = file.read(left)
    if len(data) != left or file.read(1):  # the last read is what makes zipfile check the sum
        raise _Refused("is cut short")
    array = np.frombuffer(data, kind) if count else np.zeros(0, kind)
    return array.reshape(shape, order="F" if fortran else "C")


def _told(error: Exception) -> str:
    """What happened, without a library's words, which may quote bytes of the file."""
    known = {zipfile.BadZipFile: "no whole zip archive", zlib.error: "its deflate stream is broken"}
    return known.get(type(error), type(error).__name__)


def _raise_if_of_the_system(error: Exception) -> None:
    """Raise an error of the system again: a disk that fails is no fault of the content. EINVAL is a
    place before the file's beginning, where a damaged archive sends its reader."""
    if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
        raise error


# --- writing --------------------------------------------------------------------------------------


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[BinaryIO]:
    """A file for writing that takes the place of `path` at the end, whole; on an error `path` stays
    as it was.

    A device, a pipe or a terminal, such as /dev/stdout, is written to as it is.

    Raises
    ------
    OSError
        It cannot be written; the error has the name.
    """
    place = Path(path)
    if place.exists() and not place.is_file() and not place.is_dir():
        with place.open("wb") as device:
            yield device
        return
    new = place.with_name(f".{secrets.token_hex(8)}.new")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        try:
            with open(os.open(new, flags, 0o666), "wb") as file:
                yield file
            new.replace(place)
        finally:
            with contextlib.suppress(OSError):
                new.unlink()
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
