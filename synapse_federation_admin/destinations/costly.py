# SPDX-License-Identifier: Apache-2.0
"""What may take long to read: read when somebody asks, and not too often."""

from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from synapse_federation_admin.homeserver.homeserver import Homeserver

T = TypeVar("T")

# How long who asks waits for what is read anew; not at all, if there is something and
# reading it took longer.
_WAIT_MS = 150

# Reading what takes less is always worth it. After what takes longer, the next is not
# begun before so many times as long; or, where that is awaited, when it is so old.
_CHEAP_MS = 50
_REST_FACTOR = 10
_MOST_MS = 10_000


class Costly(Generic[T]):
    """Something that may take long to read.

    It is read once for all who ask at the same time. Where that takes long, they get
    what was read before, and it is read to the end for those who ask later.

    Attributes:
        latest: What was read last; None while nothing is known yet.
    """

    def __init__(
        self,
        homeserver: Homeserver,
        desc: str,
        read: Callable[[], Awaitable[T]],
        *,
        keep_ms: int = 0,
        waits_for_first: bool = False,
        waits_always: bool = False,
    ) -> None:
        """Read nothing yet.

        Args:
            homeserver: The homeserver.
            desc: Its name in metrics, and what tells it from others.
            read: Reads it.
            keep_ms: For how long at least it is not read anew.
            waits_for_first: Whether who asks waits as long as it takes while nothing is
                known.
            waits_always: Whether they do at any time; what they get is 10 s old at
                most.
        """
        self.latest: T | None = None
        self._homeserver = homeserver
        self._desc = desc
        self._read = read
        self._keep_ms = keep_ms
        self._waits_for_first = waits_for_first or waits_always
        self._waits_always = waits_always
        # The times, in ms, at which it is not read, as the last reading was costly.
        self._rest = range(0)
        self._took_ms = 0
        self._changes = 0

    @property
    def _rests(self) -> bool:
        is_missed = self._waits_for_first and self.latest is None
        return not is_missed and self._homeserver.now_ms() in self._rest

    def forget(self) -> None:
        """Read it anew for who asks next, as this process has just changed it."""
        self._changes += 1
        self._rest = range(0)

    async def get(self) -> T | None:
        """Return the newest that there is. Raises what `read` raises."""
        if self._rests:
            return self.latest
        timeout_ms: int | None = _WAIT_MS
        if self._waits_always or (self._waits_for_first and self.latest is None):
            timeout_ms = None
        elif self.latest is not None and self._took_ms > _WAIT_MS:
            timeout_ms = 0
        try:
            return await self._homeserver.single_flight.run(
                self._desc,
                Costly,
                self._refresh,
                timeout_ms=timeout_ms,
            )
        except TimeoutError:
            return self.latest

    async def _refresh(self) -> T | None:
        """Read it, unless that was just done; return the newest that there is."""
        if self._rests:
            return self.latest
        began_ms, changes = self._homeserver.now_ms(), self._changes
        if self._waits_always:
            # If this fails, what was read before is not told in its stead.
            self.latest = None
        try:
            self.latest = await self._read()
        finally:
            ended_ms = self._homeserver.now_ms()
            took_ms = self._took_ms = ended_ms - began_ms
            rest_ms = _REST_FACTOR * took_ms if took_ms >= _CHEAP_MS else 0
            if self._waits_always and took_ms >= _CHEAP_MS:
                rest_ms = _MOST_MS - took_ms
            # What was changed meanwhile may not be in it.
            if changes == self._changes:
                self._rest = range(ended_ms, ended_ms + max(rest_ms, self._keep_ms))
        return self.latest
