# SPDX-License-Identifier: Apache-2.0
"""v2: runs, which change many destinations, one after the other."""

from collections.abc import Mapping
from http import HTTPStatus

from synapse.module_api import JsonDict, SynapseRequest
from synapse.module_api.errors import Codes, SynapseError

from synapse_federation_admin.api._base import (
    AdminServlet,
    Services,
    actor,
    parse_text,
)
from synapse_federation_admin.api._page_token import Seal
from synapse_federation_admin.api._parameters import parse_limit, require_known
from synapse_federation_admin.destinations.values import Direction
from synapse_federation_admin.storage.run_values import (
    Run,
    RunErrors,
    RunOrder,
    RunStatus,
)

_PATH = "/v2/federation/runs"


class RunsServlet(AdminServlet):
    """List runs, those of every action.

    GET /_synapse/admin/v2/federation/runs

    Query parameters: `limit`, from 1 to 100 (20); `from`, the `next_token` of the page
    before. 200 OK: `{"runs": [...], "next_token": "..."}`, the newest first.

    Errors: 400 `M_INVALID_PARAM` for a bad parameter, 401, 403.
    """

    def __init__(self, services: Services) -> None:
        super().__init__(services)
        self._seal = Seal(services.homeserver.secret_for("runs token"))

    async def on_GET(self, request: SynapseRequest) -> tuple[int, JsonDict]:
        """Answer GET."""
        services = self._services
        await services.homeserver.require_admin(request)
        require_known(request, ("limit", "from"))
        limit = parse_limit(request, default=20, highest=100)
        token = parse_text(request, "from") if b"from" in (request.args or {}) else None
        says = self._seal.position([Direction.BACKWARDS.value], token)
        before = (says[0], says[1]) if says else None
        found = await services.runs.read(before, limit + 1)
        now_ms = services.homeserver.now_ms()
        answer: JsonDict = {"runs": [render_run(r, now_ms) for r in found[:limit]]}
        if len(found) > limit:
            last = found[limit - 1]
            answer["next_token"] = self._seal.make(
                [Direction.BACKWARDS.value], [last.created_ts, last.run_id]
            )
        return HTTPStatus.OK, answer


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

    `action`: `reconnect`, `forget` or `cap_backoff`. `status`: `scheduled`, `preparing`
    (`matched` still grows), `running`, `complete`, `cancelled`, or `failed` (`error`
    tells why). The outcome of each destination is in the audit, by `run_id`.

    DELETE /_synapse/admin/v2/federation/runs/<run_id>

    200 OK: the run, cancelled. From then on nothing is changed any more, and within a
    second no contact is begun. A run that has ended stays as it is.

    Errors: 404 `M_NOT_FOUND`, 400 `M_INVALID_PARAM` for any query parameter, 401, 403.
    """

    async def on_GET(
        self, request: SynapseRequest, run_id: str
    ) -> tuple[int, JsonDict]:
        """Answer GET."""
        services = self._services
        await services.homeserver.require_admin(request)
        require_known(request, ())
        return self._answer(await services.runs.get(run_id))

    async def on_DELETE(
        self, request: SynapseRequest, run_id: str
    ) -> tuple[int, JsonDict]:
        """Answer DELETE."""
        services = self._services
        requester = await services.homeserver.require_admin(request)
        require_known(request, ())
        return self._answer(await services.runs.cancel(run_id, actor(requester)))

    def _answer(self, run: Run | None) -> tuple[int, JsonDict]:
        if run is None:
            raise SynapseError(HTTPStatus.NOT_FOUND, "Unknown run", Codes.NOT_FOUND)
        return HTTPStatus.OK, render_run(run, self._services.homeserver.now_ms())


async def start_run(services: Services, order: RunOrder) -> tuple[int, JsonDict]:
    """Make a run, and answer it.

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
    return HTTPStatus.OK, render_run(run, services.homeserver.now_ms())


def render_run(run: Run, now_ms: int) -> JsonDict:
    """Render a run."""
    is_running = run.status == RunStatus.RUNNING.value
    return {
        "id": run.run_id,
        "action": run.action,
        "status": run.status,
        "user_id": run.actor.user_id,
        "puppeted_by": run.actor.puppeted_by,
        "reason": run.reason,
        "criteria": run.criteria,
        "options": run.options,
        "created_ts": run.created_ts,
        "started_ts": run.started_ts,
        "updated_ts": run.updated_ts,
        "ended_ts": run.ended_ts,
        "matched": run.matched,
        "done": run.done,
        "outcomes": run.outcomes,
        "totals": run.totals,
        "errors": _render_errors(run.errors),
        "error": run.error,
        "rate_per_second": run.rate if is_running else None,
        "estimated_end_ts": run.estimated_end_ts(now_ms),
    }


def _render_errors(errors: Mapping[str, RunErrors]) -> JsonDict:
    return {
        kind: {
            "count": found.count,
            "recent": [
                {
                    "destination": error.destination,
                    "message": error.message,
                    "ts": error.ts,
                }
                for error in found.recent
            ],
        }
        for kind, found in errors.items()
    }
