"""The packages that a program needs: wheels for the platform, as a zip named by its content.

The names of packages do not determine their content, so this machine keeps a record of the zip it
made of a file: its key and S3's tag of it, in the user's cache folder.  The bucket, which others
may write to, is not asked.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from serverless_mpi.deploy.package import Target, compile_modules, install, zipped
from serverless_mpi.errors import UsageError
from serverless_mpi.stack import bucket
from serverless_mpi.stack.stack import Stack


@dataclass(frozen=True)
class Requirements:
    """A file of requirements for a stack.

    Attributes
    ----------
    path
        The file.
    target
        What will run the packages.
    memory
        File in which this machine records the zip.
    """

    path: str
    target: Target
    memory: Path

    @classmethod
    def read(cls, path: str, stack: Stack) -> Requirements:
        """Read the requirements of a file.

        Parameters
        ----------
        path
            The file, the value of option `--requirements`.
        stack
            Stack whose functions import the packages.

        Raises
        ------
        UsageError
            The file cannot be read.
        """
        try:
            text = Path(path).read_bytes()
        except OSError as error:
            raise UsageError(f"--requirements {path}: {error.strerror}") from error
        # where relative paths in the file lead
        folder = str(Path(path).resolve().parent)
        digest = hashlib.sha256(
            f"{stack.python}\0{stack.arch}\0{folder}\0".encode() + text
        ).hexdigest()
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        return cls(path, Target(stack.python, stack.arch), cache / "serverless_mpi" / digest[:32])

    def known(self) -> tuple[str, str] | None:
        """Return key and tag of the zip that this machine made of the file, or None."""
        try:
            there = self.memory.stat()
            if there.st_uid != os.getuid() or there.st_mode & 0o022:
                return None  # others may have written it
            found = json.loads(self.memory.read_text())
            key, etag = found["key"], found["etag"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return (key, str(etag)) if bucket.is_zip_key(key) else None

    def fetch(self) -> bytes:
        """Return the zip of wheels from the package index.

        Raises
        ------
        UsageError
            pip found no wheels, or they are too large for a function.
        """
        target = self.target
        sys.stderr.write(
            f"smpirun: fetching wheels of {self.path} for Python {target.python} on {target.arch}\n"
        )
        with tempfile.TemporaryDirectory(prefix="smpi-requirements-") as text:
            site = Path(text)
            install(["-r", self.path], target, site)
            compile_modules(site, target, [], "/tmp/site")
            sizes = [path.stat().st_size for path in site.rglob("*") if path.is_file()]
            if sum(sizes) > bucket.SITE_BYTES or len(sizes) > bucket.MAX_FILES:
                raise UsageError(
                    f"--requirements {self.path}: {len(sizes):,} files of {sum(sizes) >> 20} MB"
                    f" unpacked; a function allows {bucket.MAX_FILES:,} files of"
                    f" {bucket.SITE_BYTES >> 20} MB in all"
                )
            return zipped(site)

    def remember(self, data: bytes) -> tuple[str, str]:
        """Record the zip as that of this file; report on standard error if that fails.

        Parameters
        ----------
        data
            The zip of wheels, as `fetch` returned it.

        Returns
        -------
        key, etag : str
            Key of the zip's object, and S3's tag of it.
        """
        key, etag = bucket.zip_key(data), bucket.etag(data)
        try:
            self.memory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(
                "w", dir=self.memory.parent, delete=False
            ) as draft:  # only this user may read or write it
                json.dump({"key": key, "etag": etag}, draft)
            os.replace(draft.name, self.memory)
        except OSError as error:
            sys.stderr.write(
                f"smpirun: {self.memory} cannot be written ({error.strerror}): the next job fetches"
                " the wheels again\n"
            )
        return key, etag
