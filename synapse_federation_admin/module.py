# SPDX-License-Identifier: Apache-2.0
"""The class that Synapse loads, and what it is put together from."""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from synapse_federation_admin.config import (
    FederationAdminConfig,
    parse_config,
    require_supported_synapse,
)
from synapse_federation_admin.homeserver.features import Feature, Features

if TYPE_CHECKING:
    from synapse.module_api import ModuleApi

    from synapse_federation_admin.api import Services
    from synapse_federation_admin.destinations.senders import Sender
    from synapse_federation_admin.destinations.summary import FailureAge
    from synapse_federation_admin.homeserver.responses import PagesResource
    from synapse_federation_admin.storage.records import Recorded, RecordedFailure

Start = Callable[[], object]


class FederationAdmin:
    """Serves the Federation admin API from inside Synapse.

    Synapse calls `parse_config` while it reads homeserver.yaml, and makes one instance
    in every process, before that process begins to listen.
    """

    def __init__(self, config: FederationAdminConfig, api: "ModuleApi") -> None:
        # Only now: on a Synapse that parse_config has refused, these might not import.
        from synapse_federation_admin.homeserver.selfcheck import check_names

        features = Features()
        if not config.history_enabled:
            features.leave_off(
                Feature.HISTORY, "'history.enabled' is false in the configuration"
            )
        if not config.console_enabled:
            features.leave_off(
                Feature.CONSOLE, "'console.enabled' is false in the configuration"
            )
        try:
            check_names(api, features)
            if features.is_on(Feature.MOUNT):
                self._wire(config, api, features)
        except Exception as e:
            # Nothing is mounted: Synapse answers as if this module were not there.
            features.switch_off(Feature.MOUNT, e)

    @staticmethod
    def parse_config(config: object) -> FederationAdminConfig:
        """Parse the module's `config` section.

        Raises:
            ConfigError: The section is wrong, or Synapse is too old. See
                `synapse_federation_admin.config.parse_config`.
        """
        require_supported_synapse()
        return parse_config(config)

    @staticmethod
    def _wire(
        config: FederationAdminConfig, api: "ModuleApi", features: Features
    ) -> None:
        """Make what is on, mount it, and start it once the tables were looked at."""
        from synapse_federation_admin.api import Api, Services
        from synapse_federation_admin.homeserver.admin_resource import is_taken, mount

        if is_taken(api):
            features.switch_off(
                Feature.MOUNT,
                "a module serves its place already: this one must be in `modules` only "
                "once, and before any other that serves /_synapse/admin",
            )
            return
        services = Services(features, config)
        starts: list[tuple[Feature, Start]] = []

        def guarded(feature: Feature, func: Callable[..., Any], *args: Any) -> Any:
            """Have what is wrong with a feature switch off no more than that."""
            if features.is_on(feature):
                try:
                    return func(*args)
                except Exception as e:
                    features.switch_off(feature, e)
            return None

        def require_base() -> None:
            for feature in Feature:
                if feature is not Feature.MOUNT:
                    guarded(feature, features.require, Feature.BASE)

        guarded(Feature.BASE, _wire_base, services, api)
        require_base()
        for feature, wire in _WIRING.items():
            found: Iterable[Start] | None = guarded(feature, wire, services)
            starts += [(feature, start) for start in found or ()]
        console = guarded(Feature.CONSOLE, _make_console, services, api)
        resource = mount(
            api,
            Api(services).register,
            lambda: console if features.is_on(Feature.CONSOLE) else None,
        )
        features.on_change(lambda _: resource.refresh())

        async def begin() -> None:
            from synapse_federation_admin.homeserver.selfcheck import check_columns

            await check_columns(services.homeserver, features)
            require_base()
            for feature, start in starts:
                guarded(feature, start)

        if features.is_on(Feature.BASE):
            # Only now: with what is missing of Synapse, this might not import.
            from synapse_federation_admin.homeserver.metrics import FEATURES

            homeserver = services.homeserver
            for feature in Feature:
                homeserver.metrics(FEATURES, feature.value).set_function(
                    partial(features.is_on, feature)
                )
            homeserver.run_in_background("federation_admin_selfcheck", begin)


def _wire_base(s: "Services", api: "ModuleApi") -> None:
    from synapse_federation_admin.destinations.attention import AttentionStore
    from synapse_federation_admin.destinations.backlog import BacklogStore
    from synapse_federation_admin.destinations.indexes import DestinationIndexes
    from synapse_federation_admin.destinations.invalid import InvalidNames
    from synapse_federation_admin.destinations.pagination import Cursors
    from synapse_federation_admin.destinations.reader import DestinationReader
    from synapse_federation_admin.destinations.shared_rooms import SharedRoomsStore
    from synapse_federation_admin.destinations.store import DestinationStore
    from synapse_federation_admin.destinations.summary import SummaryStore
    from synapse_federation_admin.history.store import if_readable
    from synapse_federation_admin.homeserver.homeserver import Homeserver
    from synapse_federation_admin.repair.wake import Wake
    from synapse_federation_admin.storage.schema import Tables

    s.homeserver = Homeserver(api)
    s.tables = Tables(s.homeserver, has_history=s.config.history_enabled)
    s.destinations = DestinationStore(s.homeserver)
    invalid = InvalidNames(s.homeserver)
    s.indexes = DestinationIndexes(s.homeserver, s.config.indexes)
    s.reader = DestinationReader(s.homeserver, s.tables, s.features, s.indexes, invalid)
    s.wake = Wake(s.homeserver)
    s.cursors = Cursors(s.homeserver.now_ms)
    s.backlog = BacklogStore(s.homeserver)
    s.shared_rooms = SharedRoomsStore(s.homeserver)

    async def count_kinds(
        now_ms: int,
    ) -> "Mapping[str, Mapping[FailureAge, int]] | None":
        return await if_readable(lambda: s.history.failing_by_kind(now_ms))

    s.summary = SummaryStore(
        s.homeserver, invalid, count_kinds, partial(s.features.is_on, Feature.BACKLOG)
    )

    async def last_failures(
        names: "Sequence[str]",
    ) -> "Mapping[str, RecordedFailure]":
        found = await if_readable(lambda: s.history.failures(names))
        return {name: of[0] for name, of in (found or {}).items()}

    s.attention = AttentionStore(s.homeserver, s.backlog, last_failures)


def _wire_senders(s: "Services") -> Iterable[Start]:
    from synapse_federation_admin.destinations.senders import Senders

    s.senders = Senders(s.homeserver, s.tables)
    return (s.senders.start,)


def _wire_audit(s: "Services") -> Iterable[Start]:
    from synapse_federation_admin.history.changes import ChangesStore
    from synapse_federation_admin.repair.housekeeping import Housekeeping
    from synapse_federation_admin.storage.audit import Audit
    from synapse_federation_admin.storage.runs import RunStore

    s.audit = Audit(s.homeserver, s.tables)
    s.runs = RunStore(s.homeserver, s.tables, s.audit)
    s.changes = ChangesStore(s.homeserver, s.tables, s.audit, s.runs)
    housekeeping = Housekeeping(
        s.homeserver,
        s.tables,
        s.audit,
        keep_for_ms=s.config.audit_keep_for_ms,
        outages_keep_for_ms=s.config.outages_keep_for_ms,
    )
    return (housekeeping.start,)


def _wire_follow_up(s: "Services") -> Start:
    """Make once what three features need; each of them can be off."""
    from synapse_federation_admin.history.store import if_readable
    from synapse_federation_admin.repair.follow_up import FollowUp

    if "follow_up" not in vars(s):

        async def unsent(names: Iterable[str]) -> set[str]:
            return await if_readable(lambda: s.senders.unsent(names)) or set()

        s.follow_up = FollowUp(s.homeserver, s.audit, s.runs, s.wake, unsent)
        s.homeserver.retry_timings.on_change = s.summary.forget
    return s.follow_up.start


def _wire_v1_reset(s: "Services") -> Iterable[Start]:
    from synapse_federation_admin.repair.reset import ConnectionReset

    follow_up = _wire_follow_up(s)
    s.reset = ConnectionReset(
        s.config, s.homeserver, s.destinations, s.audit, s.wake, s.follow_up
    )
    return (follow_up, s.reset.start)


def _wire_reconnect(s: "Services") -> Iterable[Start]:
    from synapse_federation_admin.repair.reconnect import Reconnect

    follow_up = _wire_follow_up(s)
    s.reconnect = Reconnect(
        s.homeserver,
        s.destinations,
        s.audit,
        s.wake,
        s.follow_up,
    )
    return (follow_up,)


def _wire_runs(s: "Services") -> Iterable[Start]:
    from synapse_federation_admin.repair.cap_backoff import CapBackoff
    from synapse_federation_admin.repair.forget import Forget
    from synapse_federation_admin.repair.forget_many import ForgetMany
    from synapse_federation_admin.repair.reconnect_many import ReconnectMany
    from synapse_federation_admin.repair.runner import Runner

    follow_up = _wire_follow_up(s)
    s.reconnect_many = ReconnectMany(
        s.homeserver, s.destinations, s.audit, s.wake, s.follow_up
    )
    s.cap_backoff = CapBackoff(s.homeserver)
    s.forget = Forget(s.homeserver, s.tables, s.backlog, s.shared_rooms, s.audit)
    s.forget_many = ForgetMany(
        s.homeserver, s.reader, s.backlog, s.shared_rooms, s.forget
    )
    s.runner = Runner(
        s.homeserver,
        s.runs,
        s.reader,
        s.tables,
        [s.reconnect_many, s.forget_many, s.cap_backoff],
    )
    return follow_up, s.runner.start


def _wire_flush_caches(s: "Services") -> None:
    from synapse_federation_admin.repair.flush_caches import FlushCaches

    s.flush_caches = FlushCaches(s.homeserver, s.audit)


def _wire_diagnosis(s: "Services") -> Iterable[Start]:
    from synapse_federation_admin.diagnosis.diagnose import Diagnoses
    from synapse_federation_admin.diagnosis.support import SupportFiles
    from synapse_federation_admin.history.store import if_readable

    async def recorded(destination: str) -> "Recorded | None":
        """Return what was recorded; None while nothing is, or it cannot be read."""
        # What waits to be written is told, too.
        await if_readable(lambda: s.recorder.write())
        return await if_readable(lambda: s.history.recorded(destination))

    async def others_untrusted(destination: str, issuer: str) -> int:
        async def count() -> int:
            return await s.history.others_untrusted(destination, issuer)

        return await if_readable(count) or 0

    s.diagnoses = Diagnoses(
        s.homeserver,
        s.destinations,
        s.backlog,
        recorded,
        others_untrusted,
        lambda: s.senders if s.features.is_on(Feature.SENDERS) else None,
        timeout_ms=s.config.diagnosis_timeout_ms,
    )
    s.support = SupportFiles(s.homeserver, s.diagnoses)
    return (lambda: s.homeserver.transactions,)


def _wire_history(s: "Services") -> Iterable[Start]:
    from synapse_federation_admin.failures.classify import described
    from synapse_federation_admin.history.outages import Outages
    from synapse_federation_admin.history.outlook import RecentAttemptsStore
    from synapse_federation_admin.history.recorder import Recorder
    from synapse_federation_admin.history.store import HistoryStore

    find_addresses: Callable[[Any], Awaitable[Any]] = _find_none
    looks_up = s.config.history_look_up_servers
    if looks_up and s.features.is_on(Feature.DIAGNOSIS):
        find_addresses = s.diagnoses.find_addresses
    s.recorder = Recorder(s.homeserver, s.tables, looks_twice=looks_up)
    s.homeserver.learn_causes(described)
    s.history = HistoryStore(s.homeserver, s.tables)
    s.recent_attempts = RecentAttemptsStore(s.homeserver, s.tables, find_addresses)
    starts: list[Start] = [s.recorder.start]
    if s.features.is_on(Feature.RECONNECT):
        starts.append(lambda: s.recorder.watch(s.homeserver.transactions))
    if not looks_up:
        return [*starts, Outages(s.homeserver, s.tables).start]
    outages = Outages(s.homeserver, s.tables, s.recent_attempts.correlation_txn)
    return [*starts, outages.start, s.recent_attempts.start]


async def _find_none(_names: object) -> Any:
    """Find nothing out about some servers: they are not looked up."""
    return {}


def _wire_metrics(s: "Services") -> Iterable[Start]:
    from synapse_federation_admin.history.gauges import Monitor

    async def senders() -> "Sequence[Sender]":
        """Return who sends; nobody while that is not known."""
        is_on = s.features.is_on(Feature.SENDERS)
        return (await s.senders.read()).senders if is_on else ()

    recent = s.recent_attempts if s.features.is_on(Feature.HISTORY) else None
    monitor = Monitor(s.homeserver, s.summary, senders, recent)
    return (monitor.start,)


def _make_console(s: "Services", api: "ModuleApi") -> "PagesResource":
    s.features.require(Feature.V2)
    from synapse_federation_admin.console.resource import Console
    from synapse_federation_admin.homeserver.responses import PagesResource

    return PagesResource(api, Console(s, api).answer)


# In the order in which they need each other. What each needs of Synapse is in
# `homeserver/relied_on.py`, and its routes are in `api/__init__.py`.
_WIRING: dict[Feature, Callable[["Services"], Iterable[Start] | None]] = {
    Feature.SENDERS: _wire_senders,
    Feature.AUDIT: _wire_audit,
    Feature.V1_RESET: _wire_v1_reset,
    Feature.RECONNECT: _wire_reconnect,
    Feature.RUNS: _wire_runs,
    Feature.FLUSH_CACHES: _wire_flush_caches,
    Feature.DIAGNOSIS: _wire_diagnosis,
    Feature.HISTORY: _wire_history,
    Feature.METRICS: _wire_metrics,
    Feature.INDEXES: lambda s: (s.indexes.start,),
}
