"""What a program imports beside the platform's packages: wheels for the platform, as a zip named by its content.

The names of packages do not determine their content, so this machine keeps a record of the zip it made of a file: its
key and S3's tag of it, in the user's cache folder.  The bucket, which others may write to, is not asked.
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
from serverless_mpi.deploy.stack import Stack
from serverless_mpi.errors import UsageError
from serverless_mpi.stack import bucket


@dataclass(frozen=True)
class Requirements:
    """A file of requirements for a stack.

    path: the file; target: for what; memory: file in which this machine remembers the zip.
    """

    path: str
    target: Target
    memory: Path

    @classmethod
    def read(cls, path: str, stack: Stack) -> Requirements:
        """The requirements of a file.

        Raises
        ------
        UsageError
            No such file.
        """
        try:
            text = Path(path).read_bytes()
        except OSError as error:
            raise UsageError(f"--requirements {path}: {error.strerror}") from error
        folder = str(Path(path).resolve().parent)  # of what it names by a relative path
        digest = hashlib.sha256(
            f"{stack.python}\0{stack.arch}\0{folder}\0".encode() + text
        ).hexdigest()
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        return cls(path, Target(stack.python, stack.arch), cache / "serverless_mpi" / digest[:32])

    def known(self) -> tuple[str, str] | None:
        """Key and tag of the zip that this machine made of it, or None."""
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
        """The zip, of wheels from the package index.

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
                    f"--requirements {self.path}: {len(sizes):,} files of {sum(sizes) >> 20} MB unpacked;"
                    f" a function allows {bucket.MAX_FILES:,} files of {bucket.SITE_BYTES >> 20} MB in all"
                )
            return zipped(site)

    def remember(self, data: bytes) -> tuple[str, str]:
        """Key and tag of the zip, which is this file's from now on."""
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
                f"smpirun: {self.memory} cannot be written ({error.strerror}): the next job fetches the wheels again\n"
            )
        return key, etag
