"""One of the OSU benchmarks of mpi4py's demo folder, with small sizes: osu.py FOLDER NAME."""

import importlib
import inspect
import sys

folder, name = sys.argv[1:]
sys.path.insert(0, folder)
benchmark = getattr(importlib.import_module(name), name)
small = {
    "skip": 2,
    "loop": 5,
    "skip_small": 2,
    "loop_small": 5,
    "skip_large": 1,
    "loop_large": 2,
    "window_size": 4,
    "window_size_large": 4,
    "MAX_MSG_SIZE": 1 << 14,
}
benchmark(
    **{key: value for key, value in small.items() if key in inspect.signature(benchmark).parameters}
)
