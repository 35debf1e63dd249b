"""python -m serverless_mpi.launch: smpirun where its script is not in PATH."""

import sys

from serverless_mpi.launch.cli import main

sys.exit(main())
