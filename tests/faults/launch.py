"""smpirun with another visibility timeout: python tests/faults/launch.py SECONDS ARGUMENTS-OF-
SMPIRUN ...
"""

import sys

from serverless_mpi.aws import control
from serverless_mpi.launch.cli import main

if __name__ == "__main__":
    control.VISIBILITY_S = int(sys.argv[1])
    sys.exit(main(sys.argv[2:]))
