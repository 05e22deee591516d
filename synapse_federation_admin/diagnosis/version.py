# SPDX-License-Identifier: Apache-2.0
"""The stage `version`: whether a homeserver answers, and which.

https://spec.matrix.org/v1.11/server-server-api/#get_matrixfederationv1version
"""

import json
from http import HTTPStatus

import attr

from synapse_federation_admin.diagnosis.findings import (
    ConnectionsFindings,
    SkipReason,
    Stage,
    StageName,
    StageOutcome,
    VersionFindings,
)
from synapse_federation_admin.diagnosis.http import Answer
from synapse_federation_admin.failures.bounds import word
from synapse_federation_admin.failures.classify import http_failure
from synapse_federation_admin.failures.kinds import Failure, FailureKind, Reason

VERSION_PATH = "/_matrix/federation/v1/version"


def read_version(answer: Answer, duration_ms: int, now_ms: int) -> VersionFindings:
    """Read an answer.

    Args:
        answer: The answer.
        duration_ms: How long it took.
        now_ms: When it came, in ms since the epoch.
    """
    findings = VersionFindings(
        duration_ms,
        status=answer.status,
        content_type=word(answer.header("Content-Type")),
        size_bytes=None if answer.body is None else len(answer.body),
        date_ts=answer.date_ts,
        received_ts=now_ms,
    )
    error = _error_of(answer)
    if error is not None:
        return attr.evolve(findings, error=error)

    def invalid(reason: Reason) -> VersionFindings:
        error = Failure(FailureKind.INVALID_RESPONSE, reason)
        return attr.evolve(findings, error=error)

    # Synapse, too, wants it in small letters.
    media_type = (answer.header("Content-Type") or b"").partition(b";")[0].strip()
    if media_type != b"application/json":
        return invalid(Reason.WRONG_CONTENT_TYPE)
    try:
        body = json.loads(answer.body or b"")
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        return invalid(Reason.NOT_JSON)
    server = body.get("server")
    says = server if isinstance(server, dict) else {}
    return attr.evolve(
        findings,
        server_name=word(says.get("name")),
        server_version=word(says.get("version")),
    )


def _error_of(answer: Answer) -> Failure | None:
    """Return the failure that a status, or a body that was not read, stands for."""
    if answer.error is not None:
        return Failure(FailureKind.INVALID_RESPONSE, Reason.BODY_TOO_LARGE)
    if HTTPStatus.OK <= answer.status < HTTPStatus.MULTIPLE_CHOICES:
        return None
    return http_failure(answer.status, answer.body or b"")


def check_version(connections: ConnectionsFindings) -> Stage:
    """Return the stage: what came of the request at each address."""
    answers = [c.version for c in connections.connections if c.version is not None]
    if not answers:
        return Stage.skip(StageName.VERSION, SkipReason.NO_CONNECTION)
    bad = [answer for answer in answers if answer.error is not None]
    answer = bad[0] if bad else answers[0]
    if answer.error is None:
        stage = Stage(StageName.VERSION, StageOutcome.OK, findings=answer)
    else:
        is_all = len(bad) == len(answers)
        outcome = StageOutcome.FAILED if is_all else StageOutcome.WARNING
        stage = Stage.failed(StageName.VERSION, answer.error, answer, outcome)
    return attr.evolve(stage, duration_ms=answer.duration_ms)
