# SPDX-License-Identifier: Apache-2.0
"""The stages `keys` and `authenticated`: requests through Synapse's own client.

They tell what Synapse itself would meet, with its cached SRV records, and where another
process goes out in this one's stead.
"""

import json
from http import HTTPStatus

from twisted.internet.defer import CancelledError

from synapse_federation_admin.diagnosis.http import parse_date_ts
from synapse_federation_admin.diagnosis.keys import KEYS_PATH, read_keys
from synapse_federation_admin.diagnosis.limits import Deadline, TimeIsOver, word
from synapse_federation_admin.failure import (
    bounded,
    describe,
    failure_of,
    forget_frames,
)
from synapse_federation_admin.homeserver import (
    FederationRequests,
    Homeserver,
    HttpResponseException,
    JsonDict,
    Outbound,
    RequestSendFailed,
)
from synapse_federation_admin.models import (
    AuthenticatedFindings,
    Failure,
    FailureKind,
    KeysFindings,
    Stage,
    StageName,
    StageOutcome,
)

QUERY_PATH = "/_matrix/federation/v1/query/directory"

# An alias that nobody has: the request changes nothing anywhere.
_ALIAS = "#synapse-federation-admin-diagnosis"

# The share of the time of a diagnosis, after which a request is called off; Synapse's
# client is told to give up somewhat earlier, so that it says itself how that was.
_SHARE = 0.9
_SHARE_OF_CLIENT = 0.95

_MAX_BODY = 16 * 1024

# What an answer to the request for keys that has none stands for.
_KINDS_OF_KEYS = {
    FailureKind.HTTP_ERROR: FailureKind.KEYS_MISSING,
    FailureKind.INVALID_RESPONSE: FailureKind.KEYS_INVALID,
}


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
        deadline = self._deadline
        begun_ms = deadline.now_ms
        found = await self._get(name, KEYS_PATH)
        duration_ms = deadline.since(begun_ms)
        if isinstance(found, Exception):
            error = self._failure_of(found)
            kind = _KINDS_OF_KEYS.get(error.kind)
            failure = describe(kind, error.message) if kind else error
            return Stage(
                StageName.KEYS,
                StageOutcome.FAILED,
                failure.message,
                failure.kind,
                duration_ms,
                KeysFindings(error=error),
            )
        body, headers = found
        try:
            stored = await deadline.within(
                deadline.left_ms(), self._outbound.stored_keys, name
            )
        except TimeIsOver:
            # The database is slow; the keys can be judged all the same.
            stored = {}
        dates = headers.get(b"Date") or headers.get(b"date") or [b""]
        outcome, problem, findings = read_keys(
            name,
            body,
            stored,
            now_ms=self._homeserver.now_ms(),
            date_ts=parse_date_ts(dates[-1]),
        )
        return Stage(
            StageName.KEYS,
            outcome,
            problem.message if problem else "Its keys are valid, and signed by itself",
            problem.kind if problem else None,
            duration_ms,
            findings,
        )

    async def check_authenticated(self, name: str) -> Stage:
        """Make a request that we sign, so that the server has to verify our key."""
        begun_ms = self._deadline.now_ms
        found = await self._get(name, QUERY_PATH, {"room_alias": f"{_ALIAS}:{name}"})
        duration_ms = self._deadline.since(begun_ms)
        status = HTTPStatus.OK.value
        errcode: str | None = None
        failure: Failure | None = None
        if isinstance(found, Exception):
            status, errcode = _status_of(found) or 0, _errcode_of(found)
            failure = self._failure_of(found)
        outcome, message, kind = conclude(status, errcode, failure)
        return Stage(
            StageName.AUTHENTICATED,
            outcome,
            message,
            kind,
            duration_ms,
            AuthenticatedFindings(QUERY_PATH, status or None, word(errcode)),
        )

    async def _get(
        self, name: str, path: str, args: dict[str, str] | None = None
    ) -> tuple[JsonDict, dict[bytes, list[bytes]]] | Exception:
        """Make a request; return the answer, or what Synapse's client has raised."""
        limit_ms = self._deadline.left_ms(_SHARE)
        timeout_ms = max(1, int(limit_ms * _SHARE_OF_CLIENT))

        async def get() -> tuple[JsonDict, dict[bytes, list[bytes]]]:
            return await self._requests.get(name, path, args, timeout_ms=timeout_ms)

        try:
            return await self._deadline.within(limit_ms, get)
        except (TimeIsOver, CancelledError) as e:
            return e
        except Exception as e:
            # Whatever it is, it is between us and the remote server.
            forget_frames(e)
            return e

    def _failure_of(self, error: Exception) -> Failure:
        return failure_of(error, self._outbound.has_addresses)


def conclude(
    status: int, errcode: str | None, failure: Failure | None
) -> tuple[StageOutcome, str, FailureKind | None]:
    """Tell what an answer to a signed request means.

    Args:
        status: The HTTP status; 0 if there was no answer.
        errcode: The Matrix error in it.
        failure: What is wrong; None if the answer was one of 200.
    """
    accepted = "It accepts our signature"
    if failure is None:
        return StageOutcome.OK, accepted, None
    if status == HTTPStatus.NOT_FOUND and errcode == "M_NOT_FOUND":
        return StageOutcome.OK, f"{accepted}: there is no such alias, it says", None
    is_refusal = failure.kind in (FailureKind.REJECTED, FailureKind.RATE_LIMITED)
    if errcode is not None and 400 <= status < 500 and not is_refusal:
        message = (
            f"It answers, but does not know the request (HTTP {status} "
            f"{bounded(errcode, 100)}): whether it accepts our signature is not known"
        )
        return StageOutcome.WARNING, message, failure.kind
    return StageOutcome.FAILED, failure.message, failure.kind


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
