# SPDX-License-Identifier: Apache-2.0
"""v2: reconnect many destinations."""

from collections.abc import Callable, Iterable, Sequence
from http import HTTPStatus
from typing import Annotated

from pydantic import Field, model_validator
from synapse.module_api import JsonDict
from synapse.module_api.errors import Codes, SynapseError
from typing_extensions import Self

from synapse_federation_admin import limits
from synapse_federation_admin.api._base import Asked, Services, invalid_param
from synapse_federation_admin.api._operation import operation
from synapse_federation_admin.api.runs import (
    CONFLICT,
    Chosen,
    Run,
    RunPreview,
    start_run,
)
from synapse_federation_admin.api.schemas.destinations import ChangeFilter
from synapse_federation_admin.api.schemas.model import Input, Reason
from synapse_federation_admin.destinations.query import is_of_failing
from synapse_federation_admin.destinations.values import DestinationFilter, Sort
from synapse_federation_admin.failures.bounds import bounded
from synapse_federation_admin.homeserver.server_name import is_server_name
from synapse_federation_admin.repair import criteria
from synapse_federation_admin.repair.reconnect_many import ReconnectMany
from synapse_federation_admin.storage.sql import can_be_stored


class ReconnectManyBody(Input):
    """Which destinations to reconnect, and how."""

    destinations: list[str] | None = Field(
        default=None, description="The server names.", max_length=limits.NAMES_OF_A_RUN
    )
    filter: ChangeFilter | None = Field(
        default=None,
        description="Those that a filter keeps, as in the list. With none of `status`, "
        "`failing_for`, `failing_under` and `failure` it is for what is failing.",
    )
    all_failing: bool | None = Field(
        default=None, description="`true`: all that are failing."
    )
    dry_run: bool = Field(
        default=False, description="Say what would be contacted, and change nothing."
    )
    ignore_unknown: bool = Field(
        default=False,
        description="Leave out the names of the list that are no valid server names, "
        "or that Synapse has no row for; `ignored` has their numbers.",
    )
    per_second: float | None = Field(
        default=None,
        description="How many contacts to begin per second: 5 by default, from 0.1 to "
        "`bulk.max_per_second` of the configuration.",
    )
    timeout_ms: Annotated[int, Field(ge=1000, le=60_000)] = Field(
        default=10_000, description="How long each destination has to answer."
    )
    reason: Reason = ""

    @model_validator(mode="after")
    def _require_one(self) -> Self:
        """Refuse more or less than one way to say which destinations."""
        given = (self.destinations, self.filter, self.all_failing)
        if sum(each is not None for each in given) != 1:
            raise ValueError(
                "One of the keys 'destinations', 'filter' and 'all_failing' is needed, "
                "and only one"
            )
        if self.all_failing is False:
            raise ValueError("Key 'all_failing' must be true, or absent")
        return self


_DEFAULT_PER_SECOND = 5
_LEAST_PER_SECOND = 0.1

# How many names a dry run shows, and how many of each sort an error.
_SAMPLE = 10
_SHOWN_NAMES = 100


@operation(
    ReconnectManyBody,
    Run,
    gives_dry=RunPreview,
    errors={
        400: "`destinations` has names that are no valid server names or that Synapse "
        "has no row for: some are in `invalid` and `unknown` (`M_INVALID_PARAM`).",
        **CONFLICT,
    },
    body_bytes=limits.NAMES_BODY_BYTES,
)
async def reconnect_many(asked: Asked, body: ReconnectManyBody) -> JsonDict:
    """Reconnect many destinations.

    POST /_synapse/admin/v2/federation/reconnect

    Body: one of `destinations`, `filter` and `all_failing`, and how:

        {
            "destinations": ["matrix.example.org"],
            "filter": {"status": ["retry_due"], "failing_for": "7d"},
            "all_failing": true,
            "dry_run": false,
            "ignore_unknown": false,
            "per_second": 5,
            "timeout_ms": 10000,
            "reason": "The network is back"
        }

    200 OK: the run, as `GET` of its ID has it; with `dry_run`

        {"dry_run": true, "matched": 2, "sample": ["matrix.example.org"]}

    and nothing is changed.
    """
    services = asked.services
    per_second = _per_second(body, services.config.bulk_max_per_second)
    chosen: Chosen | None = _wanted(body)
    ignored: JsonDict = {}
    if chosen is None:
        chosen, ignored = await usable_of(
            services,
            body.destinations or (),
            is_server_name,
            body.ignore_unknown,
            "cannot be contacted",
        )
    if body.dry_run:
        matched, sample = await _preview(services, chosen)
        return {"dry_run": True, "matched": matched, "sample": sample, **ignored}
    how = {"per_second": per_second, "timeout_ms": body.timeout_ms}
    run = await start_run(asked, ReconnectMany.name, chosen, how, body.reason)
    return {**run, **ignored}


def _wanted(body: ReconnectManyBody) -> DestinationFilter | None:
    """Return the filter; None for a list."""
    if body.filter is None:
        return criteria.ALL_FAILING if body.all_failing else None
    wanted = body.filter.wanted
    if wanted.statuses or is_of_failing(wanted):
        return wanted
    return wanted._replace(statuses=criteria.FAILING_STATUSES)


def _per_second(body: ReconnectManyBody, most: float) -> float:
    if body.per_second is None:
        return min(_DEFAULT_PER_SECOND, most)
    if not _LEAST_PER_SECOND <= body.per_second <= most:
        raise invalid_param(
            f"Key 'per_second' must be a number from {_LEAST_PER_SECOND:g} to {most:g}"
        )
    return body.per_second


async def _preview(services: Services, chosen: Chosen) -> tuple[int, list[str]]:
    """Return how many destinations a run would be for, and the names of some."""
    if not isinstance(chosen, DestinationFilter):
        return len(chosen), list(chosen[:_SAMPLE])
    found = services.reader.of(chosen._replace(only_fitting=True), Sort())
    rows = await found.read(None, _SAMPLE)
    return await found.count(), [row.destination for row in rows]


async def usable_of(
    services: Services,
    names: Iterable[str],
    is_valid: Callable[[str], bool],
    ignore_unknown: bool,
    why: str,
) -> tuple[Sequence[str], JsonDict]:
    """Return the names of a list, each once, of which something can be done.

    Args:
        services: Knows which of them Synapse has a row for.
        names: The names.
        is_valid: Tells of a name whether it can be done, if there is a row for it.
        ignore_unknown: Whether the others are left out.
        why: What those cannot: "cannot be contacted".

    Returns:
        The names; and how many are left out, as answers have it.

    Raises:
        SynapseError: 400 `M_INVALID_PARAM`: there are others, and they are not.
    """
    names = list(dict.fromkeys(names))
    valid = {name for name in names if is_valid(name)}
    known = await services.destinations.get_many(list(filter(can_be_stored, valid)))
    usable = [name for name in names if name in known]
    others = {
        "unknown": [name for name in names if name in valid and name not in known],
        "invalid": [name for name in names if name not in valid],
    }
    if ignore_unknown:
        return usable, {"ignored": {sort: len(of) for sort, of in others.items()}}
    what = [
        f"{len(of)} {sort} ({bounded(', '.join(of[:3]), 200)}"
        f"{', ...' if len(of) > 3 else ''})"
        for sort, of in others.items()
        if of
    ]
    if not what:
        return usable, {}
    raise SynapseError(
        HTTPStatus.BAD_REQUEST,
        f"Key 'destinations' has names that {why}: {' and '.join(what)}; "
        "with 'ignore_unknown' they are left out",
        Codes.INVALID_PARAM,
        additional_fields={sort: of[:_SHOWN_NAMES] for sort, of in others.items()},
    )
