"""The two zips of a function: the package itself, and a layer with what it imports.

- What is shipped runs on a machine that has nothing but the runtime, a minimal image of Amazon
  Linux 2023. So every shared library in the zips is read (`elf.py`): it may need libraries of that
  image and of the zips, and no newer glibc.
- The same files make the same bytes, and an object's key is the hash of its bytes. So a deploy
  without a change uploads nothing, and CloudFormation changes no function. Dates, folders of this
  machine and the order of files are kept out of the zips.
- Byte code is shipped, made by the Python version that will read it: a function's files are
  read-only, so without it every cold start would compile them.
- The C kernel uses CPython's stable interface, so one build serves every version of Python on its
  architecture.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import io
import os
import platform
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
from serverless_mpi.deploy import elf
from serverless_mpi.errors import UsageError

UNPACKED_BYTES = limits.LAMBDA_UNPACKED_BYTES.value  # function and layers together
PACKAGES = ("numpy", "cffi")  # what a rank imports; boto3 is only for the machine that deploys
LINKS = "cryptography"  # encrypts the links of channel routed, which does without links otherwise
# Of Amazon Linux 2023, on which the runtimes of Python 3.12 and later are built:
# https://docs.aws.amazon.com/lambda/latest/dg/lambda-runtimes.html
GLIBC = (2, 34)
# Shared libraries of its minimal image ("Comparing AL2023 container images", package table):
# https://docs.aws.amazon.com/linux/al2023/ug/al2023-container-image-types.html
ON_LAMBDA = frozenset(
    {
        "ld-linux-aarch64.so.1",
        "ld-linux-x86-64.so.2",
        "libc.so.6",
        "libdl.so.2",
        "libgcc_s.so.1",
        "libm.so.6",
        "libpthread.so.0",
        "librt.so.1",
        "libstdc++.so.6",
    }
)
KERNEL = "_spdnn.abi3.so"
MANYLINUX = ("2_34", "2_31", "2_28", "2_27", "2_24", "2_17", "2014", "2_12", "2010", "2_5", "1")
NOT_SHIPPED = ("tests", "__pycache__", "include", "deploy")
NOT_SHIPPED_SUFFIXES = (".pyi", ".pyc", ".a", ".h", ".typed", ".pxd")
_DATE = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Target:
    """What will run the functions.

    Attributes
    ----------
    python
        Version, "3.13".
    arch
        "x86_64" or "arm64".
    here
        Whether it is this interpreter, as an emulator on this machine uses it: what is installed is
        what is packed.
    """

    python: str
    arch: str = "x86_64"
    here: bool = False

    @classmethod
    def of_this_interpreter(cls) -> Target:
        """Return the target of an emulator on this machine."""
        return cls(f"{sys.version_info.major}.{sys.version_info.minor}", machine(), here=True)

    @property
    def platforms(self) -> list[str]:
        """Return pip's names of the platform, the newest first."""
        return [f"manylinux{'' if tag.isdigit() else '_'}{tag}_{self.machine}" for tag in MANYLINUX]

    @property
    def machine(self) -> str:
        """Return the architecture as wheels call it."""
        return "aarch64" if self.arch == "arm64" else self.arch


def machine() -> str:
    """Return this machine's architecture, as Lambda calls it."""
    return {"aarch64": "arm64", "AMD64": "x86_64"}.get(platform.machine(), platform.machine())


@dataclass(frozen=True)
class Package:
    """The two zips.

    Attributes
    ----------
    function, layer
        Zips.
    unpacked_bytes
        Bytes of both, unpacked.
    notes
        What the user should know of them, one line each.
    """

    function: bytes
    layer: bytes
    unpacked_bytes: int
    notes: tuple[str, ...]

    def objects(self) -> dict[str, bytes]:
        """Return the zips by the keys of their objects: the function's, then the layer's."""
        return {
            self.key(self.function, "function"): self.function,
            self.key(self.layer, "layer"): self.layer,
        }

    @staticmethod
    def key(data: bytes, name: str) -> str:
        """Return the key of a zip's object, which names its content.

        Parameters
        ----------
        data
            The zip.
        name
            "function" or "layer".
        """
        return f"code/{name}-{hashlib.sha256(data).hexdigest()[:16]}.zip"


def build(target: Target, wheel: str | None = None) -> Package:
    """Make both zips.

    Parameters
    ----------
    target
        What will run them.
    wheel
        Path of a wheel of this package for the target; None to take the package and the kernel that
        are installed here.

    Raises
    ------
    UsageError
        A wheel cannot be found or used; a shared library needs what the target does not have; the
        package is too large.
    """
    notes: list[str] = []
    with tempfile.TemporaryDirectory(prefix="smpi-package-") as text:
        folder = Path(text)
        function, layer = folder / "function", folder / "layer"
        add_own(function, target, wheel, notes)
        if target.here:
            for name in PACKAGES:
                _copy_installed(name, layer / "python")
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                _copy_installed(LINKS, layer / "python")
        else:
            install([*PACKAGES], target, layer / "python", no_deps=True)
            with contextlib.suppress(UsageError):  # noted below
                install([LINKS], target, layer / "python", no_deps=True)
            _check_libraries(layer, target)
        if not (layer / "python" / LINKS).exists():
            notes.append(
                f"no {LINKS} in this package, since there is no wheel of it for Python"
                f" {target.python} on {target.arch}: functions of channel routed make no links, and"
                " their messages travel by hybrid"
            )
        _strip(layer)
        compile_modules(function, target, notes, "/var/task")
        compile_modules(layer, target, notes, "/opt")
        size = sum(path.stat().st_size for path in _walk(folder))
        if size > UNPACKED_BYTES:
            raise UsageError(
                f"the unpacked package has {size >> 20} MB; Lambda allows {UNPACKED_BYTES >> 20} MB"
            )
        return Package(zipped(function), zipped(layer), size, tuple(notes))


def install(
    requirements: list[str], target: Target, folder: Path, *, no_deps: bool = False
) -> None:
    """Have pip put wheels for the target into a folder.

    Parameters
    ----------
    requirements
        Lines as in a requirements file, or pip's options.
    target
        What will run the packages.
    folder
        Folder that gets them.
    no_deps
        Do not install what the requirements depend on.

    Raises
    ------
    UsageError
        pip found no wheel; the text quotes pip.
    """
    words = ["-q", "--disable-pip-version-check", "--no-compile", "--only-binary=:all:"]
    words += ["--target", str(folder), "--implementation", "cp", "--python-version", target.python]
    words += [word for tag in target.platforms for word in ("--platform", tag)]
    words += ["--no-deps"] if no_deps else []
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", *words, *requirements],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        lines = done.stderr.splitlines()
        reasons = [line for line in lines if line.startswith("ERROR")] or lines[-3:]
        raise UsageError(
            f"pip found no wheels of {' '.join(requirements)} for Python {target.python} on"
            f" {target.arch}: {' '.join(reasons)[:400]};"
            " a requirement needs a wheel for the platform, or one in pure Python"
        )


def add_own(folder: Path, target: Target, wheel: str | None, notes: list[str]) -> None:
    """Put this package into a folder, with the kernel of the target if there is one.

    Parameters
    ----------
    folder
        Folder that gets it; must not contain the package yet.
    target
        What will run it.
    wheel
        Path of a wheel of this package for the target; None to take the package and the kernel that
        are installed here.
    notes
        Receives a line if there is no kernel.

    Raises
    ------
    UsageError
        The wheel is not one of this package for the target, or the kernel does not load there.
    """
    own = folder / "serverless_mpi"
    if wheel is not None:
        _unpack_wheel(wheel, folder, target)
    else:
        source = Path(serverless_mpi.__file__).parent
        shutil.copytree(source, own, ignore=shutil.ignore_patterns("*.so", *NOT_SHIPPED))
        spec = importlib.util.find_spec("serverless_mpi._spdnn")
        if target.arch == machine() and spec is not None and spec.origin is not None:
            shutil.copy(spec.origin, own / KERNEL)
    for module in own.glob("_spdnn*.so"):
        module.rename(own / KERNEL)
    if not (own / KERNEL).exists():
        notes.append(
            f"no C kernel for {target.arch} in this package: MPI programs run, sparse inference"
            f" does not; `pip wheel --no-deps .` on a machine with {target.arch} makes a wheel for"
            " --wheel, and the Dockerfile an image"
        )
    elif not target.here:
        _check_libraries(folder, target)
    _strip(folder)


def _unpack_wheel(wheel: str, folder: Path, target: Target) -> None:
    name = Path(wheel).name
    if not (name.startswith("serverless_mpi-") and name.endswith(f"_{target.machine}.whl")):
        raise UsageError(f"--wheel {wheel}: not a wheel of serverless_mpi for {target.arch}")
    try:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
    except (OSError, zipfile.BadZipFile) as error:
        raise UsageError(f"--wheel {wheel}: {error}") from error


def _check_libraries(folder: Path, target: Target) -> None:
    """Check that every shared library below `folder` loads on the target, whose image is minimal.

    Raises
    ------
    UsageError
        One needs another architecture, a library that neither the image nor the folder has, or a
        newer glibc.
    """
    shared = [path for path in _walk(folder) if ".so" in path.suffixes]
    bundled = {path.name for path in shared}
    remedy = (
        "; build a wheel in the manylinux_2_28 image (`cibuildwheel --only cp310-manylinux_"
        f"{target.machine}`) and name it with --wheel"
    )
    for path in shared:
        try:
            found = elf.needs(path)
        except ValueError as error:
            raise UsageError(f"{path.name} of the package cannot be used: {error}") from error
        missing = [name for name in found.libraries if name not in ON_LAMBDA | bundled]
        newest = found.glibc()
        if found.machine != target.arch:
            raise UsageError(
                f"{path.name} of the package is for {found.machine}, not {target.arch}"
            )
        if missing:
            raise UsageError(
                f"{path.name} of the package needs {', '.join(missing)}, which Lambda does not have"
                f"{remedy}"
            )
        if newest > GLIBC:
            raise UsageError(
                f"{path.name} of the package needs glibc {'.'.join(map(str, newest))}, and Lambda"
                f" has {'.'.join(map(str, GLIBC))}{remedy}"
            )


def _copy_installed(name: str, folder: Path) -> None:
    for file in importlib.metadata.distribution(name).files or ():
        source = Path(str(file.locate()))
        if file.parts[0] == ".." or not source.is_file() or source.suffix == ".pyc":
            continue
        there = folder.joinpath(*file.parts)
        there.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, there)


def _strip(folder: Path) -> None:
    """Remove what no function imports."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir():
            if path.name in NOT_SHIPPED or not any(path.iterdir()):
                shutil.rmtree(path)
        elif path.suffix in NOT_SHIPPED_SUFFIXES:
            path.unlink()


def compile_modules(folder: Path, target: Target, notes: list[str], there: str) -> None:
    """Compile every module below a folder to byte code.

    Parameters
    ----------
    folder
        Folder of the modules; the byte code is written next to them.
    target
        What will run them; its Python version compiles.
    notes
        Receives a line if that is not possible here.
    there
        The folder's path on the platform, which is written into the byte code. With this machine's
        path instead, the same files would not make the same bytes.
    """
    compiler = interpreter(target.python)
    if compiler is None:
        note = (
            f"no Python {target.python} here to compile byte code with: cold starts will compile"
            " every module, which takes seconds"
        )
        if note not in notes:
            notes.append(note)
        return
    # unchecked: the files' dates are the zip's, not the sources'
    words = ["-q", "--invalidation-mode", "unchecked-hash", "-j", "0"]
    done = subprocess.run(
        [compiler, "-m", "compileall", *words, "-s", str(folder), "-p", there, str(folder)],
        capture_output=True,
        # before 3.11 the order of a set of constants in byte code depends on the seed
        env={**os.environ, "PYTHONHASHSEED": "0"},
    )
    if done.returncode:
        notes.append(
            f"compileall of Python {target.python} ended with {done.returncode};"
            " some modules have no byte code"
        )


def interpreter(version: str) -> str | None:
    """Return the path of an interpreter of a version that works here.

    Parameters
    ----------
    version
        Version of Python, as "3.13".

    Returns
    -------
    str or None
        None if there is none.
    """
    if version == f"{sys.version_info.major}.{sys.version_info.minor}":
        return sys.executable
    path = shutil.which(f"python{version}")
    if path is None:
        return None
    program = "import sys; print('%d.%d' % sys.version_info[:2])"
    done = subprocess.run([path, "-c", program], capture_output=True, text=True)
    return path if done.stdout.strip() == version else None


def zipped(folder: Path) -> bytes:
    """Return a folder as a zip; the same files make the same bytes.

    Parameters
    ----------
    folder
        Folder whose files are packed, with paths relative to it.
    """
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
