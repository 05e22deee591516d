# SPDX-License-Identifier: Apache-2.0
"""Signing in at this homeserver itself, or with an access token; and signing out."""

from collections.abc import Mapping
from hmac import compare_digest
from http import HTTPStatus
from urllib.parse import quote, urlencode

from synapse.module_api import SynapseRequest
from synapse.module_api.errors import SynapseError

from synapse_federation_admin.console import ROUTES
from synapse_federation_admin.console.cookie import Origin, Session, is_access_token
from synapse_federation_admin.console.desk import use_token
from synapse_federation_admin.console.render import url
from synapse_federation_admin.console.visit import Answered, Page, See, Visit

_SSO = "m.login.sso"


async def show_signing_in(visit: Visit) -> Answered:
    """Show how to sign in, and lead to `next` then."""
    return ways(visit)


async def sign_in(visit: Visit) -> Answered:
    """Sign in by password, after single sign-on, or with an access token."""
    try:
        session = await _signed_in(visit)
        await visit.desk.replace(visit.request, visit.session, session)
    except SynapseError as e:
        return failed(visit, e)
    return See(next_of(visit))


async def show_single_sign_on(visit: Visit) -> Answered:
    """Go on after single sign-on: a form, for what it has brought is spent once."""
    wanted = visit.session.sign(visit.desk.secret, "sso", next_of(visit))
    if not compare_digest(visit.text("state").encode(), wanted.encode()):
        return ways(
            visit,
            "this sign-in was not begun in this browser, or is an old one",
            HTTPStatus.BAD_REQUEST,
        )
    fields = {"how": "login_token", "login_token": visit.text("loginToken")}
    return go_on("/session", {**fields, "next": next_of(visit)})


async def sign_out(visit: Visit) -> Answered:
    """End the session; and the access token, if it was made for the console."""
    desk, request = visit.desk, visit.request
    await desk.end(request, visit.session, desk.renewal(request))
    desk.keep(request, Session.new())
    return See("/session")


async def _signed_in(visit: Visit) -> Session:
    """Return the session in which somebody has signed in, as their form says.

    Raises:
        SynapseError: Synapse does not let them in, or takes no such token.
    """
    user = {"type": "m.id.user", "user": visit.text("user").strip()}
    password = {"identifier": user, "password": visit.text("password")}
    bodies: Mapping[str, Mapping[str, object]] = {
        "password": {"type": "m.login.password", **password},
        "login_token": {"type": "m.login.token", "token": visit.text("login_token")},
    }
    if (body := bodies.get(visit.text("how"))) is not None:
        name = {"initial_device_display_name": "Federation console"}
        answer = await visit.desk.sessions.log_in(visit.request, {**body, **name})
        return visit.session.signed_in(Origin.LOGIN, answer["access_token"])
    token = visit.text("token").strip()
    if not is_access_token(token):
        raise SynapseError(HTTPStatus.BAD_REQUEST, "This is no access token")
    await require_works(visit, token)
    return visit.session.signed_in(Origin.PASTED, token)


def failed(visit: Visit, error: SynapseError) -> Page:
    """Return the ways to sign in, with why one did not work.

    Raises:
        SynapseError: Another try would not work, either.
    """
    if error.code >= HTTPStatus.INTERNAL_SERVER_ERROR:
        raise error
    ms = getattr(error, "retry_after_ms", None)
    when = "" if ms is None else f": try again in {max(1, -(-ms // 1000))} s"
    return ways(visit, f"{error.msg}{when}", HTTPStatus(error.code))


async def require_works(visit: Visit, token: str) -> None:
    """Return if Synapse takes an access token, of whomever it is.

    Raises:
        SynapseError: 401, it does not; 503, it cannot tell.
    """
    use_token(visit.request, token)
    await visit.desk.known(visit.services.homeserver.require_user(visit.request))


def ways(
    visit: Visit,
    problem: str | None = None,
    status: HTTPStatus = HTTPStatus.OK,
) -> Page:
    """Return the page with the ways to sign in.

    Args:
        visit: Who asks.
        problem: Why the last try did not work.
        status: The HTTP status.
    """
    desk, request = visit.desk, visit.request
    flows = {flow["type"]: flow for flow in desk.sessions.login_flows(request)}
    providers: list[tuple[str, str]] = []
    if _SSO in flows:
        state = visit.session.sign(desk.secret, "sso", next_of(visit))
        back = url("/session/sso", state=state, next=next_of(visit))
        query = urlencode({"redirectUrl": desk.origin(request) + back})
        for provider in flows[_SSO].get("identity_providers") or [{}]:
            which = f"/{quote(provider['id'], safe='')}" if provider else ""
            path = f"/_matrix/client/v3/login/sso/redirect{which}?{query}"
            providers.append((provider.get("name", "single sign-on"), path))
    context = {
        "title": "Sign in",
        "next": next_of(visit),
        "problem": problem,
        "ended": False,
        "has_password": "m.login.password" in flows,
        "has_service": desk.sessions.has_service,
        "providers": providers,
        "user": visit.text("user"),
        "is_proxy_unheard": _is_proxy_unheard(request),
    }
    return Page("sign_in.html", context, status)


def _is_proxy_unheard(request: SynapseRequest) -> bool:
    """Tell whether a proxy says that it is https, and Synapse does not hear it."""
    said = (request.getHeader("X-Forwarded-Proto") or "").lower()
    return said == "https" and not request.isSecure()


def ask_to_sign_in(visit: Visit, why: str | None) -> Page:
    """Return the page for who wants one and is not signed in: it leads there then.

    Args:
        visit: Who asks; `next` is what they asked for.
        why: Why their session has ended; None: there was none.
    """
    page = ways(visit, why, HTTPStatus.UNAUTHORIZED)
    return page._replace(context={**page.context, "ended": True, "has_session": False})


def go_on(path: str, fields: Mapping[str, str]) -> Page:
    """Return a page with a form that the script sends by itself."""
    context = {"title": "Signing in", "path": path, "fields": fields, "to": None}
    return Page("go_on.html", context)


def next_of(visit: Visit) -> str:
    """Return the page of the console that was asked for: never another place."""
    return page_of(visit.text("next", "/"))


def page_of(wanted: str) -> str:
    """Return a path of the console with its query if it is one of a page.

    That of what a form is sent to becomes that of the page; any other one, `/`.
    """
    is_plain = wanted.isprintable() and wanted.isascii() and "\\" not in wanted
    path = wanted.partition("?")[0]
    if not is_plain or path.startswith("/session"):
        return "/"
    # A path that leads out of here, by `..`, is that of no page.
    if any(r.method == "GET" and r.match(path) is not None for r in ROUTES):
        return wanted
    # What a form was sent to, that has no page.
    parent = path.rpartition("/")[0]
    is_page = any(r.method == "GET" and r.match(parent) is not None for r in ROUTES)
    return parent if is_page else "/"
