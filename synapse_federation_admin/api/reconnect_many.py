# SPDX-License-Identifier: Apache-2.0
"""v2: reconnect many destinations."""

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
)
from synapse_federation_admin.api._body import Body
from synapse_federation_admin.api._filter import parse_filter_object
from synapse_federation_admin.api._parameters import require_known
from synapse_federation_admin.api.runs import start_run
from synapse_federation_admin.destinations.values import DestinationFilter, Sort
from synapse_federation_admin.failures.classify import bounded
from synapse_federation_admin.repair import criteria
from synapse_federation_admin.repair.reconnect_many import (
    ReconnectMany,
    ReconnectOptions,
    SortedNames,
)
from synapse_federation_admin.storage.run_values import RunOrder

_DEFAULT_PER_SECOND = 5
_LEAST_PER_SECOND = 0.1
_DEFAULT_TIMEOUT_MS = 10_000
_LEAST_TIMEOUT_MS = 1000
_MAX_TIMEOUT_MS = 60_000

# A longer list is for a filter, or for several runs.
_MAX_NAMES = 50_000

# How many names a dry run shows, and how many of each sort an error.
_SAMPLE = 10
_SHOWN_NAMES = 100

_CRITERIA = ("destinations", "filter", "all_failing")
_KEYS = (
    *_CRITERIA,
    *("dry_run", "ignore_unknown", "per_second", "timeout_ms", "reason"),
)


class ReconnectManyServlet(AdminServlet):
    """Reconnect many destinations.

    POST /_synapse/admin/v2/federation/reconnect

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
    `invalid` and `unknown`; 409 `M_UNKNOWN` if a run that reconnects has not ended,
    whose ID is in `id`; 400 `M_NOT_JSON`, `M_BAD_JSON`, 401, 403.
    """

    async def on_POST(self, request: SynapseRequest) -> tuple[int, JsonDict]:
        """Answer POST."""
        services = self._services
        requester = await services.homeserver.require_admin(request)
        require_known(request, ())
        body = Body.parse(request, _KEYS)
        wanted = _parse_criteria(body)
        options = _parse_options(body, services.bulk_max_per_second)
        dry_run, reason = body.flag("dry_run"), body.reason()
        ignores = body.flag("ignore_unknown")
        names: Sequence[str] = ()
        extra: JsonDict = {}
        if wanted is None:
            found = await services.reconnect_many.sort_out(
                body.texts("destinations", _MAX_NAMES)
            )
            if ignores:
                counts = {"unknown": len(found.unknown), "invalid": len(found.invalid)}
                extra["ignored"] = counts
            elif found.unknown or found.invalid:
                raise _unusable(found)
            names = found.usable
        if dry_run:
            answer = await _preview(services, wanted, names)
            return HTTPStatus.OK, {**answer, **extra}
        order = RunOrder(
            ReconnectMany.name,
            criteria.shown(wanted) if wanted else criteria.listed(len(names)),
            options.shown(),
            names,
            actor(requester),
            reason,
        )
        status, answer = await start_run(services, order)
        return status, {**answer, **extra}


def _parse_criteria(body: Body) -> DestinationFilter | None:
    """Return the filter; None for a list."""
    given = [key for key in _CRITERIA if key in body]
    if len(given) != 1:
        raise invalid_param(
            "One of the keys 'destinations', 'filter' and 'all_failing' is needed, "
            "and only one"
        )
    if given == ["destinations"]:
        return None
    if given == ["all_failing"]:
        if not body.flag("all_failing"):
            raise invalid_param("Key 'all_failing' must be true, or not be there")
        return criteria.ALL_FAILING
    wanted = parse_filter_object(body)
    if wanted.statuses or wanted.failing_for_ms is not None or wanted.failures:
        return wanted
    return attr.evolve(wanted, statuses=criteria.FAILING_STATUSES)


def _parse_options(body: Body, max_per_second: float) -> ReconnectOptions:
    return ReconnectOptions(
        per_second=body.number(
            "per_second",
            default=min(_DEFAULT_PER_SECOND, max_per_second),
            least=_LEAST_PER_SECOND,
            most=max_per_second,
        ),
        timeout_ms=body.integer(
            "timeout_ms",
            default=_DEFAULT_TIMEOUT_MS,
            least=_LEAST_TIMEOUT_MS,
            most=_MAX_TIMEOUT_MS,
        ),
    )


async def _preview(
    services: Services, wanted: DestinationFilter | None, names: Sequence[str]
) -> JsonDict:
    matched, sample = len(names), names[:_SAMPLE]
    if wanted is not None:
        rows = await services.reader.read(wanted, Sort(), None, _SAMPLE)
        matched = await services.reader.count(wanted)
        sample = [row.destination for row in rows]
    return {"dry_run": True, "matched": matched, "sample": list(sample)}


def _unusable(found: SortedNames) -> SynapseError:
    """Return the error for names that cannot be contacted."""
    sorts: Mapping[str, Sequence[str]] = {
        "unknown": found.unknown,
        "invalid": found.invalid,
    }
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
