# SPDX-License-Identifier: Apache-2.0
"""Where Synapse serves its admin API, and ours with it."""

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING

from synapse.http.server import HttpServer as HttpServer, JsonResource
from synapse.module_api import JsonDict, ModuleApi, SynapseRequest
from synapse.rest.admin import register_servlets
from synapse.rest.admin.media import register_servlets_for_media_repo
from twisted.internet.address import UNIXAddress
from twisted.web.resource import Resource

if TYPE_CHECKING:
    from synapse.config.server import ListenerConfig
    from synapse.http.servlet import RestServlet
    from synapse.server import HomeServer

    from synapse_federation_admin.homeserver.responses import PagesResource

logger = logging.getLogger(__name__)

ADMIN_PATH = "/_synapse/admin"

# Where the console is.
CONSOLE_PATH = f"{ADMIN_PATH}/federation"

_ANY_ADDRESS = ("0.0.0.0", "::", "")  # noqa: S104  # compared

# The resources of a listener that make Synapse serve admin endpoints on it. Which ones
# of them count, and what is then served, depends on the process.
_Surface = frozenset[str]
_CLOSED: _Surface = frozenset()
_CLIENT: _Surface = frozenset({"client"})
_CLIENT_AND_MEDIA: _Surface = frozenset({"client", "media"})


def is_taken(api: ModuleApi) -> bool:
    """Tell whether another module serves the path: Synapse keeps the first one's."""
    return ADMIN_PATH in getattr(api._hs, "_module_web_resources", {})


def mount(
    api: ModuleApi,
    register: Callable[[HttpServer], None],
    console: Callable[[], "PagesResource | None"] = lambda: None,
) -> "AdminResource":
    """Serve Synapse's admin API at its path, with servlets of ours before its own.

    Args:
        api: Reaches Synapse.
        register: Registers our servlets. Where Synapse has one of the same pattern and
            method, ours answers.
        console: Returns what answers below `CONSOLE_PATH`; None while nothing does.
    """
    resource = AdminResource(api._hs, register, console)
    api.register_web_resource(ADMIN_PATH, resource)
    return resource


class AdminResource(Resource):
    """Synapse's admin API with servlets of ours, on the listeners that have it.

    Synapse attaches a module's resource to every HTTP listener of a process, also to
    those where stock Synapse has no admin API. This resource answers by listener:
    what Synapse would have served there (`synapse/app/homeserver.py`,
    `synapse/app/generic_worker.py`) together with ours, or 404 `M_UNRECOGNIZED`.
    """

    isLeaf = True

    def __init__(
        self,
        hs: "HomeServer",
        register: Callable[[HttpServer], None],
        console: Callable[[], "PagesResource | None"] = lambda: None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Twisted's
        self._hs = hs
        self._register = register
        self._console = console
        self._listeners = _Listeners(hs)
        self._by_surface = {_CLOSED: self._routes(_CLOSED)}
        for surface in self._listeners.surfaces():
            self._by_surface[surface] = self._routes(surface)

    def render(self, request: SynapseRequest) -> int:
        """Answer a request, as what its listener carries."""
        is_console = f"{request.path.decode('latin-1')}/".startswith(f"{CONSOLE_PATH}/")
        if is_console and self._listeners.surface_of(request):
            console = self._console()
            if console is not None:
                answered: int = console.render(request)
                return answered
        return self.routes_for(request).render(request)

    def routes_for(self, request: SynapseRequest) -> JsonResource:
        """Return what answers a request: it depends on its listener alone."""
        surface = self._listeners.surface_of(request)
        if surface not in self._by_surface:
            self._by_surface[surface] = self._routes(surface)
        return self._by_surface[surface]

    def refresh(self) -> None:
        """Have servlets registered anew, before the next request is answered."""
        self._by_surface.clear()

    def listNames(self) -> list[bytes]:
        """Return no names: what is below a leaf is never asked.

        Synapse builds a tree of resources for each listener, and this resource is in
        all of them. Where another module has a path below this one, the second tree
        would find what the first has put here, and fail.
        """
        return []

    def _routes(self, surface: _Surface) -> JsonResource:
        routes = JsonResource(self._hs, canonical_json=False)
        if surface:
            # Ours are registered twice. The first match wins, so they go first; and of
            # an equal pattern and method the last registration stays, so they go last
            # as well.
            self._register(routes)
            if "client" in surface:
                register_servlets(self._hs, routes)
                _register_v1_on_worker(self._hs, routes)
            if "media" in surface:
                register_servlets_for_media_repo(self._hs, routes)
            self._register(routes)
        return routes


def _register_v1_on_worker(hs: "HomeServer", http_server: HttpServer) -> None:
    """Have Synapse's own servlets answer v1 where ours do not, on a worker, too.

    Synapse registers them on the main process only.
    """
    if hs.config.worker.worker_app is None:
        return
    try:
        servlets = own_servlets(hs)
    except ImportError as e:
        logger.info("Only servlets of this module can answer v1 here: %s", e)
        return
    for servlet in servlets.values():
        servlet.register(http_server)


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


class _Listeners:
    """Knows on which listeners of this process Synapse serves admin endpoints."""

    def __init__(self, hs: "HomeServer") -> None:
        on_worker = hs.config.worker.worker_app is not None
        carriers = (
            _CLIENT_AND_MEDIA
            if on_worker and hs.config.media.can_load_media_repo
            else _CLIENT
        )
        listeners = (
            hs.config.worker.worker_listeners
            if on_worker
            else hs.config.server.listeners
        )
        self._by_tag: dict[str, list[tuple[ListenerConfig, _Surface]]] = {}
        for listener in listeners:
            if listener.http_options is not None:
                names = {
                    name
                    for resource in listener.http_options.resources
                    for name in resource.names
                }
                self._by_tag.setdefault(listener.get_site_tag(), []).append(
                    (listener, carriers & names)
                )

    def surfaces(self) -> set[_Surface]:
        """Return the surfaces of the listeners in the configuration."""
        return {surface for group in self._by_tag.values() for _, surface in group}

    def surface_of(self, request: SynapseRequest) -> _Surface:
        """Return the surface of the listener that a request came in through."""
        listeners = self._by_tag.get(request.synapse_site.site_tag)
        if listeners is None:
            # Synapse itself opens no listener that is not in its configuration. Who has
            # put this resource on a site of their own, as Synapse's test harness does,
            # wants it served there.
            return _CLIENT
        surfaces = {surface for _, surface in listeners}
        if len(surfaces) > 1:
            # All Unix sockets share one tag, and so do two listeners on one port of
            # different addresses, or what the operator has tagged alike.
            surfaces = {s for listener, s in listeners if _is_at(listener, request)}
        return surfaces.pop() if len(surfaces) == 1 else _CLOSED


def _is_at(listener: "ListenerConfig", request: SynapseRequest) -> bool:
    """Tell whether a request came in through a listener, by the local address."""
    host = request.getHost()
    if isinstance(host, UNIXAddress):
        path = getattr(listener, "path", None)
        return path is not None and host.name == path.encode()
    if getattr(listener, "port", None) != getattr(host, "port", None):
        return False
    bound = set(getattr(listener, "bind_addresses", []))
    if "localhost" in bound:
        bound |= {"127.0.0.1", "::1"}
    return not bound.isdisjoint({host.host, *_ANY_ADDRESS})
