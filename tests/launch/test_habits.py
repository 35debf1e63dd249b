"""Options of mpiexec become those of smpirun, up to the program and never behind it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serverless_mpi.errors import UsageError
from serverless_mpi.launch import cli
from serverless_mpi.launch.habits import FILES, HABITS, translate
from tests.harness import GIVE_UP_S, ROOT, smpirun

TAKES_VALUE = cli.build_parser().takes_value


@pytest.mark.parametrize(
    "typed, meant",
    [
        ("-np 4 prog.py -np 5", "-np 4 prog.py -np 5"),
        ("--np 4 prog.py", "-n 4 prog.py"),
        ("-c 4 prog.py", "-n 4 prog.py"),
        ("-npernode 2 prog.py", "-ppn 2 prog.py"),
        ("--map-by ppr:2:node prog.py", "-ppn 2 prog.py"),
        ("-genv A 1 -n 2 a.py : -n 1 b.py", "-x A=1 -n 2 a.py : -x A=1 -n 1 b.py"),
        ("-genvlist A,B prog.py", "-x A -x B prog.py"),
        ("-genvall -cwd /tmp prog.py", "--wdir /tmp prog.py"),
        ("-prepend-rank prog.py -q", "--tag-output prog.py -q"),
        ("-outfile-pattern o.%r prog.py", "--outfile o.%r prog.py"),
        ("--output-dir=d prog.py", "--outfile d/%r.out --errfile d/%r.err prog.py"),
        (
            "--output-filename d prog.py",
            "--outfile d/rank.%r/stdout --errfile d/rank.%r/stderr prog.py",
        ),
        ("-timeout 9 --get-stack-traces prog.py", "--timeout 9 prog.py"),
        ("-V", "--version"),
        ("--channel direct -l -m pkg -H x", "--channel direct -l -m pkg -H x"),
        ("-x A python prog.py --bind-to x", "-x A python prog.py --bind-to x"),
        ("-host localhost prog.py", "prog.py"),
        ("-hosts localhost:4,127.0.0.1 prog.py", "prog.py"),
    ],
)
def test_what_is_typed_and_what_it_means(typed: str, meant: str) -> None:
    line = translate(typed.split(), TAKES_VALUE)
    assert line.arguments == meant.split() and not line.ignored


def test_what_has_no_effect_is_named() -> None:
    words = "--oversubscribe --bind-to none --mca btl tcp -map-by core -n 2 prog.py --bind-to x"
    line = translate(words.split(), TAKES_VALUE)
    assert line.arguments == ["-n", "2", "prog.py", "--bind-to", "x"]
    assert line.ignored == ["--oversubscribe", "--bind-to none", "--mca btl tcp", "-map-by core"]


def test_a_file_has_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "job"
    file.write_text(
        "# two programs\n-n 1 a.py 'two words'\n\n-genv A 1 -n 2 b.py : # more\n-n 3 c.py\n"
    )
    first = ["-x", "A=1", "--channel", "direct", "-n", "1", "a.py", "two words"]
    others = ": -x A=1 -n 2 b.py : -x A=1 -n 3 c.py".split()
    for option in FILES:
        line = translate(["--channel", "direct", option, str(file)], TAKES_VALUE)
        assert line.arguments == [*first, *others]
    with pytest.raises(UsageError, match="nothing may follow, but prog.py does"):
        translate(["--app", str(file), "prog.py"], TAKES_VALUE)
    with pytest.raises(UsageError, match="-configfile missing: No such file"):
        translate(["-configfile", "missing"], TAKES_VALUE)
    file.write_text("-n 1 'no end\n")
    with pytest.raises(UsageError, match="No closing quotation"):
        translate(["-configfile", str(file)], TAKES_VALUE)


@pytest.mark.parametrize(
    "typed, text",
    [
        ("-hostfile nodes prog.py", "not on a list of hosts"),
        ("-H a,b prog.py", "not on a list of hosts"),
        ("-f nodes prog.py", "not on a list of hosts"),
        ("-genvnone prog.py", "env -i"),
        ("-genv A", "-genv needs 2 values"),
        ("--bind-to", "--bind-to needs a value"),
        ("-configfile", "-configfile needs the name of a file"),
    ],
)
def test_what_cannot_be_done_is_refused(typed: str, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        translate(typed.split(), TAKES_VALUE)


def test_no_habit_hides_an_option_of_smpirun() -> None:
    own = {name for name in cli.build_parser()._option_string_actions}
    names = [name for habit in HABITS for name in habit.names]
    assert len(names) == len(set(names)) and not own & {*names, *FILES}


def test_every_habit_is_documented() -> None:
    page = (ROOT / "docs" / "reference" / "mpiexec.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(-[^` ]+)", page))
    habits = {name for habit in HABITS for name in habit.names} | set(FILES)
    assert habits <= named and named - habits <= set(cli.build_parser()._option_string_actions)


_NAMES = [name for habit in HABITS for name in habit.names]


@given(st.lists(st.sampled_from([*_NAMES, ":", "-n", "2", "prog.py", "-x", "--a=b", "-"])))
def test_any_words_are_a_command_line_or_an_error(words: list[str]) -> None:
    try:
        line = translate(words, TAKES_VALUE)
    except UsageError:
        return
    assert line.arguments.count(":") == words.count(":")
    if "prog.py" in words:  # where no option before it has taken it for its value
        assert "prog.py" in " ".join([*line.arguments, *line.ignored])


# -- what the launcher does


def test_the_map_and_the_ignored_options_are_printed() -> None:
    words = "--display-map -oversubscribe -n 2 --channel direct examples/hello.py".split()
    done = smpirun(*words)
    assert done.returncode == 0
    assert "without effect here: -oversubscribe" in done.stderr
    assert "2 ranks on platform local\n  ranks 0 to 1: examples/hello.py" in done.stderr
    assert smpirun("-q", *words[1:]).stderr == ""


WAITS = """\
import threading
def wait_here():
    print("here", flush=True)
    threading.Event().wait()
from serverless_mpi import MPI
wait_here()
"""


@pytest.mark.parametrize("number", [signal.SIGQUIT, signal.SIGUSR1])
def test_a_signal_shows_where_each_rank_is(number: int, tmp_path: Path) -> None:
    (tmp_path / "prog.py").write_text(WAITS)
    command = [sys.executable, "-m", "serverless_mpi.launch", "-n", "2", "--channel", "direct"]
    with subprocess.Popen(
        [*command, str(tmp_path / "prog.py")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as job:
        assert job.stdout is not None and job.stderr is not None
        for _ in range(2):
            assert job.stdout.readline() == "here\n"
        job.send_signal(number)
        seen: set[str] = set()
        while len(seen) < 2:
            line = job.stderr.readline()
            assert line, "the job has ended"
            if "in wait_here" in line:
                seen.add(line[:3])
        assert seen == {"[0]", "[1]"}
        job.send_signal(signal.SIGINT)
        _, rest = job.communicate(timeout=GIVE_UP_S)
    assert job.returncode == 130 and "stopped by SIGINT" in rest


def test_a_job_that_takes_too_long_shows_where_each_rank_is(tmp_path: Path) -> None:
    (tmp_path / "prog.py").write_text(WAITS)
    words = ("-n", 2, "--channel", "direct", "--timeout", 5, tmp_path / "prog.py")
    done = smpirun(*words)
    assert done.returncode == 124
    assert all(f"[{rank}]   File" in done.stderr for rank in range(2))
    assert done.stderr.count("in wait_here") == 2


def test_torch_finds_its_variables() -> None:
    body = (
        "import os; print(*(os.environ[name] for name in"
        " ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'LOCAL_WORLD_SIZE', 'MASTER_ADDR')),"
        " int(os.environ['MASTER_PORT']) > 0)"
    )
    done = smpirun("-n", 2, "--torch", "--channel", "direct", sys.executable, "-c", body)
    assert sorted(done.stdout.splitlines()) == [f"{r} {r} 2 2 127.0.0.1 True" for r in range(2)]
    plain = smpirun(
        "-n",
        1,
        "--channel",
        "direct",
        sys.executable,
        "-c",
        "import os; print('RANK' in os.environ)",
    )
    assert plain.stdout == "False\n"


def test_one_rank_has_the_terminal(tmp_path: Path) -> None:
    program = tmp_path / "prog.py"
    program.write_text(
        "import sys\nfrom serverless_mpi import MPI\n"
        "rank = MPI.COMM_WORLD.rank\n"
        "print(f'{rank} reads {sys.stdin.read()!r}')\n"
    )
    done = smpirun("-n", 2, "-l", "--channel", "direct", "--debug", 1, program, stdin="c\n")
    assert sorted(done.stdout.splitlines()) == ["1 reads 'c\\n'", "[0] 0 reads ''"]
    assert "--debug 2: the job has ranks 0 to 1" in smpirun("-n", 2, "--debug", 2, program).stderr


def test_a_debugger_is_asked_for_by_port(tmp_path: Path) -> None:
    """With a package of that name which prints what it was asked."""
    (tmp_path / "debugpy.py").write_text("import sys; print(*sys.argv[1:])\n")
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    program = tmp_path / "prog.py"
    program.touch()
    done = smpirun("-n", 2, "--debugpy", 5678, "--channel", "direct", program, env=env)
    assert sorted(done.stdout.splitlines()) == [
        f"--listen 127.0.0.1:{5678 + rank} --wait-for-client {program}" for rank in range(2)
    ]
    assert "no port for each of 2" in smpirun("-n", 2, "--debugpy", 65535, program).stderr
    if not any((Path(entry) / "debugpy").is_dir() for entry in sys.path):
        assert "pip install debugpy" in smpirun("--debugpy", 5678, program).stderr


def test_files_of_output_need_the_rank_in_their_name(tmp_path: Path) -> None:
    done = smpirun(
        "-n", 2, "--outfile", tmp_path / "out", "--channel", "direct", "examples/hello.py"
    )
    assert done.returncode == 2 and "it needs %r for the rank" in done.stderr
    (tmp_path / "file").touch()
    done = smpirun("-n", 2, "--output-dir", tmp_path / "file", "examples/hello.py")
    assert done.returncode == 2 and "cannot be written: " in done.stderr
