"""What a shared library asks of the system's libraries, read from its ELF file.

The dynamic section lists the libraries by name (DT_NEEDED); the version section (DT_VERNEED) lists
the versions of their symbols, such as GLIBC_2.34. The dynamic linker refuses a library if either is
missing, so these two are what must be compared with the platform. The addresses in the dynamic
section are those of the loaded library; the PT_LOAD segments map them to offsets in the file.

References
----------
"System V Application Binary Interface", chapters 4 and 5; "Linux Standard Base Core", 10.7 (symbol
versioning): https://refspecs.linuxfoundation.org/LSB_5.0.0/LSB-Core-generic/LSB-Core-generic.html
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")  # Elf64_Ehdr
_SEGMENT = struct.Struct("<IIQQQQQQ")  # Elf64_Phdr
_ENTRY = struct.Struct("<qQ")  # Elf64_Dyn
_VERNEED = struct.Struct("<HHIII")  # version, count, file, first version, next library
_VERNAUX = struct.Struct("<IHHII")  # hash, flags, other, name, next version
_PT_LOAD, _PT_DYNAMIC = 1, 2
_DT_NULL, _DT_NEEDED, _DT_STRTAB, _DT_VERNEED, _DT_VERNEEDNUM = 0, 1, 5, 0x6FFFFFFE, 0x6FFFFFFF
_MACHINES = {62: "x86_64", 183: "arm64"}  # e_machine, as Lambda calls it


@dataclass(frozen=True)
class Needs:
    """What a shared library needs.

    Attributes
    ----------
    machine
        "x86_64", "arm64", or the ELF number of another machine.
    libraries
        Names of shared libraries, in the order of the file.
    versions
        Versions of symbols by library: {"libc.so.6": ("GLIBC_2.2.5", "GLIBC_2.34")}.
    """

    machine: str
    libraries: tuple[str, ...]
    versions: dict[str, tuple[str, ...]]

    def glibc(self) -> tuple[int, ...]:
        """Return the newest version of the GNU C library that a symbol has, (2, 34) for example."""
        return max(
            (
                tuple(map(int, version.removeprefix("GLIBC_").split(".")))
                for versions in self.versions.values()
                for version in versions
                if version.startswith("GLIBC_2.")
            ),
            default=(2, 0),
        )


def needs(path: Path) -> Needs:
    """Read what a shared library needs.

    Parameters
    ----------
    path
        The library's file.

    Raises
    ------
    ValueError
        It is not a 64-bit little-endian shared library, or it is damaged.
    OSError
        The file cannot be read.
    """
    try:
        return _Library(path.read_bytes()).needs()
    except (struct.error, IndexError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is a damaged ELF file: {error}") from error


class _Library:
    """One file in memory."""

    def __init__(self, data: bytes) -> None:
        if data[:6] != b"\x7fELF\x02\x01":
            raise ValueError("not a 64-bit little-endian ELF file")
        self._data = data
        _, _, machine, _, _, start, _, _, _, size, count, *_ = _HEADER.unpack_from(data)
        self._machine = _MACHINES.get(machine, str(machine))
        self._segments = [_SEGMENT.unpack_from(data, start + n * size) for n in range(count)]
        self._strings = 0

    def needs(self) -> Needs:
        entries = list(self._dynamic())
        values = dict(entries)
        if _DT_STRTAB not in values:
            raise ValueError("an ELF file without a dynamic section: not a shared library")
        self._strings = self._offset(values[_DT_STRTAB])
        libraries = tuple(self._string(value) for tag, value in entries if tag == _DT_NEEDED)
        versions = {}
        if _DT_VERNEED in values:
            start = self._offset(values[_DT_VERNEED])
            versions = dict(self._versions(start, values[_DT_VERNEEDNUM]))
        return Needs(self._machine, libraries, versions)

    def _offset(self, address: int) -> int:
        """Return where the byte that is loaded to `address` is in the file."""
        for kind, _, offset, start, _, size, _, _ in self._segments:
            if kind == _PT_LOAD and start <= address < start + size:
                return int(offset + address - start)
        raise IndexError(f"address {address:#x} is in no segment")

    def _string(self, index: int) -> str:
        start = self._strings + index
        return self._data[start : self._data.index(b"\0", start)].decode()

    def _dynamic(self) -> Iterator[tuple[int, int]]:
        for kind, _, offset, _, _, size, _, _ in self._segments:
            if kind == _PT_DYNAMIC:
                for tag, value in _ENTRY.iter_unpack(self._data[offset : offset + size]):
                    if tag == _DT_NULL:
                        return
                    yield tag, value

    def _versions(self, at: int, count: int) -> Iterator[tuple[str, tuple[str, ...]]]:
        for _ in range(count):
            _, entries, library, first, after = _VERNEED.unpack_from(self._data, at)
            names, entry = [], at + first
            for _ in range(entries):
                *_, name, further = _VERNAUX.unpack_from(self._data, entry)
                names.append(self._string(name))
                entry += further
            yield self._string(library), tuple(names)
            at += after
