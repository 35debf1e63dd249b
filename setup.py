"""The one build step: CMake builds the kernel, its C test and the cffi module.

The rule here: this file knows where CMake is and where setuptools wants the module, and nothing of how
the kernel is compiled (that is CMakeLists.txt) or what the package needs (that is pyproject.toml).
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

HERE = Path(__file__).resolve().parent


def cmake_command() -> str:
    """Path of a CMake: the build requirement from PyPI if it is installed, else the one on PATH."""
    try:
        import cmake
    except ImportError:
        found = shutil.which("cmake")
        if found is None:
            raise SystemExit("CMake is needed to build the kernel: pip install cmake") from None
        return found
    return str(Path(cmake.CMAKE_BIN_DIR) / "cmake")


class CMakeBuild(build_ext):
    """Runs CMake instead of a compiler command line, for wheels, sdists and editable installs alike."""

    def build_extension(self, ext: Extension) -> None:
        module = Path(self.get_ext_fullpath(ext.name)).resolve()
        module.parent.mkdir(parents=True, exist_ok=True)
        # The build directory is the interpreter's own: two Python versions do not share a cache.
        build = Path(self.build_temp).resolve() / "cmake"
        build.mkdir(parents=True, exist_ok=True)
        cmake = cmake_command()
        configure = [
            cmake,
            "-S",
            str(HERE),
            "-B",
            str(build),
            "--fresh",
            "-DCMAKE_BUILD_TYPE=" + ("Debug" if self.debug else "Release"),
            "-DSPDNN_PYTHON=ON",
            "-DSPDNN_TEST=OFF",
            *shlex.split(os.environ.get("CMAKE_ARGS", "")),
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DSPDNN_MODULE_DIR={module.parent}",
            f"-DSPDNN_MODULE_NAME={module.name}",
        ]
        if shutil.which("ninja"):
            configure += ["-G", "Ninja"]
        jobs = str(self.parallel or os.cpu_count() or 1)
        for command in (configure, [cmake, "--build", str(build), "--parallel", jobs]):
            done = subprocess.run(command)
            if done.returncode:
                raise SystemExit(
                    f"building the C kernel failed: `{' '.join(command)}` ended with {done.returncode}; "
                    "it needs a C11 compiler (gcc or clang) and make or ninja"
                )


setup(
    ext_modules=[Extension("serverless_mpi._spdnn", sources=[])], cmdclass={"build_ext": CMakeBuild}
)
