# SPDX-License-Identifier: Apache-2.0
"""v2: the failing servers that matter most."""

from typing import Annotated

from pydantic import Field
from synapse.module_api import JsonDict

from synapse_federation_admin import limits
from synapse_federation_admin.api._base import Asked
from synapse_federation_admin.api._operation import operation
from synapse_federation_admin.api._render import render_row
from synapse_federation_admin.api.schemas.destinations import RecordedDestination
from synapse_federation_admin.api.schemas.model import Answer, Input
from synapse_federation_admin.api.schemas.values import Shown, shown
from synapse_federation_admin.destinations.backlog import Backlog
from synapse_federation_admin.destinations.values import DestinationFilter, Sort
from synapse_federation_admin.history.store import if_readable
from synapse_federation_admin.homeserver.features import Feature


class AttentionQuery(Input):
    """Which of the failing servers that matter most."""

    limit: Annotated[int, Field(ge=1, le=limits.TOLD_ATTENTION)] = Field(
        default=10, description="The most to return."
    )


class AffectingDestination(RecordedDestination):
    """A failing destination, and whom and what that affects."""

    shared_rooms: int = Field(
        description="Rooms in which users of that server and of this one are joined."
    )
    local_users: int = Field(description="Users of this server in those rooms.")
    waiting: int = Field(
        description="How many rooms and to-device messages wait for it."
    )
    backlog: Shown[Backlog] = Field(description="What waits for it.")


class Attention(Answer):
    """The failing servers that matter most."""

    as_of_ts: int | None = Field(
        description="When this was read; null while nothing is known yet."
    )
    is_complete: bool | None = Field(
        description="False if there was more than there is room to look at; null while "
        "nothing is known yet."
    )
    destinations: list[AffectingDestination] = Field(
        description="Those that affect anybody, or for which anything waits: by "
        "`local_users`, and then by `waiting`, the most first."
    )


@operation(AttentionQuery, Attention)
async def needs_attention(asked: Asked, query: AttentionQuery) -> JsonDict:
    """Tell which failing servers affect most local users, and for whom most waits.

    GET /_synapse/admin/v2/federation/attention?limit=10

    200 OK

        {
            "as_of_ts": 1557332397936,
            "is_complete": true,
            "destinations": [
                {
                    "destination": "matrix.org",
                    ...
                    "shared_rooms": 12,
                    "local_users": 40,
                    "waiting": 52,
                    "backlog": {"rooms": 12, "to_device_messages": 40, ...},
                    "last_failure": {"kind": "tls_expired", ...},
                    "availability": {"share": 0.0, ...}
                }
            ]
        }

    It is read in the background, when somebody asks for it and it is older than a
    minute, or than ten times as long as it took; who asks gets what was read last, of
    what is failing still.
    """
    services = asked.services
    services.features.require(Feature.BACKLOG)
    found = await services.attention.found.get()
    if found is None:
        return {"as_of_ts": None, "is_complete": None, "destinations": []}
    failing = await services.reader.of(DestinationFilter(), Sort()).among(
        [each.row.destination for each in found.most]
    )
    most = [each for each in found.most if each.row.destination in failing]
    rows = most[: query.limit]
    names = [each.row.destination for each in rows]
    days = await if_readable(lambda: services.history.availability(names)) or {}
    homeserver = services.homeserver
    return {
        "as_of_ts": found.as_of_ts,
        "is_complete": found.is_complete,
        "destinations": [
            {
                **render_row(homeserver, failing[each.row.destination]),
                "shared_rooms": each.shared_rooms,
                "local_users": each.local_users,
                "waiting": each.waiting,
                "backlog": shown(each.backlog),
                "last_failure": shown(each.last_failure),
                "availability": shown(days.get(each.row.destination)),
            }
            for each in rows
        ],
    }
