# SPDX-License-Identifier: Apache-2.0
"""The stage `well_known`: to which name a server delegates, if to any.

https://spec.matrix.org/v1.11/server-server-api/#getwell-knownmatrixserver, and what
Synapse makes of it (`synapse/http/federation/well_known_resolver.py`).
"""

from collections.abc import Sequence
from contextlib import suppress
from http import HTTPStatus
from typing import Any, NamedTuple, TypeAlias

import attr
from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure as TwistedFailure
from twisted.web.client import RedirectAgent
from twisted.web.error import SchemeNotSupported
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IResponse
from zope.interface import implementer

from synapse_federation_admin import limits
from synapse_federation_admin.diagnosis.answers import Answer, HangUp, ask
from synapse_federation_admin.diagnosis.findings import StageOutcome
from synapse_federation_admin.diagnosis.resolution import (
    CachedWellKnown,
    WellKnownFindings,
    WellKnownRequest,
)
from synapse_federation_admin.diagnosis.stages import SkipReason, Stage, StageName
from synapse_federation_admin.diagnosis.way import TimeIsOver, Way
from synapse_federation_admin.failures.bounds import bounded, word
from synapse_federation_admin.failures.classify import failure_of
from synapse_federation_admin.failures.files import place_of, read_file, why_no_file
from synapse_federation_admin.failures.kinds import (
    TLS_KINDS,
    Facts,
    Failure,
    FailureKind,
    How,
    Link,
    Reason,
)
from synapse_federation_admin.failures.responses import REDIRECTS
from synapse_federation_admin.homeserver.errors import (
    WELL_KNOWN_MAX_SIZE,
    BodyExceededMaxSize,
    FileAnswer,
    ObstacleError,
    host_in,
    innermost,
)
from synapse_federation_admin.homeserver.network import GRACE_MS
from synapse_federation_admin.homeserver.server_name import (
    InvalidServerNameError,
    ServerName,
    is_internal,
)

# The share of the time of a diagnosis; and to look up again what is blocked.
_SHARE = 0.5
_SHARE_AGAIN = 0.1

# What came of fetching the file: the requests; the answer, if it can be read; and what
# is wrong. If there is neither, there is no such file.
Fetched: TypeAlias = tuple[tuple[WellKnownRequest, ...], Answer | None, Failure | None]


class WellKnown(NamedTuple):
    """What the file says.

    Attributes:
        stage: The stage.
        delegated_to: To which name requests go by it, as it is: perhaps no server name
            at all. None if the server does not delegate.
        used: To which name Synapse sends them now, by what it has cached.
        is_late: Whether it did not come in time: Synapse may wait longer; or is what
            Synapse stops at.
    """

    stage: Stage
    delegated_to: str | None = None
    used: str | None = None
    is_late: bool = False


async def check_well_known(way: Way, name: ServerName) -> WellKnown:
    """Fetch the well-known file of a server, as Synapse does it."""
    if name.is_literal or name.port is not None:
        is_literal = name.is_literal
        why = SkipReason.NAME_IS_ADDRESS if is_literal else SkipReason.NAME_HAS_PORT
        return WellKnown(Stage.skip(StageName.WELL_KNOWN, why))
    fetched = await fetch(way, name.host)
    outbound, answer = way.outbound, fetched[1]
    return conclude(
        fetched,
        lifetime_ms=outbound.well_known_lifetime_ms(answer.headers) if answer else None,
        cached=outbound.cached_well_known(name.host),
        now_ms=way.homeserver.now_ms(),
    )


async def with_second_file(way: Way, name: ServerName, stage: Stage) -> Stage:
    """Tell of a place that is not reached whether its name delegates on.

    Args:
        way: The way out.
        name: The name to which the server delegates.
        stage: What came of going there.
    """
    if name.is_literal or name.port is not None or stage.failure is None:
        return stage
    second = (await check_well_known(way, name)).delegated_to
    try:
        to = ServerName.parse(second or "")
    except InvalidServerNameError:
        return stage
    if to.netloc == name.netloc:
        # It says of itself where it is.
        return stage
    link = Link(How.SECOND_FILE, bounded(to.host), to.port or 8448)
    failure = stage.failure.but(via=(*stage.failure.facts.via[:1], link))
    return attr.evolve(stage, failure=failure)


@implementer(IAgent)
class _Recorder:
    """Makes requests, and keeps what comes of each: also of those that redirect."""

    def __init__(self, way: Way, agent: IAgent) -> None:
        self._way = way
        self._agent = agent
        self.requests: list[WellKnownRequest] = []

    def request(self, method: bytes, uri: bytes, *args: Any) -> "Deferred[IResponse]":
        """Make a request: see `twisted.web.iweb.IAgent`."""
        begun_ms, number = self._way.now_ms, len(self.requests)
        asked = self._agent.request(method, uri, *args)
        request = WellKnownRequest(bounded(uri.decode("latin-1"), limits.TEXT), 0)
        self.requests.append(request)

        def ended(answer: Any) -> Any:
            found = request._replace(duration_ms=self._way.since(begun_ms))
            if not isinstance(answer, TwistedFailure):
                said = Answer(answer.code, answer.headers)
                found = found._replace(
                    status=said.status,
                    content_type=word(said.header("Content-Type")),
                    location=word(said.header("Location"), limits.TEXT),
                )
                if said.status in REDIRECTS:
                    answer.deliverBody(HangUp())
            self.requests[number] = found
            return answer

        return asked.addBoth(ended)


async def fetch(
    way: Way, host: str, path: str = "/.well-known/matrix/server"
) -> Fetched:
    """Fetch the file, or another at a path, and follow redirects as Synapse does."""
    outbound, left_ms = way.outbound, way.left_ms(_SHARE)
    recorder = _Recorder(way, outbound.web_agent(left_ms))
    headers = Headers({"User-Agent": [outbound.user_agent]})
    answer, met, error = None, None, None
    try:
        answer = await way.within(
            left_ms + GRACE_MS,
            ask,
            RedirectAgent(recorder),
            f"https://{host}{path}",
            headers,
            WELL_KNOWN_MAX_SIZE,
        )
    except TimeIsOver:
        error = Failure(FailureKind.RESPONSE_TIMEOUT)
    except CancelledError:
        raise
    except Exception as e:
        met, error = innermost(e), failure_of(e)
        if error.is_ours:
            raise
    *before, last = recorder.requests
    if last.status in REDIRECTS and isinstance(met, ValueError):
        # It leads to what is no URL: Twisted says so of a scheme alone.
        met = SchemeNotSupported()
    # Where a redirect leads that nobody follows.
    to = last.location if last.status in REDIRECTS else None
    file = FileAnswer(
        to or last.url,
        is_redirected=bool(before or to),
        is_proxied=outbound.goes_through_proxy(host_in(last.url)),
        status=last.status,
        error=BodyExceededMaxSize() if answer and answer.is_too_large else met,
    )
    is_file = last.status == HTTPStatus.OK and file.error is None and error is None
    problem = None if is_file else why_no_file(file, error)
    if problem and problem.reason is Reason.LEADS_TO_BLOCKED:
        problem = await _blocked(way, problem)
    body = answer.body if answer else None
    size_bytes = None if body is None else len(body)
    if problem and problem.reason is Reason.REDIRECT_INVALID:
        error = problem
    error = None if last.status in REDIRECTS else error
    last = last._replace(size_bytes=size_bytes, error=error)
    return (*before, last), answer if is_file else None, problem


async def _blocked(way: Way, problem: Failure) -> Failure:
    """Tell whether the address of a web server that is blocked is anybody's at all."""
    host = problem.facts.host
    with suppress(ObstacleError):
        addresses = await way.outbound.look_up(
            host, 443, way.left_ms(_SHARE_AGAIN), as_server_name=False
        )
        if all(map(is_internal, filter(addresses.get, addresses))):
            return problem.but(Reason.LEADS_TO_INTERNAL)
    return problem


def _place_of(requests: Sequence[WellKnownRequest]) -> Facts:
    """Return at which host the last request was, and how it came there."""
    return place_of(requests[-1].url, is_redirected=len(requests) > 1)


def conclude(
    fetched: Fetched,
    *,
    lifetime_ms: int | None,
    cached: tuple[str | None, int, bool] | None,
    now_ms: int,
) -> WellKnown:
    """Return the stage: what the file says, and what Synapse makes of it.

    Args:
        fetched: The file.
        lifetime_ms: How long Synapse would cache it; None: it cannot tell, and stops.
        cached: What Synapse has cached: a name or None, until when, and whether that
            is used unasked.
        now_ms: The time, in ms since the epoch.
    """
    requests, answer, problem = fetched
    suggests, m_server = _suggests_delegation(fetched), None
    if answer is not None:
        content_type = answer.header("Content-Type") or b""
        place = _place_of(requests)
        m_server, problem = read_file(answer.body or b"", content_type, place)
        if problem is None and lifetime_ms is None:
            problem = Failure(
                FailureKind.WELL_KNOWN_INVALID, Reason.EXPIRES_EMPTY, place
            )
    # Synapse uses whatever is ASCII, and what that leads to is seen later.
    fresh = (
        m_server[: limits.DELEGATED_NAME] if m_server and m_server.isascii() else None
    )
    failure, outcome = problem, StageOutcome.OK
    if problem is not None:
        outcome = StageOutcome.FAILED if fresh else StageOutcome.WARNING
    delegated_to = used = fresh
    kept, shown = None, None
    is_unasked = False
    if cached is not None:
        kept, expires_ts, is_unasked = cached
        differs = kept != fresh
        shown = CachedWellKnown(word(kept), expires_ts, is_unasked, differs)
        if problem and not fresh and kept:
            # What fails for a while does not end what was cached.
            delegated_to = used = kept
            failure = problem.but(left_ms=expires_ts - now_ms, until_ts=expires_ts)
        elif is_unasked:
            used = kept
            if differs and failure is None:
                failure = _outdated(kept, expires_ts, now_ms)
                outcome = StageOutcome.WARNING
    findings = WellKnownFindings(
        requests,
        WELL_KNOWN_MAX_SIZE,
        m_server=word(m_server),
        is_valid=None if m_server is None else problem is None,
        delegated_to=word(delegated_to),
        suggests_delegation=suggests or not (m_server is None and kept is None),
        lifetime_ms=lifetime_ms if fresh else None,
        cached=shown,
    )
    error = requests[-1].error
    is_late = error is not None and error.kind is FailureKind.RESPONSE_TIMEOUT
    stops = problem is not None and problem.reason is Reason.EXPIRES_EMPTY
    return WellKnown(
        Stage(StageName.WELL_KNOWN, outcome, failure, findings),
        delegated_to,
        used,
        (stops or (is_late and used is None)) and not is_unasked,
    )


def _outdated(m_server: str | None, expires_ts: int, now_ms: int) -> Failure:
    """Return that Synapse goes by an older answer, which it has cached."""
    reason = Reason.CACHED_DELEGATION if m_server else Reason.CACHED_ABSENCE
    facts = Facts(
        said=word(m_server) or "", left_ms=expires_ts - now_ms, until_ts=expires_ts
    )
    return Failure(FailureKind.OTHER, reason, facts)


def _suggests_delegation(fetched: Fetched) -> bool:
    """Tell whether what is at the file's place looks as if it was meant to be one."""
    requests, answer, problem = fetched
    last = requests[-1]
    if answer is None and problem is None:
        return False
    if last.error is not None:
        # A web site whose certificate is bad, or for other names, may be anything.
        return len(requests) > 1 or last.error.kind not in TLS_KINDS
    return not (last.content_type or "").lower().startswith("text/html") or (
        last.status is not None and last.status >= HTTPStatus.INTERNAL_SERVER_ERROR
    )
