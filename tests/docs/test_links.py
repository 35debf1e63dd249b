"""Links, anchors, files, tests, commands, options, variables and extras in the documentation exist."""

from __future__ import annotations

import argparse
import importlib.util
import re
import sys
from pathlib import Path

import pytest

from serverless_mpi import env
from tests.harness import ROOT

DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *(ROOT / ".github").rglob("*.md")])
TEXTS = {page: page.read_text(encoding="utf-8") for page in PAGES}
_CODE = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_SPAN = re.compile(r"`([^`\n]+)`")
_PATH = re.compile(r"[\w.-]+(?:/[\w.-]+)+\.(?:py|md|json|toml|c|h|txt|csv|svg|png|npy)")
_TEST = re.compile(r"(tests/[\w/]+\.py)(?:::(\w+))?")
# What an ordinary user has or makes, and what has no file in the repository.
NOT_OURS = ("model/", "s3://")

sys.path.insert(0, str(DOCS))
import generate  # noqa: E402

each_page = pytest.mark.parametrize(
    "page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES]
)


def _anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as Markdown's toc extension and GitHub make them."""
    found = set()
    for heading in re.findall(r"^#+ (.+)$", _CODE.sub("", text), re.MULTILINE):
        plain = re.sub(r"[^\w\s-]", "", heading.lower())
        found |= {re.sub(r"[\s]+", "-", plain.strip()), re.sub(r"\s", "-", plain.strip())}
    return found


@each_page
def test_links(page: Path) -> None:
    for target in _LINK.findall(_CODE.sub("", TEXTS[page])):
        if target.startswith(("https://", "http://", "mailto:")):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        if DOCS in path.parents and str(path.relative_to(DOCS)) in generate.GENERATED:
            continue
        assert path.exists(), f"{page.name}: no {target}"
        if anchor:
            assert anchor in _anchors(TEXTS[path]), f"{page.name}: no heading for {target}"


@each_page
def test_files_and_tests(page: Path) -> None:
    homes = (ROOT, ROOT / "serverless_mpi", page.parent)
    text = TEXTS[page]
    for span in _SPAN.findall(_CODE.sub("", text)):
        for name in _PATH.findall(span):
            if name.startswith(NOT_OURS) or name in generate.GENERATED or "yours" in name:
                continue
            assert any((home / name).exists() for home in homes), f"{page.name}: no file {name}"
    for name, function in _TEST.findall(text):
        path = ROOT / name
        assert path.exists(), f"{page.name}: no {name}"
        if function:
            source = path.read_text(encoding="utf-8")
            assert f"def {function}(" in source, f"{page.name}: no {name}::{function}"


def _options() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for name, parser in generate._parsers():
        options = {text for action in parser._actions for text in action.option_strings}
        command = name.split()[0]
        found.setdefault(command, set()).update(options)
        found[name] = options
    return found


def _commands(text: str) -> set[str]:
    """The command lines in blocks and spans, without what they pipe to and comments."""
    lines = [line for block in _CODE.findall(text) for line in block.splitlines()]
    lines += _SPAN.findall(_CODE.sub("", text))
    found = set()
    for line in lines:
        for part in re.split(r"&&|[;&|]|\s#\s|\s{3,}", line):
            found.add(part.strip().removeprefix("$ ").strip())
    return found


@each_page
def test_commands_and_options(page: Path) -> None:
    options = _options()
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for line in _commands(TEXTS[page]):
        words = re.sub(r"^do ", "", line).split()
        if not words:
            continue
        if words[0] == "make" and len(words) > 1 and words[1].isalpha():
            assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE), f"{page.name}: {line}"
        if words[:2] == ["python", "-m"] and words[2].startswith(("tests", "benchmarks", "server")):
            assert importlib.util.find_spec(words[2]), f"{page.name}: no module in {line}"
        if words[0] == "python" and words[1].endswith(".py") and "/" in words[1]:
            assert (ROOT / words[1]).exists(), f"{page.name}: no file in {line}"
        if words[0] in ("smpirun", "smpi", "smpi-infer"):
            # after the program its own arguments begin
            ends = [
                number
                for number, word in enumerate(words)
                if words[0] == "smpirun" and (word.endswith(".py") or word == "-m")
            ]
            for word in words[1 : (ends or [len(words)])[0]]:
                if word.startswith("--"):
                    name = re.split(r"[=\]]", word)[0]
                    assert name in options[words[0]], f"{page.name}: no {name} in {line}"
            if (
                words[0] != "smpirun"
                and len(words) > 1
                and words[1].isalpha()
                and words[1].islower()
            ):
                assert f"{words[0]} {words[1]}" in options, f"{page.name}: no command {line}"


@each_page
def test_extras(page: Path) -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for extra in re.findall(r"'(?:serverless-mpi|\.)\[(\w+)\]'", TEXTS[page]):
        assert re.search(rf"^{extra} = \[", project, re.MULTILINE), f"{page.name}: no extra {extra}"


def test_every_variable_has_its_row() -> None:
    page = TEXTS[DOCS / "reference" / "environment.md"]
    rows = re.findall(r"^\| `(?:SMPI|MPI4PY)_.*$", page, re.MULTILINE)
    assert rows == [variable.row() for variable in env.VARIABLES]


def test_every_variable_is_used_and_spelled_in_one_place() -> None:
    """The kernel and sitecustomize.py cannot import the table; serverless_mpi/env.py says why."""
    sources = [*ROOT.glob("serverless_mpi/**/*.py"), *ROOT.glob("kernels/*.c")]
    sources.append(ROOT / "tests" / "conformance" / "suite.py")
    sources.remove(ROOT / "serverless_mpi" / "env.py")
    texts = {path: path.read_text(encoding="utf-8") for path in sources}
    constants = {value: name for name, value in vars(env).items() if name.startswith("ENV_")}
    assert sorted(constants) == sorted(variable.name for variable in env.VARIABLES)
    spelled = re.compile(r"[\"'](SMPI_[A-Z_]+)[\"']")
    for path, text in texts.items():
        if path.suffix != ".c" and path.name != "sitecustomize.py":
            assert not spelled.findall(text), f"{path}: import the name from serverless_mpi.env"
        unknown = set(re.findall(r"\bSMPI_[A-Z][A-Z_]+\b", text)) - set(constants)
        assert not unknown, f"{path}: add {unknown} to serverless_mpi/env.py"
    for name, constant in constants.items():
        assert any(name in text or constant in text for text in texts.values()), f"unused: {name}"


def test_the_readme_is_short_and_has_one_picture() -> None:
    text = TEXTS[ROOT / "README.md"]
    assert len(text.splitlines()) <= 120 and len(re.findall(r"!\[", text)) == 1


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    listed = set(re.findall(r": ([\w/-]+\.md)$", navigation, re.MULTILINE))
    pages = {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}
    assert listed == pages | set(generate.GENERATED)


def test_the_diagrams_are_what_their_script_writes() -> None:
    import make_diagrams

    for name, draw in make_diagrams.PICTURES.items():
        assert (DOCS / "images" / name).read_text(encoding="utf-8") == draw().svg(), name


def test_every_command_has_a_reference() -> None:
    page = generate.commands()
    for name, parser in generate._parsers():
        assert f"# {name}\n" in page
        for action in parser._actions:
            if action.help != argparse.SUPPRESS and not isinstance(action, argparse._HelpAction):
                assert all(f"{option}" in page for option in action.option_strings)
