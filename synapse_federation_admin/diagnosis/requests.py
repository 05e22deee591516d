# SPDX-License-Identifier: Apache-2.0
"""The stages `keys` and `authenticated`: requests through Synapse's own client.

They tell what Synapse itself would meet, with its cached SRV records, and where another
process goes out in this one's stead.
"""

import logging
from http import HTTPStatus

import attr
from synapse.module_api import JsonDict

from synapse_federation_admin.diagnosis.findings import (
    AuthenticatedFindings,
    KeysFindings,
    Stage,
    StageName,
    StageOutcome,
)
from synapse_federation_admin.diagnosis.http import parse_date_ts
from synapse_federation_admin.diagnosis.keys import KEYS_PATH, read_keys
from synapse_federation_admin.diagnosis.way import Way
from synapse_federation_admin.failures.classify import failure_of
from synapse_federation_admin.failures.kinds import Failure, FailureKind, Reason
from synapse_federation_admin.homeserver.outbound import Get

QUERY_PATH = "/_matrix/federation/v1/query/directory"

# An alias that nobody has: the request changes nothing anywhere.
_ALIAS = "#synapse-federation-admin-diagnosis"

# What is wrong with an answer that came, and cannot be read.
_UNREADABLE = (Reason.NOT_JSON, Reason.WRONG_CONTENT_TYPE, Reason.BODY_TOO_LARGE)

# What a Matrix error tells of us, and not only of the request.
_TELLING = (FailureKind.REJECTED, FailureKind.RATE_LIMITED)

logger = logging.getLogger(__name__)


async def check_keys(way: Way, get: Get, name: str) -> Stage:
    """Ask a server for its keys, and judge them."""
    found = await _ask(way, get, name, KEYS_PATH)
    if isinstance(found, Failure):
        findings = KeysFindings(status=found.facts.status, error=found)
        return Stage.failed(StageName.KEYS, no_keys(found), findings)
    body, headers = found
    dates = headers.get(b"Date") or headers.get(b"date") or [b""]
    outcome, problem, findings = read_keys(
        name,
        body,
        await _stored_keys(way, name),
        now_ms=way.homeserver.now_ms(),
        date_ts=None if b"Age" in headers else parse_date_ts(dates[0]),
    )
    return Stage(StageName.KEYS, outcome, problem, findings)


async def _stored_keys(way: Way, name: str) -> dict[str, str] | None:
    """Return the keys that Synapse has stored; None if they cannot be read."""
    # Work on the database is not called off: it would be waited for.
    reading = way.homeserver.begin(
        "federation_admin_diagnosis", lambda: way.outbound.stored_keys(name)
    )
    try:
        return await reading.wait(way.left_ms())
    except Exception as e:
        # The keys can be judged all the same.
        logger.warning("Could not read stored keys for a diagnosis: %s", e)
        return None


async def check_authenticated(way: Way, get: Get, name: str) -> Stage:
    """Make a request that we sign, so that the server has to verify our key."""
    query = {"room_alias": f"{_ALIAS}:{name}"}
    found = await _ask(way, get, name, QUERY_PATH, query)
    return conclude(found if isinstance(found, Failure) else None)


async def _ask(
    way: Way,
    get: Get,
    name: str,
    path: str,
    args: dict[str, str] | None = None,
) -> tuple[JsonDict, dict[bytes, list[bytes]]] | Failure:
    """Make a request; return the answer, or why there was none."""
    try:
        # Synapse's client ends it by itself; but for the body of the answer it has as
        # much time again.
        return await way.within(way.left_ms(), get, name, path, args)
    except Exception as e:
        return failure_of(e, way.outbound.has_addresses)


def no_keys(error: Failure) -> Failure:
    """Tell what it means that a request for keys has failed."""
    kind, reason, facts = error.kind, error.reason, error.facts
    if facts.status is not None and kind is not FailureKind.RATE_LIMITED:
        return Failure(FailureKind.KEYS_MISSING, facts=facts)
    if kind is not FailureKind.INVALID_RESPONSE:
        return error
    if reason in _UNREADABLE:
        return Failure(FailureKind.KEYS_INVALID, reason, facts)
    return Failure(FailureKind.KEYS_MISSING, Reason.CLOSED, facts)


def conclude(failure: Failure | None) -> Stage:
    """Return the stage: what the answer to a signed request means.

    Args:
        failure: What is wrong; None if the answer was one of 200.
    """
    name = StageName.AUTHENTICATED
    if failure is None:
        findings = AuthenticatedFindings(QUERY_PATH, HTTPStatus.OK.value)
        return Stage(name, StageOutcome.OK, findings=findings)
    status, errcode = failure.facts.status, failure.facts.errcode
    findings = AuthenticatedFindings(QUERY_PATH, status, errcode or None)
    if status == HTTPStatus.NOT_FOUND and errcode == "M_NOT_FOUND":
        return Stage(name, StageOutcome.OK, findings=findings)
    if not errcode or status is None or status >= 500 or failure.kind in _TELLING:
        return Stage.failed(name, failure, findings)
    unknown = attr.evolve(failure, reason=Reason.UNKNOWN_REQUEST)
    return Stage.failed(name, unknown, findings, StageOutcome.WARNING)
