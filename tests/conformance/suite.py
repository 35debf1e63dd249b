"""Which suite: mpi4py's source distribution, its test modules, and what is promised of each."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from serverless_mpi.env import ENV_CONFORMANCE_CACHE

VERSION = "4.1.2"

# Every case that the real MPI passes has to pass here, but for those that docs/conformance.md names.
PROMISED = tuple(
    f"test_{name}"
    for name in (
        "address attributes buffer cco_buf cco_nb_buf cco_nb_vec cco_ngh_buf cco_ngh_obj cco_obj cco_pr_buf cco_pr_ngh_buf "
        "cco_pr_vec cco_vec comm comm_topo datatype doc environ errhandler errorcode exceptions grequest group info mpimem "
        "msgspec msgzero objmodel op p2p_buf p2p_buf_matched p2p_buf_part p2p_obj p2p_obj_matched pack pickle request status "
        "subclass threads toplevel util_dtlib util_pkl5 util_pool "
        "comm_inter cco_buf_inter cco_obj_inter cco_vec_inter session file io ulfm "
        "rma rma_nb win util_sync"
    ).split()
)

# Promised, but three quarters of the suite's time for what other cases show as well: every buffer
# on a duplicate of a communicator, structures of 3 and 5 members of every pair of types, long
# arrays, and twice a ring of partitioned messages and packing, which does not communicate.
# test_conformance.py runs a part of the modules named whole.
LONG = (
    "test_io.*",
    "test_rma.*",
    "test_rma_nb.*",
    "test_util_dtlib.*.testStruct[125]",
    "test_msgspec.*.testArray[56]",
    "test_cco_*Dup.*",
    "test_p2p_buf*Dup.*",
    "test_p2p_buf_part.*.testRingRangeList",
    "test_pack.TestPackWorld.*",
)
SHORT_ARRAYS = ("numpy",)  # kinds of arrays that the short run sends


def cache() -> Path:
    """The folder outside of the repository where downloads are kept."""
    if ENV_CONFORMANCE_CACHE in os.environ:
        return Path(os.environ[ENV_CONFORMANCE_CACHE])
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "serverless_mpi"


def folder() -> Path:
    """The suite's `test` folder, downloaded by pip from the index it is configured for if it is not there yet."""
    home = cache() / f"mpi4py-{VERSION}"
    if not (home / "test").is_dir():
        home.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home.parent) as scratch:
            # only mpi4py itself from source: what its build needs may come as wheels, which takes seconds instead of minutes
            pip = [
                sys.executable,
                "-m",
                "pip",
                "download",
                "-q",
                "--disable-pip-version-check",
                "--no-deps",
            ]
            subprocess.run(
                [*pip, "--no-binary", "mpi4py", "-d", scratch, f"mpi4py=={VERSION}"], check=True
            )
            (archive,) = Path(scratch).glob("*.tar.gz")
            with tarfile.open(archive) as tar:
                if hasattr(tarfile, "data_filter"):
                    tar.extractall(scratch, filter="data")
                else:
                    tar.extractall(scratch)
            if not (home / "test").is_dir():
                shutil.rmtree(home, ignore_errors=True)
            with contextlib.suppress(OSError):  # another run was first
                (Path(scratch) / home.name).rename(home)
    return home / "test"


def modules() -> list[str]:
    """Every test module of the suite: the promised ones first."""
    found = {path.stem for path in folder().glob("test_*.py")}
    return [*(name for name in PROMISED if name in found), *sorted(found - set(PROMISED))]
