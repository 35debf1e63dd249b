"""The package: reproducible, and every shared library in it loads on a machine that has only the runtime."""

from __future__ import annotations

import importlib.util
import io
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from serverless_mpi.deploy import elf, package
from serverless_mpi.errors import UsageError

AWS = package.Target("3.13", package.machine())
# glibc's own libraries, and the loader: "The GNU C Library", installed shared objects
GLIBC = ("libc.so.6", "libm.so.6", "libpthread.so.0", "libdl.so.2", "librt.so.1", "libutil.so.1")
# Loads the kernel, runs a layer on two threads, and states what of the system is mapped.
IMPORT = """
import importlib.util, sys
import _cffi_backend
spec = importlib.util.spec_from_file_location("_spdnn", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
print("loaded", len([name for name in dir(module.lib) if name.startswith("spdnn")]) > 3)
"""


def kernel() -> Path:
    """Return the C kernel of this installation."""
    spec = importlib.util.find_spec("serverless_mpi._spdnn")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin)


@pytest.fixture(scope="module")
def made() -> package.Package:
    return package.build(package.Target.of_this_interpreter())


def test_two_builds_are_the_same_bytes_and_have_the_same_names(made: package.Package) -> None:
    again = package.build(package.Target.of_this_interpreter())
    assert (made.function, made.layer) == (again.function, again.layer)
    assert list(made.objects()) == list(again.objects())


def test_the_package_is_small_has_byte_code_and_the_kernel_and_no_boto3(
    made: package.Package,
) -> None:
    assert made.unpacked_bytes < package.UNPACKED_BYTES and not made.notes
    function, layer = (
        zipfile.ZipFile(io.BytesIO(data)).namelist() for data in (made.function, made.layer)
    )
    assert "serverless_mpi/_spdnn.abi3.so" in function and "serverless_mpi/prices.json" in function
    for names in (function, layer):
        assert not [name for name in names if "boto" in name]
        sources = {name for name in names if name.endswith(".py")}
        compiled = {
            name.replace("__pycache__/", "").split(".cpython")[0] + ".py"
            for name in names
            if name.endswith(".pyc")
        }
        assert not {name for name in sources - compiled if "test" not in name}
    assert not [name for name in function if name.startswith("serverless_mpi/deploy/")]


def test_the_package_for_aws_is_within_the_limit(tmp_path: Path) -> None:
    """Wheels of the platform, from the package index; each of their libraries was checked."""
    try:
        built = package.build(AWS)
    except UsageError as error:
        if "pip found no wheels" in str(error) and "ConnectionError" in str(error):
            pytest.skip(str(error))
        raise
    assert built.unpacked_bytes < package.UNPACKED_BYTES
    assert not [note for note in built.notes if package.LINKS in note]
    names = zipfile.ZipFile(io.BytesIO(built.layer)).namelist()
    assert [name for name in names if "_multiarray_umath.cpython-313" in name]
    assert [name for name in names if name.startswith("python/cryptography/hazmat/bindings/_rust")]
    assert package.KERNEL in {
        Path(name).name for name in zipfile.ZipFile(io.BytesIO(built.function)).namelist()
    }


def test_the_kernel_needs_glibc_alone() -> None:
    found = elf.needs(kernel())
    assert set(found.libraries) <= {"libm.so.6", "libc.so.6", "libpthread.so.0"}
    assert found.machine == package.machine() and found.glibc() <= package.GLIBC


def test_the_packaged_kernel_loads_where_only_glibc_is(tmp_path: Path) -> None:
    """In a mount namespace whose folder of system libraries has glibc's and no others."""
    package.add_own(tmp_path / "task", AWS, None, notes := [])
    assert not notes
    folder = next(
        path
        for path in map(Path, ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu"))
        if (path / "libc.so.6").exists()
        or pytest.skip("system libraries are not where Debian's are")
    )
    (tmp_path / "lib").mkdir()
    for file in (*GLIBC, *(path.name for path in folder.glob("ld-linux*"))):
        if (folder / file).exists():
            shutil.copy(folder / file, tmp_path / "lib" / file)
    inside = 'mount --bind "$0" "$1" && shift && exec "$@"'
    enter = ["unshare", "--mount", "--map-root-user", "sh", "-c", inside, tmp_path / "lib", folder]
    probe = [*enter, sys.executable, "-c", "import _cffi_backend"]
    if (tried := subprocess.run([*map(str, probe)], capture_output=True, text=True)).returncode:
        pytest.skip(f"no mount namespace, or an interpreter that needs more: {tried.stderr[-200:]}")
    words = [sys.executable, "-c", IMPORT, tmp_path / "task" / "serverless_mpi" / package.KERNEL]
    done = subprocess.run([*map(str, [*enter, *words])], capture_output=True, text=True)
    assert done.stdout == "loaded True\n", done.stderr


def _compiled(folder: Path, name: str, *words: object) -> Path:
    """Return a shared library of nothing, linked with `words`."""
    (folder / "empty.c").write_text("int nothing(void) { return 0; }\n")
    path = folder / name
    command = [
        "cc",
        "-shared",
        "-fPIC",
        "-Wl,--no-as-needed",
        "-o",
        path,
        folder / "empty.c",
        *words,
    ]
    subprocess.run([*map(str, command)], check=True)
    return path


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_a_library_that_lambda_does_not_have_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = _compiled(tmp_path, "libother.so.1", "-Wl,-soname,libother.so.1")
    module = _compiled(tmp_path, package.KERNEL, other)
    assert "libother.so.1" in elf.needs(module).libraries
    monkeypatch.setattr(
        package.importlib.util, "find_spec", lambda name: SimpleNamespace(origin=str(module))
    )
    with pytest.raises(UsageError, match="needs libother.so.1, which Lambda does not have"):
        package.add_own(tmp_path / "own", AWS, None, [])
    wheel = tmp_path / f"serverless_mpi-1-cp310-abi3-linux_{AWS.machine}.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(module, f"serverless_mpi/{package.KERNEL}")
    with pytest.raises(UsageError, match="needs libother.so.1"):
        package.add_own(tmp_path / "wheel", AWS, str(wheel), [])
    with zipfile.ZipFile(wheel, "a") as archive:  # as auditwheel does it
        archive.write(other, "serverless_mpi.libs/libother.so.1")
    package.add_own(tmp_path / "bundled", AWS, str(wheel), [])


def test_a_newer_glibc_and_another_machine_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(package, "GLIBC", (2, 1))
    with pytest.raises(UsageError, match="needs glibc 2.*and Lambda has 2.1.*--wheel"):
        package.add_own(tmp_path / "old", AWS, None, [])
    other = "arm64" if package.machine() == "x86_64" else "x86_64"
    target = package.Target("3.13", other)
    wheel = tmp_path / f"serverless_mpi-1-cp310-abi3-linux_{target.machine}.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(kernel(), f"serverless_mpi/{package.KERNEL}")
    with pytest.raises(UsageError, match=f"is for {package.machine()}, not {other}"):
        package.add_own(tmp_path / "other", target, str(wheel), [])


def test_another_architecture_needs_a_wheel(tmp_path: Path) -> None:
    other = "arm64" if package.machine() == "x86_64" else "x86_64"
    notes: list[str] = []
    package.add_own(tmp_path / "none", package.Target("3.13", other), None, notes)
    assert "no C kernel" in notes[0] and "--wheel" in notes[0]
    wrong = "serverless_mpi-1-cp313-win_amd64.whl"
    with pytest.raises(UsageError, match="not a wheel of serverless_mpi"):
        package.add_own(tmp_path / "wrong", package.Target("3.13", other), wrong, notes)


@pytest.mark.skipif(shutil.which("readelf") is None, reason="needs readelf")
def test_what_a_library_needs_is_what_readelf_says() -> None:
    env = {**os.environ, "LC_ALL": "C"}
    words = ["readelf", "-dV", str(kernel())]
    text = subprocess.run(words, capture_output=True, text=True, check=True, env=env).stdout
    found = elf.needs(kernel())
    assert [f"[{name}]" for name in found.libraries] == [
        line.split()[-1] for line in text.splitlines() if "(NEEDED)" in line
    ]
    for version in (version for versions in found.versions.values() for version in versions):
        assert f"Name: {version} " in text
    assert text.count(" Name: GLIBC") == sum(map(len, found.versions.values()))


def test_a_damaged_library_is_an_error_of_one_kind(tmp_path: Path) -> None:
    data, whole = kernel().read_bytes(), elf.needs(kernel())
    path = tmp_path / "damaged.so"
    refused = 0
    for size in (*range(0, 200, 7), *range(200, len(data), 8191)):
        path.write_bytes(data[:size])
        try:
            assert elf.needs(path) == whole  # what is missing is code
        except ValueError:
            refused += 1
    assert refused >= 28
