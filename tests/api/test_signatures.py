"""Names, parameters and defaults are those of mpi4py."""

from __future__ import annotations

import ast
import functools
import importlib.util
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serverless_mpi import MPI, futures

_MPI4PY = importlib.util.find_spec("mpi4py")
_FOLDER = Path(next(iter(_MPI4PY.submodule_search_locations or ()))) if _MPI4PY else None
STUBS = {"MPI": ("MPI.pyi",), "futures": ("futures/pool.pyi", "futures/util.pyi")}
ROOMS = {"MPI": MPI, "futures": futures}
HERE = _FOLDER is not None and (_FOLDER / "MPI.pyi").exists()
pytestmark = pytest.mark.skipif(not HERE, reason="needs mpi4py's stubs: pip install mpi4py")


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    for node in body:
        if isinstance(node, ast.If):  # by version of Python: both branches declare the same names
            yield from _statements(node.body)
        else:
            yield node


def _declared(
    body: list[ast.stmt], prefix: str = ""
) -> Iterator[tuple[str, ast.FunctionDef | None]]:
    """(dotted name, function or None) of each declaration."""
    for node in _statements(body):
        if isinstance(node, ast.FunctionDef):
            yield prefix + node.name, node
        elif isinstance(node, ast.ClassDef):
            yield prefix + node.name, None
            yield from _declared(node.body, f"{prefix}{node.name}.")
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield prefix + node.target.id, None
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            yield prefix + node.targets[0].id, None


@functools.cache
def _public() -> dict[str, ast.FunctionDef | None]:
    assert _FOLDER is not None
    found: dict[str, ast.FunctionDef | None] = {}
    for room, stubs in STUBS.items():
        for stub in stubs:
            for name, node in _declared(ast.parse((_FOLDER / stub).read_text()).body, f"{room}."):
                if _is_public(name, room) and not _has_more_defaults(found.get(name), node):
                    found[name] = node
    return found


def _is_public(name: str, room: str) -> bool:
    """`__init__` counts where mpi4py's class is written in Python: those of Cython have a `__new__` that says less."""
    return not any(
        part.startswith("_") and (part, room) != ("__init__", "futures") for part in name.split(".")
    )


def _has_more_defaults(one: ast.FunctionDef | None, other: ast.FunctionDef | None) -> bool:
    return (
        one is not None and other is not None and len(one.args.defaults) > len(other.args.defaults)
    )


def _find(name: str) -> Any:
    room, *parts = name.split(".")
    found: Any = ROOMS[room]
    for part in parts:
        found = (
            inspect.getattr_static(found, part) if inspect.isclass(found) else getattr(found, part)
        )
    return found


def _default(node: ast.expr) -> Any:
    return eval(compile(ast.Expression(node), "stub", "eval"), vars(MPI).copy())


def _parameters(node: ast.FunctionDef) -> list[tuple[str, Any]]:
    """[(name, default)] without self or cls; inspect's `empty` where there is none."""
    arguments = [*node.args.posonlyargs, *node.args.args]
    defaults: list[Any] = [inspect.Parameter.empty] * (len(arguments) - len(node.args.defaults))
    defaults += [_default(one) for one in node.args.defaults]
    defaults += [inspect.Parameter.empty] * (node.args.vararg is not None)
    defaults += [
        inspect.Parameter.empty if one is None else _default(one) for one in node.args.kw_defaults
    ]
    defaults += [inspect.Parameter.empty] * (node.args.kwarg is not None)
    arguments += [
        one for one in (node.args.vararg, *node.args.kwonlyargs, node.args.kwarg) if one is not None
    ]
    static = any(
        isinstance(one, ast.Name) and one.id == "staticmethod" for one in node.decorator_list
    )
    bound = bool(arguments) and arguments[0].arg in ("self", "cls") and not static
    return [(one.arg, default) for one, default in zip(arguments, defaults, strict=True)][bound:]


def _same(ours: Any, theirs: Any) -> bool:
    return (
        ours is theirs
        or (type(ours) is type(theirs) and bool(ours == theirs))
        or theirs is Ellipsis
    )


@pytest.mark.parametrize("name", sorted(_public()) if HERE else [])
def test_a_name_is_there_with_its_parameters_and_defaults(name: str) -> None:
    found = _find(name)
    node = _public()[name]
    if node is None:
        return
    if isinstance(found, property):  # a property of the stub is a field with a decorator
        assert any(
            isinstance(one, ast.Name) and one.id == "property" for one in node.decorator_list
        )
        return
    function = found.__func__ if isinstance(found, (classmethod, staticmethod)) else found
    kinds = {one.id for one in node.decorator_list if isinstance(one, ast.Name)} & {
        "classmethod",
        "staticmethod",
    }
    assert kinds == ({type(found).__name__} & {"classmethod", "staticmethod"}), (
        f"{name} is no {kinds or 'plain function'}"
    )
    parameters = list(inspect.signature(function).parameters.values())
    if name.count(".") > 1 and not isinstance(found, staticmethod):
        parameters = parameters[1:]
    ours = [(one.name, one.default) for one in parameters]
    theirs = _parameters(node)
    assert [one for one, _ in ours] == [one for one, _ in theirs]
    for (parameter, own), (_, wanted) in zip(ours, theirs, strict=True):
        assert _same(own, wanted), (
            f"{name}: default of {parameter} is {own!r}, mpi4py's is {wanted!r}"
        )


def test_futures_offers_what_mpi4pys_does() -> None:
    assert _FOLDER is not None
    (names,) = [
        one.value
        for one in ast.parse((_FOLDER / "futures" / "__init__.pyi").read_text()).body
        if isinstance(one, ast.AnnAssign)
    ]
    assert names is not None
    assert sorted(ast.literal_eval(names)) == sorted(futures.__all__)
