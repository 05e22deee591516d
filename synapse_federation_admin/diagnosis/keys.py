# SPDX-License-Identifier: Apache-2.0
"""The stage `keys`: whether what a server sends can be verified.

https://spec.matrix.org/v1.11/server-server-api/#get_matrixkeyv2server, and what Synapse
makes of it (`synapse/crypto/keyring.py`).
"""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from canonicaljson import encode_canonical_json
from signedjson.key import decode_verify_key_bytes, is_signing_algorithm_supported
from unpaddedbase64 import decode_base64

from synapse_federation_admin.diagnosis.findings import (
    KeysFindings,
    ServerKey,
    StageOutcome,
)
from synapse_federation_admin.failures.bounds import word
from synapse_federation_admin.failures.kinds import Facts, Failure, FailureKind, Reason

KEYS_PATH = "/_matrix/key/v2/server"

# How many keys are looked at: a server has one, or two.
_MAX_KEYS = 20
_MAX_READ = 500


def read_keys(
    name: str,
    body: object,
    stored: Mapping[str, str] | None,
    *,
    now_ms: int,
    date_ts: int | None,
) -> tuple[StageOutcome, Failure | None, KeysFindings]:
    """Judge the keys that a server gives out.

    Args:
        name: The server name.
        body: The answer, parsed.
        stored: By key ID, the keys in base64 that Synapse has stored; None: not known.
        now_ms: The time, in ms since the epoch.
        date_ts: The time by the server's clock.

    Returns:
        The outcome; what is wrong, if anything is; and the findings.
    """
    content = body if isinstance(body, dict) else {}
    verify_keys = _object(content.get("verify_keys"))
    old_keys = _object(content.get("old_verify_keys"))
    signatures = _object(_object(content.get("signatures")).get(name))
    valid_until_ts = content.get("valid_until_ts")
    if not isinstance(valid_until_ts, int) or isinstance(valid_until_ts, bool):
        valid_until_ts = None
    their_name = word(content.get("server_name"))
    signed = _canonical(content)
    problems = _Problems()
    if not isinstance(body, dict) or signed is None:
        problems.add(Reason.NOT_JSON)
    elif content.get("server_name") != name:
        is_other = their_name is not None
        reason = Reason.OTHER_SERVER_NAME if is_other else Reason.NO_SERVER_NAME
        problems.add(reason, their_name or "")
    usable = {k: v for k, v in verify_keys.items() if is_usable(k)}
    if not usable:
        problems.add(Reason.NO_ED25519_KEY, kind=FailureKind.KEYS_MISSING)
    # Synapse reads all of them, and takes none if it cannot read one.
    _check_readable(verify_keys, problems)
    _check_readable(old_keys, problems, is_old=True)
    if not isinstance(content.get("old_verify_keys", {}), dict):
        problems.add(Reason.OLD_KEYS_NOT_AN_OBJECT)
    # Those with a signature first, in the order of those, as Synapse takes them.
    order = [k for k in signatures if k in usable]
    order += [k for k in usable if k not in signatures]
    shown: list[ServerKey] = []
    for key_id in order[:_MAX_KEYS]:
        key = _object(usable[key_id]).get("key")
        is_signed = signed is not None and _verify(
            key_id, key, signatures.get(key_id), signed
        )
        label = word(key_id) or ""
        if not is_signed and key_id in signatures:
            if shown:
                problems.warn(Reason.ONE_SIGNATURE_INVALID, label)
            else:
                problems.add(Reason.SIGNATURE_INVALID, label)
        elif not is_signed:
            problems.warn(Reason.KEY_NOT_SIGNING, label)
        same = None
        if stored is not None and key_id in stored:
            same = isinstance(key, str) and _same(key, stored[key_id])
            if not same:
                problems.warn(Reason.OTHER_KEY_STORED, label)
        shown.append(ServerKey(label, is_signed, same))
    if usable and not any(key.is_self_signed for key in shown):
        problems.add(Reason.NOT_SIGNED)
    if valid_until_ts is None:
        problems.add(Reason.VALID_UNTIL_MISSING)
    elif valid_until_ts <= now_ms:
        problems.expired(now_ms - valid_until_ts)
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
    )
    outcome, failure = problems.worst()
    return outcome, failure, findings


class _Problems:
    """Keeps what is wrong."""

    def __init__(self) -> None:
        self._found: list[tuple[StageOutcome, Failure]] = []

    def add(
        self,
        reason: Reason,
        said: str = "",
        *,
        kind: FailureKind = FailureKind.KEYS_INVALID,
        outcome: StageOutcome = StageOutcome.FAILED,
    ) -> None:
        self._found.append((outcome, Failure(kind, reason, Facts(said=said))))

    def warn(self, reason: Reason, said: str) -> None:
        self.add(reason, said, outcome=StageOutcome.WARNING)

    def expired(self, ago_ms: int) -> None:
        failure = Failure(FailureKind.KEYS_EXPIRED, facts=Facts(ago_ms=ago_ms))
        self._found.append((StageOutcome.FAILED, failure))

    def worst(self) -> tuple[StageOutcome, Failure | None]:
        for outcome, failure in self._found:
            if outcome is StageOutcome.FAILED:
                return outcome, failure
        return self._found[0] if self._found else (StageOutcome.OK, None)


def _check_readable(
    keys: Mapping[str, object], problems: _Problems, *, is_old: bool = False
) -> None:
    """Find keys that Synapse cannot read: because of one it takes none."""
    for key_id, value in list(keys.items())[:_MAX_READ]:
        if not is_usable(key_id):
            continue
        try:
            content = _object(value)
            decode_verify_key_bytes(key_id, decode_base64(content["key"]))
            if is_old:
                content["expired_ts"]
        except Exception:
            # What is wrong with it is up to the server.
            what = "old_verify_keys" if is_old else "verify_keys"
            problems.add(Reason.KEY_UNREADABLE, f"{word(key_id)} in {what}")
            return


def is_usable(key_id: str) -> bool:
    """Tell whether Synapse can verify with a key of this ID."""
    return bool(is_signing_algorithm_supported(key_id))


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
