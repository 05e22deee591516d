# SPDX-License-Identifier: Apache-2.0
"""Tells what is wrong with a well-known file, or with what is in place of one."""

import json
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from http import HTTPStatus
from typing import Any

import attr
from twisted.web.error import (
    InfiniteRedirection,
    RedirectWithNoLocation,
    SchemeNotSupported,
)

from synapse_federation_admin import limits
from synapse_federation_admin.failures.bounds import bounded, json_object, word
from synapse_federation_admin.failures.kinds import (
    TLS_KINDS,
    Facts,
    Failure,
    FailureKind,
    How,
    Link,
    Reason,
)
from synapse_federation_admin.failures.names import invalid_name
from synapse_federation_admin.homeserver.errors import (
    WELL_KNOWN_MAX_SIZE,
    BodyExceededMaxSize,
    FileAnswer,
    host_in,
)
from synapse_federation_admin.homeserver.server_name import (
    InvalidServerNameError,
    ServerName,
)

# They say of a host that it has no web server. That is no delegation, as an answer of
# 404 is, and Synapse finds it out as soon. There may be no route because this host has
# no IPv6, or no IPv4: whether that matters is seen at the homeserver's port.
_NO_WEB_SERVER = (
    FailureKind.CONNECTION_REFUSED,
    FailureKind.DNS_NOT_FOUND,
    FailureKind.UNREACHABLE,
)

# So do these, of what a proxy makes of it that can't connect.
_NO_WEB_SERVER_BY_PROXY = (
    *_NO_WEB_SERVER,
    FailureKind.PROXY_FAILED,
    FailureKind.INVALID_RESPONSE,
)

# What redirects are that lead to none.
_REDIRECTS = (
    (RedirectWithNoLocation, Reason.REDIRECT_WITHOUT_TARGET),
    (InfiniteRedirection, Reason.TOO_MANY_REDIRECTS),
    (SchemeNotSupported, Reason.REDIRECT_INVALID),
)

# How a file begins that is in UTF-16.
_UTF_16 = (BOM_UTF16_LE, BOM_UTF16_BE)

# How much of a file is told that is no JSON.
_BEGINNING = 30


def place_of(url: str, *, is_redirected: bool) -> Facts:
    """Return at which host a file was asked for, and how a request came there."""
    via = (Link(How.REDIRECT, bounded(url, limits.FACT)),) if is_redirected else ()
    return Facts(host=bounded(host_in(url)), via=via)


def why_no_file(file: FileAnswer, error: Failure | None) -> Failure | None:
    """Tell what is wrong with a file, or with what is in place of it.

    Args:
        file: What was met.
        error: What its error means; None if it has none.

    Returns:
        The failure; None if the file is in order, or the server has none.
    """
    place = place_of(file.url, is_redirected=file.is_redirected)
    if isinstance(file.error, BodyExceededMaxSize):
        facts = attr.evolve(place, most_bytes=WELL_KNOWN_MAX_SIZE)
        return Failure(FailureKind.WELL_KNOWN_INVALID, Reason.BODY_TOO_LARGE, facts)
    for redirected_in_vain, reason in _REDIRECTS:
        if isinstance(file.error, redirected_in_vain):
            return _unreachable(reason, place)
    if error is not None:
        return _why_not_answered(file, error, place)
    status = file.status or 0
    if status == HTTPStatus.OK:
        return read_file(file.body, file.content_type, place)[1]
    if HTTPStatus.BAD_REQUEST <= status < HTTPStatus.INTERNAL_SERVER_ERROR:
        return None
    is_error = status >= HTTPStatus.INTERNAL_SERVER_ERROR
    reason = Reason.WEB_STATUS if is_error else Reason.NO_FILE_IN_IT
    return _unreachable(reason, attr.evolve(place, status=status))


def _unreachable(reason: Reason, facts: Facts) -> Failure:
    return Failure(FailureKind.WELL_KNOWN_UNREACHABLE, reason, facts)


def _why_not_answered(file: FileAnswer, error: Failure, place: Facts) -> Failure | None:
    kind = error.kind
    no_web_server = _NO_WEB_SERVER_BY_PROXY if file.is_proxied else _NO_WEB_SERVER
    if not file.is_redirected and kind in no_web_server:
        return None
    if kind is FailureKind.IP_BLOCKED:
        blocked = error.facts.host or place.host
        facts = attr.evolve(place, host=blocked)
        return _unreachable(Reason.LEADS_TO_BLOCKED, facts)
    is_certificate = kind in TLS_KINDS and kind is not FailureKind.TLS_FAILED
    reason = Reason.WEB_CERTIFICATE if is_certificate else Reason.WEB_NO_ANSWER
    if kind is FailureKind.DNS_FAILED:
        # Whose resolver or name servers they are that do not answer, nobody knows.
        reason = Reason.WEB_LOOKUP
    return _unreachable(reason, attr.evolve(place, cause=error))


def read_file(
    body: bytes, content_type: bytes, place: Facts
) -> tuple[str | None, Failure | None]:
    """Return what a file gives as `m.server`, and what is wrong with it.

    Args:
        body: The file.
        content_type: As the server says it.
        place: Where it is.
    """

    def invalid(reason: Reason, **facts: Any) -> Failure:
        found = attr.evolve(place, **facts)
        return Failure(FailureKind.WELL_KNOWN_INVALID, reason, found)

    content = json_object(body)
    if content is None:
        reason = _why_not_json(content_type, body)
        said = bounded(body[:_BEGINNING].decode("latin-1"), _BEGINNING).strip()
        is_told = reason is Reason.NOT_JSON
        return None, invalid(reason, said=said if is_told else "")
    m_server = content.get("m.server")
    if not isinstance(m_server, str):
        if "m.server" in content:
            told = word(json.dumps(m_server), _BEGINNING) or ""
            return None, invalid(Reason.M_SERVER_NOT_A_STRING, said=told)
        keys = [word(key, _BEGINNING) or "" for key in content]
        names = tuple(keys[: limits.NAMES_IN_A_SENTENCE])
        return None, invalid(Reason.M_SERVER_MISSING, names=names)
    if not m_server:
        return m_server, invalid(Reason.M_SERVER_EMPTY)
    try:
        ServerName.parse(m_server)
    except InvalidServerNameError as e:
        said, cause, meant = word(m_server) or "", invalid_name(e), _meant(m_server)
        why = invalid(Reason.M_SERVER_INVALID, said=said, cause=cause, target=meant)
        return m_server, why
    return m_server, None


def _why_not_json(content_type: bytes, body: bytes) -> Reason:
    """Tell what is in place of a file, or what is wrong with its encoding."""
    if not body:
        return Reason.BODY_EMPTY
    if body.startswith(BOM_UTF8):
        return Reason.BYTE_ORDER_MARK
    if body.startswith(_UTF_16):
        return Reason.UTF_16
    if b"html" in content_type.lower() or body.lstrip().startswith(b"<"):
        return Reason.WEB_PAGE
    return Reason.NOT_JSON


def _meant(m_server: str) -> str:
    """Return the server name that somebody meant by what is none; "" if none is seen.

    Who writes `https://` means its port.
    """
    scheme, is_url, rest = m_server.rpartition("://")
    netloc = rest.partition("/")[0].strip().strip(".")
    try:
        netloc = netloc.encode("idna").decode("ascii")
        name = ServerName.parse(netloc)
    except (InvalidServerNameError, UnicodeError):
        return ""
    port = 443 if is_url and scheme == "https" and name.port is None else None
    return word(f"{netloc}:{port}" if port else netloc, limits.FACT) or ""
