# SPDX-License-Identifier: Apache-2.0
"""Connections to other servers, as Synapse's federation client makes them."""

import json
import re
from collections.abc import Awaitable, Callable
from copy import copy
from functools import partial
from http import HTTPStatus
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
from synapse.http.federation.matrix_federation_agent import (
    MatrixFederationAgent,
    MatrixHostnameEndpoint,
)
from synapse.http.federation.srv_resolver import Server, SrvResolver
from synapse.http.federation.well_known_resolver import (  # type: ignore[attr-defined]  # where json_decoder is differs by release
    WellKnownLookupResult,
    WellKnownResolver,
    json_decoder,
)
from synapse.http.matrixfederationclient import MatrixFederationHttpClient
from synapse.http.proxyagent import ProxyAgent, parse_proxy
from twisted.internet import error as net
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IProtocol, IStreamClientEndpoint
from twisted.python.failure import Failure
from twisted.web.client import URI, Agent, HTTPConnectionPool
from twisted.web.iweb import IAgent, IAgentEndpointFactory, IResponse
from unpaddedbase64 import encode_base64
from zope.interface import implementer

from synapse_federation_admin import limits
from synapse_federation_admin.homeserver.address_ranges import AddressRanges
from synapse_federation_admin.homeserver.attempt import (
    Attempt,
    AttemptAgent,
    ObservedAgent,
)
from synapse_federation_admin.homeserver.bounded_reactor import BoundedReactor
from synapse_federation_admin.homeserver.certificates import (
    UntrustedCertificateError,
    untrusted,
    verified,
)
from synapse_federation_admin.homeserver.errors import (
    Obstacle,
    ObstacleError,
    RequestSendFailed,
)
from synapse_federation_admin.homeserver.lookups import (
    Answers,
    LookUps,
    SynapseLookUps,
)
from synapse_federation_admin.homeserver.process import outbound_instances
from synapse_federation_admin.homeserver.relay import Relay
from synapse_federation_admin.homeserver.server_name import is_server_name

if TYPE_CHECKING:
    from synapse.server import HomeServer
    from synapse.storage import DataStore

T = TypeVar("T")

# How much later Synapse's client gives up than its connections and look-ups do: what it
# then tells is what they have met.
GRACE_MS = 50

_HANDSHAKE = SSL.SSL_CB_HANDSHAKE_START | SSL.SSL_CB_HANDSHAKE_DONE

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
        look_ups: Looks names up.
    """

    def __init__(self, hs: "HomeServer", *, max_lifetime_s: float) -> None:
        """Make no connection yet.

        Args:
            hs: The homeserver.
            max_lifetime_s: How long a connection may last.
        """
        self._hs = hs
        self._config = hs.config.server
        self._max_lifetime_s = max_lifetime_s
        self.look_ups = LookUps(hs.get_reactor())
        self.policy = ContactPolicy(hs.config)
        # What every agent and resolver of Synapse's wants.
        self._named: dict[str, Any] = {
            "server_name": hs.hostname,
            "clock": hs.get_clock(),
            "user_agent": self.user_agent.encode("ascii"),
        }
        self._relay = Relay(hs)
        # For what Synapse's `_is_ip_blocked` tells, which takes much longer.
        self._blocked = AddressRanges(self._config.federation_ip_range_blocklist)
        self._allowed = AddressRanges(self._config.federation_ip_range_allowlist)
        # Made with the policy as it is, for clients differ in their agents only.
        self._client = (
            copy(hs.get_federation_http_client())
            if outbound_instances(hs) is None
            # Its agent asks another process. That is within a wrapper which keeps to
            # `ip_range_blacklist`.
            else MatrixFederationHttpClient(
                cast("HomeServer", _HomeServerView(hs, self._bounded())), self.policy
            )
        )
        if outbound_instances(hs) is not None:
            self._client.agent._agent._pool.persistent = False  # type: ignore[attr-defined]  # IAgent's have none
            self._client.agent = AttemptAgent(self._client.agent)
            self._client._send_request = self._heard(self._client._send_request)  # type: ignore[method-assign, assignment]  # of this object alone
        self._client._store = cast("DataStore", _NoTimings(hs))

    @property
    def user_agent(self) -> str:
        """What Synapse calls itself in requests."""
        suffix = self._config.user_agent_suffix
        version: str = self._hs.version_string
        return f"{version} {suffix}" if suffix else version

    def is_blocked(self, address: str, *, as_server_name: bool = False) -> bool:
        """Tell whether Synapse's settings block an IP address for federation.

        Args:
            address: The address.
            as_server_name: Whether it is a server name itself, or stands in a URL: for
                those Synapse does not look at `ip_range_whitelist`.
        """
        return address in self._blocked and (
            as_server_name or address not in self._allowed
        )

    def are_own_keys(self, body: object) -> bool:
        """Tell whether an answer of `/_matrix/key/v2/server` is this homeserver's own.

        It has our server name, and one of our keys: whatever the address, that is we.
        """
        if not isinstance(body, dict) or body.get("server_name") != self._hs.hostname:
            return False
        ours, keys = self._hs.signing_key, body.get("verify_keys")
        key = keys.get(f"{ours.alg}:{ours.version}") if isinstance(keys, dict) else None
        own = encode_base64(ours.verify_key.encode())
        return isinstance(key, dict) and key.get("key") == own

    def client(
        self, timeout_ms: int, delegation: WellKnownLookupResult | None = None
    ) -> MatrixFederationHttpClient:
        """Make a federation client for one request; give it `GRACE_MS` more of time.

        As `synapse/server.py`, `HomeServer.get_federation_http_client`. Each request
        has a connection of its own: the bounds are those of one request, and a
        connection that was made earlier would prove less. The retry limiter does not
        act on it.

        Args:
            timeout_ms: How long it may take, from now on. Then it connects to nothing
                and looks nothing up any more; Synapse would go on for long.
            delegation: What the well-known file of the server says; None: fetch it.
        """
        client = copy(self._client)
        if outbound_instances(self._hs) is None:
            attempt = self._attempt(timeout_ms)
            client.agent = self._contact_agent(attempt, delegation)
        return client

    def web_agent(self, timeout_ms: int) -> IAgent:
        """Make what fetches one well-known file, within a time."""
        attempt = self._attempt(timeout_ms)
        return AttemptAgent(self._blocklisted(self._web_agent(attempt)), attempt)

    def _bounded(self) -> BoundedReactor:
        return BoundedReactor(
            self._hs.get_reactor(), max_lifetime_s=self._max_lifetime_s
        )

    def _heard(
        self, send: Callable[..., Awaitable[IResponse]]
    ) -> Callable[..., Awaitable[IResponse]]:
        """Have a request raise what the process has met that goes out with it."""

        async def send_and_hear(*args: Any, **kwargs: Any) -> IResponse:
            try:
                return await send(*args, **kwargs)
            except RequestSendFailed as e:
                met = self._relay.met(e)
                if met is e:
                    raise
                raise RequestSendFailed(met, can_retry=False) from e

        return send_and_hear

    def observe(
        self,
        told: Callable[[str, BaseException | None], None],
        describe: Callable[[BaseException], str],
    ) -> None:
        """Have it told what stops Synapse's own requests, if this process makes them.

        Synapse tells less of it: see `ObservedAgent`.

        Args:
            told: Is told.
            describe: Says it for another process.

        Raises:
            Exception: Synapse's client is not as expected, and left as it is.
        """
        if outbound_instances(self._hs) is not None:
            return
        client = self._hs.get_federation_http_client()
        agent: Any = client.agent
        direct = agent._agent
        resolver = direct._well_known_resolver
        look_ups = SynapseLookUps(self._hs.get_reactor())

        def begin() -> tuple[IAgent, Attempt]:
            attempt = Attempt(self._hs.get_reactor(), look_ups)
            well_known_resolver = _WellKnownResolver(
                attempt,
                agent=_LateAgent(
                    lambda: self._blocklisted(self._web_agent(attempt, direct._pool))
                ),
                well_known_cache=resolver._well_known_cache,
                had_well_known_cache=resolver._had_valid_well_known_cache,
                reactor=cast(Any, attempt),
                **self._named,
            )

            def endpoint_for(uri: URI) -> IStreamClientEndpoint:
                return MatrixHostnameEndpoint(
                    reactor=self._blocking(attempt),
                    proxy_reactor=cast(Any, attempt.proxy_side),
                    tls_client_options_factory=self._policy_of(attempt),
                    srv_resolver=_SrvResolver(attempt),
                    proxy_config=self._config.proxy_config,
                    parsed_uri=uri,
                )

            observed = _ObservedDirectAgent(
                direct, well_known_resolver, _LateEndpoints(endpoint_for)
            )
            return self._blocklisted(observed), attempt

        # With all that is made late, too.
        observed: Any = begin()[0]
        uri = URI.fromBytes(b"matrix-federation://localhost/")
        observed._agent._agent._endpointFactory.endpointForURI(uri).made()
        observed._agent._well_known_resolver._well_known_agent._agent.made()
        client.agent = ObservedAgent(agent, begin, told, self._relay, describe)

    def _attempt(self, timeout_ms: int) -> Attempt:
        reactor = self._hs.get_reactor()
        return Attempt(
            reactor,
            self.look_ups,
            ends_s=reactor.seconds() + timeout_ms / 1000,
            max_lifetime_s=self._max_lifetime_s,
        )

    def _policy_of(self, attempt: Attempt) -> "ContactPolicy":
        """Return the policy, which tells an attempt of its TLS handshakes."""
        policy = copy(self.policy)
        policy.attempt = attempt
        return policy

    def _contact_agent(
        self, attempt: Attempt, delegation: WellKnownLookupResult | None
    ) -> IAgent:
        """Make what makes one request of our own, where this process goes out."""
        pool = HTTPConnectionPool(cast(Any, attempt), persistent=False)
        resolver = _ContactWellKnownResolver(
            attempt,
            delegation,
            agent=AttemptAgent(self._blocklisted(self._web_agent(attempt))),
            # Synapse remembers for an hour that a server has no such file, also if it
            # could not be reached: it would seem to be down when it is up.
            well_known_cache=cast(Any, _NoCache()),
            had_well_known_cache=cast(Any, _NoCache()),
            reactor=cast(Any, attempt),
            **self._named,
        )
        srv_resolver = _ContactSrvResolver(attempt, self.look_ups)
        agent = self._direct_agent(attempt, srv_resolver, resolver, pool)
        return AttemptAgent(self._blocklisted(agent), attempt)

    def _direct_agent(
        self,
        attempt: Attempt,
        srv_resolver: SrvResolver,
        well_known_resolver: WellKnownResolver,
        pool: HTTPConnectionPool,
    ) -> IAgent:
        """Make what a client makes its requests with, where it goes out itself."""
        agent = MatrixFederationAgent(
            # All that Synapse wants of a reactor, and more.
            reactor=cast(Any, attempt),
            tls_client_options_factory=self._policy_of(attempt),
            ip_allowlist=self._config.federation_ip_range_allowlist,
            ip_blocklist=self._config.federation_ip_range_blocklist,
            proxy_config=self._config.proxy_config,
            _srv_resolver=srv_resolver,
            _well_known_resolver=well_known_resolver,
            **self._named,
        )
        agent._agent._pool = pool
        agent._agent._endpointFactory._proxy_reactor = attempt.proxy_side
        return agent

    def _web_agent(
        self, attempt: Attempt, pool: HTTPConnectionPool | None = None
    ) -> IAgent:
        """Make what fetches well-known files, as in `MatrixFederationAgent`."""
        return ProxyAgent(
            reactor=self._blocking(attempt),
            proxy_reactor=cast(Any, attempt.proxy_side),
            pool=pool,
            contextFactory=self._policy_of(attempt),
            proxy_config=self._config.proxy_config,
        )

    def _blocking(self, attempt: Attempt) -> Any:
        """Return a reactor for which blocked addresses are none of a host."""
        return BlocklistingReactorWrapper(
            cast(Any, attempt),
            self._config.federation_ip_range_allowlist,
            self._config.federation_ip_range_blocklist,
        )

    def _blocklisted(self, agent: IAgent) -> IAgent:
        return BlocklistingAgentWrapper(
            agent, ip_blocklist=self._config.federation_ip_range_blocklist
        )


@implementer(IAgent)
class _LateAgent:
    """An agent that is made when it has to ask: most files are cached."""

    def __init__(self, made: Callable[[], IAgent]) -> None:
        self.made = made

    def request(self, *args: Any, **kwargs: Any) -> "Deferred[IResponse]":
        """Make a request: see `twisted.web.iweb.IAgent`."""
        return self.made().request(*args, **kwargs)


@implementer(IStreamClientEndpoint)
class _LateEndpoint:
    """An endpoint that is made when it has to connect: most connections are there."""

    def __init__(self, made: Callable[[], IStreamClientEndpoint]) -> None:
        self.made = made

    def connect(self, *args: Any) -> "Deferred[IProtocol]":
        """Connect: see `twisted.internet.interfaces.IStreamClientEndpoint`."""
        return self.made().connect(*args)


@implementer(IAgentEndpointFactory)
class _LateEndpoints:
    """Makes endpoints that are made when they have to connect."""

    def __init__(self, made_for: Callable[[URI], IStreamClientEndpoint]) -> None:
        self._made_for = made_for

    def endpointForURI(self, uri: URI) -> _LateEndpoint:
        """Return what connects: see `twisted.web.iweb.IAgentEndpointFactory`."""
        return _LateEndpoint(partial(self._made_for, uri))


class _ObservedDirectAgent(MatrixFederationAgent):
    """Makes one request as Synapse's agent does, over the connections of that.

    What Synapse's constructor makes is made when it is needed: most requests need
    nothing of it, and there is one of these for each.
    """

    def __init__(
        self,
        direct: MatrixFederationAgent,
        well_known_resolver: WellKnownResolver,
        endpoints: _LateEndpoints,
    ) -> None:
        # Whatever else a later release needs to make a request.
        vars(self).update(vars(direct))
        self._well_known_resolver = well_known_resolver
        self._agent = Agent.usingEndpointFactory(
            direct._agent._reactor, endpoints, pool=direct._pool
        )


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
        self,
        host: bytes,
        verify_certs: bool,
        observer: TlsObserver | None = None,
        attempt: Attempt | None = None,
    ) -> None:
        super().__init__(host, verify_certs)
        self.observer = observer
        self._attempt = attempt

    def verify_context_info_cb(
        self, ssl_connection: SSL.Connection, where: int
    ) -> None:
        """See Synapse's; this is called by OpenSSL."""
        error: Exception | None = None
        if self._attempt is not None and where & _HANDSHAKE:
            self._attempt.is_at_proxy = False
            self._attempt.is_shaking_hands = bool(where & SSL.SSL_CB_HANDSHAKE_START)
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
    """Synapse's policy, and the reason if a certificate is not trusted.

    Attributes:
        attempt: Is told of handshakes.
    """

    def __init__(self, config: HomeServerConfig) -> None:
        super().__init__(config)
        self.attempt: Attempt | None = None
        proxies = config.server.proxy_config
        self._proxy = None
        if proxies and proxies.https_proxy:
            _, host, port, _ = parse_proxy(proxies.https_proxy.encode())
            self._proxy = host, port
        context = self._verify_ssl_context
        context.set_verify(context.get_verify_mode(), _verified)

    def get_options(self, host: bytes) -> SSLClientConnectionCreator:
        """Return what makes connections: see Synapse's."""
        creator = cast(SSLClientConnectionCreator, super().get_options(host))
        verifies = creator._verifier._verify_certs
        creator._verifier = _Verifier(host, verifies, attempt=self.attempt)
        return creator

    def creatorForNetloc(self, hostname: bytes, port: int) -> Any:
        """Return what makes connections: see Synapse's."""
        creator = self.get_options(hostname)
        if (hostname, port) == self._proxy:
            # What is wrong with our own proxy is nothing of the server's.
            creator._verifier = _Verifier(hostname, creator._verifier._verify_certs)
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
    observer.failed(untrusted(certificate, code, depth))
    return True


class _WellKnownResolver(WellKnownResolver):
    """Asks for well-known files, and tells an attempt what they delegate to."""

    def __init__(self, attempt: Attempt, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._attempt = attempt

    async def get_well_known(self, server_name: bytes) -> WellKnownLookupResult:
        """Return what the file says: see Synapse's."""
        self._attempt.is_fetching = True
        found = await super().get_well_known(server_name)
        self._attempt.file_fetched()
        m_server = (found.delegated_server or b"").decode("ascii", "replace")
        self._look_at(m_server)
        return found

    def _look_at(self, m_server: str) -> None:
        # An empty one delegates to nobody.
        is_known = self._attempt.delegated_to is not None
        if m_server and not is_known and not is_server_name(m_server):
            self._attempt.delegated_to = m_server[: limits.WORD]


class _ContactWellKnownResolver(_WellKnownResolver):
    """Has Synapse log no more of well-known files than it needs."""

    def __init__(
        self,
        attempt: Attempt,
        delegation: WellKnownLookupResult | None,
        **kwargs: Any,
    ) -> None:
        super().__init__(attempt, **kwargs)
        self._delegation = delegation

    async def get_well_known(self, server_name: bytes) -> WellKnownLookupResult:
        """Return what the file says, if that is not known: see Synapse's."""
        return self._delegation or await super().get_well_known(server_name)

    async def _make_well_known_request(
        self, server_name: bytes, retry: bool
    ) -> tuple[IResponse, bytes]:
        """Make the request: see Synapse's."""
        response, body = await super()._make_well_known_request(server_name, retry)
        if response.code != HTTPStatus.OK:
            # It is not looked into.
            return response, b""
        try:
            # As Synapse reads it.
            content = json_decoder.decode(body.decode("utf-8"))
        except (ValueError, RecursionError):
            # Of what is no JSON it logs nothing.
            return response, body
        m_server = content.get("m.server") if isinstance(content, dict) else None
        if not isinstance(m_server, str) or not m_server.isascii():
            return response, b"{}"
        self._look_at(m_server)
        if not m_server.isprintable() or len(m_server) > limits.SERVER_NAME:
            m_server = "not-a-server-name."
        return response, json.dumps({"m.server": m_server}).encode()


class _SrvResolver(SrvResolver):
    """Looks SRV records up, and tells an attempt of it."""

    def __init__(self, attempt: Attempt, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._attempt = attempt

    async def resolve_service(self, service_name: bytes) -> list[Server]:
        """Look up: see Synapse's."""
        self._attempt.require_time()
        name = service_name.decode("ascii", "replace")
        self._attempt.looked_up.append(name)
        try:
            found = await super().resolve_service(service_name)
        except net.ConnectError:
            self._attempt.is_service_refused = True
            raise
        finally:
            self._attempt.looked_up.remove(name)
        # The root is the target of a service that is decidedly not there (RFC 2782).
        # Synapse sees it in some of its forms only.
        if found and all(server.host in (b"", b".") for server in found):
            self._attempt.is_service_refused = True
        return found


class _ContactSrvResolver(_SrvResolver):
    """Looks up within limits, and passes nothing on that can be no host name."""

    def __init__(self, attempt: Attempt, look_ups: LookUps) -> None:
        super().__init__(attempt, dns_client=self)
        self._look_ups = look_ups

    def lookupService(self, name: bytes) -> "Deferred[Answers]":
        """Look up: see `twisted.names.client.lookupService`."""
        return self._look_ups.services(name.decode("ascii"), self._attempt.left_s)

    async def resolve_service(self, service_name: bytes) -> list[Server]:
        """Look up: see Synapse's."""
        found = await super().resolve_service(service_name)
        plain = [server for server in found if _HOST_NAME.fullmatch(server.host)]
        if found and not plain:
            name = service_name.decode("ascii", "replace")
            raise ObstacleError(Obstacle.NO_HOST_NAME, name)
        return plain[: limits.SRV_SERVERS]
