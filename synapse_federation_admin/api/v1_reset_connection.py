# SPDX-License-Identifier: Apache-2.0
"""v1: the documented reset of a destination's connection."""

from http import HTTPStatus

from synapse.module_api import JsonDict
from synapse.module_api.errors import Codes, SynapseError

from synapse_federation_admin.api._base import Asked, unknown_destination
from synapse_federation_admin.storage.values import ResetOutcome


async def reset_connection_v1(asked: Asked, destination: str) -> JsonDict:
    """Clear a destination's retry timings, and have Synapse try it again at once.

    POST /_synapse/admin/v1/federation/destinations/<destination>/reset_connection

    The body, if there is one, is ignored.

    200 OK: `{}`. The timings are cleared. Where something waits, every process has been
    woken, and it is sent; else an empty transaction is sent in the background, and
    every process is woken once it is taken.

    Errors: 400 `M_UNKNOWN` if it is not failing, 404 `M_NOT_FOUND` if it is unknown,
    500 `M_UNKNOWN` if the database fails (nothing is changed then), 401, 403.
    """
    outcome = await asked.services.reset.reset(destination, asked.actor)
    if outcome is ResetOutcome.UNKNOWN_DESTINATION:
        raise unknown_destination()
    if outcome is ResetOutcome.NOT_FAILING:
        raise SynapseError(
            HTTPStatus.BAD_REQUEST,
            "The retry timing does not need to be reset for this destination.",
            Codes.UNKNOWN,
        )
    return {}
