# SPDX-License-Identifier: Apache-2.0
"""The rows of runs, and the entries of runs in the audit: pure."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attr

from synapse_federation_admin.storage.audit_entry import Actor
from synapse_federation_admin.storage.run_values import (
    Run,
    RunError,
    RunErrors,
    RunResult,
)

# The columns of a row that a run is made of, and those of them that are JSON objects.
COLUMNS = (
    "run_id, action, status, entry_id, user_id, puppeted_by, reason, criteria, "
    "options, created_ts, updated_ts, started_ts, ended_ts, prepared_to, matched, "
    "outcomes, totals, errors, rate, error"
)
_JSON = ("criteria", "options", "outcomes", "totals")

# Of each kind of error, how many are kept.
_RECENT_ERRORS = 5


def whole_action(action: str) -> str:
    """Return the action by which a run as a whole is in the audit."""
    return f"bulk_{action}"


def to_run(row: Sequence[Any]) -> Run:
    """Return the run of a row of `COLUMNS`."""
    found = dict(zip(COLUMNS.split(", "), row, strict=True))
    for column in _JSON:
        found[column] = json.loads(found[column])
    return Run(
        actor=Actor(found.pop("user_id"), found.pop("puppeted_by")),
        errors=_errors_from_json(found.pop("errors")),
        **found,
    )


def with_errors(
    errors: Mapping[str, RunErrors], results: Iterable[RunResult]
) -> dict[str, RunErrors]:
    """Return errors with those of more results."""
    found = dict(errors)
    for result in results:
        if result.kind:
            before = found.get(result.kind, RunErrors())
            error = RunError(result.destination, result.message, result.ended_ts)
            found[result.kind] = RunErrors(
                before.count + 1, (error, *before.recent)[:_RECENT_ERRORS]
            )
    return found


def errors_to_json(errors: Mapping[str, RunErrors]) -> str:
    """Return errors as they are kept."""
    return json.dumps({kind: attr.asdict(found) for kind, found in errors.items()})


def _errors_from_json(text: str) -> dict[str, RunErrors]:
    return {
        kind: RunErrors(
            found["count"],
            tuple(
                RunError(error["destination"], error["message"], error["ts"])
                for error in found["recent"]
            ),
        )
        for kind, found in json.loads(text).items()
    }
