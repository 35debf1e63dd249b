"""Untrusted files: read them in bounded memory and time, and replace files atomically.

Reading. Only regular files are opened: a device, a pipe or a socket could block, or deliver bytes
without end. Only as many bytes are read as the file had when it was opened, so that a growing file
ends, too, and a file of /proc, whose size is 0. Lines have a maximum length. An npz is not read by
NumPy's own reader, which allocates the memory that a header claims before it checks whether the
file has as many bytes.

Writing. The new bytes go to a file with an unpredictable name, made with O_EXCL and O_NOFOLLOW,
which then replaces the old file: no reader sees half a file, and no link that another user has
placed there is followed.

The rules: every fault of a file's content is a ValueError that names the file. No text quotes
anything but numbers: a path may name a file that the client of a service must not see, such as
/etc/shadow, and replies and logs go to others.
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
from typing import IO, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
MAX_LINE = 1 << 16  # characters
BLOCK_BYTES = 4 << 20  # bytes of text that are read at a time
MAX_NPY_HEADER = 10_000  # bytes; NumPy's own limit for untrusted headers
MAX_LENGTH = 1 << 48  # largest extent of a dimension
# Bytes of a zip's last record with the longest comment, and of the ZIP64 records before it.
MAX_ZIP_END = 22 + 65535 + 76
MAX_ZIP_DIRECTORY = 1 << 20  # bytes; enough for thousands of arrays
# Largest number of bytes that one byte of deflate becomes (zlib, "Technical Details").
DEFLATE_RATIO = 1032
_SHOWN = 60  # characters of a line that are quoted
_FOREIGN = (  # first bytes of files that users try, and what to do with them
    (b"\x93NUMPY", "is a .npy file: save the array with numpy.savez(file, images=array)"),
    (b"\x1f\x8b", "is compressed by gzip: unpack it first"),
    (b"PK\x03\x04", "is a zip archive: give an npz the suffix .npz"),
    (b"\xff\xfe", "is UTF-16 text: save it as UTF-8"),
    (b"\xfe\xff", "is UTF-16 text: save it as UTF-8"),
)


def machine_bytes() -> int:
    """Return the memory of this machine in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@dataclass(frozen=True)
class Source:
    """An opened, seekable file of bounded size.

    Attributes
    ----------
    name
        Its name, for error texts.
    file
        Its bytes; borrowed from the one who opened it.
    size
        Number of bytes; no more are read.
    limit
        Memory that its content may take, in bytes.
    """

    name: str
    file: BinaryIO
    size: int
    limit: int

    @classmethod
    def of(cls, name: str, data: bytes | memoryview, limit: int | None = None) -> Source:
        """Return a source of bytes in memory.

        Parameters
        ----------
        name
            Name for error texts.
        data
            The bytes; copied.
        limit
            As in the class; None for the machine's memory.
        """
        return cls(name, io.BytesIO(data), len(data), limit or machine_bytes())

    def refuse(self, nbytes: int, what: str) -> None:
        """Check that a part of the content fits the limit.

        Parameters
        ----------
        nbytes
            Memory that it takes, in bytes.
        what
            Its name in the error text.

        Raises
        ------
        ValueError
            It exceeds the limit.
        """
        if nbytes > self.limit:
            raise ValueError(
                f"{self.name}: {what} would take {nbytes:,} bytes of memory; "
                f"{self.limit:,} are available (--memory)"
            )


@contextlib.contextmanager
def opened(path: str | Path, limit: int | None = None) -> Iterator[Source]:
    """Open a regular file for reading; a context manager that closes it.

    Parameters
    ----------
    path
        The file.
    limit
        Memory that its content may take, in bytes; None for the machine's.

    Yields
    ------
    Source
        Valid inside the block.

    Raises
    ------
    ValueError
        It is a folder, a device, a pipe or a socket, or is larger than the limit.
    OSError
        It does not exist, or may not be read.
    """
    _check_kind(path, os.stat(path).st_mode)  # before the open, which may have effects on a device
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
    with open(os.open(path, flags), "rb") as file:
        # Again, of the file that was opened: the name may have been given to another one.
        status = os.fstat(file.fileno())
        _check_kind(path, status.st_mode)
        source = Source(str(path), file, status.st_size, limit or machine_bytes())
        source.refuse(status.st_size, "the file")
        yield source


def _check_kind(path: str | Path, mode: int) -> None:
    """Raise ValueError unless the mode is that of a regular file."""
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
    """The lines of a source without their ends; bytes that are not UTF-8 become U+FFFD.

    Parameters
    ----------
    source
        The file; read from its beginning.

    Attributes
    ----------
    number
        Number of lines that have been taken.
    """

    def __init__(self, source: Source) -> None:
        self.number = 0
        self._name = source.name
        self._chunks = self._read(source)
        self._rest: Iterator[str] = iter(())

    def line(self) -> str | None:
        """Return the next line; None at the end.

        Raises
        ------
        ValueError
            The file is not text, or has a line that is too long.
        """
        while True:
            for text in self._rest:
                self.number += 1
                return text
            chunk = next(self._chunks, None)
            if chunk is None:
                return None
            self._rest = iter(chunk)

    def blocks(self) -> Iterator[tuple[int, list[str]]]:
        """Yield the remaining lines in blocks of some BLOCK_BYTES.

        Yields
        ------
        tuple
            Number of lines before the block, and its lines.

        Raises
        ------
        ValueError
            As in `line`.
        """
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
            left = left - len(chunk) if chunk else 0  # the file has become shorter
            lines = (carry + decoder.decode(chunk, final=not left)).split("\n")
            carry = lines.pop()
            if not left and carry:
                lines.append(carry)
                carry = ""
            if len(carry) > MAX_LINE or max(map(len, lines), default=0) > MAX_LINE:
                at = next(
                    (n for n, line in enumerate(lines, 1) if len(line) > MAX_LINE), len(lines) + 1
                )
                raise ValueError(
                    f"{source.name}, line {number + at}: longer than {MAX_LINE} characters; "
                    "this is not a text file of entries"
                )
            number += len(lines)
            yield lines


def _check_foreign(name: str, head: bytes) -> None:
    """Raise ValueError, with advice, for a file that begins like one of _FOREIGN."""
    for magic, advice in _FOREIGN:
        if head.startswith(magic):
            raise ValueError(f"{name} {advice}")


def shown(line: str) -> str:
    """Return a line for an error text.

    Parameters
    ----------
    line
        A line of an untrusted file.

    Returns
    -------
    str
        The quoted line if it consists of numbers, else "the text": it may be a secret.
    """
    text = line.strip()
    if not re.fullmatch(r"(?:[0-9eE+\-.\s]|nan|inf)*", text):
        return "the text"
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "...")


# --- npz ------------------------------------------------------------------------------------------


class Npz:
    """Arrays of numbers in an npz, each read when it is requested.

    Before memory is allocated for an array, its header must claim exactly as many numbers as the
    member has bytes for, and these may exceed neither the limit nor what deflate can make of the
    compressed bytes.

    Parameters
    ----------
    source
        The file.

    Raises
    ------
    ValueError
        It is not a zip archive.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        try:
            _check_directory(source)
            self._archive = zipfile.ZipFile(source.file)
            self._members = {member.filename: member for member in self._archive.infolist()}
        except Exception as error:  # errors of a damaged directory have no common base
            _raise_system_error(error)
            raise ValueError(f"{source.name} is not an npz ({_reason(error)})") from error

    def __contains__(self, name: str) -> bool:
        return f"{name}.npy" in self._members

    def array(self, name: str, kinds: str, ndim: int) -> Array:
        """Read an array.

        Parameters
        ----------
        name
            Its name.
        kinds
            Permitted kinds of its type, characters of numpy.dtype.kind.
        ndim
            Number of its dimensions.

        Returns
        -------
        ndarray
            Read-only.

        Raises
        ------
        ValueError
            The array is missing, encrypted, compressed by another method than deflate, damaged, or
            of another kind or number of dimensions.
        """
        where = f"{self._source.name}: array {name!r}"
        if name not in self:
            raise ValueError(f"{where} is missing")
        member = self._members[f"{name}.npy"]
        if member.flag_bits & 1:
            raise ValueError(f"{where} is encrypted")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{where} is compressed by another method than deflate")
        ratio = 1 if member.compress_type == zipfile.ZIP_STORED else DEFLATE_RATIO
        if member.file_size > min(member.compress_size, self._source.size) * ratio:
            raise ValueError(f"{where} is damaged: it claims more bytes than the file can hold")
        self._source.refuse(member.file_size, f"array {name!r}")
        try:
            with self._archive.open(member) as file:
                return _read_npy(file, member.file_size, kinds, ndim)
        except _Refused as error:
            raise ValueError(f"{where} {error}") from None
        except Exception as error:  # errors of zlib, zipfile, struct and NumPy: no common base
            _raise_system_error(error)
            raise ValueError(f"{where} is damaged ({_reason(error)})") from error


class _Refused(Exception):
    """What is wrong with an array, in words for the user."""


def _check_directory(source: Source) -> None:
    """Raise BadZipFile if the archive's directory is larger than that of any npz.

    zipfile makes objects of the whole directory at once, so its size is read from the archive's
    last record before zipfile sees the file.
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
    if at >= 76 and tail[at - 20 : at - 16] == b"PK\x06\x07":  # ZIP64: the size is in its record
        (size,) = struct.unpack_from("<Q", tail, at - 36)
    if size > MAX_ZIP_DIRECTORY:
        raise zipfile.BadZipFile
    source.file.seek(0)


def _read_npy(file: IO[bytes], size: int, kinds: str, ndim: int) -> Array:
    """Read an array of `size` bytes, header included, in NumPy's format; raise _Refused."""
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
        raise _Refused(f"is {kind} of shape {shape}, not numbers in {ndim} dimensions")
    if any(not 0 <= extent < MAX_LENGTH for extent in shape):
        raise _Refused("is damaged: its header has an impossible shape")
    count, left = math.prod(shape), size - file.tell()
    if count * kind.itemsize != left:
        raise _Refused(
            f"is damaged: its header claims {count * kind.itemsize:,} bytes, and it has {left:,}"
        )
    data = file.read(left)
    if len(data) != left or file.read(1):  # the last read makes zipfile verify the checksum
        raise _Refused("is truncated")
    array = np.frombuffer(data, kind) if count else np.zeros(0, kind)
    return array.reshape(shape, order="F" if fortran else "C")


def npy(source: Source, kinds: str, ndim: int) -> Array:
    """Read an array from a file in NumPy's format.

    Parameters
    ----------
    source
        The file.
    kinds, ndim
        As in `Npz.array`.

    Returns
    -------
    ndarray
        Read-only.

    Raises
    ------
    ValueError
        The file is not of that kind, or claims another number of bytes than it has.
    """
    try:
        return _read_npy(source.file, source.size, kinds, ndim)
    except _Refused as error:
        raise ValueError(f"{source.name} {error}") from None
    except Exception as error:  # errors of struct and NumPy: no common base
        _raise_system_error(error)
        raise ValueError(
            f"{source.name} is not a file in NumPy's format ({_reason(error)})"
        ) from error


def _reason(error: Exception) -> str:
    """Describe an error without the library's text, which may quote bytes of the file."""
    known = {
        zipfile.BadZipFile: "not a complete zip archive",
        zlib.error: "its deflate stream is damaged",
    }
    return known.get(type(error), type(error).__name__)


def _raise_system_error(error: Exception) -> None:
    """Raise an error of the system again: a failing disk is not a fault of the content.

    EINVAL is a fault of the content: a damaged archive sends its reader before the file's start.
    """
    if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
        raise error


# --- writing --------------------------------------------------------------------------------------


def check_folder(path: str | None) -> None:
    """Check before a run that a file can be written after it.

    Parameters
    ----------
    path
        The file; None and an s3:// URL are not checked.

    Raises
    ------
    ValueError
        Its folder does not exist, or the file is a folder.
    """
    if path is None or path.startswith("s3://"):
        return
    folder = Path(path).parent
    if not folder.is_dir():
        raise ValueError(f"{path}: the folder {folder} does not exist")
    if Path(path).is_dir():
        raise ValueError(f"{path} is a folder, not a file")
    if not os.access(folder, os.W_OK):
        raise ValueError(f"{path}: the folder {folder} cannot be written to")


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[BinaryIO]:
    """Open a file for writing that replaces `path` when the block ends; a context manager.

    After an error `path` is unchanged. A device, a pipe or a terminal, such as /dev/stdout, is
    written to directly.

    Parameters
    ----------
    path
        The file to replace or create.

    Yields
    ------
    BinaryIO
        Valid inside the block.

    Raises
    ------
    OSError
        It cannot be written; the error has its name.
    """
    target = Path(path)
    if target.exists() and not target.is_file() and not target.is_dir():
        with target.open("wb") as device:
            yield device
        return
    new = target.with_name(f".{secrets.token_hex(8)}.new")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        try:
            with open(os.open(new, flags, 0o666), "wb") as file:
                yield file
            new.replace(target)
        finally:
            with contextlib.suppress(OSError):
                new.unlink()
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
