# SPDX-License-Identifier: Apache-2.0
"""The stage `version`: whether a homeserver answers, and which.

https://spec.matrix.org/v1.11/server-server-api/#get_matrixfederationv1version
"""

import json
from http import HTTPStatus

import attr

from synapse_federation_admin.diagnosis.findings import (
    ConnectionsFindings,
    Stage,
    StageName,
    StageOutcome,
    VersionFindings,
)
from synapse_federation_admin.diagnosis.http import Answer
from synapse_federation_admin.diagnosis.limits import word
from synapse_federation_admin.failures.classify import describe, failure_of
from synapse_federation_admin.failures.kinds import Failure, FailureKind
from synapse_federation_admin.failures.text import summary_of
from synapse_federation_admin.homeserver.errors import HttpResponseException

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

    def invalid(detail: str) -> VersionFindings:
        error = describe(FailureKind.INVALID_RESPONSE, detail)
        return attr.evolve(findings, error=error)

    # Synapse, too, wants it in small letters.
    media_type = (answer.header("Content-Type") or b"").partition(b";")[0].strip()
    if media_type != b"application/json":
        return invalid("the Content-Type of the answer is not application/json")
    try:
        body = json.loads(answer.body or b"")
    except (ValueError, RecursionError):
        return invalid("the answer is no JSON")
    if not isinstance(body, dict):
        return invalid("the answer is JSON, but no object")
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
        return describe(FailureKind.INVALID_RESPONSE, "the answer is too large")
    if HTTPStatus.OK <= answer.status < HTTPStatus.MULTIPLE_CHOICES:
        return None
    return failure_of(HttpResponseException(answer.status, "", answer.body or b""))


def check_version(connections: ConnectionsFindings) -> Stage:
    """Return the stage: what came of the request at each address."""
    asked = [
        (connection, connection.version)
        for connection in connections.connections
        if connection.version is not None
    ]
    if not asked:
        return Stage(
            StageName.VERSION,
            StageOutcome.SKIPPED,
            "There is no connection to ask over",
        )
    good = [answer for _, answer in asked if answer.error is None]
    bad = [
        (connection, answer, answer.error)
        for connection, answer in asked
        if answer.error is not None
    ]
    if not bad:
        answer = good[0]
        software = " ".join(filter(None, (answer.server_name, answer.server_version)))
        message = f"It runs {software or 'software without a name'}"
        stage = Stage(StageName.VERSION, StageOutcome.OK, message, findings=answer)
        return attr.evolve(stage, duration_ms=answer.duration_ms)
    connection, answer, failure = bad[0]
    if not good:
        stage = Stage.of(StageName.VERSION, failure, answer)
        return attr.evolve(stage, duration_ms=answer.duration_ms)
    return attr.evolve(
        Stage.of(StageName.VERSION, failure, answer, StageOutcome.WARNING),
        message=f"{len(bad)} of {len(asked)} addresses do not answer well: "
        f"{connection.place}: {summary_of(failure)}",
        duration_ms=answer.duration_ms,
    )
