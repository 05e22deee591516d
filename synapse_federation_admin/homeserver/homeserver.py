# SPDX-License-Identifier: Apache-2.0
"""What the rest of the module needs of the Synapse process that it is loaded into."""

import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, cast

from synapse.module_api import JsonDict

from synapse_federation_admin import limits
from synapse_federation_admin.homeserver.background import Background
from synapse_federation_admin.homeserver.server_name import is_server_name

if TYPE_CHECKING:
    from synapse.federation.sender import FederationSender

    from synapse_federation_admin.homeserver.federation import Federation
    from synapse_federation_admin.homeserver.retry_timings import RetryTimings
    from synapse_federation_admin.homeserver.traffic import TrafficObserver
    from synapse_federation_admin.homeserver.transactions import Transactions

logger = logging.getLogger(__name__)


class InMemory(NamedTuple):
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


class Homeserver(Background):
    """The Synapse process that this module is loaded into.

    What everything needs of it are methods: `process`, `database` and `background`
    have them. What only some features need are parts, made when they are
    first used: if Synapse has no longer what a part is made of, the others stay.
    """

    @cached_property
    def retry_timings(self) -> "RetryTimings":
        """What Synapse's store keeps of failing destinations."""
        from synapse_federation_admin.homeserver.retry_timings import RetryTimings

        return RetryTimings(self._hs)

    @cached_property
    def federation(self) -> "Federation":
        """Requests to other servers."""
        from synapse_federation_admin.homeserver.federation import Federation

        return Federation(self)

    @cached_property
    def transactions(self) -> "Transactions":
        """What this process's federation sender sends, watched from now on."""
        from synapse_federation_admin.homeserver.transactions import Transactions

        return Transactions(self._hs)

    def own_v1(
        self, method: str, path: str
    ) -> Callable[..., Awaitable[tuple[int, JsonDict]]]:
        """Return what answers a route of v1 in Synapse itself, with its own checks."""
        from synapse_federation_admin.homeserver.admin_resource import own_v1

        return own_v1(self._hs, method, path)

    def drop_way(self, name: str) -> None:
        """Forget what this process keeps in memory of the way to a server.

        That is what its well-known file delegates to, which Synapse keeps for a day and
        longer, and its SRV records. Addresses it does not keep. A server's signing keys
        are in tables: without them, nobody could check any more what it has signed, so
        they stay; one that is not known is asked for anyway.
        """
        from synapse.http.federation.srv_resolver import SERVER_CACHE
        from synapse.util.stringutils import parse_server_name

        if not is_server_name(name):
            return
        host = parse_server_name(name)[0].lower()
        hosts = [host]
        agent = self._hs.get_federation_http_client().agent
        # A process that does not go out itself has none.
        resolver = getattr(getattr(agent, "_agent", None), "_well_known_resolver", None)
        if resolver is not None:
            key = host.encode("ascii", "replace")
            resolver._had_valid_well_known_cache.pop(key, None)
            delegated = resolver._well_known_cache.pop(key, None)
            if delegated:
                # Synapse keeps what the file says, be it a server name or not.
                with suppress(ValueError):
                    hosts.append(
                        parse_server_name(delegated.decode("ascii"))[0].lower()
                    )
        for each in hosts:
            for service in ("_matrix-fed._tcp", "_matrix._tcp"):
                SERVER_CACHE.pop(f"{service}.{each}".encode(), None)

    def observe_traffic(self, observer: "TrafficObserver") -> None:
        """Have an observer told of this process's federation requests, from now on."""
        from synapse_federation_admin.homeserver.traffic import observe

        observe(self._hs, observer)

    def learn_causes(self, describe: Callable[[BaseException], str]) -> None:
        """Have the observer of traffic told what stops requests; else it is logged.

        Args:
            describe: Says for another process of this homeserver what has stopped one.
        """
        try:
            self.federation.observe(describe)
        except Exception as e:
            logger.warning(
                "Cannot tell what stops federation requests: failures are recorded as "
                "Synapse tells of them, and many alike (%s: %s)",
                type(e).__name__,
                e,
            )

    # -- the federation sender of this process, if it has one --------------------------

    @property
    def sends(self) -> bool:
        """Whether this process sends, to all destinations or to a share of them."""
        return self._hs.should_send_federation()

    async def in_memory(self) -> InMemory:
        """Return what its sender has in memory; nothing if this process does not send.

        Others go on meanwhile: there may be a queue for each destination.
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
                await self.sleep_ms(0)
        return InMemory(under_way, pdus, edus, oldest_ts)

    def look_for_events(self) -> None:
        """Have its sender queue what was stored while no process sent.

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
