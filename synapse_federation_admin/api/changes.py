# SPDX-License-Identifier: Apache-2.0
"""v2: what has changed lately."""

from pydantic import Field
from synapse.module_api import JsonDict

from synapse_federation_admin.api._base import Asked
from synapse_federation_admin.api._operation import operation
from synapse_federation_admin.api.runs import Run, shown_run
from synapse_federation_admin.api.schemas.model import Answer, Input, Time
from synapse_federation_admin.api.schemas.values import Shown, shown
from synapse_federation_admin.storage.outages import CameBack
from synapse_federation_admin.storage.records import Failed
from synapse_federation_admin.storage.values import AuditEntry


class ChangesQuery(Input):
    """Since when."""

    since: Time = Field(
        default=0,
        description="The `as_of_ts` of the last answer; without it, all of the last "
        "ten minutes is told.",
    )


class Changes(Answer):
    """What has changed since the last answer."""

    as_of_ts: int = Field(description="When it was read: the next `since`.")
    is_complete: bool = Field(
        description="Whether that is all; false if there is more than is told, or if "
        "`since` is more than ten minutes ago."
    )
    failed: list[Shown[Failed]] = Field(
        description="To which real requests have failed, also if they were failing "
        "before: each server and cause once, with its last failure."
    )
    came_back: list[Shown[CameBack]] = Field(description="Whose outage has ended.")
    runs: list[Run] = Field(
        description="The runs that have begun, gone on or ended, as they are now."
    )
    audit: list[Shown[AuditEntry]] = Field(
        description="The entries of the audit that are new or have ended."
    )


@operation(ChangesQuery, Changes)
async def list_changes(asked: Asked, query: ChangesQuery) -> JsonDict:
    """Tell what has changed since the last answer.

    GET /_synapse/admin/v2/federation/changes?since=1557332397936

    200 OK

        {
            "as_of_ts": 1557332402936,
            "is_complete": true,
            "failed": [
                {"destination": "a.org", "kind": "dns_failed", "ts": 1557332397936}
            ],
            "came_back": [
                {"destination": "b.org", "ended": "recovered", "ts": 1557332397936}
            ],
            "runs": [{"id": "...", ...}],
            "audit": [{"entry_id": "...", ...}]
        }

    It is read at most every five seconds, for all who ask. If `is_complete` is false,
    what is shown has to be read anew as a whole.
    """
    found = await asked.services.changes.since(query.since)
    return {
        "as_of_ts": found.as_of_ts,
        "is_complete": found.is_complete,
        "failed": shown(found.failed),
        "came_back": shown(found.came_back),
        "runs": [shown_run(asked, run) for run in found.runs],
        "audit": shown(found.audit),
    }
