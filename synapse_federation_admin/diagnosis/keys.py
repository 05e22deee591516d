# SPDX-License-Identifier: Apache-2.0
"""The stage `keys`: whether what a server sends can be verified.

https://spec.matrix.org/v1.11/server-server-api/#get_matrixkeyv2server, and what Synapse
makes of it (`synapse/crypto/keyring.py`).
"""

from collections.abc import Mapping
from typing import Any

from canonicaljson import encode_canonical_json
from signedjson.key import decode_verify_key_bytes, is_signing_algorithm_supported
from unpaddedbase64 import decode_base64

from synapse_federation_admin.diagnosis.limits import word
from synapse_federation_admin.failure import describe
from synapse_federation_admin.models import (
    Failure,
    FailureKind,
    KeysFindings,
    ServerKey,
    StageOutcome,
)

KEYS_PATH = "/_matrix/key/v2/server"

# How many keys are looked at: a server has one, or two.
_MAX_KEYS = 20


def read_keys(
    name: str,
    body: object,
    stored: Mapping[str, str],
    *,
    now_ms: int,
    date_ts: int | None,
) -> tuple[StageOutcome, Failure | None, KeysFindings]:
    """Judge the keys that a server gives out.

    Args:
        name: The server name.
        body: The answer, parsed.
        stored: By key ID, the keys in base64 that Synapse has stored.
        now_ms: The time, in ms since the epoch.
        date_ts: The time by the server's clock.

    Returns:
        The outcome; what is wrong, if anything is; and the findings.
    """
    content = body if isinstance(body, dict) else {}
    verify_keys = _object(content.get("verify_keys"))
    signatures = _object(_object(content.get("signatures")).get(name))
    valid_until_ts = content.get("valid_until_ts")
    if not isinstance(valid_until_ts, int) or isinstance(valid_until_ts, bool):
        valid_until_ts = None
    looked_at = list(verify_keys.items())[:_MAX_KEYS]
    signed = _canonical(content)
    shown: list[ServerKey] = []
    problems: list[tuple[StageOutcome, Failure]] = []

    def problem(
        detail: str,
        kind: FailureKind = FailureKind.KEYS_INVALID,
        outcome: StageOutcome = StageOutcome.FAILED,
    ) -> None:
        problems.append((outcome, describe(kind, detail)))

    if not isinstance(body, dict) or signed is None:
        problem("the answer is no JSON object that can be signed")
    elif content.get("server_name") != name:
        problem(f"they are for {word(content.get('server_name')) or 'no server'}")
    usable = [key_id for key_id, _ in looked_at if is_usable(key_id)]
    if not usable:
        problem("there is no ed25519 key among them", FailureKind.KEYS_MISSING)
    for key_id, value in looked_at:
        if key_id not in usable:
            continue
        key = _object(value).get("key")
        is_signed = signed is not None and _verify(
            key_id, key, signatures.get(key_id), signed
        )
        label = word(key_id) or ""
        if not is_signed and key_id in signatures:
            problem(f"the signature with {label} is wrong")
        elif not is_signed:
            problem(f"they are not signed with {label}", outcome=StageOutcome.WARNING)
        same = None
        if key_id in stored:
            same = isinstance(key, str) and _same(key, stored[key_id])
            if not same:
                problem(
                    f"Synapse has another key stored as {label}",
                    outcome=StageOutcome.WARNING,
                )
        shown.append(ServerKey(label, is_signed, same))
    if usable and not any(key.is_self_signed for key in shown):
        problem("they are not signed by any of them")
    if valid_until_ts is None:
        problem("valid_until_ts is no integer")
    elif valid_until_ts <= now_ms:
        problem(
            f"{_ago(now_ms - valid_until_ts)} ago, by our clock",
            FailureKind.KEYS_EXPIRED,
        )
    findings = KeysFindings(
        server_name=word(content.get("server_name")),
        keys=tuple(shown),
        keys_total=len(verify_keys),
        old_keys=len(_object(content.get("old_verify_keys"))),
        valid_until_ts=_bounded(valid_until_ts),
        stored_total=len(stored),
        date_ts=date_ts,
        received_ts=now_ms,
    )
    problems.sort(key=lambda found: found[0] is not StageOutcome.FAILED)
    if problems:
        return (*problems[0], findings)
    return StageOutcome.OK, None, findings


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


def _ago(duration_ms: int) -> str:
    days, hours = divmod(duration_ms // 3_600_000, 24)
    if days > 36_500:
        return "more than 100 years"
    return f"{days} d {hours} h" if days else f"{hours} h"
