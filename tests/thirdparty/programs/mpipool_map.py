"""mpipool's executor."""

from mpipool import MPIExecutor


def square(x):
    return x * x


def fail(x):
    raise ValueError(x)


with MPIExecutor() as pool:
    pool.workers_exit()
    futures = [pool.submit(square, n) for n in range(50)]
    assert [future.result() for future in futures] == [n * n for n in range(50)]
    assert list(pool.map(square, range(20))) == [n * n for n in range(20)]
    assert isinstance(pool.submit(fail, 1).exception(), ValueError)
    print("mpipool: held")
