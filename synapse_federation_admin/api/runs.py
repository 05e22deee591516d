# SPDX-License-Identifier: Apache-2.0
"""v2: runs, which change many destinations, one after the other."""

from http import HTTPStatus

from synapse.module_api import JsonDict, SynapseRequest
from synapse.module_api.errors import Codes, SynapseError

from synapse_federation_admin.api._base import AdminServlet, Services, actor
from synapse_federation_admin.api._operation import Operation
from synapse_federation_admin.api._page_token import make_token, parse_token
from synapse_federation_admin.api.schemas import runs as shown
from synapse_federation_admin.api.schemas.model import Nothing
from synapse_federation_admin.api.schemas.runs import Ignored, RunsPage, RunsQuery
from synapse_federation_admin.storage.run_values import Run, RunOrder

# When a run cannot be made.
CONFLICT = {
    409: "A run of the same action has not ended; its ID is in `id` (`M_UNKNOWN`)."
}

_UNKNOWN = {404: "There is no such run."}

_PATH = "/v2/federation/runs"

# What makes the list, for its tokens: there is only one.
_LISTING = ("runs",)


class RunsServlet(AdminServlet):
    """List runs, those of every action.

    GET /_synapse/admin/v2/federation/runs

    200 OK: `{"runs": [...], "next_token": "..."}`, the newest first.
    """

    GET = Operation(RunsQuery, RunsPage)

    async def on_GET(self, request: SynapseRequest) -> tuple[int, JsonDict]:
        """Answer GET."""
        services = self._services
        await services.homeserver.require_admin(request)
        query = self.GET.parse(request)
        limit = query.limit
        says = parse_token(_LISTING, query.from_)
        before = (says[0], says[1]) if says else None
        found = await services.runs.read(before, limit + 1)
        now_ms = services.homeserver.now_ms()
        next_token = None
        if len(found) > limit:
            last = found[limit - 1]
            next_token = make_token(_LISTING, [last.created_ts, last.run_id])
        runs = [shown.Run.of(run, now_ms) for run in found[:limit]]
        return HTTPStatus.OK, RunsPage(runs=runs, next_token=next_token).rendered()


class RunServlet(AdminServlet):
    """Look at a run, and cancel it.

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

    DELETE /_synapse/admin/v2/federation/runs/<run_id>

    200 OK: the run, cancelled. From then on nothing is changed any more, and within a
    second no contact is begun. A run that has ended stays as it is.
    """

    GET = Operation(Nothing, shown.Run, errors=_UNKNOWN)
    DELETE = Operation(Nothing, shown.Run, errors=_UNKNOWN)

    async def on_GET(
        self, request: SynapseRequest, run_id: str
    ) -> tuple[int, JsonDict]:
        """Look at a run."""
        services = self._services
        await services.homeserver.require_admin(request)
        self.GET.parse(request)
        return self._answer(await services.runs.get(run_id))

    async def on_DELETE(
        self, request: SynapseRequest, run_id: str
    ) -> tuple[int, JsonDict]:
        """Cancel a run."""
        services = self._services
        requester = await services.homeserver.require_admin(request)
        self.DELETE.parse(request)
        return self._answer(await services.runs.cancel(run_id, actor(requester)))

    def _answer(self, run: Run | None) -> tuple[int, JsonDict]:
        if run is None:
            raise SynapseError(HTTPStatus.NOT_FOUND, "Unknown run", Codes.NOT_FOUND)
        now_ms = self._services.homeserver.now_ms()
        return HTTPStatus.OK, shown.Run.of(run, now_ms).rendered()


async def start_run(
    services: Services, order: RunOrder, *, ignored: Ignored | None = None
) -> tuple[int, JsonDict]:
    """Make a run, and answer it.

    Args:
        services: What makes it.
        order: What it is asked for.
        ignored: How many names of its list were left out; None if none may be.

    Raises:
        SynapseError: 409 `M_UNKNOWN` if one of the same action has not ended.
    """
    run, created = await services.runner.create(order)
    if not created:
        raise SynapseError(
            HTTPStatus.CONFLICT,
            f"Run {run.run_id} ({run.action}) has not ended: wait for it, or cancel it "
            f"with DELETE {_PATH}/{run.run_id}",
            Codes.UNKNOWN,
            additional_fields={"id": run.run_id},
        )
    now_ms = services.homeserver.now_ms()
    return HTTPStatus.OK, shown.Run.of(run, now_ms, ignored=ignored).rendered()
