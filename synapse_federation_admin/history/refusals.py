# SPDX-License-Identifier: Apache-2.0
"""How large requests were that servers refused as too large."""

import logging
from functools import partial

from twisted.internet.defer import CancelledError

from synapse_federation_admin import limits
from synapse_federation_admin.homeserver.newest import keep_newest
from synapse_federation_admin.storage import records
from synapse_federation_admin.storage.schema import Tables

logger = logging.getLogger(__name__)

# What is sent anew may lack some small part of what was refused: from this share of it
# on it is as large.
_AS_LARGE = 0.9


class Refusals:
    """Remembers them, until a server accepts a request that is as large."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._bytes: dict[str, int] = {}

    async def read(self) -> None:
        """Read what was refused before this start, if that can be read."""
        try:
            refused = await self._tables.run(
                "federation_admin_refusals",
                partial(records.refusals_txn, limit=limits.REFUSALS),
            )
        except CancelledError:
            raise
        except Exception as e:
            logger.warning("Cannot read which servers refuse large requests: %s", e)
        else:
            self._bytes = {**refused, **self._bytes}

    def refused(self, destination: str, size_bytes: int) -> None:
        """Take note that a request was refused."""
        keep_newest(self._bytes, destination, size_bytes, limits.REFUSALS)

    def disproved_bytes(self, destination: str, size_bytes: int) -> int:
        """Return what an accepted request disproves: it was refused at that size.

        Args:
            destination: The server.
            size_bytes: The size of the request.

        Returns:
            The larger of the two sizes; 0 if it disproves nothing.
        """
        refused_bytes = self._bytes.get(destination, 0)
        if not refused_bytes or size_bytes < _AS_LARGE * refused_bytes:
            return 0
        return max(size_bytes, refused_bytes)

    def forget(self, destination: str) -> None:
        """Forget what was refused."""
        self._bytes.pop(destination, None)
