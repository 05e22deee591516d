# SPDX-License-Identifier: Apache-2.0
"""What `homeserver/` uses of Synapse's private parts is in `relied_on`.

By reading its source only, so within limits. It finds attributes that begin with an
underscore, and attributes of what is reached from the homeserver object (`hs`,
`self._hs`) in one function, over local names. It does not find an attribute that only
an object passed between functions has, one that has the name of one of our own, or what
is reached through `getattr` with a name in a variable; nor whether a listed name is
listed for all the features that use it: that is what hiding each of them is for
(test_selfcheck.py).
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from hidden_name import ROOM, imports, relied_on_names

from synapse_federation_admin.homeserver import relied_on

pytestmark = pytest.mark.one_synapse

FILES = sorted(ROOM.glob("*.py"))

# Of types of Python's own, and of Twisted's documented ones.
PUBLIC = {
    *("get", "append", "encode", "decode", "values", "items", "https_proxy"),
    # Of a named tuple.
    "_replace",
    # Of a Deferred that Synapse returns.
    *("addTimeout", "addErrback"),
    # Of a datastore's cached function, a path of attributes that ends with it.
    *("main", "module", "hs"),
}


def reached() -> set[str]:
    """Return every attribute on the way to a name that is listed."""
    # What is given to functions is none.
    paths = (re.sub(r"\(\*[^)]*\)", "", path) for _, _, path in relied_on_names())
    return PUBLIC.union(*(re.findall(r"\w+", path) for path in paths))


ATTRIBUTES = reached()


@cache
def tree(path: Path) -> ast.Module:
    """Return the source of a file, without what only a type checker reads."""
    found = ast.parse(path.read_text())
    for node in ast.walk(found):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = [ast.Pass()]
    return found


def nodes() -> Iterator[tuple[Path, ast.AST]]:
    """Yield all of the syntax of this room's files."""
    for path in FILES:
        for node in ast.walk(tree(path)):
            yield path, node


def own_names() -> set[str]:
    """Return the attributes that classes of this room define or set themselves."""
    found = set()
    for _, node in nodes():
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            if isinstance(node.value, ast.Name) and node.value.id == "self":
                found.add(node.attr)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
    return found


OWN = own_names()


def chain(node: ast.expr) -> tuple[str, list[str]]:
    """Return the name that a chain of attributes begins with, and the attributes."""
    names: list[str] = []
    while True:
        if isinstance(node, ast.Attribute):
            names.insert(0, node.attr)
            node = node.value
        elif isinstance(node, ast.Call | ast.Await | ast.Subscript):
            node = node.func if isinstance(node, ast.Call) else node.value
        elif isinstance(node, ast.Name):
            return node.id, names
        else:
            return "", names


def from_homeserver(function: ast.AST) -> Iterator[list[str]]:
    """Yield the attributes of each chain that begins with the homeserver object."""
    roots = {"hs"}

    def behind(node: ast.expr) -> list[str] | None:
        name, names = chain(node)
        if name in roots:
            return names
        if name in ("self", "api") and names[:1] == ["_hs"]:
            return names[1:]
        if name == "self" and names[:1] in (["_store"], ["_config"]):
            return names[1:]
        return None

    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and behind(node.value) is not None:
            roots.update(t.id for t in node.targets if isinstance(t, ast.Name))
    for node in ast.walk(function):
        if isinstance(node, ast.Attribute) and (names := behind(node)) is not None:
            yield names


def test_files() -> None:
    """Each file of the room that imports something of Synapse is needed by a feature,
    or imported by one that is; nothing is imported as a whole."""
    checked = {
        name
        for _, files in relied_on.FILES
        for f in files.split()
        for name in imports(f)
    }
    for path in FILES:
        assert set(imports(path.stem)) <= checked, path
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Import):
                assert not any(a.name.startswith("synapse.") for a in node.names), path


def test_attributes() -> None:
    """Attributes that begin with an underscore are listed, or this room's own."""
    # What named tuples have is public.
    known = OWN | ATTRIBUTES | {"_replace", "_fields"}
    for path, node in nodes():
        if isinstance(node, ast.Attribute) and re.match("_[^_]", node.attr):
            is_ours = node.attr.startswith("_federation_admin_")
            assert is_ours or node.attr in known, (path, ast.unparse(node))


def test_homeserver() -> None:
    """What is reached from the homeserver object is listed."""
    for path, node in nodes():
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for names in from_homeserver(node):
                unknown = [name for name in names if name not in ATTRIBUTES]
                assert not unknown, (path, node.name, names, unknown)


# What objects of Synapse's internal classes are called, where functions are given them.
OBJECTS = {
    *("transaction", "self._transaction", "limiter", "timings"),
    *("current_context()", "ssl_connection.get_app_data()"),
}


def test_objects() -> None:
    """What is used of objects of Synapse's internal classes is listed."""
    for path, node in nodes():
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in OBJECTS:
            assert node.attr in ATTRIBUTES, (path, ast.unparse(node))


def test_tables() -> None:
    """Each table of Synapse's that a statement of ours names is listed."""
    tables = {table for _, table, _ in relied_on.COLUMNS}
    package = ROOM.parent
    for path in package.rglob("*.py"):
        if "playground" in path.parts or "bench" in path.parts:
            continue
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                for found in re.findall(
                    r"\b(?:FROM|JOIN|INTO|UPDATE)\s+([a-z]+(?:_[a-z]+)+)", node.value
                ):
                    is_ours_or_system = re.match(
                        "federation_admin_|pg_|pragma_|sqlite_|information_schema|json_",
                        found,
                    )
                    assert found in tables or is_ours_or_system, (path.name, found)
