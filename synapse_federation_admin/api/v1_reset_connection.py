# SPDX-License-Identifier: Apache-2.0
"""v1: the documented reset of a destination's connection."""

from http import HTTPStatus

from synapse.module_api import JsonDict, SynapseRequest
from synapse.module_api.errors import Codes, SynapseError

from synapse_federation_admin.api._base import AdminServlet, actor, unknown_destination
from synapse_federation_admin.storage.outcomes import ResetOutcome


class ResetConnectionServlet(AdminServlet):
    """Clear a destination's retry timings, and have Synapse try it again at once.

    POST /_synapse/admin/v1/federation/destinations/<destination>/reset_connection

    The body, if there is one, is ignored.

    200 OK: `{}`. The timings are cleared, every process has been woken, and one real
    request to the destination is made in the background.

    Errors: 400 `M_UNKNOWN` if it is not failing, 404 `M_NOT_FOUND` if it is unknown,
    500 `M_UNKNOWN` if the database fails (nothing is changed then), 401, 403.
    """

    async def on_POST(
        self, request: SynapseRequest, destination: str
    ) -> tuple[int, JsonDict]:
        """Answer POST."""
        requester = await self._services.homeserver.require_admin(request)
        outcome = await self._services.reset.reset(destination, actor(requester))
        if outcome is ResetOutcome.UNKNOWN_DESTINATION:
            raise unknown_destination()
        if outcome is ResetOutcome.NOT_FAILING:
            raise SynapseError(
                HTTPStatus.BAD_REQUEST,
                "The retry timing does not need to be reset for this destination.",
                Codes.UNKNOWN,
            )
        return HTTPStatus.OK, {}
