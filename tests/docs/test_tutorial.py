"""The tutorial: its programs are saved, its commands run, and its output compared.

In docs/tutorial.md a ```python block whose first line is `# name.py` is a file. A ```console block
has commands, `$ ...`, each followed by what it prints on stdout and stderr together; `...` there
stands for any text. Other blocks are shown and not run.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.harness import ROOT

TUTORIAL = ROOT / "docs" / "tutorial.md"
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LONGEST_S = 60  # of one command, on a busy machine


def _commands(block: str) -> list[tuple[str, str]]:
    """(command, what it prints) of a console block."""
    parts = re.split(r"^\$ (.*)\n", block, flags=re.MULTILINE)
    assert not parts[0], "a console block begins with a command"
    return list(zip(parts[1::2], parts[2::2], strict=True))


def _matches(shown: str, printed: str) -> bool:
    return re.fullmatch(re.escape(shown).replace(r"\.\.\.", ".*"), printed, re.DOTALL) is not None


def test_every_command_prints_what_the_tutorial_shows(tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    smpirun = tools / "smpirun"  # this checkout's, whatever is installed
    smpirun.write_text(f'#!/bin/sh\nexec {sys.executable} -m serverless_mpi.launch "$@"\n')
    smpirun.chmod(0o755)
    environment = dict(os.environ, PYTHONPATH=str(ROOT), PATH=f"{tools}:{os.environ['PATH']}")
    ran = 0
    for language, text in _BLOCK.findall(TUTORIAL.read_text(encoding="utf-8")):
        if language == "python":
            name = text.splitlines()[0].removeprefix("# ")
            assert re.fullmatch(r"\w+\.py", name), f"a program without its name: {text!r}"
            (tmp_path / name).write_text(text, encoding="utf-8")
        elif language == "console":
            for command, shown in _commands(text):
                done = subprocess.run(
                    command,
                    shell=True,
                    cwd=tmp_path,
                    env=environment,
                    text=True,
                    timeout=LONGEST_S,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                )
                assert _matches(shown, done.stdout), (
                    f"$ {command}\nshown:\n{shown}\nprinted:\n{done.stdout}"
                )
                ran += 1
    assert ran >= 6
    assert (tmp_path / "trace.json").exists()
