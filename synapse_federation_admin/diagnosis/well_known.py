# SPDX-License-Identifier: Apache-2.0
"""The stage `well_known`: to which name a server delegates, if to any.

https://spec.matrix.org/v1.11/server-server-api/#getwell-knownmatrixserver, and what
Synapse makes of it (`synapse/http/federation/well_known_resolver.py`).
"""

from collections.abc import Sequence
from contextlib import suppress
from http import HTTPStatus
from typing import TypeAlias
from urllib.parse import urljoin, urlsplit

import attr
from twisted.internet.defer import CancelledError
from twisted.web.http_headers import Headers

from synapse_federation_admin import limits
from synapse_federation_admin.diagnosis.answers import Answer, ask
from synapse_federation_admin.diagnosis.findings import StageOutcome
from synapse_federation_admin.diagnosis.resolution import (
    CachedWellKnown,
    WellKnownFindings,
    WellKnownRequest,
)
from synapse_federation_admin.diagnosis.stages import SkipReason, Stage, StageName
from synapse_federation_admin.diagnosis.way import TimeIsOver, Way
from synapse_federation_admin.failures.bounds import (
    bounded,
    word,
)
from synapse_federation_admin.failures.classify import failure_of
from synapse_federation_admin.failures.files import (
    place_of,
    read_file,
    too_large,
    unreachable,
    why_no_file,
    why_not_answered,
)
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
from synapse_federation_admin.homeserver.errors import ObstacleError
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


@attr.s(slots=True, frozen=True, auto_attribs=True)
class WellKnown:
    """What the file says.

    Attributes:
        stage: The stage.
        delegated_to: To which name requests go by it, as it is: perhaps no server name
            at all. None if the server does not delegate.
        used: To which name Synapse sends them now, by what it has cached.
        is_late: Whether it did not come in time: Synapse may wait longer.
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
        max_bytes=outbound.well_known_max_bytes,
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


async def fetch(
    way: Way, host: str, path: str = "/.well-known/matrix/server"
) -> Fetched:
    """Fetch the file, or another at a path, and follow redirects."""
    outbound = way.outbound
    url = f"https://{host}{path}"
    headers = Headers({"User-Agent": [outbound.user_agent]})
    ends_ms = way.now_ms + way.left_ms(_SHARE)
    requests: list[WellKnownRequest] = []
    while True:
        begun_ms = way.now_ms
        left_ms = max(1, int(ends_ms - begun_ms))
        answer, error = None, None
        try:
            answer = await way.within(
                left_ms + GRACE_MS,
                ask,
                outbound.web_agent(left_ms),
                url,
                headers,
                outbound.well_known_max_bytes,
            )
        except TimeIsOver:
            error = Failure(FailureKind.RESPONSE_TIMEOUT)
        except CancelledError:
            raise
        except Exception as e:
            error = failure_of(e)
            if error.is_ours:
                raise
        location = answer.header("Location") if answer else None
        body = answer.body if answer else None
        requests.append(
            WellKnownRequest(
                bounded(url, limits.TEXT),
                way.since(begun_ms),
                status=answer.status if answer else None,
                content_type=word(answer.header("Content-Type")) if answer else None,
                size_bytes=None if body is None else len(body),
                location=word(location, limits.TEXT),
                error=error,
            )
        )
        if answer is None or answer.status not in REDIRECTS:
            found, problem = _judge(
                requests,
                answer,
                is_proxied=outbound.goes_through_proxy(host),
                max_bytes=outbound.well_known_max_bytes,
            )
            if problem and problem.reason is Reason.LEADS_TO_BLOCKED:
                problem = await _blocked(way, problem)
            return tuple(requests), found, problem
        reason = Reason.REDIRECT_WITHOUT_TARGET
        if location is not None and len(requests) > limits.REDIRECTS:
            reason = Reason.TOO_MANY_REDIRECTS
        elif location is not None:
            try:
                url = urljoin(url, location.decode("ascii"))
                parts = urlsplit(url)
                if parts.scheme in ("http", "https") and parts.hostname:
                    continue
            except ValueError:
                # It is no URL.
                pass
            reason = Reason.REDIRECT_INVALID
        to = bounded((location or b"").decode("latin-1"), limits.FACT)
        via = (Link(How.REDIRECT, to),) if to else ()
        facts = Facts(host=bounded(host), via=via)
        return tuple(requests), None, unreachable(reason, facts)


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


def _judge(
    requests: Sequence[WellKnownRequest],
    answer: Answer | None,
    *,
    is_proxied: bool,
    max_bytes: int,
) -> tuple[Answer | None, Failure | None]:
    """Tell what it means that a request was the last one."""
    last, place = requests[-1], _place_of(requests)
    if answer is None:
        assert last.error is not None
        return None, why_not_answered(
            last.error, place, is_first=len(requests) == 1, is_proxied=is_proxied
        )
    if answer.is_too_large:
        return None, too_large(place, max_bytes)
    if answer.status == HTTPStatus.OK:
        return answer, None
    return None, why_no_file(answer.status, place)


def _place_of(requests: Sequence[WellKnownRequest]) -> Facts:
    """Return at which host the last request was, and how it came there."""
    return place_of(requests[-1].url, is_redirected=len(requests) > 1)


def conclude(
    fetched: Fetched,
    *,
    lifetime_ms: int | None,
    cached: tuple[str | None, int, bool] | None,
    max_bytes: int,
    now_ms: int,
) -> WellKnown:
    """Return the stage: what the file says, and what Synapse makes of it.

    Args:
        fetched: The file.
        lifetime_ms: How long Synapse would cache it.
        cached: What Synapse has cached: a name or None, until when, and whether that
            is used unasked.
        max_bytes: The size up to which Synapse reads the file.
        now_ms: The time, in ms since the epoch.
    """
    requests, answer, problem = fetched
    suggests, m_server = _suggests_delegation(fetched), None
    if answer is not None:
        content_type = answer.header("Content-Type") or b""
        place = _place_of(requests)
        m_server, problem = read_file(answer.body or b"", content_type, place)
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
        max_bytes,
        m_server=word(m_server),
        is_valid=None if m_server is None else problem is None,
        delegated_to=word(delegated_to),
        suggests_delegation=suggests or not (m_server is None and kept is None),
        lifetime_ms=lifetime_ms if fresh else None,
        cached=shown,
    )
    error = requests[-1].error
    is_late = error is not None and error.kind is FailureKind.RESPONSE_TIMEOUT
    return WellKnown(
        Stage(StageName.WELL_KNOWN, outcome, failure, findings),
        delegated_to,
        used,
        is_late and used is None and not is_unasked,
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
