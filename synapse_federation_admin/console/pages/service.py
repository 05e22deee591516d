# SPDX-License-Identifier: Apache-2.0
"""Signing in at the authentication service, and renewing what it gave."""

import json
from http import HTTPStatus

import attr
from synapse.module_api.errors import SynapseError

from synapse_federation_admin.console.cookie import Origin
from synapse_federation_admin.console.oauth import Tokens, is_web
from synapse_federation_admin.console.pages.session import (
    failed,
    go_on,
    next_of,
    require_works,
    ways,
)
from synapse_federation_admin.console.visit import Answered, Page, See, Visit
from synapse_federation_admin.homeserver.responses import respond


async def begin(visit: Visit) -> Answered:
    """Lead to the service; where it takes no redirect to here, show a code for it."""
    if not visit.desk.sessions.has_service:
        return ways(visit)
    try:
        await visit.desk.sessions.count_try(visit.request)
        url = await visit.desk.oauth.authorization_url(
            visit.session, visit.desk.origin(visit.request), next_of(visit)
        )
        if url is not None:
            # By a page, not by a redirect: the service may redirect on, and browsers
            # would hold our policy for forms against that.
            context = {"title": "Signing in", "path": "", "fields": {}, "to": url}
            return Page("go_on.html", context)
        client_id, answer = await visit.desk.oauth.begin_on_device()
    except SynapseError as e:
        return failed(visit, e)
    return _on_device(
        {
            "client_id": client_id,
            "device_code": str(answer.get("device_code", "")),
            "user_code": str(answer.get("user_code", "")),
            "uri": str(answer.get("verification_uri", "")),
            "complete": str(answer.get("verification_uri_complete", "")),
            "next": next_of(visit),
        },
    )


async def go_on_on_device(visit: Visit) -> Answered:
    """Look whether somebody has signed in at the service, with the code."""
    names = ("client_id", "device_code", "user_code", "uri", "complete")
    fields = {name: visit.text(name) for name in names}
    try:
        await visit.desk.sessions.count_try(visit.request, goes_on=True)
        tokens = await visit.desk.oauth.finish_on_device(
            fields["client_id"], fields["device_code"], visit.now_ms
        )
        if tokens is None:
            return _on_device({**fields, "next": next_of(visit)})
        return await _keep(visit, tokens, next_of(visit))
    except SynapseError as e:
        if e.code == HTTPStatus.TOO_MANY_REQUESTS:
            # Nothing was asked: the page asks again.
            return _on_device({**fields, "next": next_of(visit)})
        return failed(visit, e)


async def show_back(visit: Visit) -> Answered:
    """Go on after the service: by a form, for what it has brought is spent once."""
    state, code = visit.text("state"), visit.text("code")
    try:
        visit.desk.oauth.sign_in_of(visit.session, state)
    except SynapseError as e:
        return failed(visit, e)
    if not code:
        said = visit.text("error_description") or visit.text("error")
        return ways(visit, f"the authentication service says: {said}", HTTPStatus(400))
    return go_on("/session/back", {"state": state, "code": code})


async def come_back(visit: Visit) -> Answered:
    """Have the service give tokens for its code."""
    state = visit.text("state")
    try:
        await visit.desk.sessions.count_try(visit.request, goes_on=True)
        tokens, next_path = await visit.desk.oauth.exchange(
            visit.session,
            visit.desk.origin(visit.request),
            state,
            visit.text("code"),
            visit.now_ms,
        )
        return await _keep(visit, tokens, next_path)
    except SynapseError as e:
        return failed(visit, e)


async def renew(visit: Visit) -> Answered:
    """Renew the access token before it ends: for the script, so in JSON."""
    renewal = visit.desk.renewal(visit.request)
    status, answer = HTTPStatus.OK, {}
    if renewal is None or not renewal.token:
        status = HTTPStatus.UNAUTHORIZED
    else:
        try:
            await visit.desk.sessions.count_try(visit.request, goes_on=True)
            tokens = await visit.desk.oauth.renew(renewal, visit.now_ms)
        except SynapseError as e:
            # Away, or asked too often: the session stays.
            stays = e.code >= HTTPStatus.TOO_MANY_REQUESTS
            status = HTTPStatus(e.code) if stays else HTTPStatus.UNAUTHORIZED
        else:
            session = attr.evolve(
                visit.session, origin=Origin.SERVICE, token=tokens.access_token
            )
            visit.desk.keep(visit.request, session, tokens.renewal)
            answer = {"expires_ts": tokens.renewal.expires_ts}
    visit.request.setHeader(b"Content-Type", b"application/json")
    respond(visit.request, status, json.dumps(answer).encode())
    return None


async def _keep(visit: Visit, tokens: Tokens, next_path: str) -> Answered:
    """Keep tokens that Synapse takes; what it does not take would lead round."""
    session = visit.session.signed_in(Origin.SERVICE, tokens.access_token)
    try:
        await require_works(visit, tokens.access_token)
    except SynapseError:
        await visit.desk.end_if_it_can(visit.request, session, tokens.renewal)
        raise
    await visit.desk.replace(visit.request, visit.session, session, tokens.renewal)
    return See(next_path)


def _on_device(fields: dict[str, str]) -> Page:
    if not all(
        not fields[name] or is_web(fields[name]) for name in ("uri", "complete")
    ):
        raise SynapseError(HTTPStatus.BAD_REQUEST, "The service names no web address")
    return Page("on_device.html", {"title": "Sign in", **fields, "fields": fields})
