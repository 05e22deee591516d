# SPDX-License-Identifier: Apache-2.0
"""v2: runs, which change many destinations, one after the other."""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Annotated, TypeAlias

from pydantic import Field
from synapse.module_api import JsonDict
from synapse.module_api.errors import Codes, SynapseError

from synapse_federation_admin.api._base import Asked
from synapse_federation_admin.api._operation import operation
from synapse_federation_admin.api._paging import Paging
from synapse_federation_admin.api.schemas.model import Answer, NextToken, Nothing, Paged
from synapse_federation_admin.api.schemas.values import model_of, shown
from synapse_federation_admin.destinations.values import DestinationFilter, Sort
from synapse_federation_admin.repair import criteria
from synapse_federation_admin.storage import values

# Which destinations something is done to: those of a filter, or of a list.
Chosen: TypeAlias = DestinationFilter | Sequence[str]


class RunsQuery(Paged):
    """The query parameters of the list."""

    limit: Annotated[int, Field(ge=1, le=100)] = Field(
        default=20, description="The most runs to return."
    )


class Ignored(Answer):
    """How many names of a list were left out."""

    unknown: int = Field(description="Those that Synapse has no row for.")
    invalid: int = Field(description="Those that are no valid server names.")


class Run(model_of(values.Run)):  # type: ignore[misc]
    """A run: one change to many destinations, one after the other."""

    estimated_end_ts: int | None = Field(
        description="When it will have ended, going on like this; null if not known."
    )
    ignored: Ignored | None = Field(
        default=None, description="With `ignore_unknown`, in the answer to the POST."
    )


class RunsPage(Answer):
    """A page of runs."""

    runs: list[Run] = Field(description="The newest first.")
    next_token: NextToken = None


class RunPreview(Answer):
    """What a run would be for: the answer to a dry run."""

    dry_run: bool = Field(description="True.")
    matched: int = Field(description="How many destinations it would be for.")
    sample: list[str] = Field(description="The names of some of them.")
    ignored: Ignored | None = Field(default=None, description="With `ignore_unknown`.")


# When a run cannot be made.
CONFLICT = {
    409: "A run of the same action has not ended; its ID is in `id` (`M_UNKNOWN`)."
}

_UNKNOWN = {404: "There is no such run."}


@operation(RunsQuery, RunsPage)
async def list_runs(asked: Asked, query: RunsQuery) -> JsonDict:
    """List runs, those of every action.

    GET /_synapse/admin/v2/federation/runs

    200 OK: `{"runs": [...], "next_token": "..."}`, the newest first.
    """
    paging = Paging(query)
    found = await asked.services.runs.read(paging.after, paging.limit)
    runs, next_token = paging.cut(found, lambda last: [last.created_ts, last.run_id])
    return {"runs": [shown_run(asked, run) for run in runs], **next_token}


@operation(Nothing, Run, errors=_UNKNOWN)
async def get_run(asked: Asked, _: Nothing, run_id: str) -> JsonDict:
    """Look at a run.

    GET /_synapse/admin/v2/federation/runs/<run_id>

    200 OK

        {
            "id": "f2a4c3f19a2b77e0",
            "action": "reconnect",
            "status": "running",
            "user_id": "@admin:example.com",
            "puppeted_by": null,
            "reason": "The network is back",
            "criteria": {"all_failing": true},
            "options": {"per_second": 5, "timeout_ms": 10000},
            "created_ts": 1795475024352,
            "started_ts": 1795475024360,
            "updated_ts": 1795475184352,
            "ended_ts": null,
            "matched": 10000,
            "done": 800,
            "outcomes": {"connected": 100, "still_failing": 690, "skipped": 10, ...},
            "totals": {},
            "errors": {
                "tls_expired": {
                    "count": 31,
                    "recent": [{"destination": "...", "message": "...", "ts": 17954...}]
                }
            },
            "error": null,
            "rate_per_second": 5.0,
            "estimated_end_ts": 1795477024352
        }

    The outcome of each destination is in the audit, by `run_id`.
    """
    return shown_run(asked, await asked.services.runs.get(run_id))


@operation(Nothing, Run, errors=_UNKNOWN)
async def cancel_run(asked: Asked, _: Nothing, run_id: str) -> JsonDict:
    """Cancel a run.

    DELETE /_synapse/admin/v2/federation/runs/<run_id>

    200 OK: the run, cancelled. From then on nothing is changed any more, and within a
    second no contact is begun. A run that has ended stays as it is.
    """
    return shown_run(asked, await asked.services.runs.cancel(run_id, asked.actor))


def shown_run(asked: Asked, run: values.Run | None) -> JsonDict:
    """Return a run as the API shows it.

    Raises:
        SynapseError: 404 `M_NOT_FOUND`: there is none.
    """
    if run is None:
        raise SynapseError(HTTPStatus.NOT_FOUND, "Unknown run", Codes.NOT_FOUND)
    end_ts = run.estimated_end_ts(asked.services.homeserver.now_ms())
    return {**shown(run), "estimated_end_ts": end_ts}


async def start_run(
    asked: Asked,
    action: str,
    chosen: Chosen,
    how: Mapping[str, object],
    reason: str,
) -> JsonDict:
    """Make a run, and answer it.

    Args:
        asked: Who asks for it.
        action: What is done to each destination.
        chosen: Which destinations.
        how: The options.
        reason: Why; "" if not said.

    Raises:
        FeatureOffError: The filter is for what is not recorded.
        SynapseError: 409 `M_UNKNOWN` if one of the same action has not ended.
    """
    names: Sequence[str] = ()
    if isinstance(chosen, DestinationFilter):
        # Before there is a run: so that it can be refused.
        asked.services.reader.of(chosen, Sort())
        which = criteria.shown(chosen)
    else:
        names, which = chosen, criteria.listed(len(chosen))
    run, created = await asked.services.runs.create(
        action, which, how, names, asked.actor, reason or None
    )
    if not created:
        raise SynapseError(
            HTTPStatus.CONFLICT,
            f"Run {run.run_id} ({run.action}) has not ended: wait for it, or cancel it "
            f"with DELETE /v2/federation/runs/{run.run_id}",
            Codes.UNKNOWN,
            additional_fields={"id": run.run_id},
        )
    await asked.services.runner.wake()
    return shown_run(asked, run)
