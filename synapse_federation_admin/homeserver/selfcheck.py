# SPDX-License-Identifier: Apache-2.0
"""Looks at start whether Synapse still has what this module relies on.

What is missing switches off just the features that need it. Nothing is imported from
Synapse here that is not public.
"""

import inspect
import logging
import re
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pydantic
from synapse.module_api import LoggingTransaction, ModuleApi
from twisted.internet.defer import CancelledError

from synapse_federation_admin.homeserver.features import Feature, Features
from synapse_federation_admin.homeserver.relied_on import (
    AWAITED,
    COLUMNS,
    FILES,
    LOG_TEXTS,
    LOG_TEXTS_ARE_FOR,
    NAMES,
)

if TYPE_CHECKING:
    from synapse_federation_admin.homeserver.homeserver import Homeserver

# A path, which may have spaces in brackets; and a step of it: `name`, `name()` or
# `name(inside)`.
_PATH = re.compile(r"(?:[^\s(]|\([^)]*\))+")
_STEP = re.compile(r"(\w+)((?:\([^)]*\))?)")


def check_names(api: ModuleApi, features: Features) -> None:
    """Look for names and log texts; switch off what needs one that is not there."""
    hs = getattr(api, "_hs", None)
    if hs is None:
        features.switch_off(Feature.MOUNT, "ModuleApi has no _hs")
        return
    # Whatever goes wrong in between: it is not there.
    for needed_by, files in FILES:
        for file in files.split():
            try:
                import_module(f"synapse_federation_admin.homeserver.{file}")
            except Exception as e:
                for feature in needed_by:
                    features.switch_off(feature, f"Synapse is not as expected: {e}")
    for needed_by, root, path in names():
        try:
            find(hs if root == "hs" else import_module(root), path)
        except Exception as e:
            reason = f"Synapse has no {root}.{path} ({type(e).__name__}: {e})"
            for feature in needed_by:
                features.switch_off(feature, reason)
    for text, (module, args) in LOG_TEXTS.items():
        if not says(module, text, args):
            for feature in LOG_TEXTS_ARE_FOR:
                features.switch_off(feature, f"{module} does not log {text!r}")
    if not pydantic.VERSION.startswith("2."):
        features.switch_off(
            Feature.V2, f"it needs pydantic 2, and this is {pydantic.VERSION}"
        )


def names() -> Iterator[tuple[tuple[Feature, ...], str, str]]:
    """Yield each name that is listed: the features, the root, the path from it."""
    for needed_by, text in NAMES:
        root = ""
        for path in _PATH.findall(text):
            if path.endswith(":"):
                root = path[:-1]
            else:
                yield (
                    tuple(needed_by),
                    root,
                    " ".join(path.split()).replace("(* ", "(*"),
                )


def find(found: Any, path: str) -> None:
    """Go a path of attributes from an object.

    Raises:
        Exception: Something is not there.
    """
    for name, inside in _STEP.findall(path):
        if inspect.isclass(found) and not hasattr(found, name):
            # An attribute of its objects, which get it when they are made.
            _require_name(found.__init__, name)
            return
        found = getattr(found, name)
        if inside == "()":
            found = found()
        elif inside.startswith("(*"):
            inspect.signature(found).bind(**dict.fromkeys(inside[2:-1].split()))
        elif inside:
            _require_name(found, inside[1:-1])
    _require_awaited(name, found)


def _require_awaited(name: str, found: Any) -> None:
    """Raise if what a path ends with is awaited here, and is none to be; or otherwise.

    A function that became a coroutine would do nothing, and say nothing of it.
    """
    # Synapse's decorators hide it: behind those of caches there is one.
    layers = (found, inspect.unwrap(found))
    is_coroutine = any(map(inspect.iscoroutinefunction, layers))
    is_awaited = name in AWAITED.split()
    if is_coroutine and not is_awaited:
        raise TypeError(f"{name} has to be awaited")
    if is_awaited and not is_coroutine:
        returned = str(inspect.signature(found).return_annotation)
        if "Awaitable" not in returned and "Deferred" not in returned:
            raise TypeError(f"{name} cannot be awaited")


def _require_name(function: Any, name: str) -> None:
    """Raise if a function has no parameter of a name, and uses none within."""
    code = getattr(function, "__code__", None)
    if name not in inspect.signature(function).parameters and (
        code is None or name not in code.co_names
    ):
        raise AttributeError(f"no {name} in {function.__qualname__}")


def says(module: str, text: str, args: str) -> bool:
    """Tell whether a module of Synapse's logs a text with some arguments.

    By the logger of its own name, at level INFO or DEBUG. Where Synapse was installed
    without its sources, it is believed.
    """
    try:
        found = import_module(module)
        if getattr(found, "logger", None) is not logging.getLogger(module):
            return False
        file = Path(str(found.__file__))
        source = file.read_text(encoding="utf-8", errors="replace")
    except ImportError:
        return False
    except OSError:
        return True
    then = "".join(rf",\s*{re.escape(arg)}" for arg in args.split(", "))
    quoted = re.escape(f'"{text}"')
    call = rf"\blogger\.(?:info|debug)\(\s*{quoted}{then},?\s*\)"
    return re.search(call, source) is not None


async def check_columns(homeserver: "Homeserver", features: Features) -> None:
    """Read no row of Synapse's tables, but each column; switch off what needs others.

    While the database is away, that waits.
    """
    for needed_by, table, columns in COLUMNS:
        select = f"SELECT {', '.join(columns.split())} FROM {table} LIMIT 0"  # noqa: S608

        def select_txn(txn: LoggingTransaction, select: str = select) -> None:
            txn.execute(select)

        look = partial(
            homeserver.run_db_interaction, "federation_admin_selfcheck", select_txn
        )
        try:
            await homeserver.await_database(look)
        except CancelledError:
            # Synapse is shutting down.
            raise
        except Exception as e:
            said = str(e).partition("\n")[0]
            for feature in needed_by:
                features.switch_off(feature, f"Synapse's table {table}: {said}")
