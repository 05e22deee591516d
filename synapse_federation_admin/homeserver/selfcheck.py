# SPDX-License-Identifier: Apache-2.0
"""Looks at start whether Synapse still has what this module relies on.

What is missing switches off just the features that need it. Nothing is imported from
Synapse here that is not public.
"""

import inspect
import logging
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pydantic
from synapse.module_api import LoggingTransaction, ModuleApi
from twisted.internet.defer import CancelledError

from synapse_federation_admin.homeserver.features import Feature, Features
from synapse_federation_admin.homeserver.relied_on import (
    COLUMNS,
    LOG_TEXTS,
    LOG_TEXTS_ARE_FOR,
    NAMES,
)

if TYPE_CHECKING:
    from synapse_federation_admin.homeserver.homeserver import Homeserver

logger = logging.getLogger(__name__)

# A step of a path: `name`, `name()` or `name(inside)`.
_STEP = re.compile(r"(\w+)((?:\(\w*\))?)")

# How soon to look for the tables again if the database is away.
_AGAIN_MS = 10_000


def check_names(api: ModuleApi, features: Features) -> None:
    """Look for names and log texts; switch off what needs one that is not there."""
    hs = getattr(api, "_hs", None)
    if hs is None:
        features.switch_off(Feature.MOUNT, "ModuleApi has no _hs")
        return
    for needed_by, root, path in names():
        # Whatever goes wrong in between: it is not there.
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
    """Yield each name that is relied on: the features, the root, the path from it."""
    for needed_by, text in NAMES:
        root = ""
        for word in text.split():
            if word.endswith(":"):
                root = word[:-1]
            else:
                yield tuple(needed_by), root, word


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
        elif inside:
            _require_name(found, inside[1:-1])


def _require_name(function: Any, name: str) -> None:
    """Raise if a function has no parameter of a name, and uses none within."""
    code = getattr(function, "__code__", None)
    if name not in inspect.signature(function).parameters and (
        code is None or name not in code.co_names
    ):
        raise AttributeError(f"no {name} in {function.__qualname__}")


def says(module: str, text: str, args: str) -> bool:
    """Tell whether a module of Synapse's logs a text with some arguments.

    Where Synapse was installed without its sources, it is believed.
    """
    try:
        file = Path(str(import_module(module).__file__))
        source = file.read_text(encoding="utf-8", errors="replace")
    except ImportError:
        return False
    except OSError:
        return True
    then = "".join(rf",\s*{re.escape(arg)}" for arg in args.split(", "))
    call = re.escape(f'"{text}"') + then + r",?\s*\)"
    return re.search(call, source) is not None


async def check_columns(homeserver: "Homeserver", features: Features) -> None:
    """Look for Synapse's tables and columns, once the database can be used."""
    tables = [table for _, table, _ in COLUMNS]

    def columns_txn(txn: LoggingTransaction) -> dict[str, set[str]]:
        if not homeserver.is_postgres:
            found = {}
            for table in tables:
                txn.execute(f"PRAGMA table_info({table})")
                found[table] = {row[1] for row in txn.fetchall()}
            return found
        txn.execute(
            "SELECT table_name, ARRAY_AGG(column_name::text) "
            "FROM information_schema.columns WHERE table_name = ANY(?) "
            "AND table_schema = ANY(current_schemas(false)) GROUP BY table_name",
            (tables,),
        )
        return {table: set(columns) for table, columns in txn.fetchall()}

    while True:
        try:
            found = await homeserver.run_db_interaction(
                "federation_admin_selfcheck", columns_txn
            )
            break
        except CancelledError:
            # Synapse is shutting down.
            raise
        except Exception as e:
            if not homeserver.is_database_away(e):
                logger.exception("Cannot look for Synapse's tables: believed")
                return
            logger.warning("Cannot look for Synapse's tables yet: %s", e)
            await homeserver.sleep_ms(_AGAIN_MS)
    for needed_by, table, columns in COLUMNS:
        missing = set(columns.split()) - found.get(table, set())
        if missing:
            reason = f"Synapse's table {table} has no {', '.join(sorted(missing))}"
            for feature in needed_by:
                features.switch_off(feature, reason)
