# SPDX-License-Identifier: Apache-2.0
"""The stages `keys` and `authenticated`: requests through Synapse's own client.

They tell what Synapse itself would meet, with its cached SRV records, and where another
process goes out in this one's stead: whether a server accepts our signature, and
whether what it sends can be verified.

https://spec.matrix.org/v1.11/server-server-api/#get_matrixkeyv2server, and what Synapse
makes of it (`synapse/crypto/keyring.py`).
"""

import logging
from collections.abc import Awaitable, Mapping
from http import HTTPStatus
from typing import Any, TypeVar

from canonicaljson import encode_canonical_json
from signedjson.key import decode_verify_key_bytes, is_signing_algorithm_supported
from twisted.internet.defer import CancelledError
from twisted.web.http_headers import Headers
from unpaddedbase64 import decode_base64

from synapse_federation_admin import limits
from synapse_federation_admin.diagnosis.answers import date_of
from synapse_federation_admin.diagnosis.findings import (
    AuthenticatedFindings,
    KeysFindings,
    ServerKey,
    StageOutcome,
)
from synapse_federation_admin.diagnosis.stages import Stage, StageName
from synapse_federation_admin.diagnosis.way import Way
from synapse_federation_admin.failures.bounds import word
from synapse_federation_admin.failures.classify import failure_of, result_or_failure
from synapse_federation_admin.failures.kinds import Facts, Failure, FailureKind, Reason
from synapse_federation_admin.homeserver.federation import KEYS_PATH
from synapse_federation_admin.homeserver.outbound import Delegation
from synapse_federation_admin.homeserver.transactions import SEND_PATH

# The share of the time that is left when Synapse's client has to give up: so that it
# says itself what it has met.
_SHARE_AFTER_REQUESTS = 0.07

# How often to look whether a real transaction was answered; and the share of the time
# that is left for another one, if Synapse has to send it once more.
_LOOK_MS = 50
_SHARE_AFTER_REAL = 0.3

# What is wrong with an answer that came, and cannot be read.
_UNREADABLE = (Reason.NOT_JSON, Reason.WRONG_CONTENT_TYPE, Reason.BODY_TOO_LARGE)

T = TypeVar("T")

logger = logging.getLogger(__name__)


def left_ms(way: Way) -> int:
    """Return how long a request through Synapse's client may take."""
    return way.left_ms(reserve=_SHARE_AFTER_REQUESTS)


async def check_keys(way: Way, name: str, delegation: Delegation | None) -> Stage:
    """Ask a server for its keys, and judge them."""
    found = await _ask(
        way,
        way.outbound.get(
            name, KEYS_PATH, timeout_ms=left_ms(way), delegation=delegation
        ),
    )
    if isinstance(found, Failure):
        findings = KeysFindings(status=found.facts.status, error=found)
        return Stage.failed(StageName.KEYS, no_keys(found), findings)
    body, headers = found
    return read_keys(
        name,
        body,
        await _stored_keys(way, name),
        now_ms=way.homeserver.now_ms(),
        date_ts=date_of(Headers(headers)),
        is_us=way.outbound.are_own_keys(body),
    )


async def _stored_keys(way: Way, name: str) -> dict[str, str] | None:
    """Return the keys that Synapse has stored; None if they cannot be read."""
    # Work on the database is not called off: it would be waited for.
    try:
        return await way.homeserver.run_to_end(
            "federation_admin_diagnosis",
            lambda: way.outbound.stored_keys(name),
            way.left_ms(),
        )
    except CancelledError:
        raise
    except Exception as e:
        # The keys can be judged all the same.
        logger.warning("Could not read stored keys for a diagnosis: %s", e)
        return None


async def check_authenticated(
    way: Way, name: str, delegation: Delegation | None
) -> Stage:
    """Send what real traffic is made of: an empty transaction, signed.

    Where a real one of this process is under way, that is waited for in its stead.
    """
    while (real := way.homeserver.transactions.under_way(name)) is not None:
        while real.is_under_way:
            if way.left_ms(reserve=_SHARE_AFTER_REAL) <= _LOOK_MS:
                facts = Facts(took_ms=way.homeserver.now_ms() - real.begun_ts)
                failure = Failure(FailureKind.OTHER, Reason.NOT_YET_ANSWERED, facts)
                findings = AuthenticatedFindings(SEND_PATH, is_real=True)
                outcome = StageOutcome.WARNING
                return Stage.failed(StageName.AUTHENTICATED, failure, findings, outcome)
            await way.homeserver.sleep_ms(_LOOK_MS)
        if real.has_ended:
            error = failure_of(real.error) if real.error else None
            return conclude(error, is_real=True)
    sending = way.outbound.send_empty(
        name, timeout_ms=left_ms(way), delegation=delegation
    )
    taken = await _ask(way, sending)
    if isinstance(taken, Failure):
        return conclude(taken)
    return conclude(None, is_busy=not taken)


async def _ask(way: Way, request: Awaitable[T]) -> T | Failure:
    """Make a request; return what comes of it, or why there was no answer."""
    # Synapse's client ends it by itself; but for the body of the answer it has as much
    # time again.
    return await result_or_failure(way.within(way.left_ms(), lambda: request))


def no_keys(error: Failure) -> Failure:
    """Tell what it means that a request for keys has failed."""
    kind, reason, facts = error.kind, error.reason, error.facts
    if reason is Reason.FEDERATION_LISTENER_MISSING:
        # Keys are another resource of a listener.
        reason = None
    if facts.status is not None and kind is not FailureKind.RATE_LIMITED:
        return Failure(FailureKind.KEYS_MISSING, reason, facts)
    if kind is not FailureKind.INVALID_RESPONSE:
        return error
    if reason in _UNREADABLE:
        return Failure(FailureKind.KEYS_INVALID, reason, facts)
    return Failure(FailureKind.KEYS_MISSING, Reason.CLOSED, facts)


def conclude(
    failure: Failure | None, *, is_busy: bool = False, is_real: bool = False
) -> Stage:
    """Return the stage `authenticated`: what comes of a transaction.

    Args:
        failure: What is wrong; None if it was taken.
        is_busy: Whether it was not, for the server is busy with another one of ours.
        is_real: Whether it was a real one.
    """
    name = StageName.AUTHENTICATED
    if failure is None:
        code = HTTPStatus.TOO_MANY_REQUESTS if is_busy else HTTPStatus.OK
        findings = AuthenticatedFindings(SEND_PATH, code.value, is_real=is_real)
        return Stage(name, StageOutcome.OK, findings=findings)
    status, errcode = failure.facts.status, failure.facts.errcode or None
    findings = AuthenticatedFindings(SEND_PATH, status, errcode, is_real=is_real)
    return Stage.failed(name, failure, findings)


def read_keys(
    name: str,
    body: object,
    stored: Mapping[str, str] | None,
    *,
    now_ms: int,
    date_ts: int | None,
    is_us: bool = False,
) -> Stage:
    """Return the stage `keys`: what the keys are that a server gives out.

    Args:
        name: The server name.
        body: The answer, parsed.
        stored: By key ID, the keys in base64 that Synapse has stored; None: not known.
        now_ms: The time, in ms since the epoch.
        date_ts: The time by the server's clock.
        is_us: Whether they are those of this homeserver.
    """
    # What makes that Synapse takes none of them, and what does not.
    wrong: list[Failure] = []
    odd: list[Failure] = []

    def invalid(reason: Reason, said: str = "") -> Failure:
        return Failure(FailureKind.KEYS_INVALID, reason, Facts(said=said))

    content = _object(body)
    verify_keys = _object(content.get("verify_keys"))
    old_keys = _object(content.get("old_verify_keys"))
    signatures = _object(_object(content.get("signatures")).get(name))
    valid_until_ts = content.get("valid_until_ts")
    their_name = word(content.get("server_name"))
    signed = _canonical(content)
    if not isinstance(body, dict) or signed is None:
        wrong.append(invalid(Reason.NOT_JSON))
    elif their_name is None:
        wrong.append(invalid(Reason.NO_SERVER_NAME))
    elif content["server_name"] != name:
        wrong.append(invalid(Reason.OTHER_SERVER_NAME, their_name))
    usable = {k: v for k, v in verify_keys.items() if is_signing_algorithm_supported(k)}
    if not usable:
        wrong.append(Failure(FailureKind.KEYS_MISSING, Reason.NO_ED25519_KEY))
    # Synapse reads all of them, and takes none if it cannot read one.
    for label in (_unreadable(verify_keys), _unreadable(old_keys, is_old=True)):
        if label is not None:
            wrong.append(invalid(Reason.KEY_UNREADABLE, label))
    if not isinstance(content.get("old_verify_keys", {}), dict):
        wrong.append(invalid(Reason.OLD_KEYS_NOT_AN_OBJECT))
    # Those with a signature first, in the order of those, as Synapse takes them.
    order = [k for k in signatures if k in usable]
    order += [k for k in usable if k not in signatures]
    shown: list[ServerKey] = []
    for key_id in order[: limits.TOLD_KEYS]:
        key, label = _object(usable[key_id]).get("key"), word(key_id) or ""
        is_signed = signed is not None and _verify(
            key_id, key, signatures.get(key_id), signed
        )
        if not is_signed and key_id not in signatures:
            odd.append(invalid(Reason.KEY_NOT_SIGNING, label))
        elif not is_signed and shown:
            odd.append(invalid(Reason.ONE_SIGNATURE_INVALID, label))
        elif not is_signed:
            wrong.append(invalid(Reason.SIGNATURE_INVALID, label))
        same = None
        if stored is not None and key_id in stored:
            same = isinstance(key, str) and _same(key, stored[key_id])
            if not same:
                odd.append(invalid(Reason.OTHER_KEY_STORED, label))
        shown.append(ServerKey(label, is_signed, same))
    if usable and not any(key.is_self_signed for key in shown):
        wrong.append(invalid(Reason.NOT_SIGNED))
    if type(valid_until_ts) is not int:
        valid_until_ts = None
        wrong.append(invalid(Reason.VALID_UNTIL_MISSING))
    elif valid_until_ts <= now_ms:
        facts = Facts(ago_ms=now_ms - valid_until_ts)
        wrong.append(Failure(FailureKind.KEYS_EXPIRED, facts=facts))
    findings = KeysFindings(
        server_name=their_name,
        keys=tuple(shown),
        keys_total=len(verify_keys),
        old_keys=len(old_keys),
        valid_until_ts=_bounded(valid_until_ts),
        stored_total=None if stored is None else len(stored),
        status=HTTPStatus.OK,
        date_ts=date_ts,
        received_ts=now_ms,
        is_us=is_us,
    )
    if is_us:
        return Stage.failed(StageName.KEYS, Failure(FailureKind.IS_US), findings)
    if wrong:
        return Stage.failed(StageName.KEYS, wrong[0], findings)
    if odd:
        return Stage.failed(StageName.KEYS, odd[0], findings, StageOutcome.WARNING)
    return Stage(StageName.KEYS, StageOutcome.OK, findings=findings)


def _unreadable(keys: Mapping[str, object], *, is_old: bool = False) -> str | None:
    """Return a key that Synapse cannot read; None if it can read all of them."""
    for key_id, value in list(keys.items())[: limits.READ_KEYS]:
        if not is_signing_algorithm_supported(key_id):
            continue
        try:
            content = _object(value)
            decode_verify_key_bytes(key_id, decode_base64(content["key"]))
            if is_old:
                content["expired_ts"]
        except Exception:
            # What is wrong with it is up to the server.
            return f"{word(key_id)} in {'old_verify_keys' if is_old else 'verify_keys'}"
    return None


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _canonical(content: dict[str, Any]) -> bytes | None:
    """Return what is signed (appendices, "Signing JSON"); None if nothing can be."""
    try:
        return encode_canonical_json(
            {k: v for k, v in content.items() if k not in ("signatures", "unsigned")}
        )
    except (ValueError, TypeError, RecursionError):
        return None


def _verify(key_id: str, key: object, signature: object, signed: bytes) -> bool:
    """Tell whether a signature with a key is right."""
    if not isinstance(key, str) or not isinstance(signature, str):
        return False
    try:
        verify_key = decode_verify_key_bytes(key_id, decode_base64(key))
        verify_key.verify(signed, decode_base64(signature))
    except Exception:
        # What is wrong with a key or a signature is up to the server.
        return False
    return True


def _same(key: str, stored: str) -> bool:
    try:
        return bool(decode_base64(key) == decode_base64(stored))
    except ValueError:
        return False


def _bounded(ts: int | None) -> int | None:
    """Return a time that every reader of JSON can read."""
    return None if ts is None else max(-(2**53), min(ts, 2**53))
