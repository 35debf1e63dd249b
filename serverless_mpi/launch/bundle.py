"""Bundles: the files of a program, as one zip for the platform.

A bundle holds the folder in which the program would run. Its name contains its SHA-256, so an
unchanged program is not sent again, and a rank runs exactly what was sent. Files that no program
imports are omitted: hidden files, byte code, virtual environments.
"""

from __future__ import annotations

import functools
import importlib.metadata
import io
import os
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from serverless_mpi.errors import UsageError
from serverless_mpi.launch import invocation as kinds
from serverless_mpi.launch.base import Program
from serverless_mpi.launch.local import command
from serverless_mpi.stack import bucket
from serverless_mpi.stack.bucket import MAX_FILES, PROGRAM_BYTES

OMITTED = ("__pycache__", "node_modules")
_DATE = (1980, 1, 1, 0, 0, 0)  # of every entry, so that the same files make the same bytes
ON_PLATFORM = ("serverless_mpi", "numpy")  # what a deployed function can import


@dataclass(frozen=True)
class Bundle:
    """The files of one program.

    Attributes
    ----------
    kind, argv
        As in `invocation.Task`.
    files
        Name below the working directory on the platform -> the file here.
    """

    kind: str
    argv: tuple[str, ...]
    files: dict[str, Path]

    @property
    def key(self) -> str:
        """Key of the object, made from its content."""
        return bucket.zip_key(self.zipped)

    @property
    def etag(self) -> str:
        """S3's entity tag of the object."""
        return bucket.etag(self.zipped)

    @functools.cached_property
    def zipped(self) -> bytes:
        """Bytes of the zip; the same files make the same bytes."""
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
            for name, path in sorted(self.files.items()):
                entry = zipfile.ZipInfo(name, _DATE)
                entry.external_attr = _mode(path) << 16
                entry.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(entry, path.read_bytes())
        return buffer.getvalue()


def _mode(path: Path) -> int:
    return 0o755 if os.access(path, os.X_OK) else 0o644


def pack(program: Program, with_requirements: bool) -> Bundle:
    """Collect the files that the platform needs to run a program.

    Parameters
    ----------
    program
        The program, as the command line names it.
    with_requirements
        Whether the job has a requirements file, which may bring the module.

    Returns
    -------
    Bundle
        Its files; they are read when the zip is made.

    Raises
    ------
    UsageError
        The program or module does not exist, its folder is too large, or it needs a file that is
        not sent.
    """
    program = _without_python(program)
    root = Path(program.folder or ".").resolve()
    name, *arguments = program.argv
    if program.module:
        return Bundle(kinds.MODULE, program.argv, _module_files(name, root, with_requirements))
    words = command(program)  # raises for a program that does not exist
    if words[0] == sys.executable:  # a Python program
        path = Path(root, name).resolve()
        folder = root if program.folder is not None else path.parent
        if folder not in (path, *path.parents):
            raise UsageError(
                f"{name} is outside --wdir {program.folder};"
                " only files of that folder are sent to the platform"
            )
        return Bundle(kinds.SCRIPT, (str(path.relative_to(folder)), *arguments), _files(folder))
    # A console script names this machine's interpreter in its first line: call its function.
    entry = _console_script(words[0])
    if entry is not None:
        module = entry.partition(":")[0]
        return Bundle(
            kinds.ENTRY, (entry, *arguments), _module_files(module, root, with_requirements)
        )
    path = Path(words[0])
    files = _files(root) if program.folder is not None else {}
    return Bundle(kinds.EXECUTABLE, (path.name, *arguments), {**files, path.name: path})


def _without_python(program: Program) -> Program:
    """Return `python prog.py` as prog.py: the platform has its own interpreter."""
    name, *rest = program.argv
    if program.module or not Path(name).name.startswith("python") or not rest:
        return program
    if rest[0] == "-m" and len(rest) > 1:
        return Program(tuple(rest[1:]), program.ranks, True, program.variables, program.folder)
    if rest[0].startswith("-"):
        raise UsageError(
            f"{name} {rest[0]}: options of the interpreter are not passed on to the platform;"
            " put the program into a file"
        )
    return Program(tuple(rest), program.ranks, False, program.variables, program.folder)


def _module_files(module: str, root: Path, with_requirements: bool) -> dict[str, Path]:
    """Return the files of a module; none if the platform or the requirements have it."""
    top = module.partition(".")[0]
    if (root / top).is_dir() or (root / f"{top}.py").exists():
        if top in ON_PLATFORM:  # the deployed package takes precedence
            return {}
        return _files(root)
    if top in ON_PLATFORM or top in sys.stdlib_module_names or with_requirements:
        return {}
    raise UsageError(
        f"module {module} is neither in {root} nor on the platform;"
        " name its folder with --wdir, or install it with --requirements"
    )


def _console_script(path: str) -> str | None:
    """Return `module:function` of an installed console script, None for any other executable."""
    if (
        Path(path).parent.resolve() != Path(sys.executable).parent.resolve()
        and Path(path).parent != Path(sys.executable).parent
    ):
        return None
    for entry in importlib.metadata.entry_points(group="console_scripts", name=Path(path).name):
        return entry.value.partition("[")[0].strip()
    return None


def _files(folder: Path) -> dict[str, Path]:
    files: dict[str, Path] = {}
    total = 0
    for path in _walk(folder):
        files[path.relative_to(folder).as_posix()] = path
        total += path.stat().st_size
        if total > PROGRAM_BYTES or len(files) > MAX_FILES:
            raise UsageError(
                f"{folder} has more than {PROGRAM_BYTES >> 20} MB or {MAX_FILES:,} files, and the"
                " whole folder of a program is sent to the platform; put the program in a folder of"
                " its own, and large data in the bucket"
            )
    return files


def _walk(folder: Path) -> Iterator[Path]:
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith(".") or entry.name in OMITTED or entry.suffix == ".pyc":
            continue
        if entry.is_dir():
            if not entry.is_symlink() and not (entry / "pyvenv.cfg").exists():
                yield from _walk(entry)
        elif entry.is_file():
            yield entry
