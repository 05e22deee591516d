# SPDX-License-Identifier: Apache-2.0
"""The way out to other servers, each step by itself."""

from copy import copy
from io import BytesIO
from ipaddress import ip_address
from socket import AF_UNSPEC, SOCK_STREAM, getaddrinfo
from typing import TYPE_CHECKING, Protocol, cast
from urllib.request import (  # type: ignore[attr-defined]  # not documented, but old
    proxy_bypass_environment,
)

from OpenSSL import SSL
from synapse.config.homeserver import HomeServerConfig
from synapse.crypto.context_factory import (
    ConnectionVerifier,
    FederationPolicyForHTTPS,
    SSLClientConnectionCreator,
)
from synapse.http.client import (
    read_body_with_max_size,
)
from synapse.http.connectproxyclient import HTTPConnectProxyEndpoint
from synapse.http.federation.srv_resolver import SERVER_CACHE
from synapse.http.federation.well_known_resolver import (
    WELL_KNOWN_DEFAULT_CACHE_PERIOD,
    WELL_KNOWN_GRACE_PERIOD_FACTOR,
    WELL_KNOWN_MAX_CACHE_PERIOD,
    WELL_KNOWN_MAX_SIZE,
    WELL_KNOWN_MIN_CACHE_PERIOD,
    WellKnownLookupResult,
    WellKnownResolver,
    _cache_period_from_headers,
)
from synapse.http.matrixfederationclient import MatrixFederationHttpClient
from synapse.http.proxyagent import http_proxy_endpoint
from synapse.logging.context import (
    defer_to_threadpool,
)
from synapse.module_api import (
    JsonDict,
    LoggingTransaction,
    make_deferred_yieldable,
)
from twisted.internet.endpoints import (
    TCP4ClientEndpoint,
    TCP6ClientEndpoint,
    wrapClientTLS,
)
from twisted.internet.interfaces import (
    IStreamClientEndpoint,
)
from twisted.python.failure import Failure
from twisted.web.http_headers import Headers
from twisted.web.iweb import IResponse
from unpaddedbase64 import encode_base64

from synapse_federation_admin.homeserver.address_ranges import AddressRanges
from synapse_federation_admin.homeserver.certificates import (
    UntrustedCertificateError,
)
from synapse_federation_admin.homeserver.instances import outbound_instances
from synapse_federation_admin.homeserver.network import Network, NoTimings

if TYPE_CHECKING:
    from synapse.server import HomeServer
    from synapse.storage import DataStore

# Look-ups of names under way at once.
_THREADS = 64

# How much later Synapse's client gives up than its connections do.
_GRACE_MS = 50

# How many stored keys of one server are looked at.
_MAX_STORED_KEYS = 200


class TlsObserver(Protocol):
    """Is told what happens in a TLS handshake."""

    def begun(self) -> None:
        """It begins: the connection is there."""

    def failed(self, error: UntrustedCertificateError) -> None:
        """OpenSSL does not trust the chain; may be told more than once."""

    def completed(self, connection: SSL.Connection) -> Exception | None:
        """It is completed, but for what an error is returned for.

        Args:
            connection: Shows certificates, version and cipher.
        """


class Outbound:
    """The way from this process to other servers, each step by itself.

    As Synapse's federation client goes it (`synapse/http/federation/`), with the same
    settings, over bounded connections.
    """

    # The size up to which Synapse reads a well-known file.
    well_known_max_bytes = WELL_KNOWN_MAX_SIZE

    def __init__(self, hs: "HomeServer", max_lifetime_s: float) -> None:
        self._hs = hs
        self._config = hs.config.server
        self._network = Network(hs, threads=_THREADS, max_lifetime_s=max_lifetime_s)
        self._blocked = AddressRanges(self._config.federation_ip_range_blocklist)
        self._allowed = AddressRanges(self._config.federation_ip_range_allowlist)
        self._observing = _ObservingPolicy(hs.config)
        self.web_agent = self._network.web_agent
        self.user_agent = self._network.user_agent
        proxies = self._config.proxy_config
        self._proxy, self._proxy_credentials = http_proxy_endpoint(
            proxies.https_proxy.encode() if proxies and proxies.https_proxy else None,
            self._network.reactor,
            self._network.policy,
        )
        self._client = self._network.client(self._network.well_known_resolver())
        self._client._store = cast("DataStore", NoTimings(hs))
        self._client.max_short_retries = 0

    @property
    def instances(self) -> list[str] | None:
        """The processes that go out to other servers in this one's stead.

        None if this one goes itself (`outbound_federation_restricted_to`).
        """
        return outbound_instances(self._hs)

    @property
    def now_ms(self) -> int:
        """The time, in ms since the epoch."""
        return self._hs.get_clock().time_msec()

    def is_blocked(self, address: str, *, as_server_name: bool = False) -> bool:
        """Tell whether Synapse's settings block an IP address for federation.

        Args:
            address: The address.
            as_server_name: Whether it is a server name itself, or stands in a URL: for
                those Synapse does not look at `ip_range_whitelist`.
        """
        found = ip_address(address.partition("%")[0])
        if found not in self._blocked:
            return False
        return as_server_name or found not in self._allowed

    def goes_through_proxy(self, host: str) -> bool:
        """Tell whether Synapse's proxy is to connect to a host."""
        config = self._config.proxy_config
        return self._proxy is not None and not (
            config is not None
            and proxy_bypass_environment(host, proxies=config.get_proxies_dictionary())
        )

    def verifies(self, host: str) -> bool:
        """Tell whether Synapse verifies the certificate of a host."""
        return self._network.policy.get_options(host.encode())._verifier._verify_certs

    def has_addresses(self, host: str) -> bool:
        """Tell whether a host name led to addresses when it was last looked up."""
        return bool(self._network.reactor.has_addresses(host))

    async def look_up(
        self, host: str, port: int, *, as_server_name: bool
    ) -> dict[str, bool]:
        """Return the IP addresses of a host name, as the operating system finds them.

        Args:
            host: The name, or an address.
            port: The port there.
            as_server_name: As in `is_blocked`.

        Returns:
            By address, whether Synapse blocks it.

        Raises:
            OSError: A `socket.gaierror`, which tells why there are none.
            UnicodeError: It can be no host name.
        """

        def look_up() -> dict[str, bool]:
            found = getaddrinfo(host, port, AF_UNSPEC, SOCK_STREAM)
            addresses = dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found)
            return {
                address: self.is_blocked(address, as_server_name=as_server_name)
                for address in addresses
            }

        threads = self._network.threads or self._hs.get_reactor().getThreadPool()
        return await defer_to_threadpool(self._hs.get_reactor(), threads, look_up)

    def endpoint(
        self,
        address: str | None,
        host: str,
        port: int,
        *,
        name: str,
        observer: TlsObserver,
        timeout_s: float,
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
        """
        if address is None:
            assert self._proxy is not None
            endpoint: IStreamClientEndpoint = HTTPConnectProxyEndpoint(
                self._network.reactor,
                self._proxy,
                host.encode(),
                port,
                self._proxy_credentials,
            )
        else:
            to = TCP6ClientEndpoint if ":" in address else TCP4ClientEndpoint
            endpoint = to(self._network.reactor, address, port, timeout=timeout_s)
        return wrapClientTLS(self._observing.options(name, observer), endpoint)

    async def read_body(self, response: IResponse, max_bytes: int) -> bytes:
        """Return the body of an answer.

        Raises:
            BodyExceededMaxSize: It is larger.
            Exception: It broke off.
        """
        stream = BytesIO()
        await make_deferred_yieldable(
            read_body_with_max_size(response, stream, max_bytes)
        )
        return stream.getvalue()

    def well_known_lifetime_ms(self, headers: Headers) -> int:
        """Tell how long Synapse caches a valid well-known file, by its headers."""
        period_s = _cache_period_from_headers(
            headers, time_now=self._hs.get_reactor().seconds
        )
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

    @staticmethod
    def cached_services(service: str) -> list[tuple[str, int, int]]:
        """Return what this process has cached of the SRV records of a name.

        Returns:
            Of each its host, its port, and until when, in ms since the epoch.
        """
        return [
            (server.host.decode("ascii", "replace"), server.port, server.expires * 1000)
            for server in SERVER_CACHE.get(service.encode(), ())
        ]

    def requests(
        self,
        *,
        is_file_known: bool,
        delegated_to: str | None,
        timeout_ms: int,
    ) -> "FederationRequests":
        """Return what makes signed requests, through a federation client of Synapse's.

        Past its retry limiter, and each of them once only.

        Args:
            is_file_known: Whether it is known what the well-known file of the server
                says; else that is asked for.
            delegated_to: What it says.
            timeout_ms: How long they may take, from now on.
        """
        client = self._client
        if self.instances is None:
            client = copy(client)
            resolver = (
                cast(WellKnownResolver, _KnownWellKnown(delegated_to))
                if is_file_known
                else self._network.well_known_resolver()
            )
            ends_s = self._hs.get_reactor().seconds() + timeout_ms / 1000
            client.agent = self._network.agent(resolver, ends_s)
        # Synapse goes on with the next address when its time is over, and then the
        # next: there is to be none.
        return FederationRequests(client, timeout_ms + _GRACE_MS)

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
                (name, _MAX_STORED_KEYS),
            )
            return {key_id: encode_base64(bytes(key)) for key_id, key in txn.fetchall()}

        return await self._hs.get_datastores().main.db_pool.runInteraction(
            "federation_admin_stored_keys", stored_keys_txn
        )


class FederationRequests:
    """Makes signed requests to one server."""

    def __init__(self, client: MatrixFederationHttpClient, timeout_ms: int) -> None:
        self._client = client
        self._timeout_ms = timeout_ms

    async def get(
        self, destination: str, path: str, args: dict[str, str] | None = None
    ) -> tuple[JsonDict, dict[bytes, list[bytes]]]:
        """Make a GET request.

        Args:
            destination: The server name.
            path: The path.
            args: The query parameters.

        Returns:
            The body, and the headers.

        Raises:
            Exception: Whatever Synapse's client raises; nothing of it is our fault.
        """
        return await self._client.get_json_with_headers(
            destination,
            path=path,
            args=args,
            timeout=self._timeout_ms,
            ignore_backoff=True,
        )


class _KnownWellKnown:
    """A WellKnownResolver that knows already what the file says."""

    def __init__(self, delegated_to: str | None) -> None:
        self._result = WellKnownLookupResult(
            delegated_to.encode("ascii") if delegated_to else None
        )

    async def get_well_known(self, _server_name: bytes) -> WellKnownLookupResult:
        return self._result


class _ObservingPolicy(FederationPolicyForHTTPS):
    """Synapse's policy, but a handshake comes to its end before it is judged."""

    def __init__(self, config: HomeServerConfig) -> None:
        super().__init__(config)
        context = self._verify_ssl_context
        context.set_verify(context.get_verify_mode(), _observed)

    def options(self, name: str, observer: TlsObserver) -> SSLClientConnectionCreator:
        """Return what makes connections for a host name."""
        # Also where Synapse does not verify: to see what it would find.
        creator = SSLClientConnectionCreator(
            name.encode(), self._verify_ssl_context, False
        )
        creator._verifier = _ObservingVerifier(name, observer)
        return creator


class _ObservingVerifier(ConnectionVerifier):
    """Tells an observer of a handshake, who has the last word."""

    def __init__(self, name: str, observer: TlsObserver) -> None:
        super().__init__(name.encode(), False)
        self.observer = observer

    def verify_context_info_cb(
        self, ssl_connection: SSL.Connection, where: int
    ) -> None:
        """See Synapse's; this is called by OpenSSL."""
        super().verify_context_info_cb(ssl_connection, where)
        if where & SSL.SSL_CB_HANDSHAKE_START:
            self.observer.begun()
        if where & SSL.SSL_CB_HANDSHAKE_DONE:
            error = self.observer.completed(ssl_connection)
            if error is not None:
                ssl_connection.get_app_data().failVerification(Failure(error))


def _observed(
    connection: SSL.Connection, _certificate: object, code: int, depth: int, ok: int
) -> bool:
    """Tell the observer of OpenSSL's verdict on a certificate, and have it go on."""
    if not ok:
        error = UntrustedCertificateError(code, depth)
        connection.get_app_data()._synapse_tls_verifier.observer.failed(error)
    return True
