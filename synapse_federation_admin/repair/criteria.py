# SPDX-License-Identifier: Apache-2.0
"""Which destinations a run is for: as the API shows it and the table keeps it."""

from collections.abc import Mapping

from synapse_federation_admin.destinations.values import (
    DestinationFilter,
    DestinationStatus,
)

# A run skips what bears no server name, and says so.
FAILING_STATUSES = frozenset(
    {
        DestinationStatus.BACKING_OFF,
        DestinationStatus.RETRY_DUE,
        DestinationStatus.INVALID,
    }
)
ALL_FAILING = DestinationFilter(statuses=FAILING_STATUSES)

# The keys of a filter. Version 2 of the tables has the last two in place of the first.
_KEYS = {"destination", "status", "failing_for_ms", "failing_under_ms", "failure"}
_OLD_KEYS = {"name_contains", "name_glob"}


def listed(count: int) -> dict[str, object]:
    """Return the criteria for a list of so many destinations."""
    return {"destinations": count}


def shown(wanted: DestinationFilter) -> dict[str, object]:
    """Return the criteria that a filter stands for."""
    if wanted == ALL_FAILING:
        return {"all_failing": True}
    found: dict[str, object] = {}
    if name := wanted.name_glob or wanted.name_contains:
        found["destination"] = name
    if wanted.statuses:
        found["status"] = sorted(status.value for status in wanted.statuses)
    if wanted.failing_for_ms is not None:
        found["failing_for_ms"] = wanted.failing_for_ms
    if wanted.failing_under_ms is not None:
        found["failing_under_ms"] = wanted.failing_under_ms
    if wanted.failures:
        found["failure"] = sorted(wanted.failures)
    return {"filter": found}


def wanted_by(criteria: Mapping[str, object]) -> DestinationFilter | None:
    """Return the filter that criteria stand for; None if they are for a list.

    Raises:
        ValueError: A later version has written them: nobody knows here what they say.
    """
    if criteria.keys() == {"destinations"}:
        return None
    if criteria == {"all_failing": True}:
        return ALL_FAILING
    found = criteria.get("filter")
    if len(criteria) != 1 or not isinstance(found, dict):
        raise ValueError(criteria)
    if not found.keys() <= _KEYS | _OLD_KEYS:
        raise ValueError(criteria)
    name = found.get("destination") or found.get("name_contains") or ""
    glob = found.get("name_glob") or (name if set("*?") & set(name) else "")
    return DestinationFilter(
        name_contains="" if glob else name,
        name_glob=glob,
        statuses=frozenset(map(DestinationStatus, found.get("status", ()))),
        failing_for_ms=found.get("failing_for_ms"),
        failing_under_ms=found.get("failing_under_ms"),
        failures=frozenset(found.get("failure", ())),
    )
