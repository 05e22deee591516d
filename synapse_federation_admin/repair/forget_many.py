# SPDX-License-Identifier: Apache-2.0
"""Forgets many destinations, but for those with which local users share rooms."""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import aclosing

import attr
from synapse.module_api import LoggingTransaction

from synapse_federation_admin import limits
from synapse_federation_admin.destinations.backlog import BacklogStore
from synapse_federation_admin.destinations.reader import DestinationReader
from synapse_federation_admin.destinations.shared_rooms import SharedRoomsStore
from synapse_federation_admin.destinations.values import DestinationFilter, Sort
from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.repair.criteria import wanted_by
from synapse_federation_admin.repair.forget import (
    CHANGED,
    Forget,
    Seen,
    audit_details,
    loss_of,
    refusal,
)
from synapse_federation_admin.repair.runner import Action
from synapse_federation_admin.storage.run_queue import Job
from synapse_federation_admin.storage.sql import in_pieces
from synapse_federation_admin.storage.values import (
    AUDIT_FORGOTTEN,
    LeftOut,
    Queued,
    Run,
    RunResult,
)

# Of how many destinations a pass over all members looks for shared rooms.
_CANDIDATES = 20_000

# Between two transactions that delete, so that others get their turn.
_PAUSE_MS = 5

_SAMPLE = 10


# The outcome of a destination with which local users share rooms, or of which something
# has changed.
_REFUSED = "refused"


@attr.s(slots=True, frozen=True, auto_attribs=True)
class ForgetPreview:
    """What a run that forgets would do.

    Attributes:
        forgotten: How many would be forgotten.
        refused: How many would not.
        loss: What would be lost, and what is kept: see `loss_of`.
        sample: Some of those that would be.
        refused_sample: Some of those that would not, with the rooms that are shared.
    """

    forgotten: int = 0
    refused: int = 0
    loss: Counter[str] = attr.Factory(Counter)
    sample: tuple[str, ...] = ()
    refused_sample: tuple[tuple[str, int], ...] = ()


@attr.s(slots=True, frozen=True, auto_attribs=True)
class ForgetMany(Action):
    """The action `forget`."""

    name = "forget"
    outcomes = (AUDIT_FORGOTTEN, _REFUSED, *(outcome.value for outcome in LeftOut))
    options = frozenset({"drop_to_device"})

    _homeserver: Homeserver
    _reader: DestinationReader
    _backlog: BacklogStore
    _shared_rooms: SharedRoomsStore
    _forget: Forget

    async def preview(
        self, wanted: DestinationFilter | Sequence[str], *, drop_to_device: bool
    ) -> ForgetPreview:
        """Tell what a run would do; nothing is changed.

        Args:
            wanted: Which destinations: those of a filter, or a list.
            drop_to_device: Delete the to-device messages that wait as well.
        """
        total, names = ForgetPreview(), list[str]()
        if not isinstance(wanted, DestinationFilter):
            for some in in_pieces(wanted, _CANDIDATES):
                total = await self._preview_these(total, some, drop_to_device)
            return total
        found = self._reader.of(wanted._replace(only_fitting=True), Sort())
        async with aclosing(found.pieces(None)) as pieces:
            async for rows in pieces:
                names += [row.destination for row in rows]
                if len(names) >= _CANDIDATES:
                    total = await self._preview_these(total, names, drop_to_device)
                    names = []
        return await self._preview_these(total, names, drop_to_device)

    async def _preview_these(
        self, total: ForgetPreview, names: Sequence[str], drop_to_device: bool
    ) -> ForgetPreview:
        shared = await self._shared_rooms.counts(names)
        gone = [name for name in names if name not in shared]
        loss = Counter(total.loss)
        for piece in in_pieces(gone, limits.DESTINATIONS_CHECKED):
            for backlog in (await self._backlog.of(piece)).values():
                loss.update(loss_of(backlog, drop_to_device=drop_to_device))
        return ForgetPreview(
            forgotten=total.forgotten + len(gone),
            refused=total.refused + len(shared),
            loss=loss,
            sample=(*total.sample, *gone[:_SAMPLE])[:_SAMPLE],
            refused_sample=(*total.refused_sample, *sorted(shared.items()))[:_SAMPLE],
        )

    async def work(self, job: Job) -> None:
        """Forget what is in the queue; see `Action.work`."""
        # Those that are done leave the queue.
        while queued := await job.next(None, _CANDIDATES):
            names = [one.destination for one in queued]
            # Before shared rooms are looked for: who joins one from now on changes it.
            seen: dict[str, Seen] = {}
            for some in in_pieces(names, limits.DESTINATIONS_CHECKED):
                seen.update(await self._forget.look(some))
            shared = await self._shared_rooms.counts(names)
            for piece in in_pieces(queued, limits.DESTINATIONS_FORGOTTEN):
                if not await self._forget_these(job, piece, seen, shared):
                    return
                await self._homeserver.sleep_ms(_PAUSE_MS)

    async def _forget_these(
        self,
        job: Job,
        queued: Sequence[Queued],
        seen: Mapping[str, Seen],
        shared: Mapping[str, int],
    ) -> bool:
        """Forget some; return whether the run goes on."""
        drop_to_device = bool(job.run.options["drop_to_device"])
        names = [one.destination for one in queued]
        now = await self._forget.look(names)
        backlogs = await self._backlog.of(names)
        results = []
        for one in queued:
            name = one.destination
            loss = loss_of(backlogs[name], drop_to_device=drop_to_device)
            results.append(
                self._result(job.run, one, now[name], loss, shared.get(name, 0))
            )

        def forget_txn(
            txn: LoggingTransaction, results: Sequence[RunResult]
        ) -> Sequence[RunResult]:
            gone = [r.destination for r in results if r.outcome == AUDIT_FORGOTTEN]
            deleted = self._forget.delete_txn(
                txn, {name: seen[name] for name in gone}, drop_to_device=drop_to_device
            )
            changed = set(gone) - deleted
            return [
                _refused(result, "changed", CHANGED)
                if result.destination in changed
                else result
                for result in results
            ]

        return await job.record(results, forget_txn)

    def _result(
        self,
        run: Run,
        queued: Queued,
        seen: Seen,
        loss: Counter[str],
        shared_rooms: int,
    ) -> RunResult:
        """Return the result for a destination, if nothing changes meanwhile."""
        now_ts = self._homeserver.now_ms()
        result = RunResult(queued.destination, AUDIT_FORGOTTEN, now_ts, now_ts)
        if seen.row is None:
            return attr.evolve(result, outcome=LeftOut.SKIPPED.value)
        wanted = wanted_by(run.criteria)
        failing_for_ms = wanted.failing_for_ms if wanted else None
        since_ts = seen.row.failure_ts if seen.row.is_failing else None
        if (queued.was_failing and not seen.row.is_failing) or (
            failing_for_ms is not None
            and (since_ts is None or since_ts > run.created_ts - failing_for_ms)
        ):
            return attr.evolve(result, outcome=LeftOut.NO_LONGER_FAILING.value)
        if shared_rooms:
            return _refused(result, "shared_rooms", refusal(shared_rooms))
        return attr.evolve(result, details=audit_details(seen, loss), totals=loss)


def _refused(result: RunResult, kind: str, message: str) -> RunResult:
    return attr.evolve(
        result,
        outcome=_REFUSED,
        kind=kind,
        message=message,
        details={"note": message},
        totals={},
    )
