"""Checkpoints: a loop that saves its state while it runs, and resumes where the job was.

- `loop.py`: `steps`, what programs use;
- `cadence.py`: when to save, agreed by a reduction that runs while the program computes (pure);
- `log.py`: which checkpoint is the last, and who may write the next (generators, no I/O);
- `part.py`: one rank's state as bytes (pure);
- `places.py` (folders) and `s3.py`: where they lie;
- `saver.py`: the thread that writes.
"""

from serverless_mpi.checkpoint.loop import SavedStates, Steps, steps
from serverless_mpi.errors import CheckpointError

__all__ = ["CheckpointError", "SavedStates", "Steps", "steps"]
