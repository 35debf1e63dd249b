"""Program of test_futures.py under smpirun: it uses an executor in every way and prints a last
line.
"""

from __future__ import annotations

import os
import sys
import time
from concurrent.futures import BrokenExecutor, CancelledError, wait
from typing import Any

import numpy as np

from serverless_mpi import futures

CHOSEN = None


def square(x: Any) -> Any:
    return x * x


def fail(x: Any) -> None:
    raise KeyError(x)


def optimized() -> bool:
    return not __debug__


def nap(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def choose(value: Any) -> None:
    global CHOSEN
    CHOSEN = value


def chosen() -> Any:
    return CHOSEN


def crew() -> int:
    return futures.get_comm_workers().size


def setting(name: str) -> tuple[Any, str, bool]:
    return globals().get(name), os.environ.get("SMPI_TEST", ""), "/nowhere" in sys.path


class Awkward:
    """Cannot be pickled."""

    def __reduce__(self) -> Any:
        raise TypeError("awkward")


def make_awkward() -> Awkward:
    return Awkward()


def check(executor: Any, size: int, workers: bool) -> None:
    assert executor.num_workers == size
    assert list(executor.map(square, range(20))) == [x * x for x in range(20)]
    assert list(executor.map(pow, [2, 3], [3, 2], chunksize=5)) == [8, 9]
    assert list(executor.starmap(pow, [(2, 3), (3, 2)], buffersize=1)) == [8, 9]
    assert sorted(executor.map(nap, [0.03, 0.02, 0.01], unordered=True)) == [0.01, 0.02, 0.03]
    assert (executor.submit(square, np.arange(100_000)).result()[-1]) == 99_999**2
    error = executor.submit(fail, "x").exception()
    assert (
        isinstance(error, KeyError) and error.args == ("x",) and "in fail" in str(error.__cause__)
    )
    if workers:  # threads need no pickles
        assert isinstance(executor.submit(make_awkward).exception(), TypeError)
        assert executor.submit(crew).result() == size
        assert isinstance(executor.submit(square, Awkward()).exception(), TypeError)
    else:
        assert executor.submit(lambda: 5).result() == 5
    assert executor.submit(square, 3).result() == 9  # after all that went wrong
    many = [executor.submit(nap, 0.02) for _ in range(4 * size + 4)]
    executor.shutdown(wait=False, cancel_futures=True)
    done, not_done = wait(many)
    assert not not_done and many[0].result() == 0.02
    assert many[-1].cancelled()
    try:
        many[-1].result()
    except CancelledError:
        pass
    try:
        executor.submit(square, 1)
    except RuntimeError as error:
        assert "after shutdown" in str(error)
    else:
        raise AssertionError("took a task after shutdown")


def main() -> None:
    size = int(sys.argv[1])
    if sys.argv[2] == "comm":
        with futures.MPICommExecutor(root=size) as executor:
            if executor is not None:
                check(executor, max(size, 1), size > 0)
                print("held")
        return
    check(futures.MPIPoolExecutor(size), size, True)
    if sys.argv[2] == "spawn":
        with futures.ProcessPoolExecutor(python_args=["-O"]) as processes:
            assert processes.num_workers == 1 and processes.submit(optimized).result()
        print("held")
        return
    with (
        futures.MPIPoolExecutor(1, initializer=choose, initargs=(7,)) as one,
        futures.MPIPoolExecutor() as other,
    ):
        assert (
            one.num_workers == 1
            and one.submit(chosen).result() == 7
            and other.submit(square, 2).result() == 4
        )
    with futures.MPIPoolExecutor(
        globals={"EXTRA": 5}, env={"SMPI_TEST": "yes"}, path=["/nowhere"]
    ) as executor:
        assert (
            list(executor.bootup().map(setting, ["EXTRA"] * 2 * size))
            == [(5, "yes", True)] * 2 * size
        )
    executor = futures.MPIPoolExecutor(initializer=fail, initargs=("bad",))
    try:
        executor.submit(square, 1).result()
    except BrokenExecutor as error:
        assert "KeyError('bad')" in str(error)
    else:
        raise AssertionError("not broken")
    assert executor.num_workers == 0
    with futures.ThreadPoolExecutor(3, initializer=lambda: None) as threads:
        assert threads.num_workers == 3 and list(threads.map(lambda x: x + 1, range(5))) == [
            1,
            2,
            3,
            4,
            5,
        ]
    both = futures.collect([futures.MPIPoolExecutor().submit(square, x) for x in range(5)])
    assert futures.compose(both, sum).result() == 30
    print("held")


if __name__ == "__main__":
    main()
