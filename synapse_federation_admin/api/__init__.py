# SPDX-License-Identifier: Apache-2.0
"""The HTTP API: its routes, and what answers there."""

import logging
import re
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from importlib import import_module
from typing import Any, NamedTuple, NoReturn

from synapse.module_api import JsonDict, SynapseRequest
from synapse.module_api.errors import SynapseError
from twisted.internet.defer import CancelledError

from synapse_federation_admin.api._base import Asked, Services
from synapse_federation_admin.homeserver.admin_resource import HttpServer
from synapse_federation_admin.homeserver.features import NOT_AS_EXPECTED, Feature

logger = logging.getLogger(__name__)

__all__ = ["ROUTES", "Api", "Route", "Services"]

# Answers an admin: with what, beside the request, the path says. None if the answer is
# written already.
Handler = Callable[..., Awaitable[JsonDict | None]]

_PREFIX = "/_synapse/admin"


class Route(NamedTuple):
    """A method and a path, and what answers there.

    Attributes:
        feature: What it belongs to.
        method: `GET`.
        path: The path, with the names of parameters in angle brackets:
            `/_synapse/admin/v1/federation/destinations/<destination>`.
        handler: Where the handler is: `v1_destinations.get_destination_v1`. It is
            imported only while the feature is on.
    """

    feature: Feature
    method: str
    path: str
    handler: str

    @property
    def is_v1(self) -> bool:
        """Whether it is one that Synapse documents, and has a servlet for."""
        return self.path.startswith(f"{_PREFIX}/v1/")

    @property
    def needs(self) -> tuple[Feature, ...]:
        """The features without which it does not answer."""
        of_v2 = () if self.is_v1 else (Feature.V2,)
        return (Feature.BASE, *of_v2, self.feature)

    @property
    def name(self) -> str:
        """The name of the handler, under which Synapse's metrics have it."""
        return self.handler.partition(".")[2]

    @property
    def pattern(self) -> re.Pattern[str]:
        """The pattern of the path, written as Synapse writes those of its servlets.

        An empty parameter matches, so that it gets an answer of ours.
        """
        return re.compile(
            "^" + re.sub("<([a-z_]+)>", r"(?P<\1>[^/]*)", self.path) + "$"
        )

    def load(self) -> Handler:
        """Import the handler."""
        module = self.handler.partition(".")[0]
        found: Handler = getattr(
            import_module(f"synapse_federation_admin.api.{module}"), self.name
        )
        return found


_V1 = f"{_PREFIX}/v1/federation/destinations"
_V1_ONE = f"{_V1}/<destination>"
_V2 = f"{_PREFIX}/v2/federation"
_ALL = f"{_V2}/destinations"
_ONE = f"{_V2}/destinations/<destination>"
_RUN = f"{_V2}/runs/<run_id>"

# Its pages, where it does not answer itself.
_CONSOLE = re.compile(f"^{_PREFIX}/federation(?:/.*)?$")

_F = Feature

ROUTES: tuple[Route, ...] = (
    Route(_F.V1_LISTS, "GET", _V1, "v1_destinations.list_destinations_v1"),
    Route(_F.V1_LISTS, "GET", _V1_ONE, "v1_destinations.get_destination_v1"),
    Route(_F.V1_LISTS, "GET", f"{_V1_ONE}/rooms", "v1_destinations.list_rooms_v1"),
    Route(
        _F.V1_RESET,
        "POST",
        f"{_V1_ONE}/reset_connection",
        "v1_reset_connection.reset_connection_v1",
    ),
    Route(_F.LISTS, "GET", _ALL, "v2_destinations.list_destinations"),
    # Before the one of a destination: that would match, too.
    Route(_F.LISTS, "GET", f"{_ALL}/export", "export.export_destinations"),
    Route(_F.LISTS, "GET", _ONE, "v2_destinations.get_destination"),
    Route(_F.LISTS, "GET", f"{_V2}/summary", "summary.summarize"),
    Route(_F.SHARED_ROOMS, "GET", f"{_V2}/attention", "attention.needs_attention"),
    Route(_F.BACKLOG, "GET", f"{_V2}/unlisted", "unlisted.list_unlisted"),
    Route(_F.RECONNECT, "POST", f"{_ONE}/reconnect", "reconnect.reconnect"),
    Route(_F.RUNS, "POST", f"{_V2}/reconnect", "reconnect_many.reconnect_many"),
    Route(_F.RUNS, "GET", f"{_V2}/runs", "runs.list_runs"),
    Route(_F.RUNS, "GET", _RUN, "runs.get_run"),
    Route(_F.RUNS, "DELETE", _RUN, "runs.cancel_run"),
    Route(_F.RUNS, "POST", f"{_ONE}/forget", "forget.forget"),
    Route(_F.RUNS, "POST", f"{_V2}/forget", "forget.forget_many"),
    Route(_F.RUNS, "POST", f"{_V2}/cap_backoff", "cap_backoff.cap_backoff"),
    Route(_F.FLUSH_CACHES, "POST", f"{_ONE}/flush_caches", "flush_caches.flush_caches"),
    Route(_F.AUDIT, "GET", f"{_V2}/audit", "audit.read_audit"),
    Route(_F.AUDIT, "GET", f"{_V2}/changes", "changes.list_changes"),
    Route(_F.DIAGNOSIS, "POST", f"{_ONE}/diagnose", "diagnose.diagnose"),
    Route(_F.LISTS, "GET", f"{_ONE}/tell", "tell.tell"),
    Route(_F.DIAGNOSIS, "GET", f"{_ONE}/support", "diagnose.get_support"),
    Route(_F.HISTORY, "GET", f"{_ONE}/outages", "outages.list_outages"),
    Route(
        _F.SHARED_ROOMS,
        "GET",
        f"{_ONE}/shared_rooms",
        "shared_rooms.list_shared_rooms",
    ),
    Route(_F.SENDERS, "GET", f"{_V2}/instances", "instances.list_instances"),
    Route(_F.V2, "GET", f"{_V2}/status", "status.get_status"),
    Route(_F.V2, "GET", f"{_V2}/openapi.json", "_openapi.get_openapi"),
)


class Api:
    """Registers what answers at each path.

    Where a feature is off, v1 is left to Synapse's own servlets, and v2 says why. So is
    a request of v1 that this module fails to answer by a bug.
    """

    def __init__(self, services: Services) -> None:
        self._services = services
        self._handlers: dict[Route, Handler] = {}

    def register(self, http_server: HttpServer) -> None:
        """Register all routes."""
        features = self._services.features
        for route in ROUTES:
            if route not in self._handlers and all(map(features.is_on, route.needs)):
                try:
                    self._handlers[route] = route.load()
                except Exception as e:
                    features.switch_off(route.feature, e)
        if features.is_missing(Feature.CONSOLE):
            http_server.register_paths("GET", [_CONSOLE], _console_off, "console_off")
        for route in ROUTES:
            if not route.is_v1 or all(map(features.is_on, route.needs)):
                http_server.register_paths(
                    route.method, [route.pattern], self._callback(route), route.name
                )

    def _callback(self, route: Route) -> Callable[..., Awaitable[Any]]:
        async def answer(
            request: SynapseRequest, **parameters: str
        ) -> tuple[int, JsonDict] | None:
            services = self._services
            services.features.require(Feature.BASE)
            try:
                requester = await services.homeserver.require_admin(request)
                services.features.require(*route.needs)
                asked = Asked(services, request, requester)
                body = await self._handlers[route](asked, **parameters)
            except CancelledError:
                raise
            except Exception as e:
                if services.homeserver.is_database_away(e):
                    raise _database_away() from e
                # Off since the request began: what is missing is looked for at start.
                is_off = not all(map(services.features.is_on, route.needs))
                is_left = route.is_v1 and (
                    is_off
                    or isinstance(e, NOT_AS_EXPECTED)
                    or services.homeserver.is_refused(e)
                )
                if not is_left or request.startedWriting:
                    raise
                if not is_off:
                    logger.exception("Synapse's own servlet answers %s", route.name)
                own = services.homeserver.own_v1(route.method, route.path)
                return await own(request, **parameters)
            return None if body is None else (HTTPStatus.OK, body)

        return answer


async def _console_off(_: SynapseRequest) -> NoReturn:
    """Say so to somebody of whom nobody knows who it is: why is for admins."""
    raise SynapseError(
        HTTPStatus.SERVICE_UNAVAILABLE,
        f"The feature 'console' is off: the homeserver's log and {_V2}/status say why",
    )


def _database_away() -> SynapseError:
    """Say that it is away, locked or full: no bug, which would be a 500."""
    return SynapseError(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "The database of this homeserver cannot be used just now; try again later",
    )
