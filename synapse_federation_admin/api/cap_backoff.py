# SPDX-License-Identifier: Apache-2.0
"""v2: shorten backoffs that are longer than a given time."""

from typing import Annotated

from pydantic import Field
from synapse.module_api import JsonDict

from synapse_federation_admin.api._base import Asked
from synapse_federation_admin.api._operation import operation
from synapse_federation_admin.api.runs import CONFLICT, Run, RunPreview, start_run
from synapse_federation_admin.api.schemas.model import Input, Reason
from synapse_federation_admin.repair.cap_backoff import CapBackoff
from synapse_federation_admin.repair.criteria import ALL_FAILING


class CapBackoffBody(Input):
    """How long backoffs may be."""

    # As much as any clock of ms needs; within the 64 bits of both databases.
    max_retry_interval_ms: Annotated[int, Field(ge=1, le=10**15)] = Field(
        description="How long a backoff may be."
    )
    dry_run: bool = Field(
        default=False, description="Say what would be shortened, and change nothing."
    )
    reason: Reason = ""


@operation(CapBackoffBody, Run, gives_dry=RunPreview, errors=CONFLICT)
async def cap_backoff(asked: Asked, body: CapBackoffBody) -> JsonDict:
    """Shorten stored backoffs that are longer than a given time.

    POST /_synapse/admin/v2/federation/cap_backoff

    Body; only the first key is required:

        {
            "max_retry_interval_ms": 86400000,
            "dry_run": false,
            "reason": "We lowered destination_max_retry_interval"
        }

    200 OK: the run, as `GET` of its ID has it; with `dry_run`

        {"dry_run": true, "matched": 12, "sample": ["matrix.example.org"]}

    and nothing is changed. `matched` destinations have a longer backoff.
    """
    longest_ms = body.max_retry_interval_ms
    if body.dry_run:
        matched, sample = await asked.services.cap_backoff.preview(longest_ms)
        return {"dry_run": True, "matched": matched, "sample": sample}
    how = {"max_retry_interval_ms": longest_ms}
    return await start_run(asked, CapBackoff.name, ALL_FAILING, how, body.reason)
