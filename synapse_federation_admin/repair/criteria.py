# SPDX-License-Identifier: Apache-2.0
"""Which destinations something is done to: as it is stored, and as it is shown."""

import json

import attr

from synapse_federation_admin.destinations.values import (
    DestinationFilter,
    DestinationStatus,
)
from synapse_federation_admin.storage.run_values import RunCriteria

FAILING_STATUSES = frozenset(
    {DestinationStatus.BACKING_OFF, DestinationStatus.RETRY_DUE}
)
ALL_FAILING = DestinationFilter(statuses=FAILING_STATUSES)


def shown_criteria(criteria: RunCriteria) -> dict[str, object]:
    """Return criteria as the API and the audit show them: without a long list."""
    wanted = criteria.wanted
    if wanted is None:
        return {"destinations": criteria.listed}
    if wanted == ALL_FAILING:
        return {"all_failing": True}
    return {"filter": shown_filter(wanted)}


def shown_filter(wanted: DestinationFilter) -> dict[str, object]:
    """Return a filter as the API and the audit show it."""
    shown: dict[str, object] = {}
    if wanted.has_pattern:
        shown["destination"] = wanted.name_glob or wanted.name_contains
    if wanted.statuses:
        shown["status"] = sorted(status.value for status in wanted.statuses)
    if wanted.failing_for_ms is not None:
        shown["failing_for_ms"] = wanted.failing_for_ms
    if wanted.failures:
        shown["failure"] = sorted(wanted.failures)
    return shown


def criteria_to_json(criteria: RunCriteria) -> str:
    """Return criteria as they are stored."""
    wanted = criteria.wanted
    if wanted is None:
        return json.dumps({"listed": criteria.listed})
    values = attr.asdict(wanted)
    values["statuses"] = sorted(status.value for status in wanted.statuses)
    values["failures"] = sorted(wanted.failures)
    return json.dumps({"wanted": values})


def criteria_from_json(text: str) -> RunCriteria:
    """Return criteria that are stored."""
    found = json.loads(text)
    if "listed" in found:
        return RunCriteria(listed=found["listed"])
    values = found["wanted"]
    values["statuses"] = frozenset(map(DestinationStatus, values["statuses"]))
    # What an earlier release has stored has none.
    values["failures"] = frozenset(values.get("failures", ()))
    return RunCriteria(wanted=DestinationFilter(**values))
