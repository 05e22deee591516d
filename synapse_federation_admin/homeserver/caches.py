# SPDX-License-Identifier: Apache-2.0
"""What this process keeps in memory of the way to a server.

That is what its well-known file delegates to, which Synapse keeps for a day and longer,
and its SRV records. Addresses it does not keep. A server's signing keys are in tables:
without them, nobody could check any more what it has signed, so they stay; one that is
not known is asked for anyway.
"""

from contextlib import suppress
from typing import TYPE_CHECKING

from synapse.http.federation.srv_resolver import SERVER_CACHE
from synapse.util.stringutils import parse_server_name

if TYPE_CHECKING:
    from synapse.server import HomeServer

_SERVICES = ("_matrix-fed._tcp", "_matrix._tcp")


def drop_way(hs: "HomeServer", name: str) -> None:
    """Forget the way to a server: the next request looks for it anew."""
    host = parse_server_name(name)[0].lower()
    hosts = [host]
    agent = hs.get_federation_http_client().agent
    # A process that does not go out itself has none.
    resolver = getattr(getattr(agent, "_agent", None), "_well_known_resolver", None)
    if resolver is not None:
        key = host.encode("ascii", "replace")
        resolver._had_valid_well_known_cache.pop(key, None)
        delegated = resolver._well_known_cache.pop(key, None)
        if delegated:
            # Synapse keeps what the file says, be it a server name or not.
            with suppress(ValueError):
                hosts.append(parse_server_name(delegated.decode("ascii"))[0].lower())
    for each in hosts:
        for service in _SERVICES:
            SERVER_CACHE.pop(f"{service}.{each}".encode(), None)
