# SPDX-License-Identifier: Apache-2.0
"""Makes diagnoses: all stages, side by side where they do not depend on each other."""

import logging
from collections.abc import Awaitable, Callable

import attr
from twisted.internet.defer import CancelledError

from synapse_federation_admin.destinations.backlog import BacklogStore
from synapse_federation_admin.destinations.reach import ReachStore
from synapse_federation_admin.destinations.store import DestinationStore
from synapse_federation_admin.diagnosis.addresses import check_addresses
from synapse_federation_admin.diagnosis.clock import check_clock
from synapse_federation_admin.diagnosis.connections import check_connections
from synapse_federation_admin.diagnosis.limits import (
    Deadline,
    TimeIsOver,
    side_by_side,
)
from synapse_federation_admin.diagnosis.requests import OwnRequests
from synapse_federation_admin.diagnosis.server_name import ServerName, check_name
from synapse_federation_admin.diagnosis.stored import check_stored
from synapse_federation_admin.diagnosis.verdict import conclude
from synapse_federation_admin.diagnosis.version import check_version
from synapse_federation_admin.diagnosis.well_known import check_well_known
from synapse_federation_admin.homeserver import Homeserver, Outbound, Pending
from synapse_federation_admin.models import (
    AddressesFindings,
    ConnectionsFindings,
    Diagnosis,
    KeysFindings,
    Stage,
    StageName,
    StageOutcome,
    VersionFindings,
)

logger = logging.getLogger(__name__)

# Diagnoses under way at once in one process, and how many wait for their turn.
_MAX_DIAGNOSES = 4
_MAX_WAITING = 20

# A connection that nobody wants any more ends so much after the diagnosis.
_GRACE_MS = 1000

_DIRECT = (
    StageName.WELL_KNOWN,
    StageName.ADDRESSES,
    StageName.CONNECTIONS,
    StageName.VERSION,
)


class TooManyDiagnosesError(Exception):
    """So many are under way, and wait, that another one would take too long."""


class Diagnoses:
    """Makes diagnoses: one at a time of each destination, few of them at once."""

    def __init__(
        self,
        homeserver: Homeserver,
        destinations: DestinationStore,
        backlog: BacklogStore,
        reach: ReachStore,
        *,
        timeout_ms: int,
    ) -> None:
        """Make no diagnosis yet.

        Args:
            homeserver: Reaches Synapse.
            destinations: Knows Synapse's rows.
            backlog: Knows what waits.
            reach: Knows when a server last reached us.
            timeout_ms: How long one diagnosis may take.
        """
        self._homeserver = homeserver
        self._destinations = destinations
        self._backlog = backlog
        self._reach = reach
        self._timeout_ms = timeout_ms
        self._outbound: Outbound | None = None
        self._under_way: dict[str, Pending[Diagnosis]] = {}
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
        pending = self._under_way.get(name)
        if pending is None:
            if len(self._under_way) >= _MAX_DIAGNOSES + _MAX_WAITING:
                raise TooManyDiagnosesError
            pending = self._homeserver.begin(
                "federation_admin_diagnosis", lambda: self._in_turn(name)
            )
            self._under_way[name] = pending
        return await pending.wait()

    async def _in_turn(self, name: str) -> Diagnosis:
        try:
            async with self._turns(""):
                return await self._diagnose(name)
        finally:
            self._under_way.pop(name, None)

    async def _diagnose(self, name: str) -> Diagnosis:
        checked_ts = self._homeserver.now_ms()
        deadline = Deadline(self._homeserver.reactor, self._timeout_ms)
        begun_ms = deadline.now_ms
        stages = {StageName.NAME: check_name(self._homeserver, name)}
        found = await side_by_side(
            lambda: self._check_stored(name, deadline),
            lambda: self._check_way(name, stages[StageName.NAME], deadline),
        )
        for some in found:
            stages.update(some)
        stages[StageName.CLOCK] = _check_clock(stages)
        return Diagnosis(
            destination=name,
            checked_ts=checked_ts,
            duration_ms=deadline.since(begun_ms),
            instance=self._homeserver.instance_name,
            conclusion=conclude(stages),
            stages=tuple(stages[stage] for stage in StageName),
        )

    async def _check_stored(
        self, name: str, deadline: Deadline
    ) -> dict[StageName, Stage]:
        begun_ms = deadline.now_ms

        async def read() -> Stage:
            row = await self._destinations.get(name)
            backlog = (await self._backlog.of([name]))[name]
            last_ts = await self._reach.last_inbound_ts(name)
            return check_stored(row, backlog, last_ts, now_ms=self._homeserver.now_ms())

        try:
            stage = await deadline.within(deadline.left_ms(), read)
        except (TimeIsOver, CancelledError):
            stage = _skipped(StageName.STORED, "The database does not answer in time")
        except Exception as e:
            logger.warning("Could not read what is stored for a diagnosis: %s", e)
            stage = _skipped(StageName.STORED, "The database cannot be read")
        stage = attr.evolve(stage, duration_ms=deadline.since(begun_ms))
        return {StageName.STORED: stage}

    async def _check_way(
        self, name: str, named: Stage, deadline: Deadline
    ) -> dict[StageName, Stage]:
        """Go the way that a request takes."""
        asked = (StageName.KEYS, StageName.AUTHENTICATED)
        if named.outcome is StageOutcome.FAILED:
            why = "Nothing is sent to this name"
            return {stage: _skipped(stage, why) for stage in (*_DIRECT, *asked)}
        if self._outbound is None:
            self._outbound = self._homeserver.outbound(self._timeout_ms + _GRACE_MS)
        outbound = self._outbound
        if outbound.instances is not None:
            why = (
                "outbound_federation_restricted_to has other processes go out to other "
                f"servers: {', '.join(outbound.instances)}"
            )
            stages = {stage: _skipped(stage, why) for stage in _DIRECT}
            stages.update(await self._ask(outbound, name, None, deadline))
            return stages
        well_known = await check_well_known(outbound, ServerName.parse(name), deadline)
        stages = {StageName.WELL_KNOWN: well_known.stage}
        delegated_to = well_known.delegated_to
        for some in await side_by_side(
            lambda: self._go(outbound, name, delegated_to, deadline),
            lambda: self._ask(outbound, name, delegated_to, deadline),
        ):
            stages.update(some)
        return _without_repetition(stages)

    async def _go(
        self,
        outbound: Outbound,
        name: str,
        delegated_to: str | None,
        deadline: Deadline,
    ) -> dict[StageName, Stage]:
        """Find the addresses and connect to each."""
        try:
            where = ServerName.parse(delegated_to or name)
        except ValueError:
            why = "It delegates to what is no server name"
            return {stage: _skipped(stage, why) for stage in _DIRECT[1:]}
        addresses = await check_addresses(
            outbound, where, deadline, is_delegated=delegated_to is not None
        )
        stages = {StageName.ADDRESSES: addresses}
        assert isinstance(addresses.findings, AddressesFindings)
        if not addresses.findings.targets:
            why = "There is no address to connect to"
            return stages | {stage: _skipped(stage, why) for stage in _DIRECT[2:]}
        if addresses.outcome is StageOutcome.FAILED:
            why = "No address can be connected to"
            return stages | {stage: _skipped(stage, why) for stage in _DIRECT[2:]}
        connections = await check_connections(
            self._homeserver, outbound, where, addresses.findings, deadline
        )
        stages[StageName.CONNECTIONS] = connections
        assert isinstance(connections.findings, ConnectionsFindings)
        stages[StageName.VERSION] = check_version(connections.findings)
        return stages

    async def _ask(
        self,
        outbound: Outbound,
        name: str,
        delegated_to: str | None,
        deadline: Deadline,
    ) -> dict[StageName, Stage]:
        """Ask what only Synapse's own client can ask."""
        requests = OwnRequests(
            self._homeserver, outbound, outbound.requests(delegated_to), deadline
        )
        checks: tuple[Callable[[str], Awaitable[Stage]], ...] = (
            requests.check_keys,
            requests.check_authenticated,
        )
        keys, authenticated = await side_by_side(
            lambda: checks[0](name), lambda: checks[1](name)
        )
        return {StageName.KEYS: keys, StageName.AUTHENTICATED: authenticated}


def _skipped(stage: StageName, why: str) -> Stage:
    return Stage(stage, StageOutcome.SKIPPED, why)


def _without_repetition(stages: dict[StageName, Stage]) -> dict[StageName, Stage]:
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
    for name in (StageName.KEYS, StageName.AUTHENTICATED):
        stage = stages[name]
        status = getattr(stage.findings, "status", None)
        is_answered = stage.outcome is not StageOutcome.FAILED or status is not None
        if not is_answered:
            why = f"The server was not reached: see the stage {before.name.value}"
            shown[name] = attr.evolve(
                _skipped(name, why), duration_ms=stage.duration_ms
            )
    return shown


def _check_clock(stages: dict[StageName, Stage]) -> Stage:
    """Compare clocks by the first answer of the homeserver that tells the time."""
    for name in (StageName.VERSION, StageName.KEYS):
        findings = stages[name].findings
        if (
            isinstance(findings, VersionFindings | KeysFindings)
            and findings.date_ts is not None
        ):
            return check_clock(findings.date_ts, findings.received_ts)
    return check_clock(None, None)
