"""Contract suites for extensions: promises that every algorithm, channel and launcher must keep.

Each suite is a function that raises AssertionError for the first broken promise.
The package's own tests run them on everything that is registered, and so can the
tests of an extension:

    from serverless_mpi.collectives.choose import find
    from serverless_mpi.testing import check_algorithm, check_channel, check_launcher

    def test_chain():
        check_algorithm(find("bcast", "chain"))

    def test_folder():
        check_channel("folder")

    def test_bare(tmp_path):
        check_launcher("bare", tmp_path)
"""

from serverless_mpi.testing.algorithms import check_algorithm as check_algorithm
from serverless_mpi.testing.channels import check_channel as check_channel
from serverless_mpi.testing.launchers import check_launcher as check_launcher
