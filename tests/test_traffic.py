# SPDX-License-Identifier: Apache-2.0
"""What Synapse says of its federation requests, taken from Synapse's own code.

Every line that is taken comes from the real code here, down to a fake transport: if
another release words it differently, these tests are to fail.
"""

import contextlib
import inspect
import linecache
import logging
import logging.config
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from parameterized import parameterized
from synapse.federation.transport.server import _base as federation_server
from synapse.http import matrixfederationclient
from synapse.http.matrixfederationclient import (
    MatrixFederationHttpClient,
    MatrixFederationRequest,
)
from synapse.logging.context import LoggingContext
from synapse.util import retryutils
from twisted.internet import error as net
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.testing import StringTransport

from synapse_federation_admin.homeserver import relied_on, traffic
from synapse_federation_admin.homeserver.errors import (
    HttpResponseException,
    Obstacle,
    ObstacleError,
)
from tests import unittest

NAME = "a.example:8448"
MODULES = (retryutils, federation_server, matrixfederationclient)

# What an operator may have made of the loggers: (level, whether they are disabled).
LEVELS = [
    ("debug", logging.DEBUG, False),
    ("info", logging.INFO, False),
    ("warning", logging.WARNING, False),
    ("disabled", logging.DEBUG, True),
]


class Seen:
    """An observer that remembers what it was told."""

    def __init__(self) -> None:
        self.failures: list[tuple[str, BaseException]] = []
        self.recoveries: list[str] = []
        self.have_answered: list[bool] = []
        self.answers: list[str] = []
        self.sizes: list[int] = []

    def failed(self, destination: str, error: BaseException, size_bytes: int) -> None:
        self.failures.append((destination, error))
        self.sizes.append(size_bytes)

    def recovered(self, destination: str, *, has_answered: bool) -> None:
        self.recoveries.append(destination)
        self.have_answered.append(has_answered)

    def answered(self, destination: str, size_bytes: int) -> None:
        self.answers.append(destination)
        self.sizes.append(size_bytes)


class Lines(logging.Handler):
    """Keeps the records of the loggers that are observed."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def of(self, template: str) -> list[logging.LogRecord]:
        """Return the records with a text, to the letter."""
        return [record for record in self.records if record.msg == template]


class TrafficTestCase(unittest.HomeserverTestCase):
    """A homeserver of which somebody is told."""

    def default_config(self) -> dict[str, Any]:
        return {
            **super().default_config(),
            "federation_ip_range_blacklist": ["10.0.0.0/8"],
        }

    def prepare(self, *args: Any) -> None:
        self.store = self.hs.get_datastores().main
        # At 0 nothing can have failed: that stands for never.
        self.reactor.advance(1000)
        self.seen = Seen()
        self.patch(traffic, "_observers", {})
        traffic.observe(self.hs, self.seen)
        self.client = MatrixFederationHttpClient(self.hs, None)
        self.reactor.lookups["a.example"] = "1.2.3.4"
        self.reactor.lookups["c.example"] = "1.2.3.5"
        self.reactor.lookups["inside.example"] = "10.1.2.3"

    @contextmanager
    def lines(
        self, level: int = logging.DEBUG, disabled: bool = False
    ) -> Iterator[Lines]:
        """Have the lines of Synapse's loggers that come out."""
        found = Lines()
        loggers = [logging.getLogger(module.__name__) for module in MODULES]
        before = [(one.level, one.disabled) for one in loggers]
        for one in loggers:
            one.setLevel(level)
            one.disabled = disabled
            one.addHandler(found)
        try:
            yield found
        finally:
            for one, (old_level, old_disabled) in zip(loggers, before, strict=True):
                one.setLevel(old_level)
                one.disabled = old_disabled
                one.removeHandler(found)

    def limiter(self, name: str = NAME, **kwargs: Any) -> Any:
        """Return Synapse's retry limiter, as its client gets it."""
        return self.get_success(
            retryutils.get_retry_limiter(
                destination=name,
                our_server_name=self.hs.hostname,
                hs=self.hs,
                clock=self.clock,
                store=self.store,
                **kwargs,
            )
        )

    def fail_with(self, error: BaseException, name: str = NAME, **kwargs: Any) -> None:
        """Have a request fail within Synapse's retry limiter."""
        limiter = self.limiter(name, **kwargs)
        with self.assertRaises(type(error)), limiter:
            raise error
        self.pump()

    def mark_up(self, name: str) -> None:
        """Do what Synapse does when a server that was failing asks us something."""
        authenticator = federation_server.Authenticator(self.hs)
        self.get_success(ensureDeferred(authenticator.reset_retry_timings(name)))

    def request(self, name: str = NAME) -> "Deferred[Any]":
        """Begin a request of Synapse's client."""
        request = ensureDeferred(self.client.get_json(name, "/path", timeout=10_000))
        self.pump()
        return request

    def answer(self, status: str, headers: str = "") -> None:
        """Answer the last request."""
        *_, (_, _, factory, _, _) = self.reactor.tcpClients
        protocol = factory.buildProtocol(None)
        transport = StringTransport()
        protocol.makeConnection(transport)
        protocol.dataReceived(
            f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\n{headers}"
            "Content-Length: 2\r\n\r\n{}".encode()
        )
        self.pump()


class LinesTestCase(TrafficTestCase):
    """Each template is what Synapse says: wording, arguments, level and logger."""

    def prepare(self, *args: Any) -> None:
        super().prepare(*args)
        self.fail_with(HttpResponseException(500, "no", b""), "b.example")
        self.reactor.advance(3600)
        self.seen.failures.clear()

    def meet_all(self) -> HttpResponseException:
        """Have Synapse say each of them; return why NAME failed."""
        error = HttpResponseException(500, "no", b"")
        self.fail_with(error)
        # Nothing is said of one that was in order before.
        for name in ("b.example", "e.example"):
            with self.limiter(name):
                pass
        self.mark_up("d.example")
        request = self.request("c.example:8448")
        self.answer("200 OK")
        self.assertEqual(self.successResultOf(request), {})
        self.failureResultOf(self.request("inside.example:8448"))
        return error

    def assert_all_taken(self, error: BaseException) -> None:
        first, (blocked, _) = self.seen.failures
        self.assertEqual((first, blocked), ((NAME, error), "inside.example:8448"))
        recovered = zip(self.seen.recoveries, self.seen.have_answered, strict=True)
        self.assertEqual([*recovered], [("b.example", True), ("d.example", False)])
        self.assertEqual(self.seen.answers, ["c.example:8448"])

    def test_lines(self) -> None:
        """Each is said once, with where Synapse's code says it."""
        with self.lines() as lines:
            error = self.meet_all()
        interval_ms = self.hs.config.federation.destination_min_retry_interval_ms
        of_blocked = lines.of(relied_on.FAILED).pop()
        self.assertIn("inside.example:8448", of_blocked.getMessage())
        lines.records.remove(of_blocked)
        for text, module, level, args in (
            (
                *(relied_on.FAILED, retryutils, "info"),
                (NAME, type(error), error, interval_ms),
            ),
            (relied_on.RECOVERED, retryutils, "debug", ("b.example",)),
            (relied_on.MARKED_UP, federation_server, "info", ("d.example",)),
            (
                *(relied_on.ANSWERED, matrixfederationclient, "debug"),
                (mock.ANY, "c.example:8448", 200, "OK"),
            ),
        ):
            (record,) = lines.of(text)
            self.assertEqual(record.args, args)
            self.assertEqual(record.levelname.lower(), level)
            self.assertEqual(record.name, module.__name__)
            self.assertEqual(record.pathname, inspect.getsourcefile(module))
            said = linecache.getline(record.pathname, record.lineno).strip()
            self.assertTrue(said.startswith(f"logger.{level}("), said)

    @parameterized.expand([("404 Not Found",), ("302 Found",), ("500 No",)])
    def test_answered_otherwise(self, status: str) -> None:
        """An answer that is not 2xx is said in the same words, and is no success."""
        with self.lines() as lines:
            request = self.request()
            self.answer(status)
        self.failureResultOf(request)
        (record,) = lines.of(relied_on.ANSWERED)
        self.assertEqual(record.levelno, logging.INFO)
        self.assertEqual(self.seen.answers, [])
        backs_off = status.startswith("500")
        self.assertEqual(len(self.seen.failures), int(backs_off))

    @parameterized.expand(LEVELS)
    def test_level(self, what: str, level: int, disabled: bool) -> None:
        """All is taken whatever the level; just what the level allows is logged."""
        with self.lines(level, disabled) as lines:
            error = self.meet_all()
        self.assert_all_taken(error)
        logged = {text: len(lines.of(text)) for text in relied_on.LOG_TEXTS}
        info = int(level <= logging.INFO and not disabled)
        debug = int(level <= logging.DEBUG and not disabled)
        self.assertEqual(
            logged,
            {
                relied_on.FAILED: 2 * info,
                relied_on.MARKED_UP: info,
                relied_on.RECOVERED: debug,
                relied_on.ANSWERED: debug,
            },
        )

    @parameterized.expand([("ERROR", False), ("DEBUG", False), ("DEBUG", True)])
    def test_configured_anew(self, level: str, disables: bool) -> None:
        """All is taken after Synapse has read its logging configuration again.

        As on SIGHUP.
        """
        known = [
            (one, one.disabled)
            for one in logging.Logger.manager.loggerDict.values()
            if isinstance(one, logging.Logger)
        ]
        try:
            with self.lines():
                config = {
                    "version": 1,
                    "disable_existing_loggers": disables,
                    # A logger that is named is not disabled.
                    "loggers": {}
                    if disables
                    else {module.__name__: {"level": level} for module in MODULES},
                }
                logging.config.dictConfig(config)
                error = self.meet_all()
        finally:
            for one, was_disabled in known:
                one.disabled = was_disabled
        self.assert_all_taken(error)


class CountedTestCase(TrafficTestCase):
    """What is a failure, and what is not."""

    def test_redirected(self) -> None:
        """A redirected request that fails counts once, though it is said twice."""
        with self.lines() as lines:
            request = ensureDeferred(
                self.client._send_request(
                    MatrixFederationRequest(
                        method="GET", destination=NAME, path="/path"
                    ),
                    timeout=10_000,
                    follow_redirects=True,
                )
            )
            self.pump()
            self.answer("307 Over there", f"Location: https://{NAME}/there\r\n")
            self.answer("500 No")
        self.failureResultOf(request)
        self.assertEqual(len(lines.of(relied_on.FAILED)), 2)
        self.assertEqual(len(self.seen.failures), 1)

    @parameterized.expand([(400,), (403,), (404,), (410,)])
    def test_backs_off_not(self, code: int) -> None:
        """An error after which Synapse does not back off is none."""
        with self.lines() as lines:
            self.fail_with(HttpResponseException(code, "no", b""))
        self.assertEqual(lines.of(relied_on.FAILED), [])
        self.assertEqual(self.seen.failures, [])

    def test_ignores_backoff(self) -> None:
        """A request that ignores the backoff, and leaves it alone, does not count."""
        self.fail_with(HttpResponseException(500, "no", b""), ignore_backoff=True)
        self.assertEqual(self.seen.failures, [])

    def test_same_error_twice(self) -> None:
        """Errors that are equal, but not the same, count each."""
        for _ in range(3):
            self.fail_with(HttpResponseException(500, "no", b""))
            self.reactor.advance(7 * 86400)
        self.assertEqual(len(self.seen.failures), 3)


class ObserversTestCase(TrafficTestCase):
    def observe(self, logger: logging.Logger) -> None:
        """Have Synapse's loggers be another one, and be observed."""
        with mock.patch.object(traffic.logging, "getLogger", return_value=logger):
            traffic.observe(self.hs, self.seen)

    def test_two_homeservers(self) -> None:
        """With two homeservers in a process each is told of its own requests."""
        other = Seen()
        with mock.patch.object(self.hs, "hostname", "other.example"):
            traffic.observe(self.hs, other)
        for name in (self.hs.hostname, "other.example", "third.example"):
            with LoggingContext(name="request", server_name=name):
                retryutils.logger.info(
                    relied_on.FAILED, f"for.{name}", KeyError, KeyError(), 1
                )
        self.assertEqual(
            [n for n, _ in self.seen.failures], [f"for.{self.hs.hostname}"]
        )
        self.assertEqual([n for n, _ in other.failures], ["for.other.example"])

    def test_observed_once(self) -> None:
        """A logger that is observed already stays as it is."""
        before = type(retryutils.logger)
        traffic.observe(self.hs, self.seen)
        self.assertIs(type(retryutils.logger), before)
        self.fail_with(HttpResponseException(500, "no", b""))
        self.assertEqual(len(self.seen.failures), 1)

    def test_class_of_somebody_else(self) -> None:
        """A logger of a class of somebody else's goes on as one of that class."""

        class Theirs(logging.Logger):
            def info(self, msg: object, *args: object, **kwargs: Any) -> None:
                theirs.append(msg)
                super().info(msg, *args, **kwargs)

        theirs: list[object] = []
        logger = Theirs("theirs", logging.INFO)
        logger.addHandler(lines := Lines())
        self.observe(logger)
        logger.info(relied_on.FAILED, NAME, KeyError, error := KeyError(), 1)
        self.assertIsInstance(logger, Theirs)
        self.assertEqual(theirs, [relied_on.FAILED])
        self.assertEqual(len(lines.records), 1)
        self.assertEqual(self.seen.failures, [(NAME, error)])

    def test_stacklevel(self) -> None:
        """Who has asked for another stack level gets that of their caller."""
        lines = Lines()
        logger = logging.Logger("own", logging.DEBUG)
        logger.addHandler(lines)
        self.observe(logger)

        def helper() -> None:
            logger.info("a", stacklevel=2)
            logger.debug("b", stacklevel=2)

        logger.info("c")
        helper()
        own = "test_stacklevel"
        self.assertEqual([r.funcName for r in lines.records], [own, own, own])
        self.assertEqual({r.pathname for r in lines.records}, {__file__})

    @parameterized.expand([((),), ((1,),), ((1, 2, 3, 4, 5),), ((None,) * 4,)])
    def test_other_arguments(self, args: tuple[object, ...]) -> None:
        """Arguments that are not Synapse's do no harm to the request."""
        self.seen.failed = mock.Mock()  # type: ignore[method-assign]
        with self.lines(logging.ERROR):
            for text in relied_on.LOG_TEXTS:
                with mock.patch.object(traffic.logger, "exception"):
                    retryutils.logger.info(text, *args)
        self.seen.failed.assert_not_called()

    def test_observer_raises(self) -> None:
        """What is wrong in an observer is logged, and the request goes on."""
        self.seen.failed = mock.Mock(side_effect=KeyError("wrong"))  # type: ignore[method-assign]
        with self.assertLogs(traffic.logger, "ERROR") as logs, self.lines() as lines:
            self.fail_with(HttpResponseException(500, "no", b""))
        self.assertEqual(len(logs.records), 1)
        self.assertIn("Could not take note of", logs.records[0].getMessage())
        self.assertEqual(len(lines.of(relied_on.FAILED)), 1)

    def test_shutdown(self) -> None:
        """When the homeserver ends, nobody is told any more."""
        ending = self.hs._sync_shutdown_handlers[-1]
        ending.func(**ending.kwargs)
        self.fail_with(HttpResponseException(500, "no", b""))
        self.assertEqual(self.seen.failures, [])

    def test_cause(self) -> None:
        """What is known to have stopped a request is told in place of what is raised.

        Of two to one server that run at once, each has its own; and its own size.
        """
        causes = [ObstacleError(Obstacle.NO_SERVICE), None]
        met: list[Deferred[None]] = [Deferred(), Deferred()]
        errors = [net.ConnectError(), net.ConnectError()]

        async def fail(number: int) -> None:
            limiter = self.limiter()
            with contextlib.suppress(net.ConnectError), limiter:
                watched = traffic.watch(NAME, 10 + number)
                await met[number]
                watched.cause = causes[number]
                raise errors[number]

        for number in (0, 1):
            ensureDeferred(fail(number))
        for number in (1, 0):
            met[number].callback(None)
            self.pump()
        told = [causes[number] or errors[number] for number in (1, 0)]
        self.assertEqual(self.seen.failures, [(NAME, error) for error in told])
        self.assertEqual(self.seen.sizes, [11, 10])
        # What is known of a request is not told of another.
        error = net.ConnectError()
        traffic.watch("other.example", 5).cause = causes[0]
        self.fail_with(error, "b.example")
        self.assertEqual(self.seen.failures[-1], ("b.example", error))
