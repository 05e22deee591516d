# SPDX-License-Identifier: Apache-2.0
"""v2: the rooms that a server shares with us."""

from pydantic import Field
from synapse.module_api import JsonDict

from synapse_federation_admin.api._base import Asked
from synapse_federation_admin.api._operation import operation
from synapse_federation_admin.api._paging import Paging
from synapse_federation_admin.api.schemas.model import Answer, NextToken, Paged
from synapse_federation_admin.api.schemas.values import Shown, shown
from synapse_federation_admin.api.v2_destinations import require_known
from synapse_federation_admin.destinations.shared_rooms import SharedRoom


class SharedRoomsPage(Answer):
    """A page of the rooms that a server shares with us."""

    rooms: list[Shown[SharedRoom]] = Field(
        description="The rooms, those with most local members first."
    )
    next_token: NextToken = None


@operation(Paged, SharedRoomsPage, errors={404: "Nothing is known of the destination."})
async def list_shared_rooms(asked: Asked, query: Paged, destination: str) -> JsonDict:
    """List the rooms in which users of a server and of this one are now.

    GET /_synapse/admin/v2/federation/destinations/<destination>/shared_rooms

    200 OK

        {
            "rooms": [
                {
                    "room_id": "!abc:example.org",
                    "name": "Lobby",
                    "members": 100,
                    "local_members": 12,
                    "local_users": ["@alice:example.org"],
                    "their_members": 3
                }
            ],
            "next_token": "xBp0..."
        }

    A destination that shares none has an empty list.
    """
    paging = Paging(query, "shared_rooms", destination)
    found = await asked.services.shared_rooms.page(
        destination, paging.after, paging.limit
    )
    if not found:
        await require_known(asked.services, destination)
    rooms, next_token = paging.cut(
        found, lambda last: [last.local_members, last.room_id]
    )
    return {"rooms": shown(rooms), **next_token}
