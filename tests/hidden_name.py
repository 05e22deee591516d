# SPDX-License-Identifier: Apache-2.0
"""Hides from this module, and from nobody else, something of Synapse that it relies on.

As a program, `hidden_name.py FILE python -m MODULE ARGUMENTS...` runs a module as
Python does, with what FILE names hidden.
"""

import ast
import builtins
import json
import re
import runpy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from synapse.server import HomeServer

from synapse_federation_admin.homeserver import relied_on, selfcheck
from synapse_federation_admin.homeserver.features import Feature

PACKAGE = "synapse_federation_admin"
ROOM = Path(selfcheck.__file__).parent


def imports(file: str) -> Iterator[tuple[str, str]]:
    """Yield what a file of the room imports when it is imported: module and name.

    Also by way of other files of the room, and without Synapse's module API.
    """
    for node in ast.parse((ROOM / f"{file}.py").read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module:
            package, _, module = node.module.rpartition(".")
            if package == f"{PACKAGE}.homeserver":
                yield from imports(module)
            elif re.match(r"synapse\.(?!module_api)", node.module):
                yield from ((node.module, alias.name) for alias in node.names)


def relied_on_names() -> Iterator[tuple[frozenset[Feature], str, str]]:
    """Yield each name of Synapse's that is relied on: who needs it, root and path."""
    needed_by: dict[tuple[str, str], set[Feature]] = {}
    for features, files in relied_on.FILES:
        for file in files.split():
            for name in imports(file):
                needed_by.setdefault(name, set()).update(features)
    for features, root, path in selfcheck.names():
        needed_by.setdefault((root, path), set()).update(features)
    for (root, path), needing in needed_by.items():
        yield frozenset(needing), root, path


@contextmanager
def hidden(root: str, path: str) -> Iterator[None]:
    """Hide a name: from imports of the package, and from its self-check."""
    real_import, real_find = builtins.__import__, selfcheck.find

    def guarded(name: str, *args: Any, **kwargs: Any) -> Any:
        given = dict(zip(("globals", "locals", "fromlist"), args, strict=False))
        given |= kwargs
        importer = (given.get("globals") or {}).get("__name__", "")
        is_hidden = name == root and path in (given.get("fromlist") or ())
        if is_hidden and importer.startswith(PACKAGE):
            raise ImportError(f"{root} has no {path}")
        return real_import(name, *args, **kwargs)

    def find(found: Any, wanted: str) -> None:
        is_homeserver = isinstance(found, HomeServer)
        where = "hs" if is_homeserver else getattr(found, "__name__", "")
        if (where, wanted) == (root, path):
            raise AttributeError(f"{root} has no {path}")
        real_find(found, wanted)

    with (
        mock.patch.object(builtins, "__import__", guarded),
        mock.patch.object(selfcheck, "find", find),
    ):
        yield


def _main() -> None:
    file, _, _, module = sys.argv[1:5]
    root, path = json.loads(Path(file).read_text())
    # The folder of this file.
    del sys.path[0]
    del sys.argv[:4]
    if root == "table":
        selfcheck.COLUMNS = tuple(
            (needed_by, table, columns + (" gone" if table == path else ""))
            for needed_by, table, columns in selfcheck.COLUMNS
        )
    if root == "pydantic":
        selfcheck.pydantic.VERSION = path
    with hidden(root, path):
        runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _main()
