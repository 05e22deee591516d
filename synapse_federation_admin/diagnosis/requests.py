# SPDX-License-Identifier: Apache-2.0
"""The stages `keys` and `authenticated`: requests through Synapse's own client.

They tell what Synapse itself would meet, with its cached SRV records, and where another
process goes out in this one's stead.
"""

import json
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
from synapse_federation_admin.diagnosis.limits import Deadline, word
from synapse_federation_admin.failures.classify import (
    describe,
    failure_of,
    forget_frames,
)
from synapse_federation_admin.failures.kinds import Failure, FailureKind
from synapse_federation_admin.homeserver.errors import (
    BodyExceededMaxSize,
    HttpResponseException,
    RequestSendFailed,
)
from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.homeserver.outbound import FederationRequests, Outbound

QUERY_PATH = "/_matrix/federation/v1/query/directory"

# An alias that nobody has: the request changes nothing anywhere.
_ALIAS = "#synapse-federation-admin-diagnosis"

_MAX_BODY = 16 * 1024

logger = logging.getLogger(__name__)


class OwnRequests:
    """Makes requests through Synapse's client."""

    def __init__(
        self,
        homeserver: Homeserver,
        outbound: Outbound,
        requests: FederationRequests,
        deadline: Deadline,
    ) -> None:
        self._homeserver = homeserver
        self._outbound = outbound
        self._requests = requests
        self._deadline = deadline

    async def check_keys(self, name: str) -> Stage:
        """Ask a server for its keys, and judge them."""
        begun_ms = self._deadline.now_ms
        found = await self._get(name, KEYS_PATH)
        duration_ms = self._deadline.since(begun_ms)
        if isinstance(found, Exception):
            error = self._failure_of(found)
            status = _status_of(found)
            failure = no_keys(status, error, is_answer=_is_answer(found))
            findings = KeysFindings(status=status, error=error)
            stage = Stage.of(StageName.KEYS, failure, findings)
            return attr.evolve(stage, duration_ms=duration_ms)
        body, headers = found
        dates = headers.get(b"Date") or headers.get(b"date") or [b""]
        outcome, problem, findings = read_keys(
            name,
            body,
            await self._stored_keys(name),
            now_ms=self._homeserver.now_ms(),
            date_ts=None if b"Age" in headers else parse_date_ts(dates[0]),
        )
        if problem is None:
            message = "Its keys are valid, and signed by itself"
            return Stage(
                *(StageName.KEYS, outcome, message, None, duration_ms), findings
            )
        stage = Stage.of(StageName.KEYS, problem, findings, outcome)
        return attr.evolve(stage, duration_ms=duration_ms)

    async def _stored_keys(self, name: str) -> dict[str, str] | None:
        """Return the keys that Synapse has stored; None if they cannot be read."""
        # Work on the database is not called off: it would be waited for.
        reading = self._homeserver.begin(
            "federation_admin_diagnosis", lambda: self._outbound.stored_keys(name)
        )
        try:
            return await reading.wait(self._deadline.left_ms())
        except Exception as e:
            # The keys can be judged all the same.
            logger.warning("Could not read stored keys for a diagnosis: %s", e)
            return None

    async def check_authenticated(self, name: str) -> Stage:
        """Make a request that we sign, so that the server has to verify our key."""
        begun_ms = self._deadline.now_ms
        found = await self._get(name, QUERY_PATH, {"room_alias": f"{_ALIAS}:{name}"})
        duration_ms = self._deadline.since(begun_ms)
        status: int | None = HTTPStatus.OK.value
        errcode: str | None = None
        failure: Failure | None = None
        if isinstance(found, Exception):
            status, errcode = _status_of(found), _errcode_of(found)
            failure = self._failure_of(found)
        findings = AuthenticatedFindings(QUERY_PATH, status, word(errcode))
        stage = conclude(findings, failure)
        return attr.evolve(stage, duration_ms=duration_ms)

    async def _get(
        self, name: str, path: str, args: dict[str, str] | None = None
    ) -> tuple[JsonDict, dict[bytes, list[bytes]]] | Exception:
        """Make a request; return the answer, or what Synapse's client has raised."""
        try:
            # Synapse's client ends it by itself; but for the body of the answer it has
            # as much time again.
            return await self._deadline.within(
                self._deadline.left_ms(), self._requests.get, name, path, args
            )
        except Exception as e:
            # Whatever it is, it is between us and the remote server.
            forget_frames(e)
            return e

    def _failure_of(self, error: Exception) -> Failure:
        return failure_of(error, self._outbound.has_addresses)


def no_keys(status: int | None, error: Failure, *, is_answer: bool) -> Failure:
    """Tell what it means that a request for keys has failed.

    Args:
        status: The HTTP status, if there was one that is an error.
        error: What came of the request.
        is_answer: Whether there was an answer, which could not be read.
    """
    if status is not None and error.kind is not FailureKind.RATE_LIMITED:
        return describe(FailureKind.KEYS_MISSING, f"HTTP {status}")
    if error.kind is FailureKind.INVALID_RESPONSE:
        if is_answer:
            detail = "the answer is no JSON object, or not of application/json"
            return describe(FailureKind.KEYS_INVALID, detail)
        return describe(FailureKind.KEYS_MISSING, "the connection was closed")
    return error


def conclude(findings: AuthenticatedFindings, failure: Failure | None) -> Stage:
    """Return the stage: what the answer to a signed request means.

    Args:
        findings: The answer.
        failure: What is wrong; None if the answer was one of 200.
    """
    name, accepted = StageName.AUTHENTICATED, "It accepts our signature"
    status, errcode = findings.status, findings.errcode
    if failure is None:
        return Stage(name, StageOutcome.OK, accepted, findings=findings)
    if status == HTTPStatus.NOT_FOUND and errcode == "M_NOT_FOUND":
        message = f"{accepted}: there is no such alias, it says"
        return Stage(name, StageOutcome.OK, message, findings=findings)
    is_told = failure.kind in (FailureKind.REJECTED, FailureKind.RATE_LIMITED)
    if errcode is None or status is None or status >= 500 or is_told:
        return Stage.of(name, failure, findings)
    stage = Stage.of(name, failure, findings, StageOutcome.WARNING)
    message = (
        f"It answers, but does not know the request (HTTP {status} {errcode}): whether "
        "it accepts our signature is not known"
    )
    return attr.evolve(stage, message=message)


def _is_answer(error: Exception) -> bool:
    """Tell whether there was an answer, in which something is wrong."""
    inner = error.inner_exception if isinstance(error, RequestSendFailed) else error
    return isinstance(inner, ValueError | RuntimeError | BodyExceededMaxSize)


def _http_error(error: Exception) -> HttpResponseException | None:
    if isinstance(error, RequestSendFailed):
        inner = error.inner_exception
        return inner if isinstance(inner, HttpResponseException) else None
    return error if isinstance(error, HttpResponseException) else None


def _status_of(error: Exception) -> int | None:
    found = _http_error(error)
    return None if found is None else int(found.code)


def _errcode_of(error: Exception) -> str | None:
    found = _http_error(error)
    if found is None:
        return None
    try:
        body = json.loads(found.response[:_MAX_BODY])
    except (ValueError, RecursionError):
        return None
    errcode = body.get("errcode") if isinstance(body, dict) else None
    return errcode if isinstance(errcode, str) else None
