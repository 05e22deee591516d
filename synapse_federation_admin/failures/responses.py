# SPDX-License-Identifier: Apache-2.0
"""What an answer over HTTP that is no success means, and who has given it."""

import re
from http import HTTPStatus

from synapse_federation_admin import limits
from synapse_federation_admin.failures.bounds import bounded, json_object, word
from synapse_federation_admin.failures.kinds import Facts, Failure, FailureKind, Reason

_HTTP_KINDS: dict[int, FailureKind] = {
    HTTPStatus.UNAUTHORIZED: FailureKind.REJECTED,
    HTTPStatus.FORBIDDEN: FailureKind.REJECTED,
    HTTPStatus.GONE: FailureKind.GONE,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: FailureKind.TOO_LARGE,
    HTTPStatus.TOO_MANY_REQUESTS: FailureKind.RATE_LIMITED,
}

REDIRECTS = (301, 302, 303, 307, 308)

# A proxy answers so where the server behind it does not; from 520 on, Cloudflare.
_BACKEND_DOWN = (502, 503, 504, *range(520, 531))

# So firewalls answer, and who shuts countries out.
_DENIED = (
    HTTPStatus.FORBIDDEN,
    HTTPStatus.NOT_ACCEPTABLE,
    HTTPStatus.IM_A_TEAPOT,
    HTTPStatus.UNAVAILABLE_FOR_LEGAL_REASONS,
)

# What is in a page that lets browsers through and nobody else, in small letters, and
# in one that asks for a password.
_CHALLENGES = (
    "just a moment...",
    "cf-challenge",
    "challenge-platform",
    "cf_chl_",
    "attention required! | cloudflare",
    "not a bot",
    "ddos-guard",
    "ddos protection",
    "checking your browser",
    "captcha",
    "security checkpoint",
    "incapsula",
    "sucuri",
)
_LOGINS = ('type="password"', "type='password'", "type=password")

# What is in a URL at which one logs in, in small letters.
_LOGIN_URLS = (
    "login",
    "signin",
    "sign-in",
    "/auth",
    "oauth",
    "sso",
    "cloudflareaccess",
)

# With which frames HTTP/2 begins (RFC 9113, 6.5 and 6.8).
_HTTP2 = re.compile(rb"\0.{2}[\x04\x07]", re.DOTALL)

# What homeservers say, in small letters, where they reject a signed request; some of
# them with 403 M_FORBIDDEN, as if they denied access. The first that is in their text.
_REJECTIONS = (
    ("destination mismatch", Reason.OTHER_HOMESERVER),
    ("invalid destination", Reason.OTHER_HOMESERVER),
    ("missing authorization", Reason.SIGNATURE_REMOVED),
    ("failed to find any key", Reason.OUR_KEY_NOT_FETCHED),
    ("failed to fetch", Reason.OUR_KEY_NOT_FETCHED),
    ("signature", Reason.SIGNATURE_REJECTED),
)

# What nginx says where it wants a client certificate.
_NO_CERTIFICATE = "no required ssl certificate was sent"


def http_failure(
    status: int, body: bytes, *, server: bytes | None = None, to: bytes | None = None
) -> Failure:
    """Tell what an answer of an error means.

    Args:
        status: The HTTP status.
        body: The body, of which only the beginning is looked at.
        server: What answers calls itself, in the header `Server`; None: not known.
        to: Where a redirect leads, in the header `Location`; None: not known.
    """
    errcode, said = matrix_error(body)
    kind = _HTTP_KINDS.get(status, FailureKind.HTTP_ERROR)
    page = body[: limits.ERROR_BYTES].decode("utf-8", "replace").lower()
    reason = (
        _by_errcode(status, errcode, said) if errcode else _by_page(status, page, to)
    )
    if status in REDIRECTS:
        said = word(to, limits.TEXT) or "another URL"
    facts = Facts(
        status=status,
        errcode=errcode,
        said=said,
        server=word(server) or "",
    )
    return Failure(kind, reason, facts)


def reason_of_bytes(begins: bytes) -> Reason:
    """Return what something means that is no answer, or not all of one.

    Args:
        begins: How it begins.
    """
    if _HTTP2.match(begins):
        return Reason.HTTP2_ONLY
    is_http = begins.startswith(b"HTTP/"[: len(begins)])
    return Reason.BROKE_OFF if is_http else Reason.NO_HTTP


def page_reason(body: bytes) -> Reason:
    """Return what it is that comes in place of an answer.

    Args:
        body: The body of an answer of 200 that is not of type `application/json`.
    """
    page = body[: limits.ERROR_BYTES].decode("utf-8", "replace").lower()
    other = Reason.WRONG_CONTENT_TYPE if page else Reason.BODY_EMPTY
    return _page(page) or (Reason.WEB_SITE if "<html" in page else other)


def matrix_error(response: bytes) -> tuple[str, str]:
    """Return `errcode` and `error` in the body of an answer, bounded; "" if not there.

    Args:
        response: The body, of which only the beginning is looked at.
    """
    body = json_object(response[: limits.ERROR_BYTES]) or {}
    return word(body.get("errcode")) or "", word(body.get("error"), limits.TEXT) or ""


def _by_errcode(status: int, errcode: str, said: str) -> Reason | None:
    """Return what a homeserver means: it is one that answers with a Matrix error."""
    if _HTTP_KINDS.get(status) is FailureKind.REJECTED:
        told = said.lower()
        by_text = (reason for part, reason in _REJECTIONS if part in told)
        if (found := next(by_text, None)) is not None:
            return found
        if status == HTTPStatus.UNAUTHORIZED:
            return Reason.SIGNATURE_REJECTED
        if errcode == "M_FORBIDDEN":
            return Reason.DENIED_BY_POLICY
    if errcode == "M_UNRECOGNIZED":
        return Reason.FEDERATION_LISTENER_MISSING
    return None if status in _HTTP_KINDS else Reason.HOMESERVER_FAILS


def _by_page(status: int, page: str, to: bytes | None) -> Reason | None:
    """Return what a web server or a proxy means."""
    url = bounded(to.decode("latin-1")).lower() if to else ""
    found = _page(page)
    if status in REDIRECTS:
        is_login = any(part in url for part in _LOGIN_URLS)
        return Reason.LOGIN_PAGE if is_login else Reason.REDIRECT
    if status < HTTPStatus.BAD_REQUEST:
        return Reason.ODD_STATUS
    if found is not None:
        return found
    if _NO_CERTIFICATE in page:
        return Reason.CLIENT_CERTIFICATE
    if status == HTTPStatus.UNAUTHORIZED:
        return Reason.LOGIN_PAGE if "<html" in page else None
    if status in _DENIED:
        return Reason.FORBIDDEN_BY_PROXY
    if status == HTTPStatus.MISDIRECTED_REQUEST:
        return Reason.MISDIRECTED
    if status in (HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED):
        return Reason.NOT_ROUTED
    if status in (HTTPStatus.UPGRADE_REQUIRED, HTTPStatus.HTTP_VERSION_NOT_SUPPORTED):
        return Reason.HTTP2_ONLY
    if status in _BACKEND_DOWN:
        return Reason.BACKEND_DOWN
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return Reason.WEB_SERVER_FAILS
    return None


def _page(page: str) -> Reason | None:
    if any(part in page for part in _CHALLENGES):
        return Reason.CHALLENGE_PAGE
    return Reason.LOGIN_PAGE if any(part in page for part in _LOGINS) else None
