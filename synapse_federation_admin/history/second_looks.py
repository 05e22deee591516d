# SPDX-License-Identifier: Apache-2.0
"""Looks twice at failures of real requests, where that tells more of them.

Not too many at once, and not at the same one again for an hour.
"""

from collections.abc import Callable

from synapse_federation_admin import limits
from synapse_federation_admin.failures.kinds import Failure
from synapse_federation_admin.failures.second_look import may_be_more, second_look
from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.homeserver.newest import keep_newest

# How long a server has to answer a second look, how long no other is made in its place
# afterwards, and how long what it finds holds.
_LOOK_MS = 10_000
_LOOK_REST_MS = 1000
_LOOK_AGAIN_MS = 3_600_000

# Takes a destination, what failed at first, and what that really is.
TakeFound = Callable[[str, Failure, Failure], None]


class SecondLooks:
    """What second looks at failures find out."""

    def __init__(self, homeserver: Homeserver, take_found: TakeFound) -> None:
        """Look at nothing yet.

        Args:
            homeserver: Asks servers, and the DNS.
            take_found: Is told what is more than was known before.
        """
        self._homeserver = homeserver
        self._take_found = take_found
        # Those at which a look is made.
        self._looking: set[str] = set()
        # By destination and kind, what more was found, if anything, and when.
        self._looked: dict[tuple[str, str], tuple[Failure | None, int]] = {}

    def better(self, destination: str, failure: Failure) -> Failure:
        """Return a failure, or what a second look at it has found.

        If there was none it is made, if not too many are: what it finds counts from
        then on.
        """
        if not may_be_more(failure):
            return failure
        known = self._looked.get((destination, failure.kind.value))
        now_ts = self._homeserver.now_ms()
        if known is not None and 0 <= now_ts - known[1] < _LOOK_AGAIN_MS:
            return known[0] or failure
        if (
            len(self._looking) < limits.SECOND_LOOKS
            and destination not in self._looking
        ):
            self._looking.add(destination)
            self._homeserver.run_in_background(
                "federation_admin_second_look", self._look, destination, failure
            )
        return failure

    async def _look(self, destination: str, failure: Failure) -> None:
        try:
            found = await second_look(
                self._homeserver, destination, failure, timeout_ms=_LOOK_MS
            )
            is_more = found != failure
            looked = found if is_more else None, self._homeserver.now_ms()
            key = (destination, failure.kind.value)
            keep_newest(self._looked, key, looked, limits.LOOKED_AT)
            if is_more:
                self._take_found(destination, failure, found)
            # Where thousands of requests fail at once, few are looked at.
            await self._homeserver.sleep_ms(_LOOK_REST_MS)
        finally:
            self._looking.discard(destination)
