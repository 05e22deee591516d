# SPDX-License-Identifier: Apache-2.0
"""Answers to requests, and the stages `version` and `clock`, which they tell of.

https://spec.matrix.org/v1.11/server-server-api/#get_matrixfederationv1version
"""

from datetime import timezone
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import NamedTuple

import attr
from synapse.module_api import make_deferred_yieldable
from twisted.internet.defer import CancelledError
from twisted.internet.protocol import Protocol
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent

from synapse_federation_admin import limits
from synapse_federation_admin.diagnosis.findings import (
    ClockFindings,
    ConnectionsFindings,
    KeysFindings,
    StageOutcome,
    VersionFindings,
)
from synapse_federation_admin.diagnosis.stages import (
    SkipReason,
    Stage,
    StageName,
    Stages,
)
from synapse_federation_admin.failures.bounds import json_object, word
from synapse_federation_admin.failures.kinds import Facts, Failure, FailureKind, Reason
from synapse_federation_admin.failures.responses import (
    REDIRECTS,
    http_failure,
    page_reason,
)
from synapse_federation_admin.homeserver.errors import (
    BodyExceededMaxSize,
    RequestSendFailed,
)
from synapse_federation_admin.homeserver.outbound import read_body

VERSION_PATH = "/_matrix/federation/v1/version"

# `Date` is to the second, and the answer took its time.
_UNSURE_MS = 2000

# From here on it is told as a warning: certificates and keys that have just been made
# are not valid yet, and the times of events are visibly wrong.
_MAX_DIFFERENCE_MS = 60_000


class Answer(NamedTuple):
    """An answer to a request.

    Attributes:
        status: The HTTP status.
        headers: Its headers.
        body: The body; None if it is too large, or that of a redirect.
        is_too_large: Whether it is.
    """

    status: int
    headers: Headers
    body: bytes | None = None
    is_too_large: bool = False

    def header(self, name: str) -> bytes | None:
        """Return the value of a header: the first one, where it is repeated."""
        values = self.headers.getRawHeaders(name.encode())
        return values[0] if values else None


class HangUp(Protocol):
    """Wants nothing of a body."""

    def connectionMade(self) -> None:
        """Close the connection."""
        assert self.transport is not None
        self.transport.loseConnection()


async def ask(agent: IAgent, url: str, headers: Headers, max_bytes: int) -> Answer:
    """Make a GET request.

    Args:
        agent: Makes the request.
        url: Of what.
        headers: The headers of the request.
        max_bytes: The size up to which the body is read.

    Raises:
        CancelledError: It was called off.
        RequestSendFailed: There was no answer; `inner_exception` says why.
    """
    try:
        response = await make_deferred_yieldable(
            agent.request(b"GET", url.encode("ascii"), headers)
        )
        answer = Answer(response.code, response.headers)
        if response.code in REDIRECTS:
            response.deliverBody(HangUp())
            return answer
        body = await read_body(response, max_bytes)
    except CancelledError:
        raise
    except BodyExceededMaxSize:
        return answer._replace(is_too_large=True)
    except Exception as e:
        # As Synapse's client does it: what the network raises is so told from a bug.
        raise RequestSendFailed(e, can_retry=False) from e
    return answer._replace(body=body)


def date_of(headers: Headers) -> int | None:
    """Return the time by a server's clock, in ms since the epoch, if it tells."""
    dates = headers.getRawHeaders(b"Date")
    if headers.hasHeader(b"Age") or not dates:
        # That of a cache is of an answer that was made earlier.
        return None
    try:
        parsed = parsedate_to_datetime(dates[0].decode("ascii"))
        if parsed.tzinfo is None:
            parsed = parsed.replace(tzinfo=timezone.utc)
        return int(parsed.timestamp() * 1000)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def read_version(answer: Answer, duration_ms: int, now_ms: int) -> VersionFindings:
    """Read what a homeserver says of itself.

    Args:
        answer: The answer.
        duration_ms: How long it took.
        now_ms: When it came, in ms since the epoch.
    """
    content_type = answer.header("Content-Type") or b""
    body = json_object(answer.body or b"")
    server = body.get("server") if body else None
    says = server if isinstance(server, dict) else {}
    error = None
    if not HTTPStatus.OK <= answer.status < HTTPStatus.MULTIPLE_CHOICES:
        error = http_failure(
            answer.status,
            answer.body or b"",
            server=answer.header("Server"),
            to=answer.header("Location"),
        )
    elif answer.is_too_large:
        facts = Facts(most_bytes=limits.VERSION_BYTES)
        error = Failure(FailureKind.INVALID_RESPONSE, Reason.BODY_TOO_LARGE, facts)
    # Synapse, too, wants it in small letters.
    elif content_type.partition(b";")[0].strip() != b"application/json":
        reason = page_reason(answer.body or b"")
        facts = Facts(server=word(answer.header("Server")) or "")
        error = Failure(FailureKind.INVALID_RESPONSE, reason, facts)
    elif body is None:
        error = Failure(FailureKind.INVALID_RESPONSE, Reason.NOT_JSON)
    return VersionFindings(
        duration_ms,
        status=answer.status,
        content_type=word(answer.header("Content-Type")),
        size_bytes=None if answer.body is None else len(answer.body),
        server_name=None if error else word(says.get("name")),
        server_version=None if error else word(says.get("version")),
        date_ts=date_of(answer.headers),
        received_ts=now_ms,
        error=error,
    )


def check_version(connections: ConnectionsFindings) -> Stage:
    """Return the stage: what came of the request at each address."""
    answers = [c.version for c in connections.connections if c.version is not None]
    if not answers:
        return Stage.skip(StageName.VERSION, SkipReason.NO_CONNECTION)
    answer = next((a for a in answers if a.error is not None), answers[0])
    slowest = max(answers, key=lambda a: a.duration_ms)
    stage = Stage.of_all(StageName.VERSION, [a.error for a in answers], answer)
    if stage.outcome is StageOutcome.OK and slowest.duration_ms >= limits.SLOW_MS:
        slow = Failure(
            FailureKind.OTHER, Reason.SLOW, Facts(took_ms=slowest.duration_ms)
        )
        stage = Stage.failed(stage.name, slow, slowest, StageOutcome.WARNING)
    return attr.evolve(stage, duration_ms=answer.duration_ms)


def check_clock(stages: Stages) -> Stage:
    """Compare clocks by the first answer of the homeserver that tells the time."""
    for found in (stages.seen(VersionFindings), stages.seen(KeysFindings)):
        if found and found.date_ts is not None and found.received_ts is not None:
            break
    else:
        return Stage.skip(StageName.CLOCK, SkipReason.NO_DATE)
    ahead_ms = found.date_ts - found.received_ts
    if -_UNSURE_MS < ahead_ms < _UNSURE_MS:
        ahead_ms = 0
    findings = ClockFindings(found.date_ts, found.received_ts, ahead_ms)
    if abs(ahead_ms) < _MAX_DIFFERENCE_MS:
        return Stage(StageName.CLOCK, StageOutcome.OK, findings=findings)
    failure = Failure(FailureKind.OTHER, Reason.CLOCK, Facts(ahead_ms=ahead_ms))
    return Stage.failed(StageName.CLOCK, failure, findings, StageOutcome.WARNING)
