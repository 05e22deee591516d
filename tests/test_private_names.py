# SPDX-License-Identifier: Apache-2.0
"""What `homeserver/` uses of Synapse's private parts is in `relied_on`.

By reading its source only, so within limits. It finds names that are imported,
attributes that begin with an underscore, and attributes of what is reached from the
homeserver object (`hs`, `self._hs`) in one function, over local names. It does not find
an attribute that only an object passed between functions has, one that has the name of
one of our own, or what is reached through `getattr` with a name in a variable; nor
whether a listed name is listed for all the features that use it: that is what hiding
each of them is for (test_selfcheck.py).
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from synapse_federation_admin.homeserver import relied_on, selfcheck

ROOM = Path(selfcheck.__file__).parent
FILES = sorted(ROOM.glob("*.py"))

# Of types of Python's own, and of Twisted's documented ones.
PUBLIC = {
    *("get", "append", "encode", "decode", "values", "items", "https_proxy"),
    # Of a Deferred that Synapse returns.
    *("addTimeout", "addErrback"),
    # Of a datastore's cached function, a path of attributes that ends with it.
    *("main", "module", "hs"),
}


def listed() -> tuple[set[tuple[str, str]], set[str]]:
    """Return the imports that are listed, and every attribute on the way to a name."""
    imports, attributes = set(), set(PUBLIC)
    for _, root, path in selfcheck.names():
        steps = re.findall(r"\w+", path)
        if root != "hs":
            imports.add((root, steps[0]))
        attributes.update(steps)
    return imports, attributes


IMPORTS, ATTRIBUTES = listed()


def tree(path: Path) -> ast.Module:
    """Return the source of a file, without what only a type checker reads."""
    found = ast.parse(path.read_text())
    for node in ast.walk(found):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = [ast.Pass()]
    return found


def own_names() -> set[str]:
    """Return the attributes that classes of this room define or set themselves."""
    found = set()
    for path in FILES:
        for node in ast.walk(tree(path)):
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


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_imports(path: Path) -> None:
    """What is imported of Synapse, and is not its module API, is listed."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            assert not any(a.name.startswith("synapse.") for a in node.names), path
        elif isinstance(node, ast.ImportFrom) and node.module:
            is_private = node.module.startswith("synapse.")
            if is_private and not node.module.startswith("synapse.module_api"):
                for alias in node.names:
                    assert (node.module, alias.name) in IMPORTS


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_attributes(path: Path) -> None:
    """Attributes that begin with an underscore are listed, or this room's own."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Attribute) and re.match("_[^_]", node.attr):
            assert node.attr in OWN | ATTRIBUTES or node.attr.startswith(
                "_federation_admin_"
            ), ast.unparse(node)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_homeserver(path: Path) -> None:
    """What is reached from the homeserver object is listed."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for names in from_homeserver(node):
                unknown = [name for name in names if name not in ATTRIBUTES]
                assert not unknown, (node.name, names, unknown)


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
                    is_known = found in tables or found.startswith(
                        (
                            "federation_admin_",
                            "pg_",
                            "sqlite_",
                            "information_schema",
                            "json_each",
                        )
                    )
                    assert is_known, (path.name, found)
