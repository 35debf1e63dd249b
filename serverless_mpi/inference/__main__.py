"""`python -m serverless_mpi.inference`: smpi-infer without its script, and the ranks' program."""

import sys

from serverless_mpi.inference.cli import main

sys.exit(main())
