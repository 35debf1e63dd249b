"""Files that the ranks of a communicator share: where the bytes lie and how they get there.

`api/file.py` has MPI's objects: it checks arguments, packs buffers, and keeps file pointers. Below
it, this package works on bytes only:

- `views.py`: which bytes of a file a view and an offset name (pure);
- `plan.py`: who writes or reads which part of a collective call (pure);
- `base.py`: what a backend is; `posix.py` (paths) and `s3.py` (s3://bucket/key) are the two;
- `pieces.py`: bytes that lie at several places of a file, and the same bytes in one run.

A backend is one file and one line of `BACKENDS`, or an entry point of the group
`serverless_mpi.files`. Its name is the scheme of the file names that it serves.
"""

from __future__ import annotations

from serverless_mpi import plugins
from serverless_mpi.fileio.base import Backend

GROUP = "serverless_mpi.files"
BACKENDS: dict[str, str] = {
    "file": "serverless_mpi.fileio.posix:Posix",
    "s3": "serverless_mpi.fileio.s3:Bucket",
}
LOCAL = "file"  # of a name without a scheme


def load(name: str) -> tuple[type[Backend], str]:
    """Return the backend that serves a file name, and the name as the backend takes it.

    Parameters
    ----------
    name
        A path, file:path, or scheme://rest of another backend. As in ROMIO, the prefixes "ufs:"
        and "nfs:" are those of paths.

    Raises
    ------
    UsageError
        No backend has that scheme.
    """
    for prefix in ("file://", "file:", "ufs:", "nfs:"):
        if name.startswith(prefix):
            scheme, rest = LOCAL, name.removeprefix(prefix)
            break
    else:
        scheme, separator, rest = name.partition("://")
        if not separator or "/" in scheme:
            scheme, rest = LOCAL, name
    backend: type[Backend] = plugins.load(GROUP, BACKENDS, scheme, "file system")
    return backend, rest
