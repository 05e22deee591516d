# SPDX-License-Identifier: Apache-2.0
"""What the rest of the module needs of the Synapse process that it is loaded into."""

import hmac
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Hashable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeVar

import attr
from synapse.http.matrixfederationclient import MatrixFederationHttpClient
from synapse.http.server import (
    HttpServer,
)
from synapse.logging.context import (
    PreserveLoggingContext,
)
from synapse.module_api import (
    JsonDict,
    LoggingTransaction,
    ModuleApi,
    Requester,
    SynapseRequest,
    make_deferred_yieldable,
)
from synapse.module_api.errors import ConfigError
from synapse.rest.admin._base import assert_user_is_admin
from synapse.storage.database import LoggingDatabaseConnection
from synapse.storage.engines import PostgresEngine
from synapse.storage.engines._base import IsolationLevel
from synapse.types import JsonMapping, ScheduledTask, TaskStatus
from synapse.util.async_helpers import Linearizer, ObservableDeferred
from synapse.util.stringutils import parse_and_validate_server_name
from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeoutError
from twisted.internet.endpoints import (
    HostnameEndpoint,
)
from twisted.internet.interfaces import (
    IReactorTime,
)
from twisted.python.failure import Failure

from synapse_federation_admin.homeserver.admin_resource import AdminResource
from synapse_federation_admin.homeserver.instances import MAIN, shown_instance
from synapse_federation_admin.homeserver.metrics import Metrics
from synapse_federation_admin.homeserver.network import ContactClients
from synapse_federation_admin.homeserver.outbound import Outbound
from synapse_federation_admin.homeserver.single_flight import Pending
from synapse_federation_admin.homeserver.traffic import (
    TrafficObserver,
    observe,
    stop_observing,
)

T = TypeVar("T")

logger = logging.getLogger(__name__)

# A lock that is held per key: `async with lock(key)`.
KeyedLock = Callable[[str], AbstractAsyncContextManager[None]]

ADMIN_PATH = "/_synapse/admin"

# How long Synapse's shutdown waits for what is still to be done.
_SHUTDOWN_S = 5


@attr.s(slots=True, frozen=True, auto_attribs=True)
class BeforeReset:
    """What a destination's row said before its retry timings were cleared.

    Attributes:
        failure_ts: Since when it was failing, in ms; None: that is not to be restored.
        delivered: Its `last_successful_stream_ordering`.
    """

    failure_ts: int | None
    delivered: int | None


class Homeserver:
    """What this module needs of the Synapse process that it is loaded into.

    Attributes:
        metrics: What is shown on Synapse's metrics endpoint.
    """

    def __init__(self, api: ModuleApi) -> None:
        self._api = api
        self._hs = api._hs
        self.metrics = Metrics(self._hs.hostname)
        self._contact_clients: ContactClients | None = None
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

    def before_shutdown(self, desc: str, func: Callable[[], Awaitable[None]]) -> None:
        """Have something done when Synapse shuts down, before the database goes.

        Args:
            desc: Its name in metrics.
            func: What to run. Synapse waits for it, but not for long.
        """
        reactor = self._hs.get_reactor()

        def run() -> "Deferred[None]":
            done: Deferred[None] = self._hs.run_as_background_process(desc, func)
            return done.addTimeout(_SHUTDOWN_S, reactor).addErrback(
                lambda _: logger.warning("Shutting down before %s was done", desc)
            )

        # Synapse's own way to register it does not have the reactor wait.
        reactor.addSystemEventTrigger("before", "shutdown", run)

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
        return await self._api.run_db_interaction(desc, self._measured(desc, func))

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
            desc,
            self._measured(desc, func),
            isolation_level=IsolationLevel.READ_COMMITTED,
        )

    def _measured(
        self, desc: str, func: Callable[[LoggingTransaction], T]
    ) -> Callable[[LoggingTransaction], T]:
        """Have each attempt at a transaction begin anew, and be measured."""
        attempt = _each_anew(func)

        def measured(txn: LoggingTransaction) -> T:
            began_s = time.perf_counter()
            try:
                return attempt(txn)
            finally:
                took_s = time.perf_counter() - began_s
                self.metrics.measure_db_work(
                    desc.removeprefix("federation_admin_"), took_s
                )

        return measured

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
                return shown_instance(name)
        return None

    @property
    def instance_name(self) -> str:
        """The name of this process; that of the main process is `main`."""
        return shown_instance(self._hs.get_instance_name())

    @property
    def other_instances(self) -> list[str]:
        """The names of the other processes that the configuration names."""
        if not self.has_other_processes:
            return []
        worker = self._hs.config.worker
        names = {MAIN, *map(shown_instance, worker.instance_map)}
        names.update(map(shown_instance, worker.federation_shard_config.instances))
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
    def _clients(self) -> "ContactClients":
        if self._contact_clients is None:
            self._contact_clients = ContactClients(self._hs)
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

    def observe_traffic(self, observer: TrafficObserver) -> None:
        """Have an observer told of this process's federation requests, from now on.

        Whatever is wrong with that, Synapse goes on.
        """
        try:
            observe(self._hs, observer)
        except Exception:
            logger.exception("Cannot take note of why federation requests fail")
            return
        self._hs.register_sync_shutdown_handler(
            phase="during",
            eventType="shutdown",
            shutdown_func=stop_observing,
            hs=self._hs,
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
