# SPDX-License-Identifier: Apache-2.0
"""The stage `well_known`: to which name a server delegates, if to any.

https://spec.matrix.org/v1.11/server-server-api/#getwell-knownmatrixserver, and what
Synapse makes of it (`synapse/http/federation/well_known_resolver.py`).
"""

import json
from http import HTTPStatus
from urllib.parse import urljoin

import attr
from twisted.web.http_headers import Headers

from synapse_federation_admin.diagnosis.http import REDIRECTS, Answer, ask
from synapse_federation_admin.diagnosis.limits import (
    MAX_TEXT,
    Deadline,
    TimeIsOver,
    word,
)
from synapse_federation_admin.diagnosis.server_name import ServerName
from synapse_federation_admin.failure import bounded, describe, failure_of
from synapse_federation_admin.homeserver import Outbound
from synapse_federation_admin.models import (
    CachedWellKnown,
    Failure,
    FailureKind,
    Stage,
    StageName,
    StageOutcome,
    WellKnownFindings,
    WellKnownRequest,
)

# As many as Synapse follows.
_MAX_REDIRECTS = 20

# A longer name leads nowhere.
_MAX_DELEGATED = 300

_SEVERITY = (StageOutcome.OK, StageOutcome.WARNING, StageOutcome.FAILED)

# The share of the time of a diagnosis.
_SHARE = 0.35

# They say of a host that it has no web server. That is no delegation, as an answer of
# 404 is, and Synapse finds it out as soon.
_NO_WEB_SERVER = (FailureKind.CONNECTION_REFUSED, FailureKind.DNS_NOT_FOUND)

# So do these, of what a proxy makes of it that can't connect.
_NO_WEB_SERVER_BY_PROXY = (
    *_NO_WEB_SERVER,
    FailureKind.UNREACHABLE,
    FailureKind.INVALID_RESPONSE,
)


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Fetched:
    """What came of fetching the file.

    Attributes:
        requests: The requests.
        answer: The last answer, if it is one of 200 that has been read.
        is_absent: Whether there is no such file.
        problem: What is wrong; None if nothing is.
    """

    requests: tuple[WellKnownRequest, ...]
    answer: Answer | None = None
    is_absent: bool = False
    problem: Failure | None = None


@attr.s(slots=True, frozen=True, auto_attribs=True)
class WellKnown:
    """What the file says.

    Attributes:
        stage: The stage.
        delegated_to: Where Synapse sends requests, as it is: perhaps no server name at
            all. None if the server does not delegate.
    """

    stage: Stage
    delegated_to: str | None = None


async def check_well_known(
    outbound: Outbound, name: ServerName, deadline: Deadline
) -> WellKnown:
    """Fetch the well-known file of a server, as Synapse does it."""
    if name.is_literal or name.port is not None:
        what = "is an IP address" if name.is_literal else "has a port"
        return WellKnown(
            Stage(
                StageName.WELL_KNOWN,
                StageOutcome.SKIPPED,
                f"The name {what}: such a server cannot delegate, so it is not asked",
            )
        )
    begun_ms = deadline.now_ms
    fetched = await _fetch(outbound, name.host, deadline)
    lifetime_ms = (
        outbound.well_known_lifetime_ms(fetched.answer.headers)
        if fetched.answer
        else None
    )
    found = conclude(
        fetched,
        lifetime_ms=lifetime_ms,
        cached=outbound.cached_well_known(name.host),
        max_bytes=outbound.well_known_max_bytes,
    )
    stage = attr.evolve(found.stage, duration_ms=deadline.since(begun_ms))
    return attr.evolve(found, stage=stage)


async def _fetch(outbound: Outbound, host: str, deadline: Deadline) -> Fetched:
    """Fetch the file, and follow redirects."""
    url = f"https://{host}/.well-known/matrix/server"
    headers = Headers({"User-Agent": [outbound.user_agent]})
    ends_ms = deadline.now_ms + deadline.left_ms(_SHARE)
    requests: list[WellKnownRequest] = []
    while True:
        begun_ms = deadline.now_ms
        answer: Answer | None = None
        error: Failure | None = None
        try:
            answer = await deadline.within(
                max(1, int(ends_ms - begun_ms)), _ask, outbound, url, headers
            )
        except TimeIsOver:
            error = describe(FailureKind.RESPONSE_TIMEOUT)
        except Exception as e:
            # Whatever it is, it is between us and the remote server.
            error = failure_of(e, outbound.has_addresses)
        location = answer.header("Location") if answer else None
        requests.append(_shown(url, deadline.since(begun_ms), answer, location, error))
        if answer is None or answer.status not in REDIRECTS:
            is_proxied = outbound.goes_through_proxy(host)
            return _judge(tuple(requests), answer, is_proxied=is_proxied)
        if location is None or len(requests) > _MAX_REDIRECTS:
            what = (
                "a redirect that leads nowhere"
                if location is None
                else f"more than {_MAX_REDIRECTS} redirects"
            )
            problem = describe(FailureKind.WELL_KNOWN_UNREACHABLE, what)
            return Fetched(tuple(requests), problem=problem)
        try:
            url = urljoin(url, location.decode("ascii"))
        except ValueError:
            problem = describe(
                FailureKind.WELL_KNOWN_UNREACHABLE, "a redirect to what is no URL"
            )
            return Fetched(tuple(requests), problem=problem)


async def _ask(outbound: Outbound, url: str, headers: Headers) -> Answer:
    return await ask(
        outbound,
        outbound.web_agent,
        url,
        headers,
        max_bytes=outbound.well_known_max_bytes,
    )


def _shown(
    url: str,
    duration_ms: int,
    answer: Answer | None,
    location: bytes | None,
    error: Failure | None,
) -> WellKnownRequest:
    shown = WellKnownRequest(bounded(url, MAX_TEXT), duration_ms, error=error)
    if answer is None:
        return shown
    return attr.evolve(
        shown,
        status=answer.status,
        content_type=word(answer.header("Content-Type")),
        size_bytes=None if answer.body is None else len(answer.body),
        location=word(location, MAX_TEXT),
    )


def _judge(
    requests: tuple[WellKnownRequest, ...], answer: Answer | None, *, is_proxied: bool
) -> Fetched:
    """Tell what it means that a request was the last one."""
    no_web_server = _NO_WEB_SERVER_BY_PROXY if is_proxied else _NO_WEB_SERVER
    last = requests[-1]
    if answer is None:
        assert last.error is not None
        if len(requests) == 1 and last.error.kind in no_web_server:
            return Fetched(requests, is_absent=True)
        why = last.error.message.partition(":")[0].partition(" (")[0]
        problem = describe(
            FailureKind.WELL_KNOWN_UNREACHABLE, why[:1].lower() + why[1:]
        )
        return Fetched(requests, problem=problem)
    if answer.error is not None:
        problem = describe(FailureKind.WELL_KNOWN_INVALID, "it is too large")
        return Fetched(requests, problem=problem)
    if answer.status == HTTPStatus.OK:
        return Fetched(requests, answer)
    if HTTPStatus.BAD_REQUEST <= answer.status < HTTPStatus.INTERNAL_SERVER_ERROR:
        return Fetched(requests, is_absent=True)
    problem = describe(FailureKind.WELL_KNOWN_UNREACHABLE, f"HTTP {answer.status}")
    return Fetched(requests, problem=problem)


def conclude(
    fetched: Fetched,
    *,
    lifetime_ms: int | None,
    cached: tuple[str | None, int] | None,
    max_bytes: int,
) -> WellKnown:
    """Return the stage: what the file says, and what Synapse makes of it.

    Args:
        fetched: The file.
        lifetime_ms: How long Synapse would cache it.
        cached: What Synapse has cached: a name or None, and until when.
        max_bytes: The size up to which Synapse reads the file.
    """
    findings = WellKnownFindings(fetched.requests, max_bytes)
    problem, outcome = fetched.problem, StageOutcome.OK
    delegated_to: str | None = None
    message = "There is no such file: the server does not delegate"
    if fetched.answer is not None:
        m_server, problem = _read(fetched.answer.body or b"")
        # Synapse uses whatever is ASCII, and what that leads to is seen later.
        if m_server and m_server.isascii():
            delegated_to = m_server[:_MAX_DELEGATED]
            outcome = StageOutcome.FAILED if problem else outcome
        message = f"It delegates to {word(m_server)}"
        findings = attr.evolve(
            findings,
            m_server=word(m_server),
            is_valid=problem is None if m_server is not None else None,
            lifetime_ms=lifetime_ms if delegated_to else None,
        )
    kind = problem.kind if problem else None
    if problem is not None:
        message = problem.message
        outcome = outcome if delegated_to else StageOutcome.WARNING
    if cached is not None:
        m_server, expires_ts = cached
        differs = m_server != delegated_to
        findings = attr.evolve(
            findings, cached=CachedWellKnown(word(m_server), expires_ts, differs)
        )
        if differs and m_server and problem and not delegated_to:
            # What fails for a while does not end what was cached.
            delegated_to = m_server
            message += f". Synapse still uses what it has cached: {word(m_server)}"
        elif differs:
            outcome = max(outcome, StageOutcome.WARNING, key=_SEVERITY.index)
            kind = kind or FailureKind.OTHER
            message += (
                ". This process of Synapse still uses another answer, which it has "
                f"cached: {word(m_server) or 'that there is no such file'}"
            )
    findings = attr.evolve(findings, delegated_to=word(delegated_to))
    stage = Stage(StageName.WELL_KNOWN, outcome, message, kind, findings=findings)
    return WellKnown(stage, delegated_to)


def _read(body: bytes) -> tuple[str | None, Failure | None]:
    """Return what a file gives as `m.server`, and what is wrong with it."""

    def invalid(detail: str) -> Failure:
        return describe(FailureKind.WELL_KNOWN_INVALID, detail)

    try:
        content = json.loads(body.decode("utf-8"), parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None, invalid("it is no JSON")
    if not isinstance(content, dict):
        return None, invalid("it is no JSON object")
    m_server = content.get("m.server")
    if not isinstance(m_server, str):
        what = "is no string" if "m.server" in content else "is missing"
        return None, invalid(f"m.server {what}")
    try:
        ServerName.parse(m_server)
    except ValueError as e:
        return m_server, invalid(
            f"m.server is {word(m_server)!r}, which is no server name: {e}"
        )
    return m_server, None


def _refuse(constant: str) -> None:
    """Refuse NaN and the like, as Synapse does."""
    raise ValueError(constant)
