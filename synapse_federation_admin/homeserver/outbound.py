# SPDX-License-Identifier: Apache-2.0
"""The way out to other servers, each step by itself."""

from io import BytesIO
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from netaddr import IPAddress  # type: ignore[import-untyped]  # Synapse's
from synapse.http.client import read_body_with_max_size
from synapse.http.connectproxyclient import HTTPConnectProxyEndpoint
from synapse.http.federation.well_known_resolver import (
    WELL_KNOWN_DEFAULT_CACHE_PERIOD,
    WELL_KNOWN_GRACE_PERIOD_FACTOR,
    WELL_KNOWN_MAX_CACHE_PERIOD,
    WELL_KNOWN_MIN_CACHE_PERIOD,
    WellKnownLookupResult,
    _cache_period_from_headers,
)
from synapse.http.proxyagent import http_proxy_endpoint
from synapse.module_api import LoggingTransaction, make_deferred_yieldable
from twisted.internet.endpoints import (
    HostnameEndpoint,
    TCP4ClientEndpoint,
    TCP6ClientEndpoint,
    wrapClientTLS,
)
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.web.http_headers import Headers
from twisted.web.iweb import IResponse
from unpaddedbase64 import encode_base64

from synapse_federation_admin import limits
from synapse_federation_admin.homeserver.attempt import Attempt
from synapse_federation_admin.homeserver.federation import Federation
from synapse_federation_admin.homeserver.tls_policy import TlsObserver

if TYPE_CHECKING:
    from synapse_federation_admin.homeserver.database import Database


class Outbound(Federation):
    """The way from this process to other servers, each step by itself.

    As Synapse's federation client goes it (`synapse/http/federation/`), with the same
    settings, over bounded connections.
    """

    def __init__(self, homeserver: "Database", *, max_lifetime_s: float) -> None:
        """Make no connection yet: see `Network`."""
        super().__init__(homeserver, max_lifetime_s=max_lifetime_s)
        # Five threads at once would take every turn from the reactor, for 0.1 s.
        self._judging = Lock()

    def verifies(self, host: str) -> bool:
        """Tell whether Synapse verifies the certificate of a host."""
        return self.policy.get_options(host.encode())._verifier._verify_certs

    def can_be_host(self, host: str) -> bool:
        """Tell whether Synapse can connect to a host of this name, if there is one.

        Twisted is stricter than the DNS: of underscores, or hyphens at the ends.
        """
        endpoint = HostnameEndpoint(self._hs.get_reactor(), host, 443)
        return not endpoint._badHostname

    def is_blocked(self, address: str, *, as_server_name: bool = False) -> bool:
        """Tell whether Synapse's settings block an IP address for federation.

        That takes up to 50 microseconds, and hostile names have thousands.

        Args:
            address: The address.
            as_server_name: Whether it is a server name itself, or stands in a URL: for
                those Synapse does not look at `ip_range_whitelist`.
        """
        found = IPAddress(address.partition("%")[0])
        allowed = None if as_server_name else self._config.federation_ip_range_allowlist
        return found in self._config.federation_ip_range_blocklist and not (
            allowed and found in allowed
        )

    async def look_up(
        self, host: str, port: int, within_ms: int, *, as_server_name: bool
    ) -> dict[str, bool]:
        """Return the IP addresses of a host name, as the operating system finds them.

        Args:
            host: The name, or an address.
            port: The port there.
            within_ms: How long to wait.
            as_server_name: As in `is_blocked`.

        Returns:
            By address, whether Synapse blocks it.

        Raises:
            ObstacleError: There are none, or that is not known.
        """
        found = await make_deferred_yieldable(
            self.look_ups.addresses(host, port, within_ms / 1000)
        )
        addresses = dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found)

        def judged() -> dict[str, bool]:
            with self._judging:
                return {
                    address: self.is_blocked(address, as_server_name=as_server_name)
                    for address in addresses
                }

        return await make_deferred_yieldable(self.look_ups.in_thread(judged))

    def endpoint(
        self,
        address: str | None,
        host: str,
        port: int,
        *,
        name: str,
        observer: TlsObserver,
        timeout_s: float,
        attempt: Attempt,
    ) -> IStreamClientEndpoint:
        """Make an endpoint of TLS connections to an address.

        The handshake goes on if the certificate is bad, and `observer` is told.

        Args:
            address: The IP address. None: Synapse's proxy connects to `host`.
            host: The host.
            port: The port.
            name: The host name that the certificate has to be for.
            observer: Is told of the handshake.
            timeout_s: How long to try to connect.
            attempt: What connects, and is told what it meets.
        """
        policy = self._policy_of(attempt)
        # All that Synapse wants of a reactor, and more.
        reactor, proxy_side = cast(Any, attempt), cast(Any, attempt.proxy_side)
        if address is None:
            url = (self._config.proxy_config.https_proxy or "").encode()
            proxy, credentials = http_proxy_endpoint(url, proxy_side, policy)
            assert proxy is not None
            endpoint: IStreamClientEndpoint = HTTPConnectProxyEndpoint(
                reactor, proxy, host.encode(), port, credentials
            )
        else:
            to = TCP6ClientEndpoint if ":" in address else TCP4ClientEndpoint
            endpoint = to(reactor, address, port, timeout=timeout_s)
        return wrapClientTLS(policy.observed(name, observer), endpoint)

    def well_known_lifetime_ms(self, headers: Headers) -> int | None:
        """Tell how long Synapse caches a valid well-known file, by its headers.

        None: it stumbles over an empty date.
        """
        try:
            period_s = _cache_period_from_headers(
                headers, time_now=self._hs.get_reactor().seconds
            )
        except IndexError:
            return None
        if period_s is None:
            period_s = WELL_KNOWN_DEFAULT_CACHE_PERIOD
        else:
            period_s = min(period_s, WELL_KNOWN_MAX_CACHE_PERIOD)
            period_s = max(period_s, WELL_KNOWN_MIN_CACHE_PERIOD)
        return int(period_s * 1000)

    def cached_well_known(self, host: str) -> tuple[str | None, int, bool] | None:
        """Return what this process's federation client has cached of a well-known file.

        Returns:
            The delegated name, None for there being none; when that ends, in ms since
            the epoch; and whether it is used unasked. None: nothing is cached.
        """
        agent = self._hs.get_federation_http_client().agent
        resolver = getattr(getattr(agent, "_agent", None), "_well_known_resolver", None)
        if resolver is None:
            return None
        try:
            found, expires_s, ttl_s = resolver._well_known_cache.get_with_expiry(
                host.lower().encode()
            )
        except KeyError:
            return None
        left_s = expires_s - self._hs.get_clock().time()
        if left_s <= 0:
            return None
        # In the last part of the time it asks anew, and keeps to it if that fails.
        is_used = left_s > WELL_KNOWN_GRACE_PERIOD_FACTOR * ttl_s
        name = found.decode("ascii") if found else None
        return name, int(expires_s * 1000), is_used

    async def stored_keys(self, name: str) -> dict[str, str]:
        """Return the keys of a server that Synapse has stored.

        Returns:
            By key ID, such as `ed25519:a`, the key in unpadded base64; at most some
            hundred.
        """

        def stored_keys_txn(txn: LoggingTransaction) -> dict[str, str]:
            txn.execute(
                "SELECT key_id, verify_key FROM server_signature_keys "
                "WHERE server_name = ? ORDER BY ts_valid_until_ms DESC LIMIT ?",
                (name, limits.STORED_KEYS),
            )
            return {key_id: encode_base64(bytes(key)) for key_id, key in txn.fetchall()}

        return await self._homeserver.run_db_interaction(
            "federation_admin_stored_keys", stored_keys_txn
        )


Delegation: TypeAlias = WellKnownLookupResult


def delegation_to(name: str | None) -> Delegation:
    """Return that a well-known file delegates to a name; None: to nobody."""
    return WellKnownLookupResult(name.encode("ascii") if name else None)


async def read_body(response: IResponse, max_bytes: int) -> bytes:
    """Return the body of an answer.

    Raises:
        BodyExceededMaxSize: It is larger.
        Exception: It broke off.
    """
    stream = BytesIO()
    await make_deferred_yieldable(read_body_with_max_size(response, stream, max_bytes))
    return stream.getvalue()
