# SPDX-License-Identifier: Apache-2.0
"""What it is told as where the API cannot be reached, or answers with an error."""

import re
import ssl
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import click
import httpx

from synapse_federation_admin import __version__
from synapse_federation_admin.cli.connection import TOKEN
from synapse_federation_admin.cli.exits import Exit, FailedError


def failure(
    response: httpx.Response, answer: Mapping[str, Any] | None, url: str
) -> FailedError:
    """Return what an answer that is not 200 is told as.

    Args:
        response: The answer.
        answer: Its object; None if it has none.
        url: Of the homeserver.
    """
    status = response.status_code
    if answer is None or not isinstance(answer.get("errcode"), str):
        if response.is_redirect:
            return FailedError(
                f"{url} leads to {response.headers.get('Location', 'elsewhere')}"
                " instead of answering: is that its URL?",
                Exit.UNREACHABLE,
            )
        return FailedError(
            f"{url} does not answer as a homeserver does: HTTP {status}. It may be"
            " the answer of a reverse proxy, or that of something else.",
            Exit.UNREACHABLE,
        )
    code, text = answer["errcode"], str(answer.get("error", ""))
    if status == HTTPStatus.UNAUTHORIZED:
        text = f"The access token is not valid: {text.rstrip('.')}. Log in again"
        text += " with `login`"
        return FailedError(f"{text}, or set {TOKEN}.", Exit.NOT_ALLOWED, answer)
    if status == HTTPStatus.FORBIDDEN:
        text = f"{text.rstrip('.')}. The access token has to be a server admin's."
        return FailedError(text, Exit.NOT_ALLOWED, answer)
    if status == HTTPStatus.NOT_FOUND and code == "M_UNRECOGNIZED":
        text = (
            f"The module at {url} is not loaded, or does not have that yet, or this"
            " is no listener with the admin API. `modules` of homeserver.yaml has"
            " to name synapse_federation_admin.FederationAdmin, and Synapse to be"
            f" restarted. This is the command line of version {__version__}."
        )
        return FailedError(text, Exit.UNREACHABLE, answer)
    if status == HTTPStatus.BAD_REQUEST and code == "M_INVALID_PARAM":
        return FailedError(_as_options(text), Exit.USAGE, answer)
    if text == "Unknown destination":
        text += ". Names are exact, with the port: `list --destination` finds them."
    return FailedError(text or f"HTTP {status}, {code}", Exit.FAILED, answer)


def reason(error: BaseException) -> str:
    """Return why a request failed, in a few words."""
    at: BaseException | None = error
    while at is not None:
        if isinstance(at, ssl.SSLCertVerificationError):
            return (
                f"its certificate is not trusted: {at.verify_message}. If it is of an"
                " authority of your own, name that by SSL_CERT_FILE."
            )
        at = at.__cause__ or at.__context__
    text = re.sub(r"^\[Errno -?\d+\] ", "", str(error)) or type(error).__name__
    return f"{text}. Is that its URL, and does Synapse run?"


def _as_options(text: str) -> str:
    """Return what the API says of a parameter as what it is here: an option."""
    context = click.get_current_context(silent=True)
    known = {str(p.name).rstrip("_") for p in context.command.params} if context else ()

    def option(found: "re.Match[str]") -> str:
        name = found[1].removesuffix("_ms")
        return f"--{name.replace('_', '-')}" if name in known else found[0]

    # What follows are values, though one of them may be called like an option.
    told, should, values = text.partition("Input should be")
    told = re.sub(r"(?:Query parameter |Key )?'(?:filter\.)?(\w+)'", option, told)
    return told + should + values
