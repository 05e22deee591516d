# SPDX-License-Identifier: Apache-2.0
"""v2: bulk runs, which reconnect many destinations."""

from collections.abc import Mapping, Sequence
from http import HTTPStatus

import attr
from synapse.module_api import JsonDict, SynapseRequest
from synapse.module_api.errors import Codes, SynapseError

from synapse_federation_admin.api._base import (
    AdminServlet,
    Services,
    actor,
    invalid_param,
    parse_text,
)
from synapse_federation_admin.api._body import Body
from synapse_federation_admin.api._filter import parse_filter_object
from synapse_federation_admin.api._page_token import Seal
from synapse_federation_admin.api._parameters import parse_limit, require_known
from synapse_federation_admin.destinations.values import DestinationFilter, Direction
from synapse_federation_admin.failures.classify import bounded
from synapse_federation_admin.repair.criteria import (
    ALL_FAILING,
    FAILING_STATUSES,
    shown_criteria,
)
from synapse_federation_admin.storage.run_values import (
    Run,
    RunCriteria,
    RunErrors,
    RunOrder,
    RunStatus,
    SortedNames,
)

_DEFAULT_PER_SECOND = 5
_LEAST_PER_SECOND = 0.1
_DEFAULT_TIMEOUT_MS = 10_000
_LEAST_TIMEOUT_MS = 1000
_MAX_TIMEOUT_MS = 60_000

# A longer list is for a filter, or for several runs.
_MAX_NAMES = 50_000

# How many names of each sort an error shows.
_SHOWN_NAMES = 100

_CRITERIA = ("destinations", "filter", "all_failing")
_KEYS = (
    *_CRITERIA,
    *("dry_run", "ignore_unknown", "per_second", "timeout_ms", "reason"),
)


class ReconnectsServlet(AdminServlet):
    """Reconnect many destinations, and list the runs that do.

    POST /_synapse/admin/v2/federation/reconnects

    Body: one of `destinations`, `filter` and `all_failing`; any other key is an error:

        {
            "destinations": ["matrix.example.org"],
            "filter": {"status": "retry_due", "failing_for": "7d"},
            "all_failing": true,
            "dry_run": false,
            "ignore_unknown": false,
            "per_second": 5,
            "timeout_ms": 10000,
            "reason": "The network is back"
        }

    200 OK: the run, as `GET` of its ID has it; with `dry_run`

        {"dry_run": true, "matched": 2, "sample": ["matrix.example.org"]}

    and nothing is changed. A filter that names no status is for failing destinations.
    With `ignore_unknown`, the answer has `ignored`: how many names were `unknown` or
    `invalid`.

    Errors: 400 `M_INVALID_PARAM` for a bad key, for no criteria, and for names in the
    list that are no valid server names or that Synapse has no row for, which are in
    `invalid` and `unknown`; 409 `M_UNKNOWN` if there is a run that has not ended, whose
    ID is in `id`; 400 `M_NOT_JSON`, `M_BAD_JSON`, 401, 403.

    GET /_synapse/admin/v2/federation/reconnects

    Query parameters: `limit`, from 1 to 100 (20); `from`, the `next_token` of the page
    before. 200 OK: `{"reconnects": [...], "next_token": "..."}`, the newest first.
    """

    def __init__(self, services: Services) -> None:
        super().__init__(services)
        self._seal = Seal(services.homeserver.secret_for("reconnects token"))

    async def on_GET(self, request: SynapseRequest) -> tuple[int, JsonDict]:
        """Answer GET."""
        services = self._services
        await services.homeserver.require_admin(request)
        require_known(request, ("limit", "from"))
        limit = parse_limit(request, default=20, highest=100)
        says = self._seal.position(
            [Direction.BACKWARDS.value],
            parse_text(request, "from") if b"from" in (request.args or {}) else None,
        )
        before = (says[0], says[1]) if says else None
        found = await services.runs.read(before, limit + 1)
        now_ms = services.homeserver.now_ms()
        answer: JsonDict = {"reconnects": [render(r, now_ms) for r in found[:limit]]}
        if len(found) > limit:
            last = found[limit - 1]
            answer["next_token"] = self._seal.make(
                [Direction.BACKWARDS.value], [last.created_ts, last.run_id]
            )
        return HTTPStatus.OK, answer

    async def on_POST(self, request: SynapseRequest) -> tuple[int, JsonDict]:
        """Answer POST."""
        services = self._services
        requester = await services.homeserver.require_admin(request)
        require_known(request, ())
        body = Body.parse(request, _KEYS)
        given = [key for key in _CRITERIA if key in body]
        if len(given) != 1:
            raise invalid_param(
                "One of the keys 'destinations', 'filter' and 'all_failing' is needed, "
                "and only one"
            )
        per_second = body.number(
            "per_second",
            default=min(_DEFAULT_PER_SECOND, services.bulk_max_per_second),
            least=_LEAST_PER_SECOND,
            most=services.bulk_max_per_second,
        )
        timeout_ms = body.integer(
            "timeout_ms",
            default=_DEFAULT_TIMEOUT_MS,
            least=_LEAST_TIMEOUT_MS,
            most=_MAX_TIMEOUT_MS,
        )
        dry_run, reason = body.flag("dry_run"), body.reason()
        ignores = body.flag("ignore_unknown")
        names: Sequence[str] = ()
        extra: JsonDict = {}
        if given == ["destinations"]:
            found = await services.bulk.sort_out(body.texts("destinations", _MAX_NAMES))
            if (found.unknown or found.invalid) and not ignores:
                raise _unusable(found)
            names, criteria = found.usable, RunCriteria(listed=len(found.usable))
            if ignores:
                extra["ignored"] = {
                    "unknown": len(found.unknown),
                    "invalid": len(found.invalid),
                }
        else:
            criteria = RunCriteria(wanted=_parse_wanted(body, given[0]))
        order = RunOrder(
            criteria, names, actor(requester), reason, per_second, timeout_ms
        )
        if dry_run:
            preview = await services.bulk.preview(order)
            return HTTPStatus.OK, {
                "dry_run": True,
                "matched": preview.matched,
                "sample": list(preview.sample),
                **extra,
            }
        run, created = await services.bulk.create(order)
        if not created:
            raise SynapseError(
                HTTPStatus.CONFLICT,
                f"The run {run.run_id} has not ended: wait for it, or cancel it with "
                f"DELETE {self.PATH}/{run.run_id}",
                Codes.UNKNOWN,
                additional_fields={"id": run.run_id},
            )
        return HTTPStatus.OK, {**render(run, services.homeserver.now_ms()), **extra}


class ReconnectsRunServlet(AdminServlet):
    """Look at a bulk run, and cancel it.

    GET /_synapse/admin/v2/federation/reconnects/<id>

    200 OK

        {
            "id": "f2a4c3f19a2b77e0",
            "status": "running",
            "user_id": "@admin:example.com",
            "puppeted_by": null,
            "reason": "The network is back",
            "criteria": {"all_failing": true},
            "per_second": 5,
            "timeout_ms": 10000,
            "created_ts": 1795475024352,
            "started_ts": 1795475024360,
            "updated_ts": 1795475184352,
            "ended_ts": null,
            "matched": 10000,
            "done": 800,
            "connected": 100,
            "still_failing": 690,
            "no_longer_failing": 7,
            "skipped": 3,
            "errors": {
                "tls_expired": {
                    "count": 31,
                    "recent": [{"destination": "...", "message": "...", "ts": 17954...}]
                }
            },
            "rate_per_second": 5.0,
            "estimated_end_ts": 1795477024352
        }

    `status`: `scheduled`, `preparing` (`matched` still grows), `running`, `complete` or
    `cancelled`. What came of each destination is in the audit, by `run_id`.

    DELETE /_synapse/admin/v2/federation/reconnects/<id>

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
            raise SynapseError(
                HTTPStatus.NOT_FOUND, "There is no such run", Codes.NOT_FOUND
            )
        return HTTPStatus.OK, render(run, self._services.homeserver.now_ms())


def render(run: Run, now_ms: int) -> JsonDict:
    """Render a run."""
    return {
        "id": run.run_id,
        "status": run.status.value,
        "user_id": run.actor.user_id,
        "puppeted_by": run.actor.puppeted_by,
        "reason": run.reason,
        "criteria": shown_criteria(run.criteria),
        "per_second": run.per_second,
        "timeout_ms": run.timeout_ms,
        "created_ts": run.created_ts,
        "started_ts": run.started_ts,
        "updated_ts": run.updated_ts,
        "ended_ts": run.ended_ts,
        "matched": run.matched,
        "done": run.done,
        **{outcome.value: count for outcome, count in run.counts.items()},
        "errors": _render_errors(run.errors),
        "rate_per_second": run.rate if run.status is RunStatus.RUNNING else None,
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


def _parse_wanted(body: Body, key: str) -> DestinationFilter:
    if key == "all_failing":
        if not body.flag("all_failing"):
            raise invalid_param("Key 'all_failing' must be true, or not be there")
        return ALL_FAILING
    wanted = parse_filter_object(body)
    if wanted.statuses or wanted.failing_for_ms is not None or wanted.failures:
        return wanted
    return attr.evolve(wanted, statuses=FAILING_STATUSES)


def _unusable(found: SortedNames) -> SynapseError:
    """Return the error for names that cannot be contacted."""
    sorts = {"unknown": found.unknown, "invalid": found.invalid}
    what = [
        f"{len(names)} {sort} ({bounded(', '.join(names[:3]), 200)}"
        f"{', ...' if len(names) > 3 else ''})"
        for sort, names in sorts.items()
        if names
    ]
    return SynapseError(
        HTTPStatus.BAD_REQUEST,
        f"Key 'destinations' has names that cannot be contacted: {' and '.join(what)}; "
        "with 'ignore_unknown' they are left out",
        Codes.INVALID_PARAM,
        additional_fields={
            sort: list(names[:_SHOWN_NAMES]) for sort, names in sorts.items()
        },
    )
