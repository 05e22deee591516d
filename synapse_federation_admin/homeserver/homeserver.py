# SPDX-License-Identifier: Apache-2.0
"""What the rest of the module needs of the Synapse process that it is loaded into."""

import logging
from collections.abc import Awaitable, Callable
from functools import cached_property
from typing import TYPE_CHECKING

from synapse.module_api import JsonDict

from synapse_federation_admin.homeserver.background import Background
from synapse_federation_admin.homeserver.server_name import is_server_name

if TYPE_CHECKING:
    from synapse_federation_admin.homeserver.federation import Federation
    from synapse_federation_admin.homeserver.retry_timings import RetryTimings
    from synapse_federation_admin.homeserver.senders import OwnSender
    from synapse_federation_admin.homeserver.traffic import TrafficObserver
    from synapse_federation_admin.homeserver.transactions import Transactions

logger = logging.getLogger(__name__)


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

        return Federation(self._hs, lambda: self.is_shutting_down)

    async def contact(
        self,
        destination: str,
        *,
        timeout_ms: int,
        ignore_backoff: bool,
        is_ours: Callable[[Exception], bool],
    ) -> None:
        """Send a destination an empty transaction, as real traffic is sent.

        Whitelist, IP blocklist, proxy, `outbound_federation_restricted_to`,
        certificates, signature and the retry limiter are Synapse's; only the connection
        is bounded. The limiter puts a destination that does not take it into backoff,
        and takes one that does out of it, as after a transaction of a sender's.

        Args:
            destination: The server name.
            timeout_ms: How long it has to answer.
            ignore_backoff: Ask even if it is in backoff; a failure then leaves the
                retry timings as they are.
            is_ours: Tells whether it failed by our own fault; the retry timings are
                then left as they are, too.

        Raises:
            Exception: Whatever Synapse's client raises.
        """
        from synapse_federation_admin.homeserver.limiter import contact

        await contact(
            self._hs,
            self.federation,
            destination,
            timeout_ms=timeout_ms,
            ignore_backoff=ignore_backoff,
            is_ours=is_ours,
        )

    @cached_property
    def own_sender(self) -> "OwnSender":
        """The federation sender of this process, if it has one."""
        from synapse_federation_admin.homeserver.senders import OwnSender

        return OwnSender(self._hs)

    @cached_property
    def transactions(self) -> "Transactions":
        """What this process's federation sender sends, watched from now on."""
        from synapse_federation_admin.homeserver.transactions import Transactions

        return Transactions(self._hs)

    def own_v1(
        self, method: str, path: str
    ) -> Callable[..., Awaitable[tuple[int, JsonDict]]]:
        """Return what answers a route of v1 in Synapse itself, with its own checks."""
        from synapse_federation_admin.homeserver.servlets import own_v1

        return own_v1(self._hs, method, path)

    def drop_way(self, name: str) -> None:
        """Forget what this process keeps in memory of the way to a server."""
        from synapse_federation_admin.homeserver.caches import drop_way

        if is_server_name(name):
            drop_way(self._hs, name)

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
