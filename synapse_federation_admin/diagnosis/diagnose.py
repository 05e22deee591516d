# SPDX-License-Identifier: Apache-2.0
"""Makes diagnoses: all stages, side by side where they do not depend on each other."""

import logging
import socket
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import AsyncExitStack
from functools import partial

import attr

from synapse_federation_admin.destinations.backlog import BacklogStore
from synapse_federation_admin.destinations.store import DestinationStore
from synapse_federation_admin.diagnosis.addresses import check_addresses, look_up
from synapse_federation_admin.diagnosis.clock import check_clock
from synapse_federation_admin.diagnosis.connections import check_connections
from synapse_federation_admin.diagnosis.deadline import (
    Deadline,
    TimeIsOver,
    side_by_side,
)
from synapse_federation_admin.diagnosis.findings import (
    AddressesFindings,
    ConnectionsFindings,
    Diagnosis,
    KeysFindings,
    SkipReason,
    Stage,
    StageName,
    StageOutcome,
    VersionFindings,
)
from synapse_federation_admin.diagnosis.requests import OwnRequests
from synapse_federation_admin.diagnosis.server_name import ServerName, check_name
from synapse_federation_admin.diagnosis.stored import check_stored
from synapse_federation_admin.diagnosis.verdict import conclude
from synapse_federation_admin.diagnosis.version import check_version
from synapse_federation_admin.diagnosis.well_known import WellKnown, check_well_known
from synapse_federation_admin.failures.kinds import Failure, FailureKind
from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.homeserver.metrics import DIAGNOSES
from synapse_federation_admin.homeserver.outbound import Outbound
from synapse_federation_admin.storage.failures import RecordedFailure

logger = logging.getLogger(__name__)

# Diagnoses under way at once in one process. Who waits longer than a share of the time
# for a turn is told to come again: what is left would be too short.
_MAX_DIAGNOSES = 4
_SHARE_OF_WAIT = 0.25

# The share of the time that is left when Synapse's client has to give up: so that it
# says itself what it has met; and how long it takes until what it called off has ended.
_SHARE_AFTER_REQUESTS = 0.07
_CALLED_OFF_MS = 100

# A connection that nobody wants any more ends so much after the diagnosis.
_GRACE_MS = 1000

# When addresses alone are looked for: of how many servers at once, and for how long.
_MAX_LOOKED = 5
_LOOK_MS = 5000

# How long the DNS has to answer, if it is only asked whether it does.
_ANSWER_MS = 1500

_DIRECT = (
    StageName.WELL_KNOWN,
    StageName.ADDRESSES,
    StageName.CONNECTIONS,
    StageName.VERSION,
)
_ASKED = (StageName.KEYS, StageName.AUTHENTICATED)

Stages = dict[StageName, Stage]


class TooManyDiagnosesError(Exception):
    """So many others are under way that no turn has come."""


class Diagnoses:
    """Makes diagnoses: one at a time of each destination, few of them at once."""

    def __init__(
        self,
        homeserver: Homeserver,
        destinations: DestinationStore,
        backlog: BacklogStore,
        last_failure: Callable[[str], Awaitable[RecordedFailure | None]],
        *,
        timeout_ms: int,
    ) -> None:
        """Make no diagnosis yet.

        Args:
            homeserver: Reaches Synapse.
            destinations: Knows Synapse's rows.
            backlog: Knows what waits.
            last_failure: Returns the last failure of a real request to a server.
            timeout_ms: How long one diagnosis may take.
        """
        self.timeout_ms = timeout_ms
        self._homeserver = homeserver
        self._destinations = destinations
        self._backlog = backlog
        self._last_failure = last_failure
        self._outbound: Outbound | None = None
        self._turns = homeserver.linearizer(
            "federation_admin_diagnosis", _MAX_DIAGNOSES
        )

    async def diagnose(self, name: str) -> Diagnosis:
        """Return a diagnosis; of one that is under way, to all who ask for it.

        Args:
            name: The server name, valid or not, known or not.

        Raises:
            TooManyDiagnosesError: There are too many others.
        """
        return await self._homeserver.single_flight.run(
            "federation_admin_diagnosis", name, lambda: self._in_turn(name), joins=True
        )

    async def find_addresses(self, names: Sequence[str]) -> dict[str, list[str]]:
        """Return to which IP addresses requests to some servers go.

        Those of which none are found are left out. Nothing is connected to, but for
        their well-known files.

        Args:
            names: The server names.
        """
        if self._way_out().instances is not None:
            # This process is not to go out.
            return {}
        found: dict[str, list[str]] = {}
        looked = self._homeserver.linearizer("federation_admin_addresses", _MAX_LOOKED)

        async def look(name: str) -> None:
            async with looked(""):
                deadline = Deadline(self._homeserver.reactor, _LOOK_MS)
                try:
                    found[name] = await deadline.within(
                        _LOOK_MS, self._addresses, name, deadline
                    )
                except (TimeIsOver, ValueError):
                    # It leads nowhere.
                    return

        await side_by_side(*(partial(look, name) for name in names))
        return {name: addresses for name, addresses in found.items() if addresses}

    async def without_dns(self, names: Sequence[str]) -> set[str]:
        """Return those of some server names about which the DNS does not answer.

        Within two seconds. Of names that are addresses, or no server's, none are.
        """
        outbound = self._way_out()
        if outbound.instances is not None:
            # Others ask it.
            return set()
        found: set[str] = set()

        async def look(name: str) -> None:
            try:
                server = ServerName.parse(name)
            except ValueError:
                return
            if server.is_literal:
                return
            deadline = Deadline(self._homeserver.reactor, _ANSWER_MS)
            try:
                await look_up(outbound, server.host, server.port or 8448, deadline)
            except TimeIsOver:
                found.add(name)
            except (OSError, UnicodeError) as e:
                if getattr(e, "errno", None) == socket.EAI_AGAIN:
                    found.add(name)

        await side_by_side(*(partial(look, name) for name in names))
        return found

    async def _addresses(self, name: str, deadline: Deadline) -> list[str]:
        outbound = self._way_out()
        well_known = await check_well_known(outbound, ServerName.parse(name), deadline)
        addresses = await check_addresses(
            self._homeserver,
            outbound,
            ServerName.parse(well_known.delegated_to or name),
            deadline,
            is_delegated=well_known.delegated_to is not None,
        )
        assert isinstance(addresses.findings, AddressesFindings)
        targets = addresses.findings.targets
        return sorted({a.address for target in targets for a in target.addresses})

    async def _in_turn(self, name: str) -> Diagnosis:
        deadline = Deadline(self._homeserver.reactor, self.timeout_ms)
        wait_ms = deadline.left_ms(_SHARE_OF_WAIT)
        async with AsyncExitStack() as stack:
            try:
                turn = self._turns("")
                await deadline.within(wait_ms, stack.enter_async_context, turn)
            except TimeIsOver:
                raise TooManyDiagnosesError from None
            return await self._diagnose(name, deadline)

    async def _diagnose(self, name: str, deadline: Deadline) -> Diagnosis:
        checked_ts = self._homeserver.now_ms()
        begun_ms = deadline.now_ms
        named = check_name(self._homeserver, name)
        stages = {StageName.NAME: named}
        for some in await side_by_side(
            lambda: _timed(deadline, self._check_stored(name, deadline)),
            lambda: _guarded(
                (*_DIRECT, *_ASKED), lambda: self._check_way(name, named, deadline)
            ),
        ):
            stages.update(some)
        stages[StageName.CLOCK] = _check_clock(stages)
        conclusion = conclude(stages)
        kind = conclusion.kind.value if conclusion.kind else ""
        self._homeserver.metrics(DIAGNOSES, conclusion.verdict.value, kind).inc()
        return Diagnosis(
            destination=name,
            checked_ts=checked_ts,
            duration_ms=deadline.since(begun_ms),
            instance=self._homeserver.instance_name,
            conclusion=conclusion,
            stages=tuple(stages[stage] for stage in StageName),
            senders=tuple(self._way_out().instances or ()),
        )

    async def _check_stored(self, name: str, deadline: Deadline) -> Stage:
        async def read() -> Stage:
            row = await self._destinations.get(name)
            backlog = (await self._backlog.of([name]))[name]
            last_ts = await self._destinations.last_inbound_ts(name)
            return check_stored(
                row,
                backlog,
                last_ts,
                await self._last_failure(name),
                now_ms=self._homeserver.now_ms(),
            )

        # Work on the database is not called off: it would be waited for.
        reading = self._homeserver.begin("federation_admin_diagnosis", read)
        try:
            return await reading.wait(deadline.left_ms())
        except TimeoutError:
            return Stage.skip(StageName.STORED, SkipReason.DATABASE_SLOW)
        except Exception as e:
            logger.warning("Could not read what is stored for a diagnosis: %s", e)
            return Stage.skip(StageName.STORED, SkipReason.DATABASE_FAILED)

    def _way_out(self) -> Outbound:
        if self._outbound is None:
            self._outbound = self._homeserver.federation.outbound(
                self.timeout_ms + _GRACE_MS
            )
        return self._outbound

    async def _check_way(self, name: str, named: Stage, deadline: Deadline) -> Stages:
        """Go the way that a request takes."""
        if named.outcome is StageOutcome.FAILED:
            return _skip((*_DIRECT, *_ASKED), SkipReason.INVALID_NAME)
        outbound = self._way_out()
        if outbound.instances is not None:
            stages = _skip(_DIRECT, SkipReason.ANOTHER_PROCESS)
            return stages | await self._ask(outbound, name, None, deadline)
        begun_ms = deadline.now_ms
        well_known = await check_well_known(outbound, ServerName.parse(name), deadline)
        stages = _at(well_known.stage, deadline.since(begun_ms))
        for some in await side_by_side(
            lambda: _guarded(
                _DIRECT[1:],
                lambda: self._go(outbound, name, well_known.delegated_to, deadline),
            ),
            lambda: _guarded(
                _ASKED, lambda: self._ask(outbound, name, well_known, deadline)
            ),
        ):
            stages.update(some)
        return _without_repetition(stages)

    async def _go(
        self,
        outbound: Outbound,
        name: str,
        delegated_to: str | None,
        deadline: Deadline,
    ) -> Stages:
        """Find the addresses and connect to each."""
        try:
            where = ServerName.parse(delegated_to or name)
        except ValueError:
            return _skip(_DIRECT[1:], SkipReason.INVALID_DELEGATION)
        stages = await _timed(
            deadline,
            check_addresses(
                *(self._homeserver, outbound, where, deadline),
                is_delegated=delegated_to is not None,
            ),
        )
        addresses = stages[StageName.ADDRESSES]
        assert isinstance(addresses.findings, AddressesFindings)
        if addresses.outcome is StageOutcome.FAILED:
            return stages | _skip(_DIRECT[2:], SkipReason.NO_ADDRESS)
        stages |= await _timed(
            deadline,
            check_connections(
                self._homeserver, outbound, where, addresses.findings, deadline
            ),
        )
        connections = stages[StageName.CONNECTIONS].findings
        assert isinstance(connections, ConnectionsFindings)
        return stages | {StageName.VERSION: check_version(connections)}

    async def _ask(
        self,
        outbound: Outbound,
        name: str,
        well_known: WellKnown | None,
        deadline: Deadline,
    ) -> Stages:
        """Ask what only Synapse's own client can ask, where that would ask now."""
        begun_ms = deadline.now_ms
        reserve_ms = int(self.timeout_ms * _SHARE_AFTER_REQUESTS)
        timeout_ms = max(1, deadline.left_ms() - reserve_ms)
        requests = OwnRequests(
            self._homeserver,
            outbound,
            outbound.requests(
                is_file_known=well_known is not None and not well_known.is_late,
                delegated_to=well_known.used if well_known else None,
                timeout_ms=timeout_ms,
            ),
            deadline,
        )
        keys, authenticated = await side_by_side(
            lambda: _timed(deadline, requests.check_keys(name)),
            lambda: _timed(deadline, requests.check_authenticated(name)),
        )
        if deadline.since(begun_ms) >= timeout_ms:
            await self._homeserver.sleep_ms(_CALLED_OFF_MS)
        return keys | authenticated


async def _timed(deadline: Deadline, stage: Awaitable[Stage]) -> Stages:
    """Take a stage, and how long it takes."""
    begun_ms = deadline.now_ms
    found = await stage
    return _at(found, deadline.since(begun_ms))


def _at(stage: Stage, duration_ms: int) -> Stages:
    return {stage.name: attr.evolve(stage, duration_ms=duration_ms)}


async def _guarded(
    names: Collection[StageName], func: Callable[[], Awaitable[Stages]]
) -> Stages:
    """Have a fault of our own cost these stages, and not the whole report."""
    try:
        return await func()
    except Exception:
        logger.exception("A stage of a diagnosis has failed")
        failure = Failure(FailureKind.INTERNAL)
        return {name: Stage.failed(name, failure) for name in names}


def _skip(names: Collection[StageName], why: SkipReason) -> Stages:
    return {name: Stage.skip(name, why) for name in names}


def _without_repetition(stages: Stages) -> Stages:
    """Have the requests of Synapse's client not tell again what was met before them."""
    before = next(
        (
            stages[name]
            for name in _DIRECT[1:3]
            if stages[name].outcome is StageOutcome.FAILED
        ),
        None,
    )
    if before is None:
        return stages
    shown = dict(stages)
    for name in _ASKED:
        stage = stages[name]
        status = getattr(stage.findings, "status", None)
        if stage.outcome is StageOutcome.FAILED and status is None:
            skipped = Stage.skip(name, SkipReason.NOT_REACHED)
            shown[name] = attr.evolve(skipped, duration_ms=stage.duration_ms)
    return shown


def _check_clock(stages: Stages) -> Stage:
    """Compare clocks by the first answer of the homeserver that tells the time."""
    for name in (StageName.VERSION, StageName.KEYS):
        findings = stages[name].findings
        if (
            isinstance(findings, VersionFindings | KeysFindings)
            and findings.date_ts is not None
        ):
            return check_clock(findings.date_ts, findings.received_ts)
    return check_clock(None, None)
