# SPDX-License-Identifier: Apache-2.0
"""When each destination was failing."""

from collections.abc import Collection
from enum import Enum

import attr

from synapse_federation_admin.failures.kinds import UNKNOWN_KIND
from synapse_federation_admin.storage.sql import Sql


class OutageEnd(Enum):
    """How an outage ended."""

    # A request of Synapse's own got through, or the server has sent us one.
    RECOVERED = "recovered"

    # Somebody reset the connection, or reconnected it.
    RESET = "reset"

    # Synapse's row for the destination was deleted.
    FORGOTTEN = "forgotten"


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Outage:
    """A time for which a destination was failing.

    Attributes:
        start_ts: When it began.
        end_ts: When it ended; None while it lasts.
        ended: How; None while it lasts.
        kinds: The kinds of failures seen in it.
    """

    start_ts: int
    end_ts: int | None
    ended: OutageEnd | None
    kinds: tuple[str, ...]


def fails_for(kinds: Collection[str]) -> Sql:
    """Return the condition that a row of `destinations` fails for one of some reasons.

    The reason is that of its open outage.

    Args:
        kinds: The reasons. `unknown` is for a row that has no known one.
    """
    outage = (
        "SELECT 1 FROM federation_admin_outages AS o "
        "WHERE o.destination = destinations.destination AND o.end_ts IS NULL AND"
    )
    known = sorted(set(kinds) - {UNKNOWN_KIND})
    kept = []
    if known:
        marks = ", ".join("?" * len(known))
        kept.append(f"EXISTS ({outage} o.last_kind IN ({marks}))")
    if UNKNOWN_KIND in kinds:
        kept.append(f"NOT EXISTS ({outage} o.last_kind IS NOT NULL)")
    return Sql(f"({' OR '.join(kept)})", tuple(known))
