# SPDX-License-Identifier: Apache-2.0
"""Knows which rows of Synapse's table `destinations` bear what is no server name.

Any user can have such rows written. No database can tell exactly what is a server name:
so it finds what may be none, which is little, and the names are looked at here. That is
a pass over the table. What a name is does not change, so that what was found serves for
ten times as long as it took to find it, if that is long at all.
"""

from contextlib import suppress

from synapse.module_api import LoggingTransaction

from synapse_federation_admin import limits
from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.homeserver.server_name import is_server_name

# What may be no server name: all that is none, and of what is one, names with a port
# and IPv6 addresses, and long ones. By whether it is PostgreSQL.
MAY_BE_INVALID = {
    True: "(destination ~ '[^0-9A-Za-z.-]|[.][.]|^[.]|[.]$' "
    "OR LENGTH(destination) > 63 OR destination = '')",
    False: "(destination GLOB '*[^0-9A-Za-z.-]*' OR destination GLOB '*..*' "
    "OR destination GLOB '.*' OR destination GLOB '*.' "
    "OR LENGTH(destination) > 63 OR destination = '')",
}

# A pass that takes less is made whenever somebody asks. After one that takes longer,
# the next is not made before so many times as long; how long it is waited for then.
_CHEAP_MS = 50
_REST_FACTOR = 10
_WAIT_MS = 150


class InvalidNames:
    """Knows the names of rows that are none of servers.

    Attributes:
        names: Those found last; at most `limits.INVALID_NAMES`.
    """

    def __init__(self, homeserver: Homeserver) -> None:
        self.names: tuple[str, ...] = ()
        self._homeserver = homeserver
        self._is_known = False
        # The times, in ms, at which no pass is made, as the last one was costly.
        self._rest = range(0)

    async def find(self) -> tuple[str, ...]:
        """Find them, unless it is too soon. Raises what the database raises."""
        if self._homeserver.now_ms() not in self._rest:
            # It goes on for those who ask later.
            with suppress(TimeoutError):
                await self._homeserver.single_flight.run(
                    "federation_admin_invalid_names",
                    (),
                    self._find,
                    timeout_ms=_WAIT_MS if self._is_known else None,
                )
        return self.names

    async def _find(self) -> None:
        which = MAY_BE_INVALID[self._homeserver.is_postgres]

        def find_txn(txn: LoggingTransaction) -> tuple[str, ...]:
            txn.execute(
                f"SELECT destination FROM destinations WHERE {which}"  # noqa: S608
            )
            found: list[str] = []
            while rows := txn.fetchmany(limits.INVALID_NAMES):
                found += [name for (name,) in rows if not is_server_name(name)]
                if len(found) >= limits.INVALID_NAMES:
                    break
            return tuple(found[: limits.INVALID_NAMES])

        began_ms = self._homeserver.now_ms()
        self.names = await self._homeserver.run_db_interaction(
            "federation_admin_invalid_names", find_txn
        )
        self._is_known = True
        ended_ms = self._homeserver.now_ms()
        took_ms = ended_ms - began_ms
        rest_ms = _REST_FACTOR * took_ms if took_ms >= _CHEAP_MS else 0
        self._rest = range(ended_ms, ended_ms + rest_ms)
