# SPDX-License-Identifier: Apache-2.0
"""What clients rely on in v1's reading endpoints, on both databases."""

from typing import Any
from unittest.mock import patch

import pytest
from module_case import DESTINATIONS, FAILING, NAME, ModuleTestCase

from synapse_federation_admin.homeserver.features import Feature, Features
from synapse_federation_admin.homeserver.homeserver import Homeserver


class ListTestCase(ModuleTestCase):
    """GET destinations."""

    @pytest.mark.database
    def test_defaults(self) -> None:
        """Without parameters: the first 100, by name, ascending."""
        names = [f"host{number:03}.example" for number in range(101)]
        for name in reversed(names):
            self.add_destination(name)

        self.assertEqual(self.names(), names[:100])
        self.assertEqual(self.get_json(DESTINATIONS)["next_token"], "100")

    @pytest.mark.database
    def test_pages(self) -> None:
        """`total` is always there; `next_token` only where there is a next page."""
        for number in range(5):
            self.add_destination(f"host{number}.example")
        for start, limit, expected, next_token in (
            ("0", "2", 2, "2"),
            ("2", "2", 2, "4"),
            ("4", "2", 1, None),
            ("3", "2", 2, None),
            ("0", "5", 5, None),
            ("0", "6", 5, None),
            ("5", "2", 0, None),
            ("6", "2", 0, None),
            ("0", "0", 0, None),
            ("3", "0", 0, None),
            ("00", "007", 5, None),
            ("0", str(2**63), 5, None),
            (str(2**63), "1", 0, None),
            (str(2**63 - 1), str(2**63 - 1), 0, None),
            ("9" * 5000, "9" * 5000, 0, None),
        ):
            body = self.get_json(f"{DESTINATIONS}?from={start}&limit={limit}")
            self.assertEqual(len(body.pop("destinations")), expected)
            token = {"next_token": next_token} if next_token else {}
            self.assertEqual(body, {"total": 5, **token})

    @pytest.mark.database
    def test_filter(self) -> None:
        """`destination` is a substring in any case; `%`, `_`, `\\` are characters."""
        names = {"a_b.example", "axb.example", "UPPER.example", "50%.example"}
        for name in names:
            self.add_destination(name)
        for text, expected in (
            ("", names),
            ("EXAMPLE", names),
            ("a_b", {"a_b.example"}),
            ("%", {"50%.example"}),
            ("0%.", {"50%.example"}),
            ("\\", set()),
            ("!", set()),
            ("upper", {"UPPER.example"}),
            ("UPPER", {"UPPER.example"}),
            ("AXB", {"axb.example"}),
            ("nothing", set()),
            ("\0", set()),
            ("ÜPPER", set()),
        ):
            query = "".join(f"%{byte:02x}" for byte in text.encode())
            body = self.get_json(f"{DESTINATIONS}?limit=1&destination={query}")
            self.assertEqual(body["total"], len(expected), text)
            self.assertEqual(set(self.names(f"?destination={query}")), expected, text)

    def test_bad_parameter(self) -> None:
        """A bad parameter is 400 M_INVALID_PARAM, and the text names it."""
        for name, *values in (
            ("order_by", "bar", "", "Destination", "destination%20DESC", "%ff"),
            ("dir", "bar", "", "F"),
            ("from", "-5", "", "abc", "1.5", "1_0", "%201", "%d9%a1"),
            ("limit", "-5", "", "0x10", "1e3", "None", "%00"),
            ("destination", "%ff"),
        ):
            for value in values:
                channel = self.ask("GET", f"{DESTINATIONS}?{name}={value}")
                self.assert_error(channel, 400, "M_INVALID_PARAM", f"'{name}'")

    def test_repeated_and_unknown_parameters(self) -> None:
        """Of a repeated parameter the first counts; v1 ignores what it doesn't know."""
        for name in ("a.example", "b.example"):
            self.add_destination(name)

        self.assertEqual(self.names("?limit=1&limit=abc&fancy=1"), ["a.example"])

    def test_cors(self) -> None:
        """Answers, errors and preflights have the headers that browsers need."""
        for channel in (
            self.ask("GET", DESTINATIONS),
            self.ask("GET", DESTINATIONS + "?limit=x"),
            self.ask("GET", DESTINATIONS, token=None),
            self.ask("OPTIONS", DESTINATIONS, token=None),
        ):
            origin = channel.headers.getRawHeaders("Access-Control-Allow-Origin")
            self.assertEqual(origin, ["*"])
            allowed = channel.headers.getRawHeaders("Access-Control-Allow-Headers")
            self.assertIn("Authorization", allowed[0])
        self.assertIn(channel.code, (200, 204))

    def test_head(self) -> None:
        """HEAD is answered like GET, without a body."""
        self.assertEqual(self.ask("HEAD", DESTINATIONS).code, 200)


class DetailTestCase(ModuleTestCase):
    """GET destinations/<destination>."""

    @pytest.mark.database
    def test_exact_name(self) -> None:
        """The name is exact: case counts, and so does the port."""
        self.add_destination("Host.example:8448")

        self.get_json(self.destination_path("Host.example:8448"))
        for name in ("host.example:8448", "Host.example", "Host.example:8448 "):
            channel = self.ask("GET", self.destination_path(name))
            self.assertEqual(channel.code, 404)
            self.assertEqual(
                channel.json_body,
                {"errcode": "M_NOT_FOUND", "error": "Unknown destination"},
            )

    def test_names_in_paths(self) -> None:
        """Names with ports and IPv6 literals work raw and percent-encoded."""
        for name, paths in (
            ("host:8448", ("host:8448", "host%3A8448", "host%3a8448")),
            (
                "[2001:db8::1]:8448",
                ("[2001:db8::1]:8448", "%5B2001%3Adb8%3A%3A1%5D%3A8448"),
            ),
            ("1.2.3.4", ("1.2.3.4",)),
            ("weird/name", ("weird%2Fname",)),
            ("wéird", ("w%C3%A9ird",)),
        ):
            self.add_destination(name)
            self.add_room(name, "!room:example", 3)
            for path in paths:
                self.add_destination(name, 10, 20, 5, 7)
                url = f"{DESTINATIONS}/{path}"
                self.assertEqual(self.get_json(url)["destination"], name)
                self.assertEqual(self.get_json(url + "/rooms")["total"], 1)
                reset = self.ask("POST", url + "/reset_connection")
                self.assertEqual(reset.code, 200)

    @pytest.mark.database
    def test_truth_of_the_table(self) -> None:
        """After a manual UPDATE, list and detail both show what is in the table."""
        self.store_failure("a.example", 5)
        # Fills Synapse's cache, which the UPDATE then does not invalidate.
        self.assertTrue(self.timings("a.example"))
        self.add_destination("a.example", 100, 200, 50)

        detail = self.get_json(self.destination_path("a.example"))

        self.assertEqual(detail["retry_last_ts"], 100)
        self.assertEqual(self.get_json(DESTINATIONS)["destinations"], [detail])

    def test_empty_name(self) -> None:
        """An empty destination is 404, on every path."""
        for method, rest in (
            ("GET", "/"),
            ("GET", "//rooms"),
            ("POST", "//reset_connection"),
        ):
            channel = self.ask(method, DESTINATIONS + rest)
            self.assert_error(channel, 404, "M_NOT_FOUND")


@pytest.mark.database
class RoomsTestCase(ModuleTestCase):
    """GET destinations/<destination>/rooms."""

    def prepare(self, *args: Any) -> None:
        super().prepare(*args)
        self.add_destination("a.example")
        self.add_destination("other.example")
        for number in range(5):
            self.add_room("a.example", f"!{number}:example", 100 - number)
        self.add_room("other.example", "!0:example", 7)
        self.url = self.destination_path("a.example", "/rooms")

    def test_pages(self) -> None:
        """By room ID, in pages; `order_by` is ignored."""
        for query, expected, next_token in (
            ("", "01234", None),
            ("?dir=b", "43210", None),
            ("?order_by=id&dir=b", "43210", None),
            ("?order_by=&from=3", "34", None),
            ("?from=1&limit=2", "12", "3"),
            ("?from=3&limit=2", "34", None),
            ("?from=5", "", None),
            ("?limit=0", "", None),
            (f"?from={2**64}", "", None),
            (f"?limit={2**64}", "01234", None),
            ("?limit=5000&dir=b", "43210", None),
        ):
            body = self.get_json(self.url + query)
            rooms = "".join(room["room_id"][1] for room in body.pop("rooms"))
            self.assertEqual(rooms, expected, query)
            token = {"next_token": next_token} if next_token else {}
            self.assertEqual(body, {"total": 5, **token}, query)

    def test_no_rooms(self) -> None:
        """A destination without rooms has none; an unknown one is 404."""
        self.add_destination("quiet.example")
        body = self.get_json(self.destination_path("quiet.example", "/rooms"))
        self.assertEqual(body, {"rooms": [], "total": 0})

        path = self.destination_path("unknown.example", "/rooms?limit=x")
        self.assert_error(self.ask("GET", path), 404, "M_NOT_FOUND")


class BugTestCase(ModuleTestCase):
    """This module fails to answer, as something of Synapse's is not as it was."""

    def test_bug(self) -> None:
        """Synapse's own servlets answer, with its own check of who asks."""
        self.add_destination(NAME, *FAILING)
        one = self.destination_path(NAME)
        for method in ("run_db_interaction", "require_admin"):
            with (
                self.subTest(method),
                patch.object(Homeserver, method, side_effect=TypeError("no")),
                self.assertLogs("synapse_federation_admin", "ERROR") as logs,
            ):
                for path in (DESTINATIONS, f"{DESTINATIONS}?limit=5000"):
                    self.assertEqual(self.get_json(path)["total"], 1)
                self.assertEqual(self.get_json(one)["destination"], NAME)
                self.assertEqual(self.get_json(f"{one}/rooms")["total"], 0)
                refused = self.ask("GET", one, token=self.user_token)
                self.assertEqual(refused.code, 403)
                self.assertEqual(self.reset("unknown.example").code, 404)
            self.assertTrue(all(record.exc_info for record in logs.records))
        with patch.object(Homeserver, "run_db_interaction", side_effect=TypeError):
            self.assertEqual(self.reset().code, 200)
        self.assertIsNone(self.get_json(one)["failure_ts"])

    def test_column_gone(self) -> None:
        """So they do where a column that only ours reads changes while Synapse runs."""
        self.add_destination(NAME, *FAILING)
        table = "device_federation_outbox"
        self.run_sql(f"ALTER TABLE {table} RENAME COLUMN stream_id TO other")
        with self.assertLogs("synapse_federation_admin", "ERROR"):
            self.assertEqual(self.reset().code, 200)
        self.assertIsNone(self.get_json(self.destination_path(NAME))["failure_ts"])

    def test_switched_off_meanwhile(self) -> None:
        """So they do where it turns out while they are asked that something is missing.

        As at start, where Synapse's columns are looked at.
        """
        self.add_destination(NAME, *FAILING)
        require = Features.require

        def switch_off(features: Features, *wanted: Feature) -> None:
            for feature in {*wanted} - {Feature.BASE}:
                features.switch_off(feature, "it is gone")
            require(features, *wanted)

        with (
            patch.object(Features, "require", switch_off),
            self.assertLogs("synapse_federation_admin", "ERROR") as logs,
        ):
            self.assertEqual(self.get_json(DESTINATIONS)["total"], 1)
            self.assertEqual(self.reset().code, 200)
        self.assertFalse(any(record.exc_info for record in logs.records))
        self.assert_error(self.reset(), 400, "M_UNKNOWN")
