# SPDX-License-Identifier: Apache-2.0
"""What stands around the agent that makes Synapse's federation requests."""

import contextlib
from collections.abc import Sequence
from itertools import count
from typing import Any
from unittest import mock

from synapse.http.matrixfederationclient import MatrixFederationHttpClient
from synapse.logging.context import (
    SENTINEL_CONTEXT,
    LoggingContext,
    PreserveLoggingContext,
    current_context,
    make_deferred_yieldable,
    run_in_background,
)
from twisted.internet import error as net
from twisted.internet.defer import CancelledError, Deferred, ensureDeferred, fail
from twisted.web.http import stringToDatetime

from synapse_federation_admin import limits
from synapse_federation_admin.failures.classify import failure_of
from synapse_federation_admin.failures.kinds import FailureKind
from synapse_federation_admin.homeserver import agents, traffic
from synapse_federation_admin.homeserver.agents import ObservedAgent
from synapse_federation_admin.homeserver.attempt import Attempt
from synapse_federation_admin.homeserver.delegation import AttemptWellKnownResolver
from synapse_federation_admin.homeserver.errors import WithoutFileError
from synapse_federation_admin.homeserver.homeserver import (
    Homeserver,
    logger as homeserver_logger,
)
from synapse_federation_admin.homeserver.relay import Relay
from tests import unittest


class ObservedTestCase(unittest.HomeserverTestCase):
    def agent(self, inner: Any, attempts: Sequence[Attempt] = ()) -> ObservedAgent:
        """Return one around another agent, with some attempts, or as many as asked."""
        made = attempts or (Attempt(self.reactor, mock.Mock()) for _ in count())
        return ObservedAgent(
            *(mock.Mock(), inner, iter(made).__next__, Relay(self.hs), str)
        )

    def test_later_release(self) -> None:
        """Who makes an observed request has all that Synapse's own agent has."""
        client = MatrixFederationHttpClient(self.hs, mock.Mock())
        direct = client.agent._agent  # type: ignore[attr-defined]  # IAgent's have none
        direct.of_a_later_release = 5
        with mock.patch.object(
            self.hs, "get_federation_http_client", return_value=client
        ):
            Homeserver(self.hs.get_module_api()).learn_causes(str)
        self.assertIsInstance(client.agent, ObservedAgent)
        made: Any = client.agent._observed
        self.assertLessEqual(set(vars(direct)), set(vars(made._agent)))
        self.assertEqual(made._agent.of_a_later_release, 5)

    def test_not_as_expected(self) -> None:
        """A request that a bug of ours stops is made by Synapse's own agent."""
        inner = mock.Mock()
        for own, is_ours in ((None, True), (OSError(), True), (TypeError(), False)):
            inner.request.return_value = fail(TypeError())
            agent: Any = self.agent(inner)
            agent._unobserved.request = mock.AsyncMock(
                side_effect=own, return_value=mock.Mock(code=200)
            )
            # What Synapse itself stumbles over, by another server's fault, is none.
            logs = self.assertLogs if is_ours else self.assertNoLogs
            with logs(agents.logger, "ERROR"):
                asked = agent.request(b"GET", b"matrix-federation://a.example/")
            if own is None:
                self.successResultOf(asked)
            else:
                self.failureResultOf(asked, type(own))

    def test_called_off_by_a_bug(self) -> None:
        """A request that is called off is not made again, whatever that leads to."""
        inner = mock.Mock()
        inner.request.return_value = Deferred(lambda asked: asked.errback(TypeError()))
        agent: Any = self.agent(inner)
        asked = agent.request(b"GET", b"matrix-federation://a.example/")
        asked.cancel()
        self.failureResultOf(asked, TypeError)
        agent._unobserved.request.assert_not_called()

    def test_stumbled(self) -> None:
        """What another server has Synapse stumble over is not asked for again."""
        inner = mock.Mock()
        try:
            stringToDatetime(b"")
        except IndexError as e:
            inner.request.return_value = fail(e)
        agent: Any = self.agent(inner)
        asked = agent.request(b"GET", b"matrix-federation://a.example/")
        self.failureResultOf(asked, IndexError)
        agent._unobserved.request.assert_not_called()

    def test_redirected_nowhere(self) -> None:
        """A redirect to what is no URL fails as it does in Synapse."""
        inner = mock.Mock()
        agent = self.agent(inner)
        for uri in (b"", b"elsewhere", b"https:", b"//", b"/path"):
            inner.request.return_value = fail(AssertionError())
            self.failureResultOf(agent.request(b"GET", uri), AssertionError)
            watched = traffic._watched.get()
            assert watched is not None
            self.assertEqual((watched.name, watched.cause), ("", None))

    def test_file_of_no_host(self) -> None:
        """A file is done without as in Synapse, whatever is wrong in telling why."""
        odd = b"https://[v1." + b"a" * limits.TEXT + b"]/"
        for goes_through_proxy, is_told in (
            (mock.Mock(return_value=False), True),
            (mock.Mock(side_effect=AttributeError), False),
        ):
            attempt = Attempt(self.reactor, mock.Mock())

            def ask(*_: object, urls: list[bytes] = attempt.file_urls) -> Any:
                # A redirect has led there.
                urls.append(odd)
                return fail(net.ConnectionRefusedError())

            def make(_: object, ask: Any = ask) -> Any:
                return mock.Mock(request=ask)

            resolver = AttemptWellKnownResolver(
                mock.Mock(return_value=attempt),
                make,
                goes_through_proxy,
                server_name=self.hs.hostname,
                clock=self.clock,
                reactor=self.reactor,
                user_agent=b"",
            )
            found = self.get_success(resolver.get_well_known(b"a.example"))
            self.assertIsNone(found.delegated_server)
            self.assertEqual(attempt.file is not None, is_told)
            if attempt.file is not None:
                error = WithoutFileError(attempt.file, net.ConnectionRefusedError())
                self.assertIs(
                    failure_of(error).kind, FailureKind.WELL_KNOWN_UNREACHABLE
                )

    def test_log_context(self) -> None:
        """What goes on after a request was called off ends in no log context.

        Else whatever Synapse does next fails: its clock wants to begin in none.
        """

        async def asked(*_: object) -> Any:
            for waits in waiting:
                # Synapse takes that it is called off for an answer, and goes on.
                with contextlib.suppress(CancelledError):
                    await make_deferred_yieldable(waits)
            return mock.Mock(code=200)

        waiting: list[Deferred[None]] = [Deferred(), Deferred()]
        inner = mock.Mock(request=lambda *args: ensureDeferred(asked(*args)))
        agent = self.agent(inner)
        with LoggingContext(name="a", server_name="a.example"):
            answer = run_in_background(agent.request, b"GET", b"matrix://a")
            with PreserveLoggingContext():
                answer.cancel()
        self.failureResultOf(answer, CancelledError)
        waiting[1].callback(None)
        self.assertIs(current_context(), SENTINEL_CONTEXT)

    def test_other_client(self) -> None:
        """Where Synapse's client is another, or got otherwise, it is said what is lost.

        It is no more than that: the rest of the history goes on, and the client stays.
        """
        other = mock.Mock(agent=mock.Mock(spec=[]))
        homeserver = Homeserver(self.hs.get_module_api())
        for getting in ({"return_value": other}, {"side_effect": AttributeError}):
            with (
                mock.patch.object(self.hs, "get_federation_http_client", **getting),
                self.assertLogs(homeserver_logger, "WARNING") as logs,
            ):
                homeserver.learn_causes(str)
            self.assertIn("many alike", logs.records[0].getMessage())
        self.assertNotIsInstance(other.agent, ObservedAgent)
