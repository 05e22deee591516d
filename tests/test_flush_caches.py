# SPDX-License-Identifier: Apache-2.0
"""What processes keep in memory of a server is dropped, in all of them."""

from typing import Any
from unittest import mock

from module_case import NAME, V2, ModuleTestCase, quote
from synapse.http.federation.srv_resolver import SERVER_CACHE, Server

from synapse_federation_admin.homeserver.homeserver import Homeserver


class FlushCachesTestCase(ModuleTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.add_destination(NAME, 1000, 2000, 500, 7)
        agent: Any = self.hs.get_federation_http_client().agent
        resolver = agent._agent._well_known_resolver
        self.files = resolver._well_known_cache
        self.had_files = resolver._had_valid_well_known_cache
        for name in (b"down.example", b"other.example"):
            self.files.set(name, b"matrix." + name + b":443", 3600)
            self.had_files.set(name, True, 3600)
        self.services = (
            b"_matrix._tcp.down.example",
            b"_matrix-fed._tcp.matrix.down.example",
        )
        for service in (*self.services, b"_matrix._tcp.other.example"):
            SERVER_CACHE[service] = [Server(b"gone.example", 1, expires=2**40)]
            self.addCleanup(SERVER_CACHE.pop, service, None)

    def flush(self, name: str = NAME) -> Any:
        path = f"{V2}/destinations/{quote(name, safe='')}/flush_caches"
        return self.ask("POST", path, content={"reason": "They have moved"})

    def test_flush(self) -> None:
        """It goes of that server only, in any case; the audit says who did it."""
        self.assertIsNotNone(self.timings())
        self.add_destination(NAME, 0, 0, None, 7)
        body = self.flush().json_body
        self.assertEqual((body["told"], body["not_told"]), (["main"], []))
        self.assertIsNone(self.timings())
        self.assertIsNone(self.files.get(b"down.example", None))
        self.assertFalse(self.had_files.get(b"down.example", False))
        self.assertTrue(self.files.get(b"other.example", None))
        self.assertEqual([s for s in self.services if s in SERVER_CACHE], [])
        self.assertIn(b"_matrix._tcp.other.example", SERVER_CACHE)
        entry = self.audit()[-1]
        self.assertEqual(
            (entry["action"], entry["outcome"]), ("flush_caches", "flushed")
        )
        self.assertEqual(entry["reason"], "They have moved")

    def test_no_name(self) -> None:
        """What their file delegates to may be no server name: it is dropped, too."""
        for delegated in (b"matrix.down.example:port", b"https://x/"):
            self.files.set(b"down.example", delegated, 3600)
            body = self.flush().json_body
            self.assertIsNone(body["not_told_error"])
            self.assertIsNone(self.files.get(b"down.example", None))
        self.assertNotIn(b"_matrix._tcp.down.example", SERVER_CACHE)

    def test_any_name(self) -> None:
        """With a port, or of an address, there is nothing; unknown is 404."""
        for name in ("down.example:8448", "[2001:db8::1]", "no server name"):
            self.add_destination(name, 1000, 2000, 500, 7)
            self.assertEqual(self.flush(name).code, 200, name)
        self.assertEqual(self.flush("unknown.example").code, 404)

    def test_told(self) -> None:
        """The others are told by a signal; who cannot be told is named."""
        told = mock.patch.object(self.store, "send_invalidation_to_replication")
        others = mock.patch.object(Homeserver, "has_other_processes", True)
        names = mock.patch.object(Homeserver, "other_instances", ["sender1"])
        for connected in (True, False):
            reached = mock.patch.object(Homeserver, "can_tell_others", connected)
            with told as sent, others, names, reached:
                body = self.flush().json_body
            signal = "synapse_federation_admin.flush_caches"
            self.assertEqual(sent.call_args.args, (signal, (NAME,)))
            self.assertEqual("sender1" in body["told"], connected)
            self.assertEqual("Redis" in str(body["not_told_error"]), not connected)
            outcome = "flushed" if connected else "flushed_in_part"
            self.assertEqual(self.audit()[0]["outcome"], outcome)

    def test_is_told(self) -> None:
        """Who is told by another process drops what it has."""
        self.store._attempt_to_invalidate_cache(
            "synapse_federation_admin.flush_caches", (NAME,)
        )
        self.assertIsNone(self.files.get(b"down.example", None))
