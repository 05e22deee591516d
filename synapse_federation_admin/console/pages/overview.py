# SPDX-License-Identifier: Apache-2.0
"""The overview: is it us, who fails, who needs somebody."""

from collections.abc import Sequence
from typing import Any

import attr

from synapse_federation_admin.api.attention import needs_attention
from synapse_federation_admin.api.audit import read_audit
from synapse_federation_admin.api.runs import list_runs
from synapse_federation_admin.api.summary import summarize
from synapse_federation_admin.console.pages import outcomes, words
from synapse_federation_admin.console.visit import Answered, Page, Visit
from synapse_federation_admin.history.correlation import CorrelationVerdict
from synapse_federation_admin.homeserver.features import FeatureOffError
from synapse_federation_admin.storage.instances import InstanceState
from synapse_federation_admin.storage.run_values import RunStatus

# So many of the last actions are shown; of the last runs, those under way.
_ACTIONS = 10
_RUNS = 5
_NEEDY = 10

_UNDER_WAY = {
    RunStatus.SCHEDULED.value,
    RunStatus.PREPARING.value,
    RunStatus.RUNNING.value,
}

# Those of which nobody knows that they send.
_UNSEEN = {InstanceState.GONE, InstanceState.NEVER_SEEN, InstanceState.NOBODY}


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Verdict:
    """Whether it is us, in one sentence.

    Attributes:
        look: `good`, `warn`, `bad` or `muted`.
        sentence: Without how many fail.
        why: What it rests on.
    """

    look: str
    sentence: str
    why: str

    @property
    def sign(self) -> str:
        """The sign that goes with its look."""
        return {"good": "✓", "warn": "!", "bad": "✗", "muted": "?"}[self.look]


async def overview(visit: Visit) -> Answered:
    """Show whether it is us, what fails, what waits, and what is being done.

    GET /_synapse/admin/federation/
    """
    summary = await visit.ask(summarize)
    failing = sum(summary.failing.values())
    runs = await _if_on(visit, list_runs, {"limit": _RUNS})
    audit = await _if_on(visit, read_audit, {"limit": _ACTIONS})
    needs = await _if_on(visit, needs_attention, {"limit": _NEEDY}) if failing else None
    table = summary.failing_by_kind_and_age
    return Page(
        "overview.html",
        {
            "title": "Overview",
            "summary": summary,
            "failing": failing,
            "verdict": verdict(summary, failing),
            "table": None if table is None else heat_table(table),
            "ages": words.AGES,
            "waits": waits(summary),
            "runs": None
            if runs is None
            else [run for run in runs.runs if run.status in _UNDER_WAY],
            "needs": needs,
            "advice": words.advice,
            "has_cause": words.is_why,
            "entries": None if audit is None else audit.entries,
            "cause": words.cause,
            "say": outcomes,
        },
    )


async def _if_on(visit: Visit, operation: Any, values: dict[str, object]) -> Any:
    """Return an answer; None where its feature is off, as the footer tells."""
    try:
        return await visit.ask(operation, values)
    except FeatureOffError:
        return None


def verdict(summary: Any, failing: int) -> Verdict:
    """Say whether it is us, by the outlook and by our senders.

    Args:
        summary: The answer of the API.
        failing: How many servers fail.
    """
    outlook, senders = summary.outlook, summary.senders or ()
    unseen = [sender for sender in senders if sender.state in _UNSEEN]
    late = [sender for sender in senders if sender.state is InstanceState.LATE]
    if outlook is None:
        return Verdict(
            "warn" if failing else "muted",
            "Whether it is us is not known.",
            "What requests meet is not recorded here: the foot of this page says why.",
        )
    why = f"{outlook.explanation}."
    if outlook.verdict is CorrelationVerdict.US:
        return Verdict("bad", "It is us.", why)
    if outlook.verdict is CorrelationVerdict.SHARED:
        return Verdict("warn", "It is not us: they have something in common.", why)
    if unseen:
        return Verdict("warn", "Not every sender of ours was seen lately.", why)
    if late:
        return Verdict("warn", "One of our senders is late.", why)
    if failing and not outlook.can_be_told:
        return Verdict("warn", "Whether it is us cannot be told yet.", why)
    if failing:
        return Verdict("warn", "Nothing suggests that it is us.", why)
    if not outlook.last_hour.tried:
        return Verdict("good", "Nothing is known to be wrong.", why)
    return Verdict("good", "All is well.", why)


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Row:
    """A row of the table of what fails.

    Attributes:
        kind: The kind.
        cells: How many for each age, and how strong that is shown.
        total: How many in all.
    """

    kind: str
    cells: Sequence[tuple[int, int]]
    total: int


def heat_table(table: Any) -> list[Row]:
    """Return the rows of what fails, the kind with the most servers first."""
    most = max((n for ages in table.values() for n in ages.values()), default=0)
    totals = [(kind, sum(ages.values())) for kind, ages in table.items()]
    return [
        Row(
            kind,
            [
                (table[kind][column.age], words.heat(table[kind][column.age], most))
                for column in words.AGES
            ],
            sum(table[kind].values()),
        )
        for kind in words.ordered(totals)
    ]


def waits(summary: Any) -> bool:
    """Tell whether anything waits, or may wait."""
    backlog = summary.backlog
    numbers = (
        backlog.rooms,
        backlog.to_device_messages,
        backlog.device_list_updates,
        summary.unlisted.total,
    )
    return any(number is None or number for number in numbers) or bool(
        summary.not_yet_queued
    )
