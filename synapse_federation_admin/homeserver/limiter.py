# SPDX-License-Identifier: Apache-2.0
"""Contacts of which Synapse's retry limiter is to know."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from synapse.util.retryutils import get_retry_limiter
from twisted.internet.defer import CancelledError

if TYPE_CHECKING:
    from synapse.server import HomeServer

    from synapse_federation_admin.homeserver.federation import Federation


async def contact(
    hs: "HomeServer",
    federation: "Federation",
    destination: str,
    *,
    timeout_ms: int,
    ignore_backoff: bool,
    is_ours: Callable[[Exception], bool],
) -> None:
    """Send a destination an empty transaction: see `Homeserver.contact`."""
    limiter = await get_retry_limiter(
        destination=destination,
        our_server_name=hs.hostname,
        hs=hs,
        clock=hs.get_clock(),
        store=hs.get_datastores().main,
        ignore_backoff=ignore_backoff,
        notifier=hs.get_notifier(),
        replication_client=hs.get_replication_command_handler(),
        backoff_on_all_error_codes=True,
    )
    with limiter:
        try:
            await federation.probe(destination, timeout_ms=timeout_ms)
        except Exception as e:
            # Synapse is shutting down, or it is ours.
            if isinstance(e, CancelledError) or is_ours(e):
                limiter.backoff_on_failure = False
            raise
