"""mpi4py's own test suite, run against this package and against a real MPI side by side.

`python -m tests.conformance --np 1,2,3,4,5` is the measure of "swap the import". No line of that suite is in this
repository: it is taken from mpi4py's source distribution on PyPI.
"""
