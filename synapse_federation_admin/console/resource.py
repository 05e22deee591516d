# SPDX-License-Identifier: Apache-2.0
"""The edge of the console: who comes in, what is answered, with which headers."""

import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from importlib import import_module
from typing import Any
from urllib.parse import parse_qs, urlsplit

from markupsafe import Markup
from synapse.module_api import ModuleApi, Requester, SynapseRequest
from synapse.module_api.errors import Codes, SynapseError
from twisted.internet.defer import CancelledError

from synapse_federation_admin import __version__, limits
from synapse_federation_admin.api import Services
from synapse_federation_admin.console import ROUTES, Route
from synapse_federation_admin.console.cookie import Session
from synapse_federation_admin.console.desk import Desk, is_of_here, use_token
from synapse_federation_admin.console.pages.session import ask_to_sign_in, page_of
from synapse_federation_admin.console.render import Renderer, url
from synapse_federation_admin.console.visit import (
    Answered,
    Kept,
    Page,
    See,
    Values,
    Visit,
    error_page,
)
from synapse_federation_admin.homeserver.admin_resource import CONSOLE_PATH
from synapse_federation_admin.homeserver.features import Feature
from synapse_federation_admin.homeserver.process import SYNAPSE_VERSION
from synapse_federation_admin.homeserver.responses import respond
from synapse_federation_admin.homeserver.sessions import Sessions

logger = logging.getLogger(__name__)

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)

# Those of a form, or of an address.
_FIELDS = 2000


class Console:
    """Answers requests for pages."""

    def __init__(self, services: Services, api: ModuleApi) -> None:
        self._services = services
        self._api = api
        self._desk = Desk(Sessions(api), services.homeserver.server_name)
        self._visit = partial(Visit, services, self._desk, Kept(services.homeserver))
        self._renderer = Renderer()
        self._is_compiled = False
        # At once, as templates are: a page is to need no file when it is asked for.
        for route in ROUTES:
            with suppress(ImportError):
                _handler_of(route)

    async def answer(self, request: SynapseRequest) -> None:
        """Answer a request, whatever comes of it."""
        for name, value in (
            ("Content-Security-Policy", _POLICY),
            ("X-Content-Type-Options", "nosniff"),
            ("X-Frame-Options", "DENY"),
            ("Referrer-Policy", "no-referrer"),
            ("Cross-Origin-Opener-Policy", "same-origin"),
            ("Cross-Origin-Resource-Policy", "same-origin"),
            ("X-Robots-Tag", "noindex"),
            ("Cache-Control", "no-store"),
        ):
            request.setHeader(name.encode(), value.encode())
        path = request.path.decode("latin-1").removeprefix(CONSOLE_PATH)
        if path.startswith("/static/"):
            # Between requests that come one behind the other, others have their turn.
            await self._services.homeserver.turn().end_if_long()
            self._answer_static(request, path.removeprefix("/static/"))
            return
        if not self._is_compiled:
            await self._api.defer_to_thread(self._renderer.compile)
            self._is_compiled = True
        session, has_cookie = self._take_session(request)
        requester: Requester | None = None
        try:
            route, parameters = _find(request.method.decode("latin-1"), path)
            if route is None:
                answered: Answered = See(page_of(path))
            else:
                query = self._query(request)
                form = self._form(request, session, has_cookie=has_cookie)
                if not route.opens:
                    check = self._services.homeserver.require_admin(request)
                    requester = await self._desk.known(check)
                self._services.features.require(*route.needs)
                answered = await _handler_of(route)(
                    self._visit(request, session, query, requester, parameters, form)
                )
        except CancelledError:
            raise
        except Exception as e:
            answered = self._failed(e, request, session)
        if answered is None:
            return
        if isinstance(answered, See):
            request.setHeader(b"Location", url(answered.path).encode())
            respond(request, HTTPStatus.SEE_OTHER, b"")
            return
        if not has_cookie and request.method != b"POST":
            # Not to a form of another site: with those no browser sends the cookie that
            # it has, and this one would take the place of it.
            self._desk.keep(request, session)
        await self._respond_page(request, answered, session, requester)

    def _failed(
        self, error: Exception, request: SynapseRequest, session: Session
    ) -> Page:
        """Return what says that an error happened: for a 401, how to sign in."""
        if isinstance(error, SynapseError) and error.code == HTTPStatus.UNAUTHORIZED:
            visit = self._visit(request, session, {"next": _here(request)})
            has_ended = error.errcode != Codes.MISSING_TOKEN
            return ask_to_sign_in(visit, error.msg if has_ended else None)
        page = error_page(error, self._services.homeserver, session.origin)
        if request.method == b"POST":
            # What was sent is not sent again by itself.
            page = page._replace(context={**page.context, "retries": False})
        return page

    # -- what comes in -----------------------------------------------------------------

    def _take_session(self, request: SynapseRequest) -> tuple[Session, bool]:
        """Return the session, and whether the browser has it.

        From here on its access token is that of the request, and no other.
        """
        found = self._desk.session(request)
        session = found or Session.new()
        # What a proxy asks for itself must not reach Synapse.
        request.requestHeaders.removeHeader(b"Authorization")
        if session.token:
            use_token(request, session.token)
        return session, found is not None

    @staticmethod
    def _query(request: SynapseRequest) -> Values:
        query = urlsplit(request.uri).query.decode("latin-1")
        values = _values(query)
        if "access_token" in values or _has_token(request):
            raise SynapseError(
                HTTPStatus.BAD_REQUEST,
                "An access token in the address is refused: it stays in logs and in "
                "the history of the browser. Sign in instead.",
                Codes.INVALID_PARAM,
            )
        return values

    def _form(
        self, request: SynapseRequest, session: Session, *, has_cookie: bool
    ) -> Values:
        """Return the fields of a form, once it is sure that a page of ours sends it."""
        if request.method != b"POST":
            return {}
        site = request.getHeader("Sec-Fetch-Site")
        origin = request.getHeader("Origin")
        if site is None and origin not in (None, "null"):
            # Browsers do not say it of what is not encrypted. What our own pages send
            # has no origin ("null"), for they let no referrer out.
            site = "same-origin" if is_of_here(request, origin) else "cross-site"
        if site not in (None, "same-origin"):
            raise _forged("it comes from another site")
        if not has_cookie:
            raise _forged(
                "this browser has sent no cookie of the console. It has to keep "
                "cookies of this site, and to come over https if a proxy says so"
            )
        assert request.content is not None
        request.content.seek(0)
        body = request.content.read(limits.FORM_BYTES + 1)
        if len(body) > limits.FORM_BYTES:
            raise SynapseError(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"Form too large: at most {limits.FORM_BYTES} bytes are taken",
                Codes.TOO_LARGE,
            )
        fields = dict(_values(body.decode("latin-1")))
        token = fields.pop("csrf", "")
        if not isinstance(token, str) or not session.is_form_token(
            self._desk.secret, token
        ):
            raise _forged("the page that it comes from belongs to another session")
        return fields

    # -- what goes out -----------------------------------------------------------------

    def _answer_static(self, request: SynapseRequest, name: str) -> None:
        file = self._renderer.static.get(name)
        if file is None or request.method not in (b"GET", b"HEAD"):
            request.setHeader(b"Content-Type", b"text/plain; charset=utf-8")
            respond(request, HTTPStatus.NOT_FOUND, b"No such file\n")
            return
        media_type, body = file
        request.setHeader(b"Content-Type", media_type.encode())
        request.setHeader(b"Cache-Control", b"public, max-age=31536000, immutable")
        respond(request, HTTPStatus.OK, body)

    async def _respond_page(
        self,
        request: SynapseRequest,
        page: Page,
        session: Session,
        requester: Requester | None,
    ) -> None:
        context = self._context(request, session, requester)

        async def render(page: Page) -> bytes:
            return await self._renderer.render(
                page.template,
                {**context, **page.context},
                self._services.homeserver.turn(),
            )

        try:
            body, status = await render(page), page.status
        except CancelledError:
            raise
        except Exception as e:
            failed = error_page(e, self._services.homeserver, session.origin)
            body, status = await render(failed), failed.status
        request.setHeader(b"Content-Type", b"text/html; charset=utf-8")
        respond(request, status, body)

    def _context(
        self, request: SynapseRequest, session: Session, requester: Requester | None
    ) -> Mapping[str, Any]:
        """Return what every page shows, or needs."""
        features, homeserver = self._services.features, self._services.homeserver
        here = request.path.decode("latin-1").removeprefix(CONSOLE_PATH)
        token = session.form_token(self._desk.secret)
        renewal = self._desk.renewal(request)
        return {
            "module_version": __version__,
            "synapse_version": SYNAPSE_VERSION,
            "me": requester.user.to_string() if requester else None,
            "has_session": bool(session.token),
            "renews_at": renewal.expires_ts if renewal and renewal.token else None,
            "server_name": homeserver.server_name,
            "instance": homeserver.instance_name,
            "now_ms": homeserver.now_ms(),
            "here": _here(request),
            "csrf_field": lambda: Markup(
                '<input type="hidden" name="csrf" value="{}">'
            ).format(token),
            "features_off": [
                (feature.value, reason)
                for feature in Feature
                if (reason := features.reason(feature)) is not None
            ],
            "is_on": lambda name: features.is_on(Feature(name)),
            "navigation": [
                (route.nav, url(route.path), route.key, _is_at(here, route.path))
                for route in ROUTES
                if route.nav and all(map(features.is_on, route.needs))
            ],
        }


def _handler_of(route: Route) -> Callable[..., Awaitable[Answered]]:
    module, _, name = route.handler.partition(".")
    found: Callable[..., Awaitable[Answered]] = getattr(
        import_module(f"synapse_federation_admin.console.pages.{module}"), name
    )
    return found


def _values(text: str) -> Values:
    try:
        found = parse_qs(text, keep_blank_values=True, max_num_fields=_FIELDS)
    except ValueError as e:
        raise SynapseError(
            HTTPStatus.BAD_REQUEST,
            f"At most {_FIELDS} fields are taken",
            Codes.INVALID_PARAM,
        ) from e
    return {
        name: values[0] if len(values) == 1 else values
        for name, values in found.items()
    }


def _find(method: str, path: str) -> tuple[Route | None, Mapping[str, str]]:
    """Return the route, and the parameters in its path.

    None where the address of a form was opened by itself, which leads to its page.

    Raises:
        SynapseError: There is none.
    """
    wanted = "GET" if method == "HEAD" else method
    found = {
        route.method: (route, parameters)
        for route in reversed(ROUTES)
        if (parameters := route.match(path)) is not None
    }
    if wanted in found:
        return found[wanted]
    if not path or (found and wanted == "GET"):
        return None, {}
    if found:
        raise SynapseError(
            HTTPStatus.METHOD_NOT_ALLOWED, f"Nothing is sent here with {method}"
        )
    raise SynapseError(HTTPStatus.NOT_FOUND, "No such page", Codes.NOT_FOUND)


def _has_token(request: SynapseRequest) -> bool:
    """Tell whether Synapse would find an access token beside the header.

    Its parameters are those that Twisted reads: a `;` parts them, too, and those of a
    form are among them.
    """
    return b"access_token" in (request.args or {})


def _here(request: SynapseRequest) -> str:
    """Return what was asked for, but no access token."""
    is_told = b"access_token" in request.uri or _has_token(request)
    asked = request.path if is_told else request.uri
    here = asked.decode("latin-1").removeprefix(CONSOLE_PATH)
    return here if request.method in (b"GET", b"HEAD") else page_of(here)


def _is_at(here: str, path: str) -> bool:
    return here == path or (path != "/" and here.startswith(f"{path}/"))


def _forged(why: str) -> SynapseError:
    return SynapseError(
        HTTPStatus.FORBIDDEN,
        f"Nothing was changed: {why}. Load the page again and repeat it there.",
        "M_FORGED",
    )
