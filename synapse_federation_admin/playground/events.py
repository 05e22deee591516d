# SPDX-License-Identifier: Apache-2.0
"""Signed requests and signed events, as a remote server makes them.

The rules are the Matrix specification's: server-server API, "Request Authentication",
"Signing Events" and "Calculating the reference hash for an event"; room version 11.
"""

import hashlib
import time
from typing import Any

from canonicaljson import encode_canonical_json
from signedjson.key import generate_signing_key, get_verify_key
from signedjson.sign import sign_json
from signedjson.types import SigningKey
from unpaddedbase64 import encode_base64

Json = dict[str, Any]

# What of a room member event survives redaction in room version 11. An event that has
# nothing else, and no content but `membership`, is its own redacted form.
_KEPT = {
    "auth_events",
    "content",
    "depth",
    "hashes",
    "origin_server_ts",
    "prev_events",
    "room_id",
    "sender",
    "signatures",
    "state_key",
    "type",
}


class Identity:
    """A server name and the ed25519 key with which that server signs."""

    def __init__(self, server_name: str) -> None:
        """Make an identity with a new key."""
        self.server_name = server_name
        self._key: SigningKey = generate_signing_key("a_play")

    def server_keys(self) -> Json:
        """Make the answer to `GET /_matrix/key/v2/server`, valid for a day."""
        verify_key = get_verify_key(self._key)
        name = f"{verify_key.alg}:{verify_key.version}"
        keys: Json = {
            "server_name": self.server_name,
            "verify_keys": {name: {"key": encode_base64(verify_key.encode())}},
            "old_verify_keys": {},
            "valid_until_ts": int(time.time() * 1000) + 24 * 60 * 60 * 1000,
        }
        return self.signed(keys)

    def authorization(
        self, method: str, uri: str, destination: str, content: Json | None
    ) -> str:
        """Make the `Authorization` header of a federation request.

        Args:
            method: the HTTP method.
            uri: path and query, exactly as they are sent.
            destination: the server name of the server that is asked.
            content: the JSON body, or None if there is none.
        """
        request: Json = {
            "method": method,
            "uri": uri,
            "origin": self.server_name,
            "destination": destination,
        }
        if content is not None:
            request["content"] = content
        signatures = self.signed(request)["signatures"][self.server_name]
        ((key, signature),) = signatures.items()
        return (
            f'X-Matrix origin="{self.server_name}",destination="{destination}",'
            f'key="{key}",sig="{signature}"'
        )

    def join_event(self, template: Json) -> tuple[str, Json]:
        """Complete what `make_join` answered: hash it and sign it.

        Args:
            template: the `event` of the answer.

        Returns:
            The event id and the event.
        """
        event = {key: value for key, value in template.items() if key in _KEPT}
        event["content"] = {"membership": "join"}
        event["origin_server_ts"] = int(time.time() * 1000)
        for key in ("hashes", "signatures"):
            event.pop(key, None)
        event["hashes"] = {"sha256": encode_base64(_sha256(event))}
        event_id = "$" + encode_base64(_sha256(event), urlsafe=True)
        return event_id, self.signed(event)

    def signed(self, value: Json) -> Json:
        """Return an object of JSON with this server's signature."""
        return dict(sign_json(value, self.server_name, self._key))


def _sha256(value: Json) -> bytes:
    return hashlib.sha256(encode_canonical_json(value)).digest()
