"""python -m serverless_mpi.inference: smpi-infer where its script is not in PATH, and what its
ranks run.
"""

import sys

from serverless_mpi.inference.cli import main

sys.exit(main())
