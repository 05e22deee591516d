# SPDX-License-Identifier: Apache-2.0
"""The one room that touches what Synapse keeps private.

Everything else in this package reaches Synapse through `synapse.module_api` or through
this file, so that a Synapse upgrade is a review of this file.
"""

import hmac
import logging
import re
from bisect import bisect_right
from collections.abc import Awaitable, Callable, Collection, Hashable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from copy import copy
from io import BytesIO
from ipaddress import IPv4Address, IPv6Address, ip_address
from operator import itemgetter
from socket import AF_UNSPEC, SOCK_STREAM, getaddrinfo
from typing import TYPE_CHECKING, Any, Generic, NoReturn, Protocol, TypeVar, cast
from urllib.request import (  # type: ignore[attr-defined]  # not documented, but old
    proxy_bypass_environment,
)

import attr
from netaddr import IPSet  # type: ignore[import-untyped]  # Synapse's
from OpenSSL import SSL
from service_identity.exceptions import VerificationError
from synapse.api.errors import (
    FederationDeniedError,
    HttpResponseException,
    LimitExceededError,
    RequestSendFailed,
)
from synapse.config.homeserver import HomeServerConfig
from synapse.config.workers import MAIN_PROCESS_INSTANCE_NAME
from synapse.crypto.context_factory import (
    ConnectionVerifier,
    FederationPolicyForHTTPS,
    SSLClientConnectionCreator,
)
from synapse.http.client import (
    BlocklistingAgentWrapper,
    BlocklistingReactorWrapper,
    BodyExceededMaxSize,
    read_body_with_max_size,
)
from synapse.http.connectproxyclient import HTTPConnectProxyEndpoint
from synapse.http.federation.matrix_federation_agent import MatrixFederationAgent
from synapse.http.federation.srv_resolver import SERVER_CACHE, Server, SrvResolver
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
from synapse.http.proxyagent import ProxyAgent, http_proxy_endpoint
from synapse.http.server import (
    HttpServer,
    JsonResource,
    finish_request,
    set_cors_headers,
)
from synapse.http.servlet import RestServlet
from synapse.logging.context import (
    PreserveLoggingContext,
    defer_to_threadpool,
    run_in_background,
)
from synapse.module_api import (
    JsonDict,
    LoggingTransaction,
    ModuleApi,
    Requester,
    SynapseRequest,
    make_deferred_yieldable,
)
from synapse.module_api.errors import Codes, ConfigError, SynapseError
from synapse.rest.admin import register_servlets
from synapse.rest.admin._base import assert_user_is_admin
from synapse.rest.admin.media import register_servlets_for_media_repo
from synapse.storage.database import LoggingDatabaseConnection
from synapse.storage.engines import PostgresEngine
from synapse.storage.engines._base import IsolationLevel
from synapse.types import JsonMapping, ScheduledTask, TaskStatus
from synapse.util.async_helpers import Linearizer, ObservableDeferred
from synapse.util.gai_resolver import GAIResolver
from synapse.util.stringutils import parse_and_validate_server_name
from twisted.internet.address import UNIXAddress
from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeoutError
from twisted.internet.endpoints import (
    HostnameEndpoint,
    TCP4ClientEndpoint,
    TCP6ClientEndpoint,
    wrapClientTLS,
)
from twisted.internet.interfaces import (
    IHostnameResolver,
    IReactorTime,
    IStreamClientEndpoint,
)
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IResponse
from twisted.web.resource import Resource
from unpaddedbase64 import encode_base64
from zope.interface import implementer

from synapse_federation_admin.bounded_reactor import BoundedReactor, EndingReactor

if TYPE_CHECKING:
    from synapse.config.server import ListenerConfig
    from synapse.server import HomeServer
    from synapse.storage import DataStore

logger = logging.getLogger(__name__)

__all__ = [
    "BeforeReset",
    "BodyExceededMaxSize",
    "Codes",
    "FederationDeniedError",
    "FederationRequests",
    "Homeserver",
    "HttpResponseException",
    "HttpServer",
    "JsonDict",
    "LimitExceededError",
    "LoggingTransaction",
    "Outbound",
    "Pending",
    "RequestSendFailed",
    "Requester",
    "RestServlet",
    "SynapseError",
    "SynapseRequest",
    "UntrustedCertificateError",
    "finish_request",
    "make_deferred_yieldable",
    "run_in_background",
    "set_cors_headers",
]

T = TypeVar("T")

# A lock that is held per key: `async with lock(key)`.
KeyedLock = Callable[[str], AbstractAsyncContextManager[None]]

ADMIN_PATH = "/_synapse/admin"

# What the main process is called here, as in Synapse's `instance_map`; in its code it
# is "master".
MAIN = "main"

# What a connection made for a contact may bring in, and how long it may last. A real
# answer takes some 10 KB, most of it certificates, and the longest timeout is a minute,
# once for the headers and once for the body.
_MAX_CONTACT_BYTES = 256 * 1024
_MAX_CONTACT_S = 150

# Look-ups of names under way at once, for contacts, and for diagnoses.
_RESOLVER_THREADS = 64
_DIAGNOSIS_THREADS = 64

# How much Synapse may log of a text in which a server has a say.
_MAX_LOGGED = 300

# How many of the servers that SRV records lead to are tried.
_MAX_SERVERS = 8

# How much later Synapse's client gives up than its connections do.
_GRACE_MS = 50

# What SRV records may lead to.
_HOST_NAME = re.compile(rb"[0-9A-Za-z._-]{1,255}")

# How many stored keys of one server are looked at.
_MAX_STORED_KEYS = 200

_ANY_ADDRESS = (ip_address("0.0.0.0"), ip_address("::"))  # noqa: S104  # compared
_LOCALHOST = (ip_address("127.0.0.1"), ip_address("::1"))

# The resources of a listener that make Synapse serve admin endpoints on it. Which ones
# of them count, and what is then served, depends on the process.
_Surface = frozenset[str]
_CLOSED: _Surface = frozenset()
_CLIENT: _Surface = frozenset({"client"})
_CLIENT_AND_MEDIA: _Surface = frozenset({"client", "media"})


@attr.s(slots=True, frozen=True, auto_attribs=True)
class BeforeReset:
    """What a destination's row said before its retry timings were cleared.

    Attributes:
        failure_ts: Since when it was failing, in ms; None: that is not to be restored.
        delivered: Its `last_successful_stream_ordering`.
    """

    failure_ts: int | None
    delivered: int | None


class UntrustedCertificateError(Exception):
    """A certificate does not lead to an authority that this homeserver trusts.

    Attributes:
        code: OpenSSL's verification error, one of its `X509_V_ERR_*`.
        depth: Of which certificate: 0 is the server's, others are in its chain.
    """

    def __init__(self, code: int, depth: int = 0) -> None:
        super().__init__(f"OpenSSL verification error {code}")
        self.code = code
        self.depth = depth


class Pending(Generic[T]):
    """Something that goes on in the background, for which many may wait."""

    def __init__(self, reactor: IReactorTime) -> None:
        self._reactor = reactor
        self._deferred: Deferred[T] = Deferred()
        self._observable = ObservableDeferred(self._deferred, consumeErrors=True)

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return bool(self._deferred.called)

    async def wait(self, timeout_ms: int | None = None) -> T:
        """Return what comes of it, or raise what it raises.

        Args:
            timeout_ms: How long to wait; it goes on all the same.

        Raises:
            TimeoutError: It took longer.
        """
        observer = self._observable.observe()
        if timeout_ms is not None:
            observer.addTimeout(timeout_ms / 1000, self._reactor)
        try:
            result: T = await make_deferred_yieldable(observer)
        except DeferredTimeoutError as e:
            raise TimeoutError from e
        return result

    async def run(self, func: Callable[[], Awaitable[T]]) -> None:
        """Run it, and hand out what comes of it. Only `Homeserver.begin` calls this."""
        try:
            result = await func()
        except Exception:
            failure = Failure()
            with PreserveLoggingContext():
                self._deferred.errback(failure)
        else:
            with PreserveLoggingContext():
                self._deferred.callback(result)


class Homeserver:
    """What this module needs of the Synapse process that it is loaded into."""

    def __init__(self, api: ModuleApi) -> None:
        self._api = api
        self._hs = api._hs
        self._contact_clients: _ContactClients | None = None
        self._cancel_statements: set[Callable[[], None]] | None = None
        self._is_shutting_down = False
        self._not_begun: dict[Hashable, ObservableDeferred[Any]] = {}
        self._one_at_a_time = Linearizer(
            name="federation_admin_compute_once", clock=self._hs.get_clock()
        )

    # -- requests --------------------------------------------------------------------

    async def require_admin(self, request: SynapseRequest) -> Requester:
        """Return who makes a request, a server admin.

        Synapse's own check, which also holds where accounts are delegated to an
        authentication service (`synapse/rest/admin/_base.py`).

        Raises:
            SynapseError: 401 without a valid access token, 403 if the user is no admin.
        """
        auth = self._hs.get_auth()
        requester = await auth.get_user_by_req(request)
        await assert_user_is_admin(auth, requester)
        return requester

    def mount_admin(self, register: Callable[[HttpServer], None]) -> None:
        """Serve Synapse's admin API at its path, with servlets of ours before its own.

        Args:
            register: Registers our servlets. Where Synapse has one of the same pattern
                and method, ours answers.

        Raises:
            ConfigError: Another module has registered a resource at the path.
        """
        resource = AdminResource(self._hs, register)
        self._api.register_web_resource(ADMIN_PATH, resource)
        # Synapse keeps the first module's resource, and only logs that it does.
        if self._hs._module_web_resources.get(ADMIN_PATH) is not resource:
            raise ConfigError(
                f"a module already serves {ADMIN_PATH}: synapse_federation_admin."
                "FederationAdmin must be in `modules` only once, and before any other "
                "module that serves that path",
                path=("modules",),
            )

    def secret_for(self, purpose: str) -> bytes:
        """Return a secret of this homeserver's, the same in all of its processes.

        Args:
            purpose: What it is for: another purpose has another secret.
        """
        key = self._hs.config.key.macaroon_secret_key
        return hmac.digest(
            key, b"synapse_federation_admin " + purpose.encode(), "sha256"
        )

    # -- time and background ---------------------------------------------------------

    @property
    def reactor(self) -> IReactorTime:
        """The clock of timeouts."""
        return self._hs.get_reactor()

    def now_ms(self) -> int:
        """Return the time, in ms since the epoch, by Synapse's clock."""
        return self._hs.get_clock().time_msec()

    async def sleep_ms(self, duration_ms: int) -> None:
        """Wait."""
        await self._api.sleep(duration_ms / 1000)

    def run_in_background(
        self, desc: str, func: Callable[..., Awaitable[None]], *args: object
    ) -> None:
        """Start a background process of Synapse's: own log context, own metrics.

        Args:
            desc: Its name in metrics: one of a few, not one per destination.
            func: What to run. What it raises is logged by Synapse.
            args: Arguments for `func`.
        """
        self._api.run_as_background_process(desc, func, *args)

    def begin(self, desc: str, func: Callable[[], Awaitable[T]]) -> Pending[T]:
        """Start something in the background for which others are going to wait.

        Args:
            desc: Its name in metrics: one of a few.
            func: What to run. What it raises is raised to all who wait.
        """
        pending: Pending[T] = Pending(self.reactor)
        self._api.run_as_background_process(desc, pending.run, func)
        return pending

    def linearizer(self, name: str, max_count: int = 1) -> KeyedLock:
        """Make a lock that is held per key, for log contexts as Synapse keeps them."""
        return Linearizer(
            name=name, clock=self._hs.get_clock(), max_count=max_count
        ).queue

    async def compute_once(
        self,
        key: Hashable,
        compute: Callable[[], Awaitable[T]],
        *,
        timeout_ms: int | None = None,
    ) -> T:
        """Compute something, once for all who ask for it at the same time.

        One computation of a key runs at a time. Who asks while it runs gets the result
        of the next one, and not of this one, which may have read what was there before
        he asked.

        Args:
            key: What is computed: equal keys stand for the same result.
            compute: What to run. What it raises is raised to all who asked; if nobody
                waits any more, Synapse logs it.
            timeout_ms: How long to wait for the result. It is computed to the end even
                if nobody waits any more.

        Raises:
            TimeoutError: It took longer.
        """
        observable = self._not_begun.get(key)
        if observable is not None:
            observer = observable.observe()
        else:
            deferred: Deferred[T] = Deferred()
            observable = ObservableDeferred(deferred, consumeErrors=True)
            self._not_begun[key] = observable
            # First of all, for it may fail at once.
            observer = observable.observe()
            self._api.run_as_background_process(
                "federation_admin_compute_once",
                self._compute,
                key,
                compute,
                deferred,
                observable,
            )
        if timeout_ms is not None:
            observer.addTimeout(timeout_ms / 1000, self.reactor)
        try:
            result: T = await make_deferred_yieldable(observer)
        except DeferredTimeoutError as e:
            raise TimeoutError from e
        return result

    async def _compute(
        self,
        key: Hashable,
        compute: Callable[[], Awaitable[T]],
        deferred: "Deferred[T]",
        observable: "ObservableDeferred[T]",
    ) -> None:
        """Run one computation of `compute_once`, and hand its outcome out."""
        async with self._one_at_a_time.queue(key):
            del self._not_begun[key]
            try:
                result = await compute()
            except Exception:
                failure = Failure()
                # Those whose time is over are still there, but have been told.
                is_awaited = not all(d.called for d in observable.observers())
                with PreserveLoggingContext():
                    deferred.errback(failure)
                if not is_awaited:
                    raise
            else:
                with PreserveLoggingContext():
                    deferred.callback(result)

    # -- database --------------------------------------------------------------------

    @property
    def is_postgres(self) -> bool:
        """Whether the database is PostgreSQL; else it is SQLite.

        On SQLite, Synapse has one connection for everything: what runs long on it holds
        up the whole homeserver.
        """
        return isinstance(
            self._hs.get_datastores().main.database_engine, PostgresEngine
        )

    async def run_db_interaction(
        self, desc: str, func: Callable[[LoggingTransaction], T]
    ) -> T:
        """Run a function in a transaction, on a database thread.

        Args:
            desc: Its name in metrics and logs.
            func: Called with a `LoggingTransaction`; again if the database says so.
        """
        return await self._api.run_db_interaction(desc, _each_anew(func))

    @property
    def integrity_error(self) -> type[Exception]:
        """What the database raises if something is not as a constraint wants it."""
        error: type[Exception] = (
            self._hs.get_datastores().main.database_engine.module.IntegrityError
        )
        return error

    async def run_read_committed(
        self, desc: str, func: Callable[[LoggingTransaction], T]
    ) -> T:
        """Run a function in a transaction in which each statement sees the newest.

        For those that wait for a lock first: what Synapse's ordinary transactions see
        is as old as their first statement.
        """
        return await self._hs.get_datastores().main.db_pool.runInteraction(
            desc, _each_anew(func), isolation_level=IsolationLevel.READ_COMMITTED
        )

    @property
    def runs_background_tasks(self) -> bool:
        """Whether this is the process that does what is to be done once only.

        One process of the homeserver is: main, or `run_background_tasks_on`.
        """
        return bool(self._hs.config.worker.run_background_tasks)

    async def run_outside_transactions(
        self, func: Callable[[LoggingTransaction], T]
    ) -> T:
        """Run statements on PostgreSQL that may take hours, each by itself.

        There is no transaction and no limit of time. When Synapse shuts down, what runs
        is cancelled: Synapse does not end before its database threads do.

        Args:
            func: Called once. No other call of Synapse's sees what it does to its
                session: the connection is replaced afterwards.
        """
        if self._cancel_statements is None:
            self._cancel_statements = set()
            self._hs.get_reactor().addSystemEventTrigger(
                "before", "shutdown", self._cancel_all_statements
            )
        cancels = self._cancel_statements

        def run(conn: LoggingDatabaseConnection) -> T:
            # Of the driver's connection, not of the pool's, which is given another.
            cancel = conn.conn.cancel  # type: ignore[attr-defined]  # psycopg2's
            cancels.add(cancel)
            try:
                if self._is_shutting_down:
                    raise RuntimeError("Synapse is shutting down")
                txn = conn.cursor(txn_name="federation_admin_outside_transactions")
                txn.execute("SET statement_timeout = 0")
                txn.execute("SET lock_timeout = 0")
                return func(txn)
            finally:
                cancels.discard(cancel)
                conn.reconnect()

        return await self._hs.get_datastores().main.db_pool.runWithConnection(
            run, db_autocommit=True
        )

    def _cancel_all_statements(self) -> None:
        self._is_shutting_down = True
        for cancel in tuple(self._cancel_statements or ()):
            cancel()

    async def is_backing_off(self, destination: str) -> bool:
        """Tell whether this process believes a destination to be failing.

        That is what Synapse acts on: a cache of the row, which a change of the row that
        is not Synapse's own does not invalidate.
        """
        store = self._hs.get_datastores().main
        timings = await store.get_destination_retry_timings(destination)  # type: ignore[call-arg,arg-type,misc]  # Synapse's own mypy plugin knows how it is called
        return timings is not None

    def clear_retry_timings_txn(
        self, txn: LoggingTransaction, destination: str
    ) -> None:
        """Set a destination's retry timings to "not failing", in a transaction.

        The caches of every process are told once it is committed. Synapse's
        set_destination_retry_timings runs the same in autocommit mode: if telling the
        caches fails there, the row is cleared all the same.
        """
        store = self._hs.get_datastores().main
        store._set_destination_retry_timings_txn(txn, destination, None, 0, 0)

    def invalidate_retry_timings_txn(
        self, txn: LoggingTransaction, destinations: Collection[str]
    ) -> None:
        """Have every process read some destinations' retry timings anew.

        Once the transaction is committed, in which they are changed.
        """
        store = self._hs.get_datastores().main
        store._invalidate_cache_and_stream_bulk(
            txn,
            store.get_destination_retry_timings,
            [(destination,) for destination in destinations],
        )

    async def restore_failure_ts(
        self, before: Mapping[str, BeforeReset]
    ) -> dict[str, bool]:
        """Give destinations that are failing the time since when they really fail.

        Where a destination is not failing, or its `failure_ts` is already as early,
        nothing is changed; nor where its `last_successful_stream_ordering` is another
        one: it got through in between, or its row is a new one, and so is the failure.
        Synapse's own store has no method for this: its upsert ignores a change of
        `failure_ts` alone.

        Args:
            before: By destination, what its row said when it was reset.

        Returns:
            Those of the destinations that are failing, and for each of them whether
            anything has been delivered to it since.
        """
        store = self._hs.get_datastores().main

        def restore_failure_ts_txn(txn: LoggingTransaction) -> dict[str, bool]:
            txn.execute(
                "SELECT destination, failure_ts, last_successful_stream_ordering "  # noqa: S608
                "FROM destinations "
                f"WHERE destination IN ({', '.join('?' * len(before))}) "
                "AND retry_last_ts > 0 ORDER BY destination",
                tuple(before),
            )
            failing: dict[str, bool] = {}
            for destination, failure_ts, delivered in txn.fetchall():
                then = before[destination]
                failing[destination] = (delivered or 0) > (then.delivered or 0)
                if (
                    then.failure_ts is None
                    or delivered != then.delivered
                    or (failure_ts and failure_ts <= then.failure_ts)
                ):
                    continue
                # If somebody else has changed the row by now, PostgreSQL refuses this,
                # and Synapse runs the whole transaction again.
                txn.execute(
                    "UPDATE destinations SET failure_ts = ? WHERE destination = ?",
                    (then.failure_ts, destination),
                )
                store._invalidate_cache_and_stream(
                    txn, store.get_destination_retry_timings, (destination,)
                )
            return failing

        if not before:
            return {}
        return await self.run_db_interaction(
            "federation_admin_restore_failure_ts", restore_failure_ts_txn
        )

    # -- federation ------------------------------------------------------------------

    @staticmethod
    def is_server_name(name: str) -> bool:
        """Tell whether a name is one that Synapse would send a request to."""
        try:
            parse_and_validate_server_name(name)
        except ValueError:
            return False
        return True

    def can_be_host(self, host: str) -> bool:
        """Tell whether Synapse can connect to a host of this name, if there is one.

        Twisted is stricter than the DNS: of underscores, or hyphens at the ends.
        """
        endpoint = HostnameEndpoint(self._hs.get_reactor(), host, 443)
        return not endpoint._badHostname

    @property
    def is_allowed(self) -> Callable[[str], bool]:
        """Tells whether `federation_domain_whitelist` lets requests to a server out."""
        config = self._hs.config.federation
        return config.is_domain_allowed_according_to_federation_whitelist

    def sender_of(self, destination: str) -> str | None:
        """Return the name of the process that sends to a destination.

        The main process is called `main`. None if this process knows of none: where
        nothing sends, and where senders are configured in the old way, with
        `send_federation: false`, which tells only the sender itself who it is.
        """
        senders = self._hs.config.worker.federation_shard_config
        for name in senders.instances:
            if senders.should_handle(name, destination):
                return _shown(name)
        return None

    @property
    def instance_name(self) -> str:
        """The name of this process; that of the main process is `main`."""
        return _shown(self._hs.get_instance_name())

    @property
    def other_instances(self) -> list[str]:
        """The names of the other processes that the configuration names."""
        if not self.has_other_processes:
            return []
        worker = self._hs.config.worker
        names = {MAIN, *map(_shown, worker.instance_map)}
        names.update(map(_shown, worker.federation_shard_config.instances))
        return sorted(names - {self.instance_name})

    @property
    def can_tell_others(self) -> bool:
        """Whether this process is connected with the others, through Redis."""
        return self._hs.get_replication_command_handler().connected()

    def wake(self, destination: str) -> None:
        """Have this process try a destination now, if it sends to it."""
        self._hs.get_notifier().notify_remote_server_up(destination)

    @property
    def has_other_processes(self) -> bool:
        """Whether this homeserver runs on several processes, joined by Redis."""
        return bool(self._hs.config.redis.redis_enabled)

    def wake_elsewhere(self, destination: str) -> None:
        """Have every other process try a destination now, if it sends to it."""
        self._hs.get_replication_command_handler().send_remote_server_up(destination)

    @property
    def longest_send_attempt_ms(self) -> int:
        """How long a federation sender may take over one transaction, all retries."""
        federation = self._hs.config.federation
        retries = federation.max_long_retries
        # Synapse adds up to 40 % of jitter to the delays between the attempts.
        return int(
            federation.client_timeout_ms * (retries + 1)
            + federation.max_long_retry_delay_ms * 1.4 * retries
        )

    async def contact(
        self, destination: str, *, timeout_ms: int, ignore_backoff: bool
    ) -> JsonDict:
        """Make one real request to a destination: `GET /_matrix/federation/v1/version`.

        It goes through a federation client of Synapse's own, so that whitelist, IP
        blocklist, proxy, `outbound_federation_restricted_to`, certificates and the
        retry limiter are Synapse's; only its connections are bounded. The limiter puts
        a destination that does not answer into backoff, and takes one that does out of
        it.

        Args:
            destination: The server name.
            timeout_ms: How long it has to answer.
            ignore_backoff: Ask even if it is in backoff; a failure then leaves the
                retry timings as they are.

        Returns:
            The body: https://spec.matrix.org/v1.11/server-server-api/#get_matrixfederationv1version

        Raises:
            Exception: Whatever Synapse's client raises; nothing of it is our fault.
        """
        return await self._contact(
            self._clients.limited,
            destination,
            timeout_ms=timeout_ms,
            ignore_backoff=ignore_backoff,
        )

    async def probe(self, destination: str, *, timeout_ms: int) -> JsonDict:
        """Make the same request past the retry limiter.

        It is made even if the destination is in backoff, and whatever comes of it, no
        retry timing is changed and nobody is woken.
        """
        return await self._contact(
            self._clients.unlimited,
            destination,
            timeout_ms=timeout_ms,
            ignore_backoff=True,
        )

    def outbound(self, max_lifetime_ms: int) -> "Outbound":
        """Make the way out to other servers, step by step.

        Args:
            max_lifetime_ms: How long a connection may last.
        """
        return Outbound(self._hs, max_lifetime_ms / 1000)

    @property
    def server_name(self) -> str:
        """This homeserver's own server name."""
        return self._hs.hostname

    def has_addresses(self, host: str) -> bool:
        """Tell whether a host name led to addresses when it was last looked up.

        By a contact of this process, within the last some hundred. Synapse takes a name
        that leads to a blocked address for one that leads to none.
        """
        return bool(self._clients.reactor.has_addresses(host))

    @property
    def _clients(self) -> "_ContactClients":
        if self._contact_clients is None:
            self._contact_clients = _ContactClients(self._hs)
        return self._contact_clients

    @staticmethod
    async def _contact(
        client: MatrixFederationHttpClient,
        destination: str,
        *,
        timeout_ms: int,
        ignore_backoff: bool,
    ) -> JsonDict:
        return await client.get_json(
            destination,
            path="/_matrix/federation/v1/version",
            timeout=timeout_ms,
            ignore_backoff=ignore_backoff,
        )

    # -- scheduled tasks ---------------------------------------------------------------

    def register_task(self, action: str, run: Callable[[str], Awaitable[None]]) -> None:
        """Tell Synapse's task scheduler how to run tasks of a kind.

        Before any is scheduled, and at every start: those that were running when the
        process ended are run again.

        Args:
            action: The kind, which no other task of Synapse's has.
            run: Called with what the task is about, on the process that runs background
                tasks.
        """

        async def run_task(
            task: ScheduledTask,
        ) -> tuple[TaskStatus, JsonMapping | None, str | None]:
            await run(task.resource_id or "")
            return TaskStatus.COMPLETE, None, None

        self._hs.get_task_scheduler().register_action(run_task, action)

    async def schedule_task(self, action: str, about: str) -> None:
        """Have a task run as soon as may be."""
        await self._hs.get_task_scheduler().schedule_task(action, resource_id=about)

    async def has_task(self, action: str, about: str) -> bool:
        """Tell whether there is a task that has not come to its end."""
        tasks = await self._hs.get_task_scheduler().get_tasks(
            actions=[action],
            resource_id=about,
            statuses=[TaskStatus.ACTIVE, TaskStatus.SCHEDULED],
        )
        return bool(tasks)

    def launch_tasks(self) -> None:
        """Have the scheduler look for tasks now; else it does so once a minute.

        Only on the process that runs background tasks.
        """
        self._hs.get_task_scheduler().on_new_task("")


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
        return None


class _NoCache:
    """A TTLCache that remembers nothing (`synapse/util/caches/ttlcache.py`)."""

    def get_with_expiry(self, key: bytes) -> NoReturn:
        raise KeyError(key)

    def get(self, _key: bytes, default: T) -> T:
        return default

    def set(self, _key: bytes, _value: object, _ttl: float) -> None:
        pass


class _QuietVerifier(ConnectionVerifier):
    """Synapse's verifier, for which a certificate without names is no surprise."""

    def verify_context_info_cb(
        self, ssl_connection: SSL.Connection, where: int
    ) -> None:
        """See Synapse's; this is called by OpenSSL."""
        try:
            super().verify_context_info_cb(ssl_connection, where)
        except Exception:
            # What is in it, and in the name, is up to the server.
            error = VerificationError(errors=[])
            ssl_connection.get_app_data().failVerification(Failure(error))


class _ContactPolicy(FederationPolicyForHTTPS):
    """Synapse's policy, and the reason if a certificate is not trusted."""

    def __init__(self, config: HomeServerConfig) -> None:
        super().__init__(config)
        context = self._verify_ssl_context
        context.set_verify(context.get_verify_mode(), _verified)

    def get_options(self, host: bytes) -> SSLClientConnectionCreator:
        """Return what makes connections: see Synapse's."""
        creator = cast(SSLClientConnectionCreator, super().get_options(host))
        creator._verifier = _QuietVerifier(host, creator._verifier._verify_certs)
        return creator


def _verified(
    connection: SSL.Connection, _certificate: object, code: int, depth: int, ok: int
) -> bool:
    """Take note of OpenSSL's verdict on a certificate; return that it stands."""
    if not ok:
        # Else all that is left of it is "certificate verify failed".
        tls_protocol = connection.get_app_data()
        tls_protocol.failVerification(Failure(UntrustedCertificateError(code, depth)))
    return bool(ok)


class _Network:
    """Connections to other servers as Synapse's federation client makes them: bounded.

    What other servers send is such afterwards that Synapse may log it.

    Attributes:
        reactor: What makes the connections.
        threads: Those that look names up; None in a test harness.
        policy: What is wanted of TLS.
        web_agent: Makes requests for well-known files.
    """

    def __init__(
        self, hs: "HomeServer", *, threads: int, max_lifetime_s: float
    ) -> None:
        self._hs = hs
        self._config = hs.config.server
        resolver: IHostnameResolver = hs.get_reactor().nameResolver
        self.threads: ThreadPool | None = None
        if isinstance(resolver, GAIResolver):
            # In threads of its own: a look-up cannot be called off, and domains that
            # are dead may take long. Synapse's own twenty threads would have none left
            # for its federation.
            pool = _thread_pool(hs, threads)
            resolver = cast(
                IHostnameResolver,
                GAIResolver(hs.get_reactor(), getThreadPool=lambda: pool),
            )
            self.threads = pool
        # All that Synapse wants of a reactor, and more.
        self.reactor = cast(
            Any,
            BoundedReactor(
                hs.get_reactor(),
                resolver=resolver,
                max_received_bytes=_MAX_CONTACT_BYTES,
                max_lifetime_s=max_lifetime_s,
            ),
        )
        self.policy = _ContactPolicy(hs.config)
        self._blocklisting = BlocklistingReactorWrapper(
            self.reactor,
            self._config.federation_ip_range_allowlist,
            self._config.federation_ip_range_blocklist,
        )
        # As in `MatrixFederationAgent`.
        self.web_agent: IAgent = self._wrapped(
            ProxyAgent(
                reactor=self._blocklisting,
                proxy_reactor=self.reactor,
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

    def well_known_resolver(self) -> WellKnownResolver:
        """Return what asks for well-known files, and remembers nothing.

        Synapse remembers for an hour that a server has no such file, also if it could
        not be reached: it would still seem to be down when it is up.
        """
        return WellKnownResolver(
            server_name=self._hs.hostname,
            reactor=self._blocklisting,
            clock=self._hs.get_clock(),
            agent=self.web_agent,
            user_agent=self.user_agent.encode("ascii"),
            well_known_cache=cast(Any, _NoCache()),
            had_well_known_cache=cast(Any, _NoCache()),
        )

    def client(self, resolver: WellKnownResolver) -> MatrixFederationHttpClient:
        """Make a federation client.

        As `synapse/server.py`, `HomeServer.get_federation_http_client`. Each request
        has a connection of its own: the bounds are those of one request, and a
        connection that was made earlier would prove less.

        Args:
            resolver: What tells to which server another one delegates.
        """
        if other_instances(self._hs) is not None:
            # Its agent asks another process. That is within a wrapper which keeps to
            # `ip_range_blacklist`.
            client = MatrixFederationHttpClient(
                cast("HomeServer", _HomeServerView(self._hs, self.reactor)), self.policy
            )
            client.agent._agent._pool.persistent = False  # type: ignore[attr-defined]  # IAgent's have none
            client.agent = _PlainAgent(client.agent)
            return client
        # A second one that is made anew would take the metrics of Synapse's own caches
        # of well-known files.
        client = copy(self._hs.get_federation_http_client())
        client.agent = self.agent(resolver)
        return client

    def agent(self, resolver: WellKnownResolver, ends_s: float | None = None) -> IAgent:
        """Make what a client makes its requests with, where it goes out itself.

        Args:
            resolver: What tells to which server another one delegates.
            ends_s: The reactor's time from which nothing is connected to any more.
        """
        reactor = self.reactor
        if ends_s is not None:
            reactor = cast(Any, EndingReactor(reactor, ends_s))
        direct = MatrixFederationAgent(
            server_name=self._hs.hostname,
            reactor=reactor,
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
        return _PlainAgent(
            BlocklistingAgentWrapper(
                agent, ip_blocklist=self._config.federation_ip_range_blocklist
            )
        )


class _ContactClients:
    """Federation clients for contacts.

    Attributes:
        reactor: What makes their connections.
        limited: The retry limiter acts on what comes of its requests.
        unlimited: It does not.
    """

    def __init__(self, hs: "HomeServer") -> None:
        network = _Network(hs, threads=_RESOLVER_THREADS, max_lifetime_s=_MAX_CONTACT_S)
        self.reactor = network.reactor
        self.limited = network.client(network.well_known_resolver())
        self.unlimited = copy(self.limited)
        self.unlimited._store = cast("DataStore", _NoTimings(hs))


def _thread_pool(hs: "HomeServer", threads: int) -> ThreadPool:
    """Return threads that end when Synapse does."""
    reactor = hs.get_reactor()
    pool = ThreadPool(maxthreads=threads, name="federation_admin_resolver")
    pool.start()
    reactor.addSystemEventTrigger("during", "shutdown", pool.stop)
    return pool


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
        self._network = _Network(
            hs, threads=_DIAGNOSIS_THREADS, max_lifetime_s=max_lifetime_s
        )
        self._blocked = _AddressRanges(self._config.federation_ip_range_blocklist)
        self._allowed = _AddressRanges(self._config.federation_ip_range_allowlist)
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
        self._client._store = cast("DataStore", _NoTimings(hs))
        self._client.max_short_retries = 0

    @property
    def instances(self) -> list[str] | None:
        """The processes that go out to other servers in this one's stead.

        None if this one goes itself (`outbound_federation_restricted_to`).
        """
        return other_instances(self._hs)

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
                host.encode()
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


class _AddressRanges:
    """The addresses of an IPSet, with which others are compared much faster."""

    def __init__(self, addresses: IPSet | None) -> None:
        self._ranges: dict[int, list[tuple[int, int]]] = {4: [], 6: []}
        for found in addresses.iter_ipranges() if addresses else ():
            self._ranges[found.version].append((found.first, found.last))

    def __contains__(self, address: IPv4Address | IPv6Address) -> bool:
        ranges, number = self._ranges[address.version], int(address)
        # They are in order, and apart from each other.
        place = bisect_right(ranges, number, key=itemgetter(0))
        return place > 0 and number <= ranges[place - 1][1]


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


@implementer(IAgent)
class _PlainAgent:
    """Passes on what Synapse may log: what servers say is printable, and not endless.

    Synapse logs their status line, their `Content-Type`, and what of an answer it
    cannot parse.
    """

    def __init__(self, agent: IAgent) -> None:
        self._agent = agent

    def request(self, *args: Any, **kwargs: Any) -> "Deferred[IResponse]":
        """Make a request: see `twisted.web.iweb.IAgent`."""
        return self._agent.request(*args, **kwargs).addCallbacks(
            self._plain, self._plain_failure
        )

    @staticmethod
    def _plain(response: IResponse) -> IResponse:
        response.phrase = _plain_text(response.phrase).encode()
        headers = response.headers.getRawHeaders(b"Content-Type")
        if headers is not None:
            response.headers.setRawHeaders(
                b"Content-Type", [_plain_text(headers[0]).encode()]
            )
        return response

    @classmethod
    def _plain_failure(cls, failure: Failure) -> Failure:
        assert failure.value is not None
        cls._make_plain(failure.value)
        return failure

    @classmethod
    def _make_plain(cls, error: BaseException) -> None:
        error.args = tuple(
            _plain_text(arg) if isinstance(arg, str | bytes) else arg
            for arg in error.args
        )
        for reason in getattr(error, "reasons", ()):
            cls._make_plain(reason.value)


def _plain_text(text: str | bytes) -> str:
    """Return a text as it may be logged."""
    if isinstance(text, bytes):
        text = text[:_MAX_LOGGED].decode("latin-1")
    return ascii(text[:_MAX_LOGGED])[1:-1][:_MAX_LOGGED]


class _PlainSrvResolver(SrvResolver):
    """Looks SRV records up, and does not pass on what can be no host name."""

    async def resolve_service(self, service_name: bytes) -> list[Server]:
        """Look up: see Synapse's."""
        found = await super().resolve_service(service_name)
        plain = [server for server in found if _HOST_NAME.fullmatch(server.host)]
        if found and not plain:
            raise ValueError("its SRV records do not lead to host names")
        return plain[:_MAX_SERVERS]


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


def other_instances(hs: "HomeServer") -> list[str] | None:
    """Return the processes that go out to other servers in this one's stead.

    None if this one goes itself.
    """
    allowed = hs.config.worker.outbound_federation_restricted_to
    if hs.get_instance_name() in allowed:
        return None
    return sorted(map(_shown, allowed.instances or []))


def _shown(instance: str) -> str:
    """Return the name of a process as it is in `instance_map`."""
    return MAIN if instance == MAIN_PROCESS_INSTANCE_NAME else instance


class AdminResource(Resource):
    """Synapse's admin API with servlets of ours, on the listeners that have it.

    Synapse attaches a module's resource to every HTTP listener of a process, also to
    those where stock Synapse has no admin API. This resource answers by listener:
    what Synapse would have served there (`synapse/app/homeserver.py`,
    `synapse/app/generic_worker.py`) together with ours, or 404 `M_UNRECOGNIZED`.
    """

    isLeaf = True

    def __init__(
        self, hs: "HomeServer", register: Callable[[HttpServer], None]
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Twisted's
        self._hs = hs
        self._register = register
        self._listeners = _Listeners(hs)
        self._by_surface = {_CLOSED: self._routes(_CLOSED)}
        for surface in self._listeners.surfaces():
            self._by_surface[surface] = self._routes(surface)

    def render(self, request: SynapseRequest) -> int:
        """Answer a request, as what its listener carries."""
        surface = self._listeners.surface_of(request)
        if surface not in self._by_surface:
            self._by_surface[surface] = self._routes(surface)
        return self._by_surface[surface].render(request)

    def listNames(self) -> list[bytes]:
        """Return no names: what is below a leaf is never asked.

        Synapse builds a tree of resources for each listener, and this resource is in
        all of them. Where another module has a path below this one, the second tree
        would find what the first has put here, and fail.
        """
        return []

    def _routes(self, surface: _Surface) -> JsonResource:
        routes = JsonResource(self._hs, canonical_json=False)
        if surface:
            # Ours are registered twice. The first match wins, so they go first; and of
            # an equal pattern and method the last registration stays, so they go last
            # as well.
            self._register(routes)
            if "client" in surface:
                register_servlets(self._hs, routes)
            if "media" in surface:
                register_servlets_for_media_repo(self._hs, routes)
            self._register(routes)
        return routes


class _Listeners:
    """Knows on which listeners of this process Synapse serves admin endpoints."""

    def __init__(self, hs: "HomeServer") -> None:
        on_worker = hs.config.worker.worker_app is not None
        carriers = (
            _CLIENT_AND_MEDIA
            if on_worker and hs.config.media.can_load_media_repo
            else _CLIENT
        )
        listeners = (
            hs.config.worker.worker_listeners
            if on_worker
            else hs.config.server.listeners
        )
        self._unconfigured: set[str] = set()
        self._by_tag: dict[str, list[tuple[ListenerConfig, _Surface]]] = {}
        for listener in listeners:
            if listener.http_options is not None:
                names = {
                    name
                    for resource in listener.http_options.resources
                    for name in resource.names
                }
                self._by_tag.setdefault(listener.get_site_tag(), []).append(
                    (listener, carriers & names)
                )

    def surfaces(self) -> set[_Surface]:
        """Return the surfaces of the listeners in the configuration."""
        return {surface for group in self._by_tag.values() for _, surface in group}

    def surface_of(self, request: SynapseRequest) -> _Surface:
        """Return the surface of the listener that a request came in through."""
        tag = request.synapse_site.site_tag
        listeners = self._by_tag.get(tag)
        if listeners is None:
            # Synapse itself opens no listener that is not in its configuration. Who has
            # put this resource on a site of his own, as Synapse's test harness does,
            # wants it served there.
            if tag not in self._unconfigured:
                self._unconfigured.add(tag)
                logger.warning("Listener %r is not in Synapse's configuration", tag)
            return _CLIENT
        surfaces = {surface for _, surface in listeners}
        if len(surfaces) > 1:
            # All Unix sockets share one tag, and so do two listeners on one port of
            # different addresses, or what the operator has tagged alike.
            surfaces = {s for listener, s in listeners if _is_at(listener, request)}
        return surfaces.pop() if len(surfaces) == 1 else _CLOSED


def _is_at(listener: "ListenerConfig", request: SynapseRequest) -> bool:
    """Tell whether a request came in through a listener, by the local address."""
    host = request.getHost()
    if isinstance(host, UNIXAddress):
        path = getattr(listener, "path", None)
        return path is not None and host.name == path.encode()
    if getattr(listener, "port", None) != getattr(host, "port", None):
        return False
    bound = set(_addresses(getattr(listener, "bind_addresses", [])))
    return bool({ip_address(host.host), *_ANY_ADDRESS} & bound)


def _addresses(names: list[str]) -> Iterator[IPv4Address | IPv6Address]:
    """Yield what a listener's `bind_addresses` stand for."""
    for name in names:
        try:
            yield ip_address(name or "::")
        except ValueError:
            # A host name: Synapse binds to what it resolves to on this machine.
            if name == "localhost":
                yield from _LOCALHOST


def _each_anew(
    func: Callable[[LoggingTransaction], T],
) -> Callable[[LoggingTransaction], T]:
    """Have what an attempt at a transaction wants done after it go if it is repeated.

    Synapse does it for every attempt, once one has succeeded.
    """

    def attempt(txn: LoggingTransaction) -> T:
        for callbacks in (
            txn.after_callbacks,
            txn.async_after_callbacks,
            txn.exception_callbacks,
        ):
            if callbacks:
                callbacks.clear()
        return func(txn)

    return attempt
