# SPDX-License-Identifier: Apache-2.0
"""The versions of this module's own tables, and what leads from each to the next.

A new database gets what `synapse_federation_admin.storage.definitions` says, and one
with tables in it what is here. An upgrade may find its work done, in part or whole, and
tables missing.
"""

from collections.abc import Callable

import attr
from synapse.module_api import LoggingTransaction

from synapse_federation_admin.homeserver.database import on_postgres
from synapse_federation_admin.storage.definitions import PREFIX

Upgrade = Callable[[LoggingTransaction], None]


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Version:
    """A version of the tables.

    Attributes:
        number: One more than that of the version before.
        compat: The oldest version of the code that may still use the tables, as
            Synapse's `SCHEMA_COMPAT_VERSION`: what it writes does no harm, and what it
            reads it finds.
        upgrade: What leads here from the version before; None: nothing but what new
            tables and indexes there are.
    """

    number: int
    compat: int
    upgrade: Upgrade | None = None


def add_column(
    txn: LoggingTransaction, table: str, column: str, definition: str
) -> None:
    """Add a column to a table.

    Args:
        txn: The transaction.
        table: The table, without its prefix.
        column: The name of the column.
        definition: Its type and its constraints; for rows that are there, a default.
    """
    txn.execute(
        "SELECT column_name FROM information_schema.columns "
        "WHERE table_schema = ANY (current_schemas(false)) AND table_name = ?"
        if on_postgres(txn)
        else "SELECT name FROM pragma_table_info(?)",
        (PREFIX + table,),
    )
    columns = {name for (name,) in txn.fetchall()}
    if columns and column not in columns:
        txn.execute(f"ALTER TABLE {PREFIX}{table} ADD COLUMN {column} {definition}")


def _to_version_4(txn: LoggingTransaction) -> None:
    add_column(txn, "outages", "up_ms", "BIGINT NOT NULL DEFAULT 0")
    txn.execute("DROP INDEX IF EXISTS federation_admin_outages_reset")


def _to_version_5(txn: LoggingTransaction) -> None:
    add_column(txn, "successes", "first_ts", "BIGINT")
    add_column(txn, "successes", "owner", "TEXT")


def _to_version_6(txn: LoggingTransaction) -> None:
    add_column(txn, "failures", "refused_bytes", "BIGINT")


# The last is that of this code. What has been released is not changed any more. Nothing
# leads here from before the first of them: what is earlier is made anew.
VERSIONS: tuple[Version, ...] = (
    Version(3, compat=3),
    Version(4, compat=3, upgrade=_to_version_4),
    Version(5, compat=3, upgrade=_to_version_5),
    Version(6, compat=3, upgrade=_to_version_6),
)
