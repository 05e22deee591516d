# SPDX-License-Identifier: Apache-2.0
"""Signing in and out."""

import logging
from http import HTTPStatus
from typing import Protocol

from synapse.module_api import SynapseRequest
from synapse.module_api.errors import SynapseError

from synapse_federation_admin.console.cookie import Origin, Session
from synapse_federation_admin.console.visit import Answered, Page, See, Visit
from synapse_federation_admin.homeserver.sessions import Sessions

logger = logging.getLogger(__name__)


class Keeper(Protocol):
    """Has the browser keep a session."""

    def keep(self, request: SynapseRequest, session: Session) -> None:
        """Have the browser keep a session."""


async def show_signing_in(visit: Visit, _: Keeper, sessions: Sessions) -> Answered:
    """Show how to sign in, and lead to `next` then."""
    return _ways(visit, sessions)


async def sign_in(visit: Visit, keeper: Keeper, sessions: Sessions) -> Answered:
    """Sign in by password, or with an access token; lead to where that was asked."""
    how = visit.text("how")
    try:
        if how == "password":
            session = await _by_password(visit, sessions)
        else:
            session = await _by_token(visit)
    except SynapseError as e:
        if e.code >= HTTPStatus.INTERNAL_SERVER_ERROR:
            raise
        return _ways(visit, sessions, e.msg, HTTPStatus(e.code))
    keeper.keep(visit.request, session)
    return See(_next(visit))


async def sign_out(visit: Visit, keeper: Keeper, sessions: Sessions) -> Answered:
    """End the session; and the access token, if it was made for the console."""
    if visit.session.origin is Origin.LOGIN:
        try:
            await sessions.log_out(visit.request)
        except SynapseError as e:
            if e.code != HTTPStatus.UNAUTHORIZED:
                raise
            logger.info("The access token of a session had ended already")
    keeper.keep(visit.request, Session.new())
    return See("/session")


async def _by_password(visit: Visit, sessions: Sessions) -> Session:
    answer = await sessions.log_in(
        visit.request,
        {
            "type": "m.login.password",
            "identifier": {"type": "m.id.user", "user": visit.text("user").strip()},
            "password": visit.text("password"),
            "initial_device_display_name": "Federation console",
        },
    )
    return Session(Session.new().id, Origin.LOGIN, answer["access_token"])


async def _by_token(visit: Visit) -> Session:
    token = visit.text("token").strip()
    if not token:
        raise SynapseError(HTTPStatus.BAD_REQUEST, "An access token is needed")
    visit.request.requestHeaders.setRawHeaders(
        b"Authorization", [b"Bearer " + token.encode()]
    )
    await visit.services.homeserver.require_user(visit.request)
    return Session(Session.new().id, Origin.PASTED, token)


def _ways(
    visit: Visit,
    sessions: Sessions,
    problem: str | None = None,
    status: HTTPStatus = HTTPStatus.OK,
) -> Page:
    types = {flow["type"] for flow in sessions.login_flows(visit.request)}
    return Page(
        "sign_in.html",
        {
            "title": "Sign in",
            "next": _next(visit),
            "problem": problem,
            "has_password": "m.login.password" in types,
            "user": visit.text("user"),
        },
        status,
    )


def _next(visit: Visit) -> str:
    """Return the page of the console that was asked for: never another place."""
    wanted = visit.text("next", "/")
    is_path = wanted.startswith("/") and not wanted.startswith(("//", "/session"))
    return wanted if is_path and wanted.isprintable() and wanted.isascii() else "/"
