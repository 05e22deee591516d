# SPDX-License-Identifier: Apache-2.0
"""Connections to other servers, as Synapse's federation client makes them."""

from collections.abc import Awaitable, Callable
from copy import copy
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast
from urllib.request import (  # type: ignore[attr-defined]  # not documented, but old
    proxy_bypass_environment,
)

from synapse.http.client import BlocklistingAgentWrapper, BlocklistingReactorWrapper
from synapse.http.federation.matrix_federation_agent import (
    MatrixFederationAgent,
    MatrixHostnameEndpoint,
)
from synapse.http.federation.well_known_resolver import WellKnownLookupResult
from synapse.http.matrixfederationclient import MatrixFederationHttpClient
from synapse.http.proxyagent import ProxyAgent
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.web.client import URI, HTTPConnectionPool
from twisted.web.iweb import IAgent, IResponse

from synapse_federation_admin import limits
from synapse_federation_admin.homeserver.agents import (
    AttemptAgent,
    AttemptEndpoints,
    ObservedAgent,
    ObservedDirectAgent,
    current_attempt,
)
from synapse_federation_admin.homeserver.attempt import Attempt
from synapse_federation_admin.homeserver.bounded_reactor import BoundedReactor
from synapse_federation_admin.homeserver.delegation import (
    AttemptSrvResolver,
    AttemptWellKnownResolver,
    ContactSrvResolver,
    ContactWellKnownResolver,
)
from synapse_federation_admin.homeserver.errors import RequestSendFailed
from synapse_federation_admin.homeserver.lookups import LookUps, SynapseLookUps
from synapse_federation_admin.homeserver.process import outbound_instances
from synapse_federation_admin.homeserver.relay import Relay
from synapse_federation_admin.homeserver.tls_policy import ContactPolicy

if TYPE_CHECKING:
    from synapse.server import HomeServer
    from synapse.storage import DataStore

    from synapse_federation_admin.homeserver.database import Database

T = TypeVar("T")

# How much later Synapse's client gives up than its connections and look-ups do: what it
# then tells is what they have met.
GRACE_MS = 50


class Network:
    """Connections to other servers as Synapse's federation client makes them: bounded.

    What other servers send is such afterwards that Synapse may log it.

    Attributes:
        instances: The processes that go out to other servers in this one's stead; None
            if this one goes itself (`outbound_federation_restricted_to`).
        policy: What is wanted of TLS.
        look_ups: Looks names up.
    """

    def __init__(
        self,
        homeserver: "Database",
        *,
        max_lifetime_s: float = limits.CONTACT_CONNECTION_S,
    ) -> None:
        """Make no connection yet.

        Args:
            homeserver: The homeserver.
            max_lifetime_s: How long a connection may last.
        """
        hs = homeserver._hs
        self._homeserver = homeserver
        self._hs = hs
        self.instances = outbound_instances(hs)
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
        # Made with the policy as it is, for clients differ in their agents only.
        self._client = (
            copy(hs.get_federation_http_client())
            if self.instances is None
            # Its agent asks another process. That is within a wrapper which keeps to
            # `ip_range_blacklist`.
            else MatrixFederationHttpClient(
                cast("HomeServer", _HomeServerView(hs, max_lifetime_s)), self.policy
            )
        )
        if self.instances is not None:
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

    def goes_through_proxy(self, host: str) -> bool:
        """Tell whether Synapse's proxy is to connect to a host."""
        proxies = self._config.proxy_config
        return bool(proxies and proxies.https_proxy) and not proxy_bypass_environment(
            host, proxies=proxies.get_proxies_dictionary()
        )

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
        if self.instances is None:
            client.agent = self._contact_agent(timeout_ms, delegation)
        return client

    def attempt(self, timeout_ms: int) -> Attempt:
        """Begin one that may take so long."""
        reactor = self._hs.get_reactor()
        return Attempt(
            reactor,
            self.look_ups,
            ends_s=reactor.seconds() + timeout_ms / 1000,
            max_lifetime_s=self._max_lifetime_s,
        )

    def web_agent(self, timeout_ms: int) -> IAgent:
        """Make what fetches one well-known file, within a time."""
        attempt = self.attempt(timeout_ms)
        attempt.is_of_file = True
        return AttemptAgent(self._blocklisted(self._web_agent(attempt)), attempt)

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

    def observe(self, describe: Callable[[BaseException], str]) -> None:
        """Have it told what stops Synapse's own requests, if this process makes them.

        Synapse tells less of it: see `ObservedAgent`.

        Args:
            describe: Says it for another process.

        Raises:
            Exception: Synapse's client is not as expected, and left as it is.
        """
        if self.instances is not None:
            return
        client = self._hs.get_federation_http_client()
        agent: Any = client.agent
        direct = agent._agent
        resolver = direct._well_known_resolver
        reactor = self._hs.get_reactor()
        look_ups = SynapseLookUps(reactor)
        well_known_resolver = AttemptWellKnownResolver(
            current_attempt.get,
            lambda attempt: self._blocklisted(self._web_agent(attempt, direct._pool)),
            self.goes_through_proxy,
            well_known_cache=resolver._well_known_cache,
            had_well_known_cache=resolver._had_valid_well_known_cache,
            reactor=cast(Any, reactor),
            **self._named,
        )

        def endpoint_for(attempt: Attempt, uri: URI) -> IStreamClientEndpoint:
            return MatrixHostnameEndpoint(
                reactor=self._blocking(attempt),
                proxy_reactor=cast(Any, attempt.proxy_side),
                tls_client_options_factory=self._policy_of(attempt),
                srv_resolver=AttemptSrvResolver(attempt),
                proxy_config=self._config.proxy_config,
                parsed_uri=uri,
            )

        # With all that is made late, too.
        attempt = Attempt(reactor, look_ups)
        endpoint_for(attempt, URI.fromBytes(b"matrix-federation://localhost/"))
        self._blocklisted(self._web_agent(attempt, direct._pool))
        observed = self._blocklisted(
            ObservedDirectAgent(
                direct, well_known_resolver, AttemptEndpoints(endpoint_for)
            )
        )
        client.agent = ObservedAgent(
            agent,
            observed,
            partial(Attempt, reactor, look_ups),
            self._relay,
            describe,
        )

    def _policy_of(self, attempt: Attempt) -> "ContactPolicy":
        """Return the policy, which tells an attempt of its TLS handshakes."""
        policy = copy(self.policy)
        policy.attempt = attempt
        return policy

    def _contact_agent(
        self, timeout_ms: int, delegation: WellKnownLookupResult | None
    ) -> IAgent:
        """Make what makes one request of our own, where this process goes out."""
        attempt = self.attempt(timeout_ms)
        resolver = ContactWellKnownResolver(
            attempt,
            delegation,
            lambda attempt: AttemptAgent(self._blocklisted(self._web_agent(attempt))),
            self.goes_through_proxy,
            # Synapse remembers for an hour that a server has no such file, also if it
            # could not be reached: it would seem to be down when it is up.
            well_known_cache=cast(Any, _NoCache()),
            had_well_known_cache=cast(Any, _NoCache()),
            reactor=cast(Any, attempt),
            **self._named,
        )
        agent = MatrixFederationAgent(
            # All that Synapse wants of a reactor, and more.
            reactor=cast(Any, attempt),
            tls_client_options_factory=self._policy_of(attempt),
            ip_allowlist=self._config.federation_ip_range_allowlist,
            ip_blocklist=self._config.federation_ip_range_blocklist,
            proxy_config=self._config.proxy_config,
            _srv_resolver=ContactSrvResolver(attempt, self.look_ups),
            _well_known_resolver=resolver,
            **self._named,
        )
        pool = HTTPConnectionPool(cast(Any, attempt), persistent=False)
        agent._agent._pool = pool
        agent._agent._endpointFactory._proxy_reactor = attempt.proxy_side
        return AttemptAgent(self._blocklisted(agent), attempt)

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


class _HomeServerView:
    """A homeserver as it is, but for its reactor."""

    def __init__(self, hs: "HomeServer", max_lifetime_s: float) -> None:
        self._hs = hs
        self._reactor = BoundedReactor(hs.get_reactor(), max_lifetime_s=max_lifetime_s)

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
