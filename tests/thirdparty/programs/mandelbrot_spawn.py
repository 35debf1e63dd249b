"""mpi4py's demo mandelbrot-master.py, whose workers are written in Fortran, with workers in Python.

The program runs as it is, beside an executable of the name that it spawns: this file.

    mandelbrot_spawn.py DEMO     the folder `mandelbrot` of mpi4py's demos
"""

from __future__ import annotations

import runpy
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
from mpi4py import MPI


def main(demo: Path) -> None:
    """Run the demo's master in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        master = Path(shutil.copy(demo / "mandelbrot-master.py", folder))
        worker = Path(folder) / "mandelbrot-worker.exe"
        worker.write_text(f"#!{sys.executable}\n" + Path(__file__).read_text())
        worker.chmod(0o700)
        names = runpy.run_path(str(master))
    image = names["M"]
    inside = image == names["maxit"]
    print(f"{image.shape} points from {names['size']} workers")
    # the set has an area of 1.5065; the picture, of 9
    print("the area is right" if 1.4 < 6 * inside.mean() < 1.6 else f"area {6 * inside.mean()}")


def work(master: MPI.Intercomm) -> None:
    """Compute every n-th line of the picture."""
    corners, sizes = np.empty(4, "f"), np.empty(3, "i")
    master.Bcast([corners, MPI.REAL], root=0)
    master.Bcast([sizes, MPI.INTEGER], root=0)
    left, right, low, high = map(float, corners)
    width, height, most = map(int, sizes)
    lines = np.arange(master.rank, height, master.size, dtype="i")
    x = left + np.arange(width) * (right - left) / width
    y = low + lines * (high - low) / height
    c = x[None, :] + 1j * y[:, None]
    z, counts = np.zeros_like(c), np.zeros(c.shape, "i")
    for _ in range(most):
        alive = np.abs(z) < 2
        z[alive] = z[alive] ** 2 + c[alive]
        counts += alive
    master.Gather(np.array([lines.size], "i"), None, root=0)
    master.Gatherv(lines, None, root=0)
    master.Gatherv(np.ascontiguousarray(counts), None, root=0)
    master.Disconnect()


parent = MPI.Comm.Get_parent()
if parent == MPI.COMM_NULL:
    main(Path(sys.argv[1]))
else:
    work(parent)
