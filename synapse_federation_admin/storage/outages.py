# SPDX-License-Identifier: Apache-2.0
"""When each destination was failing."""

from enum import Enum

import attr


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
