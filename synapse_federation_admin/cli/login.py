# SPDX-License-Identifier: Apache-2.0
"""`login` and `logout`: a password, or the device grant of an authentication service.

The device grant is RFC 8628, as Matrix has it (MSC4341): a code is entered in a
browser, on any machine. What it gives ends soon, and `Client` renews it.
"""

import secrets
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from http import HTTPStatus
from typing import Any

import attr
import click

from synapse_federation_admin.cli.client import Client, Json
from synapse_federation_admin.cli.connection import (
    TOKEN,
    Connection,
    Login,
    checked_token,
    checked_url,
    keep_login,
    login_file,
    read_login,
)
from synapse_federation_admin.cli.exits import Exit, FailedError
from synapse_federation_admin.cli.options import Asked, command
from synapse_federation_admin.failures.bounds import shown

_LOGIN = "/_matrix/client/v3/login"
_PASSWORD = "m.login.password"  # noqa: S105
_DEVICE_GRANT = "urn:ietf:params:oauth:grant-type:device_code"
_DEVICE_NAME = "synapse-federation-admin"

# Says where the authentication service is.
_METADATA = "/_matrix/client/v1/auth_metadata"

# Where the service does not say it (RFC 8628, 3.2 and 3.5), and its bounds.
_POLL_S, _SLOWER_S, _LONGEST_S = 5.0, 5.0, 1800.0


@command()
@click.option("--user", metavar="USER", help="Who logs in: a name or a user ID.")
@click.option(
    "--device",
    is_flag=True,
    help="Log in at the authentication service, in a browser on any machine: without"
    " this, only where there is no password.",
)
def login(asked: Asked, user: str | None, device: bool) -> None:
    """Log in as a server admin, and keep the access token for the commands to come.

    It asks for a password; if the homeserver has an authentication service, it says
    which address to open in a browser, and which code to enter there. The token is kept
    in a file that only you can read.
    """
    client, out = asked.client, asked.out
    url = client.connection.url
    if url.startswith("http:") and not client.connection.is_local:
        out.note(f"! {url} is not encrypted: others may read what is sent.", "warn")
    has_password = _has_password(client)
    service = None if has_password and not device else _service(client, has_password)
    if service is None:
        kept = _by_password(client, url, user)
    else:
        kept = _on_device(asked, service, url)
    client.use(kept)
    try:
        client.get("/status")
    except FailedError as e:
        if e.exit_code == Exit.NOT_ALLOWED:
            with suppress(FailedError):
                _revoke(client, kept)
        raise
    path = keep_login(kept)
    out.note(f"Logged in as {kept.user_id}. The token is kept in {path}.")


@command()
def logout(asked: Asked) -> None:
    """End the login that is kept, and remove its token."""
    kept = read_login()
    if kept is None:
        asked.out.note("Nobody is logged in.")
        return
    client = Client(Connection(checked_url(kept.url), kept.access_token, kept))
    try:
        _revoke(client, kept)
    finally:
        client.close()
        login_file().unlink(missing_ok=True)
    asked.out.note(f"{kept.user_id} is logged out.")


def _has_password(client: Client) -> bool:
    status, answer = client.unauthenticated("GET", _LOGIN)
    flows = answer.get("flows") if status == HTTPStatus.OK else None
    return isinstance(flows, list) and any(
        isinstance(flow, dict) and flow.get("type") == _PASSWORD for flow in flows
    )


def _by_password(client: Client, url: str, user: str | None) -> Login:
    if not user:
        if not sys.stdin.isatty():
            raise click.UsageError("Without a terminal --user says who.")
        user = click.prompt("User", err=True)
    if sys.stdin.isatty():
        password = click.prompt("Password", hide_input=True, err=True)
    else:
        password = sys.stdin.readline().rstrip("\n")
    status, answer = client.unauthenticated(
        "POST",
        _LOGIN,
        body={
            "type": _PASSWORD,
            "identifier": {"type": "m.id.user", "user": user},
            "password": password,
            "initial_device_display_name": _DEVICE_NAME,
        },
    )
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        raise FailedError(f"The homeserver fails: {answer.get('error')}")
    if status != HTTPStatus.OK:
        raise _refused(answer, "error")
    return Login(
        url=url,
        user_id=str(answer.get("user_id")),
        access_token=checked_token(str(answer.get("access_token")), "the answer"),
    )


def _revoke(client: Client, kept: Login) -> None:
    """End a session, so that nobody is left with a token."""
    endpoint = kept.renewal.get("revocation_endpoint")
    if endpoint:
        form = {
            "token": kept.renewal["refresh_token"],
            "client_id": kept.renewal["client_id"],
        }
        # RFC 7009, 2.2: there is nothing in the answer.
        status = client.anonymous("POST", endpoint, data=form).status_code
        if status != HTTPStatus.OK:
            raise FailedError(
                f"The authentication service does not end the session: HTTP {status}."
                " It goes on there until it is ended in your account."
            )
        return
    try:
        client.call("POST", "/_matrix/client/v3/logout", body={})
    except FailedError as e:
        if e.exit_code != Exit.NOT_ALLOWED:
            raise


# -- the device grant ------------------------------------------------------------------


def _service(client: Client, has_password: bool) -> Json:
    """Return what the authentication service says of itself (RFC 8414)."""
    status, answer = client.unauthenticated("GET", _METADATA)
    if status == HTTPStatus.OK and answer.get("token_endpoint"):
        return answer
    instead = f"Set {TOKEN} to the access token of a server admin."
    if has_password:
        instead = "Log in with a password, without --device."
    raise FailedError(
        f"The homeserver {'' if has_password else 'takes no password here, and '}has no"
        f" authentication service. {instead}"
    )


def _on_device(asked: Asked, service: Mapping[str, Any], url: str) -> Login:
    client, out = asked.client, asked.out
    client_id = _register(client, service)
    device = secrets.token_hex(5).upper()
    scope = (
        f"urn:matrix:client:api:* urn:matrix:client:device:{device} urn:synapse:admin:*"
    )
    status, begun = client.unauthenticated(
        "POST",
        _endpoint(service, "device_authorization_endpoint"),
        form={"client_id": client_id, "scope": scope},
    )
    if status != HTTPStatus.OK or not begun.get("device_code"):
        raise _refused(begun, "error_description")
    out.note(f"Open {begun.get('verification_uri')} in a browser, and enter this code:")
    out.note(f"\n    {begun.get('user_code')}\n")
    if whole := begun.get("verification_uri_complete"):
        out.note(f"Or open {whole}")
    with out.waiting("Waiting until you have signed in there"):
        answer = _wait(client, service, client_id, begun)
    renewal = {
        key: str(value)
        for key, value in {
            "client_id": client_id,
            "token_endpoint": service["token_endpoint"],
            "revocation_endpoint": service.get("revocation_endpoint"),
            "refresh_token": answer.get("refresh_token"),
        }.items()
        if value
    }
    token = checked_token(str(answer.get("access_token")), "the answer")
    kept = Login(url, "", token, renewal if "refresh_token" in renewal else {})
    client.use(kept)
    found = client.call("GET", "/_matrix/client/v3/account/whoami")
    return attr.evolve(kept, user_id=str(found.get("user_id")))


def _register(client: Client, service: Mapping[str, Any]) -> str:
    """Return the ID of this application (RFC 7591)."""
    status, answer = client.unauthenticated(
        "POST",
        _endpoint(service, "registration_endpoint"),
        body={
            "client_name": _DEVICE_NAME,
            # It has no site of its own, and services want one.
            "client_uri": service.get("issuer"),
            "grant_types": [_DEVICE_GRANT, "refresh_token"],
            "token_endpoint_auth_method": "none",
            "application_type": "native",
        },
    )
    client_id = answer.get("client_id")
    if status >= HTTPStatus.BAD_REQUEST or not isinstance(client_id, str):
        raise _refused(answer, "error_description")
    return client_id


def _wait(
    client: Client, service: Mapping[str, Any], client_id: str, begun: Json
) -> Json:
    """Return the tokens, once somebody has signed in."""
    every_s = _number(begun.get("interval"), _POLL_S)
    until = time.monotonic() + min(
        _number(begun.get("expires_in"), _LONGEST_S), _LONGEST_S
    )
    form = {
        "grant_type": _DEVICE_GRANT,
        "device_code": str(begun["device_code"]),
        "client_id": client_id,
    }
    while time.monotonic() < until:
        time.sleep(every_s)
        status, answer = client.unauthenticated(
            "POST", _endpoint(service, "token_endpoint"), form=form
        )
        error = answer.get("error")
        if status == HTTPStatus.OK:
            return answer
        if error == "slow_down":
            every_s += _SLOWER_S
        elif error != "authorization_pending":
            raise _refused(answer, "error_description")
    raise FailedError("Nobody has signed in in time: log in again.", Exit.NOT_ALLOWED)


def _number(value: object, otherwise: float) -> float:
    return value if isinstance(value, int | float) and value >= 0 else otherwise


def _endpoint(service: Mapping[str, Any], name: str) -> str:
    found = service.get(name)
    if not isinstance(found, str) or not found.startswith(("https://", "http://")):
        raise FailedError(
            f"The authentication service has no {name}, so that this cannot log in"
            f" there. Set {TOKEN} to the access token of a server admin."
        )
    return found


def _refused(answer: Json, key: str) -> FailedError:
    why = answer.get(key) or answer.get("error") or "it does not say why"
    return FailedError(f"The login is refused: {shown(str(why))}", Exit.NOT_ALLOWED)
