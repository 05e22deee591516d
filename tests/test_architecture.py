# SPDX-License-Identifier: Apache-2.0
"""The rules about which part of the package may use what."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from synapse_federation_admin.storage.definitions import PREFIX, TABLES

pytestmark = pytest.mark.one_synapse

PACKAGE = Path(__file__).parent.parent / "synapse_federation_admin"
REPOSITORY = PACKAGE.parent

# What the rooms may import of each other: nothing imports upwards or sideways.
BELOW = {"homeserver", "failures", "storage", "destinations"}
PLAIN = {"config", "durations"}
ROOMS = {
    "homeserver": set(),
    "failures": {"homeserver"},
    "storage": {"homeserver", "failures"},
    "destinations": BELOW,
    "history": BELOW,
    "repair": BELOW | {"config"},
    "diagnosis": BELOW,
    "api": BELOW | PLAIN | {"history", "repair", "diagnosis"},
    "console": BELOW | PLAIN | {"history", "repair", "diagnosis", "api", "wording"},
    "playground": set(),
    "wording": {"failures"},
}

# The file that owns each table of the module's own.
OWNERS = {
    "schema": "storage/schema.py",
    "audit": "storage/audit.py",
    "runs": "storage/runs.py",
    "run_queue": "storage/run_queue.py",
    "failures": "storage/records.py",
    "successes": "storage/records.py",
    "outages": "storage/outages.py",
    "recording": "storage/outages.py",
    "addresses": "storage/records.py",
    "instances": "storage/instances.py",
}

FILES = sorted(PACKAGE.rglob("*.py"))


@cache
def nodes(path: Path) -> list[ast.AST]:
    """Return all of a file's syntax tree."""
    return list(ast.walk(ast.parse(path.read_text())))


def imports(path: Path) -> Iterator[str]:
    """Yield the modules that a file imports."""
    for node in nodes(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""


def named(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


@pytest.mark.parametrize("path", FILES, ids=named)
def test_imports(path: Path) -> None:
    """Rooms import downwards only, and nothing uses asyncio: Synapse runs on Twisted.

    Only the room `homeserver` uses of Synapse what is not its module API.
    """
    room = path.relative_to(PACKAGE).parts[0]
    assert room == "homeserver" or "._hs" not in path.read_text()
    for module in imports(path):
        top, _, rest = module.partition(".")
        assert top != "asyncio"
        if top == "synapse" and room != "homeserver":
            assert module.startswith("synapse.module_api"), module
        if top == PACKAGE.name and rest and room in ROOMS:
            assert rest.partition(".")[0] in ROOMS[room] | {room}, module


def names_in_sql(path: Path) -> set[str]:
    """Return which tables of the module's own a file names, but for docstrings.

    What is alone the first argument of a call is the name of a transaction, a lock or
    a background process, which may be that of a table.
    """
    docstrings, first_args, found = set(), set(), set()
    for node in nodes(path):
        if isinstance(node, ast.Expr):
            docstrings.add(node.value)
        elif isinstance(node, ast.Call):
            first_args.update(node.args[:1])
    for node in nodes(path):
        if not isinstance(node, ast.Constant) or not isinstance(node.value, str):
            continue
        is_name = node.value.removeprefix(PREFIX) in TABLES
        if node not in docstrings and not (is_name and node in first_args):
            found.update(re.findall(rf"\b{PREFIX}([a-z_]+)\b", node.value))
    return found & set(TABLES)


@pytest.mark.parametrize("path", FILES, ids=named)
def test_tables_have_one_owner(path: Path) -> None:
    """Every table is named in SQL by one file: what makes it aside, its owner."""
    for table in names_in_sql(path):
        allowed = {
            OWNERS[table],
            "storage/definitions.py",
            "storage/versions.py",
            # A history that never was.
            "playground/population.py",
        }
        assert named(path) in allowed, table


def test_every_table_has_an_owner() -> None:
    """And the owner does name it."""
    assert set(OWNERS) == set(TABLES)
    for table, owner in OWNERS.items():
        assert table in names_in_sql(PACKAGE / owner), table


@pytest.mark.parametrize(
    "path",
    [*FILES, *(REPOSITORY / "tests").rglob("*.py")],
    ids=lambda path: str(path.relative_to(REPOSITORY)),
)
def test_licence(path: Path) -> None:
    """Every file begins with its licence."""
    assert path.read_text().startswith("# SPDX-License-Identifier: Apache-2.0\n")


def awaits(statements: list[ast.stmt]) -> bool:
    """Tell whether statements wait for something, but for functions within."""
    left: list[ast.AST] = list(statements)
    while left:
        node = left.pop()
        if isinstance(node, ast.Await | ast.AsyncFor | ast.AsyncWith):
            return True
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            left += ast.iter_child_nodes(node)
    return False


def caught(handler: ast.ExceptHandler) -> set[str]:
    """Return which exceptions are caught, by name."""
    return set(re.findall(r"\w+", ast.unparse(handler.type) if handler.type else ""))


@pytest.mark.parametrize("path", FILES, ids=named)
def test_called_off(path: Path) -> None:
    """What is called off does not go on: where all exceptions are caught of what is
    waited for, CancelledError is raised before, or whatever was caught at the end.

    Twisted's is an ordinary `Exception`.
    """
    for node in nodes(path):
        if isinstance(node, ast.With) and awaits(node.body):
            managers = [ast.unparse(item.context_expr) for item in node.items]
            assert not re.search(r"suppress\(.*\b(Base)?Exception\b", str(managers))
        if not isinstance(node, ast.Try) or not awaits(node.body):
            continue
        for handler in node.handlers:
            if "CancelledError" in caught(handler):
                break
            if handler.type is None or caught(handler) & {"Exception", "BaseException"}:
                ends = ast.unparse(handler.body[-1])
                # Of a single flight, all who wait are told.
                assert ends in ("raise", "result = Failure()"), handler.lineno
