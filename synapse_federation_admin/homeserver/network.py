# SPDX-License-Identifier: Apache-2.0
"""Connections to other servers, as Synapse's federation client makes them."""

import json
import math
import re
from collections import OrderedDict
from copy import copy
from socket import getaddrinfo
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, TypeVar, cast

from OpenSSL import SSL
from OpenSSL.crypto import X509
from service_identity.exceptions import VerificationError
from synapse.config.homeserver import HomeServerConfig
from synapse.crypto.context_factory import (
    ConnectionVerifier,
    FederationPolicyForHTTPS,
    SSLClientConnectionCreator,
)
from synapse.http.client import BlocklistingAgentWrapper, BlocklistingReactorWrapper
from synapse.http.federation.matrix_federation_agent import MatrixFederationAgent
from synapse.http.federation.srv_resolver import Server, SrvResolver
from synapse.http.federation.well_known_resolver import WellKnownResolver
from synapse.http.matrixfederationclient import MatrixFederationHttpClient
from synapse.http.proxyagent import ProxyAgent
from synapse.util.gai_resolver import GAIResolver, HostResolution
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.error import DNSLookupError
from twisted.internet.interfaces import (
    IHostnameResolver,
    IHostResolution,
    IResolutionReceiver,
)
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool
from twisted.web.iweb import IAgent, IResponse

from synapse_federation_admin import limits
from synapse_federation_admin.homeserver.bounded_reactor import BoundedReactor
from synapse_federation_admin.homeserver.certificates import (
    UntrustedCertificateError,
    verified,
)
from synapse_federation_admin.homeserver.plain_agent import PlainAgent
from synapse_federation_admin.homeserver.process import outbound_instances

if TYPE_CHECKING:
    from synapse.server import HomeServer
    from synapse.storage import DataStore

T = TypeVar("T")

# What SRV records may lead to.
_HOST_NAME = re.compile(rb"[0-9A-Za-z._-]{1,255}")


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


class Network:
    """Connections to other servers as Synapse's federation client makes them: bounded.

    What other servers send is such afterwards that Synapse may log it.

    Attributes:
        policy: What is wanted of TLS.
        web_agent: Makes requests for well-known files.
    """

    def __init__(self, hs: "HomeServer", *, max_lifetime_s: float) -> None:
        """Make no connection yet.

        Args:
            hs: The homeserver.
            max_lifetime_s: How long a connection may last.
        """
        self._hs = hs
        self._config = hs.config.server
        self._resolved: OrderedDict[str, bool] = OrderedDict()
        # Those that look names up; None in a test harness.
        self._threads: ThreadPool | None = None
        resolver: IHostnameResolver = hs.get_reactor().nameResolver
        if isinstance(resolver, GAIResolver):
            # In threads of its own: a look-up cannot be called off, and domains that
            # are dead may take long. Synapse's own twenty threads would have none left
            # for its federation.
            self._threads = pool = ThreadPool(
                0, limits.DNS_LOOKUPS, "federation_admin_resolver"
            )
            pool.start()
            hs.get_reactor().addSystemEventTrigger("during", "shutdown", pool.stop)
            resolver = cast(
                IHostnameResolver,
                _Resolver(hs.get_reactor(), lambda: pool, self._getaddrinfo),
            )
        # All that Synapse wants of a reactor, and more.
        self._reactor = cast(
            Any,
            BoundedReactor(
                hs.get_reactor(),
                resolver=resolver,
                max_received_bytes=limits.CONNECTION_BYTES,
                max_lifetime_s=max_lifetime_s,
            ),
        )
        self.policy = ContactPolicy(hs.config)
        self._blocklisting = BlocklistingReactorWrapper(
            self._reactor,
            self._config.federation_ip_range_allowlist,
            self._config.federation_ip_range_blocklist,
        )
        # As in `MatrixFederationAgent`.
        self.web_agent: IAgent = self._wrapped(
            ProxyAgent(
                reactor=self._blocklisting,
                proxy_reactor=self._reactor,
                contextFactory=self.policy,
                proxy_config=self._config.proxy_config,
            )
        )

    @property
    def user_agent(self) -> str:
        """What Synapse calls itself in requests."""
        suffix = self._config.user_agent_suffix
        version: str = self._hs.version_string
        return f"{version} {suffix}" if suffix else version

    def has_addresses(self, host: str) -> bool:
        """Tell whether a host name led to addresses when it was last looked up here.

        Synapse takes a name that leads to a blocked address for one that leads to none.
        """
        return is_address(host) or self._resolved.get(host, False)

    def _getaddrinfo(self, host: str, *args: Any) -> Any:
        """Look a host up, on a thread, and take note of whether there is any address.

        Returns:
            What `socket.getaddrinfo` returns, but not thousands of it.
        """
        self._resolved[host] = False
        if len(self._resolved) > limits.RESOLVED_HOSTS:
            self._resolved.popitem(last=False)
        found = getaddrinfo(host, *args)[: limits.ADDRESSES_OF_A_HOST]
        self._resolved[host] = True
        return found

    def well_known_resolver(self) -> WellKnownResolver:
        """Return what asks for well-known files, and remembers nothing.

        Synapse remembers for an hour that a server has no such file, also if it could
        not be reached: it would still seem to be down when it is up.
        """
        return _PlainWellKnownResolver(
            server_name=self._hs.hostname,
            reactor=self._blocklisting,
            clock=self._hs.get_clock(),
            agent=self.web_agent,
            user_agent=self.user_agent.encode("ascii"),
            well_known_cache=cast(Any, _NoCache()),
            had_well_known_cache=cast(Any, _NoCache()),
        )

    def client(self) -> MatrixFederationHttpClient:
        """Make a federation client.

        As `synapse/server.py`, `HomeServer.get_federation_http_client`. Each request
        has a connection of its own: the bounds are those of one request, and a
        connection that was made earlier would prove less.
        """
        if outbound_instances(self._hs) is not None:
            # Its agent asks another process. That is within a wrapper which keeps to
            # `ip_range_blacklist`.
            view = cast("HomeServer", _HomeServerView(self._hs, self._reactor))
            client = MatrixFederationHttpClient(view, self.policy)
            client.agent._agent._pool.persistent = False  # type: ignore[attr-defined]  # IAgent's have none
            client.agent = PlainAgent(client.agent)
            return client
        # A second one that is made anew would take the metrics of Synapse's own caches
        # of well-known files.
        client = copy(self._hs.get_federation_http_client())
        client.agent = self.agent(self.well_known_resolver())
        return client

    def agent(self, resolver: WellKnownResolver, ends_s: float = math.inf) -> IAgent:
        """Make what a client makes its requests with, where it goes out itself.

        Args:
            resolver: What tells to which server another one delegates.
            ends_s: The reactor's time from which nothing is connected to any more.
        """
        direct = MatrixFederationAgent(
            server_name=self._hs.hostname,
            reactor=self._reactor.until(ends_s),
            clock=self._hs.get_clock(),
            tls_client_options_factory=self.policy,
            user_agent=self.user_agent.encode("ascii"),
            ip_allowlist=self._config.federation_ip_range_allowlist,
            ip_blocklist=self._config.federation_ip_range_blocklist,
            proxy_config=self._config.proxy_config,
            _srv_resolver=_PlainSrvResolver(),
            _well_known_resolver=resolver,
        )
        direct._pool.persistent = False
        return self._wrapped(direct)

    def _wrapped(self, agent: IAgent) -> IAgent:
        return PlainAgent(
            BlocklistingAgentWrapper(
                agent, ip_blocklist=self._config.federation_ip_range_blocklist
            )
        )


def unlimited(client: MatrixFederationHttpClient) -> MatrixFederationHttpClient:
    """Return a client on whose requests the retry limiter does not act.

    They are to ignore the backoff.
    """
    client = copy(client)
    client._store = cast("DataStore", _NoTimings(client.hs))
    return client


class _HomeServerView:
    """A homeserver as it is, but for its reactor."""

    def __init__(self, hs: "HomeServer", reactor: BoundedReactor) -> None:
        self._hs = hs
        self._reactor = reactor

    def __getattr__(self, name: str) -> object:
        return getattr(self._hs, name)

    def get_reactor(self) -> BoundedReactor:
        return self._reactor


class _NoTimings:
    """A store in which no destination is failing, for the retry limiter.

    It then lets every request out; and since the backoff is to be ignored, it stores
    nothing afterwards (`synapse/util/retryutils.py`).
    """

    def __init__(self, hs: "HomeServer") -> None:
        self.hs = hs

    async def get_destination_retry_timings(self, _: str) -> None:
        """Return that none is."""
        return


class _NoCache:
    """A TTLCache that remembers nothing (`synapse/util/caches/ttlcache.py`)."""

    def get_with_expiry(self, key: bytes) -> NoReturn:
        raise KeyError(key)

    def get(self, _key: bytes, default: T) -> T:
        return default

    def set(self, _key: bytes, _value: object, _ttl: float) -> None:
        pass


class _Verifier(ConnectionVerifier):
    """Synapse's verifier, for which a certificate without names is no surprise.

    Attributes:
        observer: Is told of the handshake, and has the last word, if there is one.
    """

    def __init__(
        self, host: bytes, verify_certs: bool, observer: TlsObserver | None = None
    ) -> None:
        super().__init__(host, verify_certs)
        self.observer = observer

    def verify_context_info_cb(
        self, ssl_connection: SSL.Connection, where: int
    ) -> None:
        """See Synapse's; this is called by OpenSSL."""
        error: Exception | None = None
        try:
            super().verify_context_info_cb(ssl_connection, where)
        except Exception:
            # What is in it, and in the name, is up to the server.
            error = VerificationError(errors=[])
        if self.observer is not None and where & SSL.SSL_CB_HANDSHAKE_START:
            self.observer.begun()
        if self.observer is not None and where & SSL.SSL_CB_HANDSHAKE_DONE:
            error = self.observer.completed(ssl_connection)
        if error is not None:
            ssl_connection.get_app_data().failVerification(Failure(error))


class ContactPolicy(FederationPolicyForHTTPS):
    """Synapse's policy, and the reason if a certificate is not trusted."""

    def __init__(self, config: HomeServerConfig) -> None:
        super().__init__(config)
        context = self._verify_ssl_context
        context.set_verify(context.get_verify_mode(), _verified)

    def get_options(self, host: bytes) -> SSLClientConnectionCreator:
        """Return what makes connections: see Synapse's."""
        creator = cast(SSLClientConnectionCreator, super().get_options(host))
        creator._verifier = _Verifier(host, creator._verifier._verify_certs)
        return creator

    def observed(self, host: str, observer: TlsObserver) -> SSLClientConnectionCreator:
        """Return what makes connections whose handshake is judged when it is over.

        Also where Synapse does not verify: to see what it would find.

        Args:
            host: The host name that the certificate has to be for.
            observer: Is told of the handshake, and has the last word.
        """
        creator = SSLClientConnectionCreator(
            host.encode(), self._verify_ssl_context, False
        )
        creator._verifier = _Verifier(host.encode(), False, observer)
        return creator


def _verified(
    connection: SSL.Connection, certificate: X509, code: int, depth: int, ok: int
) -> bool:
    """Pass on what OpenSSL has against a certificate: to an observer, if there is one.

    Then the handshake goes on.
    """
    observer = connection.get_app_data()._synapse_tls_verifier.observer
    if ok or observer is None:
        return verified(connection, certificate, code, depth, ok)
    observer.failed(UntrustedCertificateError(code, depth))
    return True


class _PlainWellKnownResolver(WellKnownResolver):
    """Asks for well-known files, and has Synapse log no more of them than it needs."""

    async def _make_well_known_request(
        self, server_name: bytes, retry: bool
    ) -> tuple[IResponse, bytes]:
        """Make the request: see Synapse's."""
        response, body = await super()._make_well_known_request(server_name, retry)
        try:
            content = json.loads(body)
        except (ValueError, RecursionError):
            # Of what is no JSON it logs nothing.
            return response, body
        m_server = content.get("m.server") if isinstance(content, dict) else None
        if not isinstance(m_server, str) or not m_server.isascii():
            return response, b"{}"
        if not m_server.isprintable() or len(m_server) > limits.SERVER_NAME:
            m_server = "not-a-server-name."
        return response, json.dumps({"m.server": m_server}).encode()


def is_address(host: str) -> bool:
    """Tell whether a host is given by its IP address: there is nothing to look up."""
    return isIPAddress(host) or isIPv6Address(host)


class _Resolver(GAIResolver):
    """Looks names up, and answers for an address at once.

    It waits for no thread: all of them may be waiting for domains that are dead.
    """

    def resolveHostName(
        self,
        resolutionReceiver: IResolutionReceiver,  # noqa: N803  # Twisted's name
        hostName: str,  # noqa: N803
        portNumber: int = 0,  # noqa: N803
        *args: Any,
        **kwargs: Any,
    ) -> IHostResolution:
        """Look up: see `twisted.internet.interfaces.IHostnameResolver`."""
        if not is_address(hostName):
            return super().resolveHostName(
                resolutionReceiver, hostName, portNumber, *args, **kwargs
            )
        kind = IPv4Address if isIPAddress(hostName) else IPv6Address
        resolution = HostResolution(hostName)
        resolutionReceiver.resolutionBegan(resolution)
        resolutionReceiver.addressResolved(kind("TCP", hostName, portNumber))
        resolutionReceiver.resolutionComplete()
        return resolution


class _PlainSrvResolver(SrvResolver):
    """Looks SRV records up, and does not pass on what can be no host name."""

    async def resolve_service(self, service_name: bytes) -> list[Server]:
        """Look up: see Synapse's."""
        found = await super().resolve_service(service_name)
        plain = [server for server in found if _HOST_NAME.fullmatch(server.host)]
        if found and not plain:
            raise DNSLookupError("its SRV records do not lead to host names")
        return plain[: limits.SRV_SERVERS]
