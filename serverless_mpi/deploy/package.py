"""The two zips of a function: the package itself, and a layer with what it imports.

Byte code is shipped, made by the interpreter version that will read it: a function's files are read-only, so without
it every cold start would compile them.  The C kernel uses CPython's stable interface, so one build serves every
version of Python on its architecture.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import io
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import serverless_mpi
from serverless_mpi.aws import limits
from serverless_mpi.errors import UsageError

UNPACKED_BYTES = limits.LAMBDA_UNPACKED_BYTES.value  # function and layers together
PACKAGES = ("numpy", "cffi")  # and nothing more: boto3 is for who deploys
GLIBC = (2, 34)  # of Amazon Linux 2023, which the runtimes of Python 3.12 and later stand on
ON_LAMBDA = {  # shared libraries (package table of "AL2023 Minimal container image", Amazon Linux 2023 User Guide)
    "libc.so.6",
    "libm.so.6",
    "libpthread.so.0",
    "libdl.so.2",
    "librt.so.1",
    "libgcc_s.so.1",
}
MANYLINUX = ("2_34", "2_31", "2_28", "2_27", "2_24", "2_17", "2014", "2_12", "2010", "2_5", "1")
NOT_SHIPPED = ("tests", "__pycache__", "include", "deploy")
NOT_SHIPPED_SUFFIXES = (".pyi", ".pyc", ".a", ".h", ".typed", ".pxd")
_DATE = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Target:
    """What will run the functions.

    python
        "3.13".
    arch
        "x86_64" or "arm64".
    here
        It is this interpreter, as an emulator on this machine uses it: what is installed is what is packed.
    """

    python: str
    arch: str = "x86_64"
    here: bool = False

    @classmethod
    def of_this_interpreter(cls) -> Target:
        """Of an emulator on this machine."""
        return cls(f"{sys.version_info.major}.{sys.version_info.minor}", machine(), here=True)

    @property
    def platforms(self) -> list[str]:
        """pip's names of it, the newest first."""
        return [
            f"manylinux{'' if tag.isdigit() else '_'}{tag}_{'aarch64' if self.arch == 'arm64' else self.arch}"
            for tag in MANYLINUX
        ]


def machine() -> str:
    """This machine's architecture, as Lambda calls it."""
    return {"aarch64": "arm64", "AMD64": "x86_64"}.get(platform.machine(), platform.machine())


@dataclass(frozen=True)
class Package:
    """The zips, and what should be said of them."""

    function: bytes
    layer: bytes
    unpacked_bytes: int
    notes: tuple[str, ...]

    @staticmethod
    def key(data: bytes, name: str) -> str:
        """The object's key, by content."""
        return f"code/{name}-{hashlib.sha256(data).hexdigest()[:16]}.zip"


def build(target: Target, wheel: str | None = None) -> Package:
    """Make both zips.

    wheel: a wheel of this package for the target, where its kernel cannot be had from here.

    Raises
    ------
    UsageError
        A wheel cannot be found or used; the package is too large; the kernel needs a newer C library.
    """
    notes: list[str] = []
    with tempfile.TemporaryDirectory(prefix="smpi-package-") as text:
        folder = Path(text)
        function, layer = folder / "function", folder / "layer"
        _own(function, target, wheel, notes)
        if target.here:
            for name in PACKAGES:
                _copy_installed(name, layer / "python")
        else:
            install([*PACKAGES], target, layer / "python", no_deps=True)
        _strip(layer)
        compile_modules(function, target, notes, "/var/task")
        compile_modules(layer, target, notes, "/opt")
        size = sum(path.stat().st_size for path in _walk(folder))
        if size > UNPACKED_BYTES:
            raise UsageError(
                f"the unpacked package has {size >> 20} MB; Lambda allows {UNPACKED_BYTES >> 20} MB"
            )
        return Package(zipped(function), zipped(layer), size, tuple(notes))


def install(requirements: list[str], target: Target, folder: Path, no_deps: bool = False) -> None:
    """Have pip put wheels for the target into `folder`.

    Raises
    ------
    UsageError
        pip found no wheel; its own words are in the text.
    """
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--disable-pip-version-check",
        "--target",
        str(folder),
        "--only-binary=:all:",
    ]
    command += ["--implementation", "cp", "--python-version", target.python]
    command += [word for tag in target.platforms for word in ("--platform", tag)]
    command += ["--no-compile"] + (["--no-deps"] if no_deps else [])
    done = subprocess.run([*command, *requirements], capture_output=True, text=True)
    if done.returncode:
        said = [
            line for line in done.stderr.splitlines() if line.startswith("ERROR")
        ] or done.stderr.splitlines()[-3:]
        raise UsageError(
            f"pip found no wheels of {' '.join(requirements)} for Python {target.python} on {target.arch}: {' '.join(said)[:400]};"
            " a requirement needs a wheel for the platform, or one in pure Python"
        )


def _own(folder: Path, target: Target, wheel: str | None, notes: list[str]) -> None:
    """This package, with the kernel of the target."""
    if wheel is not None:
        _from_wheel(wheel, folder, target)
    else:
        source = Path(serverless_mpi.__file__).parent
        shutil.copytree(
            source, folder / "serverless_mpi", ignore=shutil.ignore_patterns("*.so", *NOT_SHIPPED)
        )
        if target.arch == machine():
            spec = importlib.util.find_spec("serverless_mpi._spdnn")
            if spec is not None and spec.origin is not None:
                module = Path(spec.origin)
                _check_glibc(module, target)
                if missing := _not_on_lambda(module, target):
                    notes.append(
                        f"the C kernel of this installation needs {', '.join(missing)}, which Lambda does not have: it is left out"
                    )
                else:
                    shutil.copy(module, folder / "serverless_mpi" / "_spdnn.abi3.so")
        if not list((folder / "serverless_mpi").glob("_spdnn*.so")):
            notes.append(
                f"no C kernel for {target.arch} in this package: MPI programs run, sparse inference does not;"
                f" `CMAKE_ARGS=-DSPDNN_OPENMP=OFF pip wheel --no-deps .` on a machine with {target.arch} makes a wheel for --wheel,"
                " and the Dockerfile an image"
            )
    _strip(folder)


def _from_wheel(wheel: str, folder: Path, target: Target) -> None:
    machine_name = "aarch64" if target.arch == "arm64" else target.arch
    if not wheel.endswith(f"_{machine_name}.whl") or not Path(wheel).name.startswith(
        "serverless_mpi-"
    ):
        raise UsageError(f"--wheel {wheel}: not a wheel of serverless_mpi for {target.arch}")
    try:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
    except (OSError, zipfile.BadZipFile) as error:
        raise UsageError(f"--wheel {wheel}: {error}") from error
    for module in (folder / "serverless_mpi").glob("_spdnn.*.so"):
        _check_glibc(module, target)
        bundled = {path.name for path in folder.rglob("*.so*")}
        if missing := [name for name in _not_on_lambda(module, target) if name not in bundled]:
            raise UsageError(
                f"--wheel {wheel}: its C kernel needs {', '.join(missing)}, which Lambda does not have;"
                " build it with CMAKE_ARGS=-DSPDNN_OPENMP=OFF"
            )
        module.rename(module.with_name("_spdnn.abi3.so"))


def _check_glibc(module: Path, target: Target) -> None:
    if target.here:
        return
    needed = max(
        (
            tuple(map(int, found.split(b".")))
            for found in re.findall(rb"GLIBC_(2\.\d+)", module.read_bytes())
        ),
        default=(2, 0),
    )
    if needed > GLIBC:
        raise UsageError(
            f"the C kernel of this installation needs glibc {needed[0]}.{needed[1]}, Lambda has {GLIBC[0]}.{GLIBC[1]};"
            " build a wheel on an older system (manylinux_2_28) and name it with --wheel"
        )


def _not_on_lambda(module: Path, target: Target) -> list[str]:
    """Shared libraries that a module needs and the runtimes, minimal images of Amazon Linux 2023, do not have."""
    if target.here:
        return []
    named = {
        name.decode() for name in re.findall(rb"lib[\w+-]+\.so(?:\.\d+)*", module.read_bytes())
    }
    return sorted(named - ON_LAMBDA)


def _copy_installed(name: str, folder: Path) -> None:
    for file in importlib.metadata.distribution(name).files or ():
        source = Path(str(file.locate()))
        if file.parts[0] == ".." or not source.is_file() or source.suffix == ".pyc":
            continue
        there = folder.joinpath(*file.parts)
        there.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, there)


def _strip(folder: Path) -> None:
    """Take out what no function imports."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir():
            if path.name in NOT_SHIPPED or not any(path.iterdir()):
                shutil.rmtree(path)
        elif path.suffix in NOT_SHIPPED_SUFFIXES:
            path.unlink()


def compile_modules(folder: Path, target: Target, notes: list[str], there: str) -> None:
    """Make byte code of every module; there: the folder's path on the platform, which the byte code has in it.

    With this machine's path instead, the same files would not make the same bytes.
    """
    running = f"{sys.version_info.major}.{sys.version_info.minor}"
    interpreter = sys.executable if target.python == running else _other(target.python)
    if interpreter is None:
        note = f"no Python {target.python} here to make its byte code with: cold starts will compile every module, which takes seconds"
        if note not in notes:
            notes.append(note)
        return
    # unchecked: the files' times are the zip's, not the sources'
    done = subprocess.run(
        [
            interpreter,
            "-m",
            "compileall",
            "-q",
            "--invalidation-mode",
            "unchecked-hash",
            "-j",
            "0",
            "-s",
            str(folder),
            "-p",
            there,
            str(folder),
        ],
        capture_output=True,
    )
    if done.returncode:
        notes.append(
            f"compileall of Python {target.python} ended with {done.returncode}; some modules have no byte code"
        )


def _other(version: str) -> str | None:
    """An interpreter of another version that works."""
    found = shutil.which(f"python{version}")
    if found is None:
        return None
    done = subprocess.run(
        [found, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
        capture_output=True,
        text=True,
    )
    return found if done.stdout.strip() == version else None


def zipped(folder: Path) -> bytes:
    """A folder as a zip; the same files make the same bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for path in sorted(_walk(folder)):
            entry = zipfile.ZipInfo(path.relative_to(folder).as_posix(), _DATE)
            entry.external_attr = (0o755 if os.access(path, os.X_OK) else 0o644) << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, path.read_bytes())
    return buffer.getvalue()


def _walk(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())
