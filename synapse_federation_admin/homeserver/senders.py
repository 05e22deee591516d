# SPDX-License-Identifier: Apache-2.0
"""Whether this process sends to other servers, and how far it is with that."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, cast

import attr

from synapse_federation_admin import limits

if TYPE_CHECKING:
    from synapse.federation.sender import FederationSender
    from synapse.server import HomeServer


@attr.s(slots=True, frozen=True, auto_attribs=True)
class InMemory:
    """What a process that sends has in memory.

    Attributes:
        destinations: To how many destinations a transmission is under way.
        pdus: How many PDUs are queued, for all destinations together.
        edus: How many EDUs are.
        oldest_ts: When the oldest of those PDUs was made; None if none is queued.
    """

    destinations: int = 0
    pdus: int = 0
    edus: int = 0
    oldest_ts: int | None = None


class OwnSender:
    """The federation sender of this process, if it has one."""

    def __init__(self, hs: "HomeServer") -> None:
        self._hs = hs

    @property
    def sends(self) -> bool:
        """Whether this process sends, to all destinations or to a share of them."""
        return self._hs.should_send_federation()

    async def in_memory(self, sleep_ms: Callable[[int], Awaitable[None]]) -> InMemory:
        """Return what it has in memory; nothing if this process does not send.

        Args:
            sleep_ms: Lets others go on: there may be a queue for each destination.
        """
        if not self.sends:
            return InMemory()
        sender = cast("FederationSender", self._hs.get_federation_sender())
        under_way = pdus = edus = 0
        oldest_ts: int | None = None
        queues = list(sender._per_destination_queues.values())
        for number, queue in enumerate(queues, start=1):
            under_way += queue.transmission_loop_running
            edus += queue.pending_edu_count()
            if waiting := queue._pending_pdus:
                pdus += len(waiting)
                # In older releases it is a list.
                events = waiting.values() if isinstance(waiting, dict) else waiting
                made_ts = next(iter(events)).origin_server_ts
                oldest_ts = min(oldest_ts or made_ts, made_ts)
            if number % limits.QUEUES_COUNTED == 0:
                await sleep_ms(0)
        return InMemory(under_way, pdus, edus, oldest_ts)

    def look_for_events(self) -> None:
        """Have it queue what was stored while no process sent.

        Synapse does so with the next event only, which on a quiet homeserver may be
        hours away.
        """
        if not self.sends:
            return
        sender = cast("FederationSender", self._hs.get_federation_sender())
        newest = self._hs.get_datastores().main.get_room_max_token()
        if getattr(sender, "_last_poked_id", newest.stream) < newest.stream:
            sender.notify_new_events(newest)

    @property
    def newest_position(self) -> int:
        """Up to which stream ordering all events are stored, as this process knows."""
        return self._hs.get_datastores().main.get_room_max_stream_ordering()
