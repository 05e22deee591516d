# SPDX-License-Identifier: Apache-2.0
"""Where routes are registered, and Synapse's own servlets of v1."""

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING

from synapse.http.server import HttpServer
from synapse.module_api import JsonDict, SynapseRequest

if TYPE_CHECKING:
    from synapse.http.servlet import RestServlet
    from synapse.server import HomeServer

__all__ = ["HttpServer", "own_servlets", "own_v1"]


def own_v1(
    hs: "HomeServer", method: str, path: str
) -> Callable[..., Awaitable[tuple[int, JsonDict]]]:
    """Return what answers a route in Synapse itself, also a request begun by ours."""
    servlet = own_servlets(hs)[path.partition("/destinations")[2]]

    async def answer(
        request: SynapseRequest, **parameters: str
    ) -> tuple[int, JsonDict]:
        # Who asks is told to a request only once.
        request._requester = None
        on_method = getattr(servlet, f"on_{method}")
        answered: tuple[int, JsonDict] = await on_method(request, **parameters)
        return answered

    return answer


def own_servlets(hs: "HomeServer") -> "Mapping[str, RestServlet]":
    """Make those that answer where ours do not, by the path below `destinations`.

    Raises:
        ImportError: Synapse has them no longer.
    """
    from synapse.rest.admin.federation import (
        DestinationMembershipRestServlet,
        DestinationResetConnectionRestServlet,
        DestinationRestServlet,
        ListDestinationsRestServlet,
    )

    one = "/<destination>"
    return {
        "": ListDestinationsRestServlet(hs),
        one: DestinationRestServlet(hs),
        f"{one}/rooms": DestinationMembershipRestServlet(hs),
        f"{one}/reset_connection": DestinationResetConnectionRestServlet(hs),
    }
