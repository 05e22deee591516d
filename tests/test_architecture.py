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
    "failures": {"homeserver", "durations"},
    "storage": {"homeserver", "failures"},
    "destinations": BELOW,
    "history": BELOW,
    "repair": BELOW | {"config"},
    "diagnosis": BELOW,
    "api": BELOW | PLAIN | {"history", "repair", "diagnosis"},
    "console": BELOW | PLAIN | {"history", "repair", "diagnosis", "api", "wording"},
    "playground": {"wording", "durations"},
    "wording": {"failures", "durations"},
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


def test_imports() -> None:
    """Rooms import downwards only, and nothing uses asyncio: Synapse runs on Twisted.

    Only the room `homeserver` uses of Synapse what is not its module API.
    """
    for path in FILES:
        room = path.relative_to(PACKAGE).parts[0]
        assert room == "homeserver" or "._hs" not in path.read_text(), path
        for module in imports(path):
            top, _, rest = module.partition(".")
            assert top != "asyncio", path
            if top == "synapse" and room != "homeserver":
                assert module.startswith("synapse.module_api"), (path, module)
            if top == PACKAGE.name and rest and room in ROOMS:
                assert rest.partition(".")[0] in ROOMS[room] | {room}, (path, module)


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


def test_tables_have_one_owner() -> None:
    """Every table is named in SQL by one file, its owner, and by what makes it."""
    # The last has a history that never was.
    makers = {"definitions.py", "population.py"}
    naming = {path: names_in_sql(path) for path in FILES if path.name not in makers}
    found = {
        (table, str(path.relative_to(PACKAGE)))
        for path, tables in naming.items()
        for table in tables
    }
    assert found == set(OWNERS.items())
    assert set(OWNERS) == set(TABLES)


def test_licence() -> None:
    """Every file begins with its licence."""
    for path in [*FILES, *(REPOSITORY / "tests").rglob("*.py")]:
        text = path.read_text()
        assert text.startswith("# SPDX-License-Identifier: Apache-2.0\n"), path


def test_long_files_say_why() -> None:
    """A file of over 400 lines says at its head why it is one file."""
    for path in FILES:
        text = path.read_text()
        told = ast.get_docstring(ast.parse(text)) or ""
        assert text.count("\n") <= 400 or re.search(r"\bfile\b", told), path


@pytest.mark.parametrize("room", sorted({*ROOMS, "cli"} - {"api", "playground"}))
def test_rooms_name_their_files(room: str) -> None:
    """A large room says at its head what each of its files is for."""
    told = ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text()))
    files = {path.stem for path in (PACKAGE / room).glob("[!_]*.py")}
    assert files <= set(re.findall(r"\w+", told or ""))


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


def test_called_off() -> None:
    """What is called off does not go on: where all exceptions are caught of what is
    waited for, CancelledError is raised before, or whatever was caught at the end.

    Twisted's is an ordinary `Exception`.
    """
    for path, node in ((file, each) for file in FILES for each in nodes(file)):
        if isinstance(node, ast.With) and awaits(node.body):
            managers = str([ast.unparse(item.context_expr) for item in node.items])
            assert not re.search(r"suppress\(.*\b(Base)?Exception\b", managers), path
        if not isinstance(node, ast.Try) or not awaits(node.body):
            continue
        for handler in node.handlers:
            if "CancelledError" in caught(handler):
                break
            if handler.type is None or caught(handler) & {"Exception", "BaseException"}:
                ends = ast.unparse(handler.body[-1])
                # Of a single flight, all who wait are told.
                told = ("raise", "result = Failure()")
                assert ends in told, (path, handler.lineno)
