# SPDX-License-Identifier: Apache-2.0
"""The keys of other servers that Synapse has stored, on both databases."""

import pytest
from module_case import ModuleTestCase
from signedjson.key import generate_signing_key, get_verify_key
from synapse.storage.keys import FetchKeyResult
from unpaddedbase64 import encode_base64

from synapse_federation_admin.homeserver.outbound import Outbound


@pytest.mark.database
class StoredKeysTestCase(ModuleTestCase):
    """What Synapse itself has stored is read."""

    def test_stored(self) -> None:
        """By key ID, in base64, of one server only."""
        keys = [get_verify_key(generate_signing_key(name)) for name in "abc"]
        for server, key, until_ts in (
            ("a.example", keys[0], 1000),
            ("a.example", keys[1], 2000),
            ("b.example", keys[2], 3000),
        ):
            key_id = f"{key.alg}:{key.version}"
            self.get_success(
                self.store.store_server_keys_response(
                    server_name=server,
                    from_server=server,
                    ts_added_ms=1,
                    verify_keys={key_id: FetchKeyResult(key, until_ts)},
                    response_json={},
                )
            )
        outbound = Outbound(self.homeserver, max_lifetime_s=1)
        found = self.get_success(outbound.stored_keys("a.example"))
        self.assertEqual(
            found,
            {
                "ed25519:a": encode_base64(keys[0].encode()),
                "ed25519:b": encode_base64(keys[1].encode()),
            },
        )
        self.assertEqual(self.get_success(outbound.stored_keys("c.example")), {})
