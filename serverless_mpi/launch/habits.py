"""Options of mpiexec, as people type them: each becomes an option of smpirun, or has no effect.

`translate` rewrites a command line before it is parsed.  `HABITS` has a row per option of
MPICH's and Open MPI's mpiexec that smpirun accepts; an option with a meaning here becomes
smpirun's own, one without a meaning (binding to cores, root) is omitted, and those that ask
for other machines are refused with what works instead.

Only options before the program are rewritten, so the translation must know where the program
begins: `takes_value` names the options of smpirun that have a value.

A new habit is one row.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from serverless_mpi.errors import UsageError

# Pattern of a file per rank: %r is the rank.
RANK = "%r"
_PPR = re.compile(r"ppr:([1-9]\d*):(?:node|host)(?::.*)?\Z", re.IGNORECASE)
_MAX_FILE = 1 << 20  # bytes of a configuration file


@dataclass
class Translation:
    """A command line in smpirun's own options.

    Attributes
    ----------
    arguments
        The rewritten command line.
    everywhere
        Options of programs that apply to every program, such as ["-x", "A=1"].
    ignored
        Options that have no effect here.
    display_map
        Whether to print which ranks run what before they start.
    quiet
        Whether to omit what smpirun prints besides errors.
    """

    arguments: list[str] = field(default_factory=list)
    everywhere: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    display_map: bool = False
    quiet: bool = False


Action = Callable[[Translation, str, Sequence[str]], None]


@dataclass(frozen=True)
class Habit:
    """What becomes of one option of mpiexec.

    Attributes
    ----------
    names
        Its spellings.
    values
        Number of words that follow it.
    act
        Called with the translation so far, the option as typed, and its values.
    """

    names: tuple[str, ...]
    values: int
    act: Action


def _becomes(option: str, form: str = "{0}") -> Action:
    """Return an action that writes an option with one value, made from the habit's values."""

    def act(line: Translation, name: str, values: Sequence[str]) -> None:
        line.arguments += [option, form.format(*values)]

    return act


def _flag(option: str) -> Action:
    def act(line: Translation, name: str, values: Sequence[str]) -> None:
        line.arguments.append(option)

    return act


def _ignore(line: Translation, name: str, values: Sequence[str]) -> None:
    line.ignored.append(" ".join((name, *values)))


def _accept(line: Translation, name: str, values: Sequence[str]) -> None:
    """What it asks for is done in any case."""


def _export(line: Translation, name: str, values: Sequence[str]) -> None:
    line.everywhere += ["-x", f"{values[0]}={values[1]}"]


def _export_list(line: Translation, name: str, values: Sequence[str]) -> None:
    for variable in filter(None, values[0].split(",")):
        line.everywhere += ["-x", variable]


def _export_none(line: Translation, name: str, values: Sequence[str]) -> None:
    raise UsageError(
        f"{name}: ranks always have smpirun's environment; use `env -i ... smpirun` to clear it"
    )


def _map_by(line: Translation, name: str, values: Sequence[str]) -> None:
    match = _PPR.match(values[0])
    if match:
        line.arguments += ["-ppn", match[1]]
    else:
        _ignore(line, name, values)


def _output_dir(line: Translation, name: str, values: Sequence[str]) -> None:
    folder = values[0].rstrip("/") or "/"
    line.arguments += ["--outfile", f"{folder}/{RANK}.out", "--errfile", f"{folder}/{RANK}.err"]


def _output_filename(line: Translation, name: str, values: Sequence[str]) -> None:
    base = values[0].rstrip("/")
    line.arguments += ["--outfile", f"{base}/rank.{RANK}/stdout"]
    line.arguments += ["--errfile", f"{base}/rank.{RANK}/stderr"]


def _hosts(line: Translation, name: str, values: Sequence[str]) -> None:
    here = ("localhost", "127.0.0.1", "::1")
    if not name.endswith("file") and name != "-f":
        hosts = [host.rpartition(":")[0] or host for host in values[0].split(",")]
        if all(host in here for host in hosts):
            return
    raise UsageError(
        f"{name}: smpirun starts ranks on this machine or, with --platform lambda, as functions,"
        " and not on a list of hosts; omit it, or run the program on a cluster with its own mpirun:"
        " the same import then gives the real mpi4py"
    )


def _display_map(line: Translation, name: str, values: Sequence[str]) -> None:
    line.display_map = True


def _quiet(line: Translation, name: str, values: Sequence[str]) -> None:
    line.quiet = True


HABITS = (
    Habit(("-c", "--n", "--np"), 1, _becomes("-n")),
    Habit(("-npernode", "--npernode", "-perhost", "--perhost", "-N"), 1, _becomes("-ppn")),
    Habit(("-map-by", "--map-by"), 1, _map_by),
    Habit(("-genv", "-env"), 2, _export),
    Habit(("-genvlist", "-envlist"), 1, _export_list),
    Habit(("-genvall", "-envall"), 0, _accept),
    Habit(("-genvnone", "-envnone"), 0, _export_none),
    Habit(("-cwd", "--cwd", "-wd", "--wd"), 1, _becomes("--wdir")),
    Habit(("-prepend-rank", "-tag-output"), 0, _flag("--tag-output")),
    Habit(("-outfile-pattern",), 1, _becomes("--outfile")),
    Habit(("-errfile-pattern",), 1, _becomes("--errfile")),
    Habit(("-output-dir", "--output-dir"), 1, _output_dir),
    Habit(("-output-filename", "--output-filename"), 1, _output_filename),
    Habit(("-timeout",), 1, _becomes("--timeout")),
    Habit(("-get-stack-traces", "--get-stack-traces"), 0, _accept),
    Habit(
        ("-display-map", "--display-map", "-display-allocation", "--display-allocation"),
        0,
        _display_map,
    ),
    Habit(("-q", "-quiet", "--quiet"), 0, _quiet),
    Habit(("-V", "-version", "-info", "--info"), 0, _flag("--version")),
    Habit(
        ("-host", "-hosts", "-H", "-hostfile", "--hostfile", "-f", "-machinefile", "--machinefile"),
        1,
        _hosts,
    ),
    Habit(("-mca", "--mca", "-gmca", "--gmca", "--prtemca", "--pmixmca"), 2, _ignore),
    Habit(
        (
            *("-oversubscribe", "--oversubscribe", "-nooversubscribe", "--nooversubscribe"),
            *("-allow-run-as-root", "--allow-run-as-root"),
            *("-report-bindings", "--report-bindings"),
            *("-use-hwthread-cpus", "--use-hwthread-cpus"),
            *("-bycore", "-bynode", "-bysocket", "--bynode"),
        ),
        0,
        _ignore,
    ),
    Habit(
        (
            *("-bind-to", "--bind-to", "-rank-by", "--rank-by", "-topolib"),
            *("-launcher", "-bootstrap", "-rmk", "-iface"),
        ),
        1,
        _ignore,
    ),
)
FILES = ("-configfile", "--configfile", "-app", "--app")  # a file with the command line

_BY_NAME: Mapping[str, Habit] = {name: habit for habit in HABITS for name in habit.names}


def _segments(words: Sequence[str]) -> list[list[str]]:
    """Return the command line's programs; the words of a configuration file replace its option."""
    segments: list[list[str]] = [[]]
    for word in words:
        if word == ":":
            segments.append([])
        else:
            segments[-1].append(word)
    return segments


def _read(option: str, path: str) -> list[str]:
    """Return the words of a configuration file: a program per line, # begins a comment."""
    try:
        with Path(path).open(encoding="utf-8") as file:
            text = file.read(_MAX_FILE + 1)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise UsageError(f"{option} {path}: {reason}") from error
    if len(text) > _MAX_FILE:
        raise UsageError(f"{option} {path}: a command line has at most {_MAX_FILE >> 20} MB")
    words: list[str] = []
    try:
        lines = [line for line in text.splitlines() if shlex.split(line, comments=True)]
        for line in lines:
            own = shlex.split(line, comments=True)
            words += own if own[-1] == ":" else [*own, ":"]
    except ValueError as error:
        raise UsageError(f"{option} {path}: {error}") from error
    return words[:-1] if words else []


def _expanded(arguments: Sequence[str], takes_value: Callable[[str], bool]) -> list[str]:
    """Replace an option that names a configuration file by the words of that file."""
    for index, _, word in _options(arguments, takes_value):
        option, equals, value = word.partition("=")
        if option in FILES:
            words = [value] if equals else list(arguments[index + 1 : index + 2])
            if not words or not words[0]:
                raise UsageError(f"{option} needs the name of a file")
            rest = arguments[index + (1 if equals else 2) :]
            if rest:
                raise UsageError(f"{option} {words[0]}: nothing may follow, but {rest[0]} does")
            return [*arguments[:index], *_read(option, words[0])]
    return list(arguments)


def _options(
    words: Sequence[str], takes_value: Callable[[str], bool]
) -> Iterator[tuple[int, int, str]]:
    """Yield (index, number of values, word) of each option before the program."""
    index = 0
    while index < len(words) and words[index].startswith("-") and words[index] != "-":
        word = words[index]
        name, equals, _ = word.partition("=")
        if name == "-m":
            return
        habit = _BY_NAME.get(name)
        if habit is not None:
            count = max(0, habit.values - bool(equals))
        else:
            count = int(not equals and (name in FILES or takes_value(name)))
        yield index, count, word
        index += 1 + count


def with_value(
    arguments: Sequence[str],
    takes_value: Callable[[str], bool],
    option: str,
    suffixes: tuple[str, ...],
) -> list[str]:
    """Give an option whose value may be omitted its value, or an empty one, behind "=".

    Only a word with one of the suffixes is the value; any other word is the program, or another
    option.

    Parameters
    ----------
    arguments
        The command line, without the name of the command.
    takes_value
        Whether an option of smpirun has a value; False for this one.
    option, suffixes
        The option, and the ends of its values.
    """
    words = list(arguments)
    first = words.index(":") if ":" in words else len(words)
    for index, _, word in _options(words[:first], takes_value):
        if word == option:
            value = words[index + 1 : index + 2]
            if value and value[0].endswith(suffixes) and not value[0].startswith("-"):
                return [*words[:index], f"{option}={value[0]}", *words[index + 2 :]]
            return [*words[:index], f"{option}=", *words[index + 1 :]]
    return words


def translate(arguments: Sequence[str], takes_value: Callable[[str], bool]) -> Translation:
    """Rewrite a command line in smpirun's own options.

    Parameters
    ----------
    arguments
        The command line, without the name of the command.
    takes_value
        Whether an option of smpirun has a value.

    Returns
    -------
    Translation
        The command line, and what else was asked for.

    Raises
    ------
    UsageError
        An option asks for what does not exist here, or lacks a value.
    """
    result = Translation()
    programs: list[list[str]] = []
    for words in _segments(_expanded(arguments, takes_value)):
        line = Translation()
        end = 0
        for index, count, word in _options(words, takes_value):
            end = index + 1 + count
            name, equals, first = word.partition("=")
            habit = _BY_NAME.get(name)
            if habit is None:
                line.arguments += words[index:end]
                continue
            values = [*([first] if equals else []), *words[index + 1 : end]]
            if len(values) < habit.values:
                raise UsageError(f"{name} needs {'a value' if habit.values == 1 else '2 values'}")
            habit.act(line, name, values)
        programs.append([*line.arguments, *words[end:]])
        result.everywhere += line.everywhere
        result.ignored += line.ignored
        result.display_map |= line.display_map
        result.quiet |= line.quiet
    for number, words in enumerate(programs):
        result.arguments += ([":"] if number else []) + result.everywhere + words
    return result
