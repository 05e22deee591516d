# SPDX-License-Identifier: Apache-2.0
"""Makes diagnoses: all stages, side by side where they do not depend on each other.

One file of over 400 lines: which stage waits for which is read at one place.
"""

import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import AsyncExitStack, suppress
from functools import cached_property, partial
from typing import TypeVar

import attr
from twisted.internet.defer import CancelledError

from synapse_federation_admin import limits
from synapse_federation_admin.destinations.backlog import BacklogStore
from synapse_federation_admin.destinations.queued import queued_position
from synapse_federation_admin.destinations.senders import Senders
from synapse_federation_admin.destinations.store import DestinationStore
from synapse_federation_admin.diagnosis.addresses import check_addresses
from synapse_federation_admin.diagnosis.answers import check_clock, check_version
from synapse_federation_admin.diagnosis.connections import check_connections
from synapse_federation_admin.diagnosis.findings import (
    ConnectionsFindings,
    StageOutcome,
    StoredFindings,
)
from synapse_federation_admin.diagnosis.requests import (
    check_authenticated,
    check_keys,
    left_ms,
)
from synapse_federation_admin.diagnosis.resolution import AddressesFindings
from synapse_federation_admin.diagnosis.stages import (
    Diagnosis,
    SkipReason,
    Stage,
    StageName,
    Stages,
)
from synapse_federation_admin.diagnosis.stored import (
    check_sender,
    check_stored,
)
from synapse_federation_admin.diagnosis.verdict import conclude
from synapse_federation_admin.diagnosis.way import TimeIsOver, Way, side_by_side
from synapse_federation_admin.diagnosis.well_known import (
    WellKnown,
    check_well_known,
    with_second_file,
)
from synapse_federation_admin.failures.kinds import Failure, FailureKind, Reason
from synapse_federation_admin.failures.names import why_not_contacted
from synapse_federation_admin.failures.situation import Situation
from synapse_federation_admin.homeserver.background import KeyedLock
from synapse_federation_admin.homeserver.errors import (
    LimitExceededError,
    innermost,
    is_out_of_resources,
)
from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.homeserver.metrics import DIAGNOSES
from synapse_federation_admin.homeserver.newest import keep_newest
from synapse_federation_admin.homeserver.outbound import Outbound, delegation_to
from synapse_federation_admin.homeserver.server_name import ServerName
from synapse_federation_admin.storage.records import Recorded

T = TypeVar("T")

logger = logging.getLogger(__name__)

# Who waits longer than this share of the time for a turn is told to come again: what is
# left would be too short.
_SHARE_OF_WAIT = 0.25

# How long it takes until what Synapse's client has called off has ended.
_CALLED_OFF_MS = 100

# A connection that nobody wants any more ends so much after the diagnosis.
_GRACE_MS = 1000

# How long it may take to count servers that fail alike; and of how many others.
_COUNT_MS = 500
_SEVERAL = 2

# How long it may take where addresses alone are looked for.
_LOOK_MS = 5000

_DIRECT = (
    StageName.WELL_KNOWN,
    StageName.ADDRESSES,
    StageName.CONNECTIONS,
    StageName.VERSION,
)
_ASKED = (StageName.KEYS, StageName.AUTHENTICATED)


@attr.s(auto_attribs=True, eq=False)
class Diagnoses:
    """Makes diagnoses: one at a time of each destination, few of them at once.

    Args:
        homeserver: Reaches Synapse.
        destinations: Knows Synapse's rows.
        backlog: Knows what waits.
        recorded: Returns what real requests to a server met; None: not known.
        others_untrusted: Counts how many others have servers that fail, as that one
            does, because an issuer is not trusted.
        senders: Returns who knows the processes that send; None if that is off.
        timeout_ms: How long one diagnosis may take.
    """

    _homeserver: Homeserver
    _destinations: DestinationStore
    _backlog: BacklogStore
    _recorded: Callable[[str], Awaitable[Recorded | None]]
    _others_untrusted: Callable[[str, str], Awaitable[int]]
    _senders: Callable[[], Senders | None]
    timeout_ms: int
    # The newest at the end.
    _made: dict[str, Diagnosis] = attr.ib(init=False, factory=dict)

    @cached_property
    def _turns(self) -> KeyedLock:
        return self._homeserver.linearizer(
            "federation_admin_diagnosis", limits.DIAGNOSES
        )

    @cached_property
    def _outbound(self) -> Outbound:
        max_lifetime_s = (self.timeout_ms + _GRACE_MS) / 1000
        return Outbound(self._homeserver, max_lifetime_s=max_lifetime_s)

    async def diagnose(self, name: str) -> Diagnosis:
        """Return a diagnosis; of one that is under way, to all who ask for it.

        Args:
            name: The server name, valid or not, known or not.

        Raises:
            LimitExceededError: There are too many others.
        """
        return await self._homeserver.single_flight.run(
            "federation_admin_diagnosis", name, lambda: self._make(name), joins=True
        )

    def last(self, name: str) -> Diagnosis | None:
        """Return the last diagnosis of a server, if it is one of the last made here."""
        return self._made.get(name)

    async def find_addresses(self, names: Sequence[str]) -> dict[str, list[str]]:
        """Return to which IP addresses requests to some servers go.

        Those of which none are found are left out. Nothing is connected to, but for
        their well-known files.

        Args:
            names: The server names.
        """
        found: dict[str, list[str]] = {}
        looked = self._homeserver.linearizer(
            "federation_admin_addresses", limits.ADDRESS_SEARCHES
        )

        async def look(name: str) -> None:
            async with looked(""):
                way = self._way(_LOOK_MS)
                with suppress(TimeIsOver, ValueError):
                    # Else it leads nowhere.
                    addresses = await way.within(_LOOK_MS, _find_addresses, way, name)
                    if addresses:
                        found[name] = addresses

        if self._outbound.instances is None:
            # Else this process is not to go out.
            await side_by_side(*(partial(look, name) for name in names))
        return found

    def _way(self, timeout_ms: int) -> Way:
        return Way(self._homeserver, self._outbound, timeout_ms)

    async def in_turn(self, timeout_ms: int, func: Callable[[Way], Awaitable[T]]) -> T:
        """Go out to other servers when it is its turn.

        Args:
            timeout_ms: How long it may take.
            func: What to do.

        Raises:
            LimitExceededError: No turn came in time.
        """
        way = self._way(timeout_ms)
        wait_ms = way.left_ms(_SHARE_OF_WAIT)
        async with AsyncExitStack() as stack:
            try:
                turn = self._turns("")
                await way.within(wait_ms, stack.enter_async_context, turn)
            except TimeIsOver:
                raise LimitExceededError(
                    "federation_admin_diagnosis", retry_after_ms=self.timeout_ms
                ) from None
            return await func(way)

    async def _make(self, name: str) -> Diagnosis:
        found = await self.in_turn(
            self.timeout_ms, lambda way: self._diagnose(way, name)
        )
        keep_newest(self._made, name, found, limits.KEPT_DIAGNOSES)
        return found

    async def _diagnose(self, way: Way, name: str) -> Diagnosis:
        checked_ts = self._homeserver.now_ms()
        begun_ms = way.now_ms
        invalid = why_not_contacted(self._homeserver, name)
        checked = (
            Stage.failed(StageName.NAME, invalid)
            if invalid
            else Stage(StageName.NAME, StageOutcome.OK)
        )
        stages = Stages({StageName.NAME: checked})
        await side_by_side(
            partial(_take, way, stages, self._check_stored(way, name)),
            partial(_take, way, stages, self._check_sender(way, name, invalid)),
            partial(_guarded, stages, (*_DIRECT, *_ASKED), _check_way, way, name),
        )
        stages[StageName.CLOCK] = check_clock(stages)
        situation = conclude(stages, self._homeserver.server_name)
        situation = await self._with_others(way, name, situation)
        kind = situation.kind.value if situation.kind else ""
        self._homeserver.metrics(DIAGNOSES, situation.verdict.value, kind).inc()
        return Diagnosis(
            destination=name,
            checked_ts=checked_ts,
            duration_ms=way.since(begun_ms),
            instance=self._homeserver.instance_name,
            situation=situation,
            stages=tuple(stages[stage] for stage in StageName),
            stored=stages.seen(StoredFindings),
        )

    async def _with_others(self, way: Way, name: str, found: Situation) -> Situation:
        """Tell whether others fail by the same authority that this host does not know.

        Then it may be what this host trusts that is old.
        """
        failure = found.failure
        if failure is None or failure.reason is not Reason.UNKNOWN_AUTHORITY:
            return found
        try:
            others = await self._homeserver.run_to_end(
                "federation_admin_diagnosis",
                lambda: self._others_untrusted(name, failure.facts.issuer),
                max(way.left_ms(), _COUNT_MS),
            )
        except TimeoutError:
            return found
        if others < _SEVERAL:
            return found
        why = failure.but(Reason.AUTHORITY_UNKNOWN_HERE, others=others)
        return attr.evolve(found, failure=why)

    async def _check_stored(self, way: Way, name: str) -> Stage:
        async def read() -> Stage:
            return check_stored(
                await self._destinations.get(name),
                (await self._backlog.of([name]))[name],
                await self._destinations.last_inbound_ts(name),
                await self._recorded(name),
                now_ms=self._homeserver.now_ms(),
            )

        return await self._read(StageName.STORED, way, read)

    async def _check_sender(
        self, way: Way, name: str, invalid: Failure | None
    ) -> Stage:
        if invalid is not None:
            return Stage.skip(StageName.SENDER, SkipReason.INVALID_NAME)

        async def read() -> Stage:
            senders = self._senders()
            if senders is None:
                return Stage.skip(StageName.SENDER, SkipReason.SENDERS_OFF)
            sender = await senders.of(name)
            is_ahead = sender.ahead_events and not sender.is_down
            queued = None
            if is_ahead:
                queued = await queued_position(self._homeserver, sender)
            return check_sender(sender, queued, now_ms=self._homeserver.now_ms())

        return await self._read(StageName.SENDER, way, read)

    async def _read(
        self, name: StageName, way: Way, read: Callable[[], Awaitable[Stage]]
    ) -> Stage:
        """Return a stage that is read from the database, if it answers in time."""
        # Work on the database is not called off: it would be waited for.
        try:
            return await self._homeserver.run_to_end(
                "federation_admin_diagnosis", read, way.left_ms()
            )
        except TimeoutError:
            return Stage.skip(name, SkipReason.DATABASE_SLOW)
        except CancelledError:
            raise
        except Exception as e:
            logger.warning("Could not read the stage %s of a diagnosis: %s", name, e)
            return Stage.skip(name, SkipReason.DATABASE_FAILED)


# Each of these takes stages, and adds them.


async def _check_way(stages: Stages, way: Way, name: str) -> None:
    """Go the way that a request takes."""
    if stages[StageName.NAME].outcome is StageOutcome.FAILED:
        _skip(stages, (*_DIRECT, *_ASKED), SkipReason.INVALID_NAME)
        return
    if way.outbound.instances is not None:
        others = ", ".join(way.outbound.instances)
        _skip(stages, _DIRECT, SkipReason.ANOTHER_PROCESS, others)
        await _ask(stages, way, name, None)
        return
    begun_ms = way.now_ms
    well_known = await check_well_known(way, ServerName.parse(name))
    _add(stages, well_known.stage, way.since(begun_ms))
    await side_by_side(
        partial(_guarded, stages, _DIRECT[1:], _go, way, name, well_known),
        partial(_guarded, stages, _ASKED, _ask, way, name, well_known),
    )
    if any(stages[s].outcome is StageOutcome.FAILED for s in _DIRECT[1:3]):
        # The requests of Synapse's client do not tell again what was met before.
        for asked in _ASKED:
            stage = stages[asked]
            status = getattr(stage.findings, "status", None)
            if stage.outcome is StageOutcome.FAILED and status is None:
                skipped = Stage.skip(asked, SkipReason.NOT_REACHED)
                _add(stages, skipped, stage.duration_ms)


async def _go(stages: Stages, way: Way, name: str, well_known: WellKnown) -> None:
    """Find the addresses and connect to each."""
    is_delegated = well_known.delegated_to is not None
    try:
        where = ServerName.parse(well_known.delegated_to or name)
    except ValueError:
        _skip(stages, _DIRECT[1:], SkipReason.INVALID_DELEGATION)
        return
    checking = check_addresses(way, where, is_delegated=is_delegated)
    found = await _take(way, stages, checking)
    addresses = found.findings
    assert isinstance(addresses, AddressesFindings)
    if found.outcome is StageOutcome.FAILED:
        if is_delegated:
            stages[StageName.ADDRESSES] = await with_second_file(way, where, found)
        _skip(stages, _DIRECT[2:], SkipReason.NO_ADDRESS)
        return
    connecting = check_connections(way, where, addresses)
    found = await _take(way, stages, connecting)
    connections = found.findings
    assert isinstance(connections, ConnectionsFindings)
    if is_delegated and found.outcome is StageOutcome.FAILED:
        stages[StageName.CONNECTIONS] = await with_second_file(way, where, found)
    stages[StageName.VERSION] = check_version(connections)


async def _ask(
    stages: Stages, way: Way, name: str, well_known: WellKnown | None
) -> None:
    """Ask what only Synapse's own client can ask, where that would ask now."""
    begun_ms, timeout_ms, delegation = way.now_ms, left_ms(way), None
    if well_known is not None and not well_known.is_late:
        delegation = delegation_to(well_known.used)
    await side_by_side(
        partial(_take, way, stages, check_keys(way, name, delegation)),
        partial(_take, way, stages, check_authenticated(way, name, delegation)),
    )
    if way.since(begun_ms) >= timeout_ms:
        await way.homeserver.sleep_ms(_CALLED_OFF_MS)


async def _find_addresses(way: Way, name: str) -> list[str]:
    delegated = (await check_well_known(way, ServerName.parse(name))).delegated_to
    where = ServerName.parse(delegated or name)
    stage = await check_addresses(
        way, where, is_delegated=delegated is not None, explains=False
    )
    assert isinstance(stage.findings, AddressesFindings)
    targets = stage.findings.targets
    return sorted({a.address for target in targets for a in target.addresses})


async def _take(way: Way, stages: Stages, stage: Awaitable[Stage]) -> Stage:
    """Take a stage, and how long it takes."""
    begun_ms = way.now_ms
    found = await stage
    _add(stages, found, way.since(begun_ms))
    return found


async def _guarded(
    stages: Stages,
    names: Collection[StageName],
    func: Callable[..., Awaitable[None]],
    *args: object,
) -> None:
    """Have a fault of our own cost these stages, and not the whole report."""
    try:
        await func(stages, *args)
    except CancelledError:
        raise
    except Exception as e:
        reason = None
        if is_out_of_resources(innermost(e)):
            reason = Reason.OUT_OF_RESOURCES
        else:
            logger.exception("A stage of a diagnosis has failed")
        failure = Failure(FailureKind.INTERNAL, reason)
        stages.update({name: Stage.failed(name, failure) for name in names})


def _skip(
    stages: Stages, names: Collection[StageName], why: SkipReason, told: str = ""
) -> None:
    stages.update({name: Stage.skip(name, why, told) for name in names})


def _add(stages: Stages, stage: Stage, duration_ms: int) -> None:
    stages[stage.name] = attr.evolve(stage, duration_ms=duration_ms)
