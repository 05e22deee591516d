# SPDX-License-Identifier: Apache-2.0
"""Agents that tell an attempt what stops a request: one of our own, or of Synapse's."""

import logging
from collections.abc import Callable
from contextvars import ContextVar
from functools import partial
from typing import Any

import attr
from synapse.http.client import BlocklistingAgentWrapper
from synapse.http.federation.matrix_federation_agent import MatrixFederationAgent
from synapse.http.federation.well_known_resolver import WellKnownResolver
from synapse.logging.context import PreserveLoggingContext, current_context
from synapse.module_api import run_in_background
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionAborted
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.python.failure import Failure
from twisted.web.client import URI, Agent
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IAgentEndpointFactory, IBodyProducer, IResponse
from zope.interface import implementer

from synapse_federation_admin import limits
from synapse_federation_admin.homeserver.attempt import Attempt
from synapse_federation_admin.homeserver.errors import BodyExceededMaxSize, stumbled_in
from synapse_federation_admin.homeserver.features import NOT_AS_EXPECTED
from synapse_federation_admin.homeserver.relay import Relay
from synapse_federation_admin.homeserver.traffic import Watched, watch

# That of the observed request within which the code runs.
current_attempt: ContextVar[Attempt] = ContextVar("current_attempt")

logger = logging.getLogger(__name__)

# From this HTTP status on an answer is no success.
_ERROR = 300


@implementer(IAgent)
class AttemptAgent:
    """Makes a request of our own, and tells what has stopped it.

    Synapse logs the status line of an answer, its `Content-Type`, and what of it cannot
    be parsed, as the server has sent it. A hostile server could write to the log what
    it likes, and as much: so that is made printable ASCII, and bounded.
    """

    def __init__(self, agent: IAgent, attempt: Attempt | None = None) -> None:
        """Wrap an agent.

        Args:
            agent: Makes the request.
            attempt: What it has for a reactor; None: another process goes out.
        """
        self._agent = agent
        self._attempt = attempt

    def request(self, *args: Any, **kwargs: Any) -> "Deferred[IResponse]":
        """Make a request: see `twisted.web.iweb.IAgent`."""
        return self._agent.request(*args, **kwargs).addCallbacks(self._plain, self._why)

    def _plain(self, response: IResponse) -> IResponse:
        attempt = self._attempt
        wrong = attempt.wrong_delegation if attempt else None
        if wrong is not None and response.code >= _ERROR:
            # Of a path in it becomes one of the request, which nobody knows there.
            raise wrong
        response.deliverBody = partial(_deliver, attempt, response)  # type: ignore[method-assign]  # of this object alone
        response.phrase = _plain_text(response.phrase).encode()
        headers = response.headers.getRawHeaders(b"Content-Type")
        if headers is not None:
            response.headers.setRawHeaders(
                b"Content-Type", [_plain_text(headers[0]).encode()]
            )
        return response

    def _why(self, failure: Failure) -> Failure:
        assert failure.value is not None
        error = failure.value
        if self._attempt is not None:
            error = self._attempt.explained(error)
        _make_plain(error)
        return failure if error is failure.value else Failure(error)


def _deliver(attempt: Attempt | None, response: Any, reader: Any) -> None:
    """Deliver a body; that it is cut off by this side is no fault of the other's.

    What stands in place of methods is taken away again: else body and all would be in
    memory until the garbage is collected.
    """

    def connection_lost(reason: Failure) -> None:
        del reader.connectionLost
        reasons = getattr(reason.value, "reasons", ())
        # Where another process goes out, only the connection to that is bounded here.
        is_aborted = any(each.check(ConnectionAborted) for each in reasons)
        if is_aborted if attempt is None else attempt.is_dropped:
            reason = Failure(BodyExceededMaxSize(limits.CONNECTION_BYTES))
        reader.connectionLost(reason)

    del response.deliverBody
    reader.connectionLost = connection_lost
    response.deliverBody(reader)


def _make_plain(error: BaseException) -> None:
    error.args = tuple(
        _plain_text(arg) if isinstance(arg, str | bytes) else arg for arg in error.args
    )
    for reason in getattr(error, "reasons", ()):
        _make_plain(reason.value)


def _plain_text(text: str | bytes) -> str:
    """Return a text as it may be logged."""
    if isinstance(text, bytes):
        text = text[: limits.LOGGED].decode("latin-1")
    return ascii(text[: limits.LOGGED])[1:-1][: limits.LOGGED]


@implementer(IAgent)
@attr.s(auto_attribs=True, eq=False)
class ObservedAgent:
    """Makes Synapse's own requests as Synapse does, and tells what has stopped them.

    Synapse gets what it would have got: a response, or the same exception; but where it
    makes another process's request, and only returns the exception's text, that tells.

    Args:
        unobserved: Synapse's agent: makes requests if they cannot be observed.
        observed: Makes them as that does, and tells the current attempt.
        begin: Begins an attempt.
        relay: Tells other processes whose requests these are.
        describe: Says for them what has stopped one.
    """

    _unobserved: BlocklistingAgentWrapper
    _observed: IAgent
    _begin: Callable[[], Attempt]
    _relay: Relay
    _describe: Callable[[BaseException], str]

    @property
    def _agent(self) -> IAgent:
        """There it is looked for what is cached of well-known files."""
        return self._unobserved._agent

    def request(
        self,
        method: bytes,
        uri: bytes,
        headers: Headers | None = None,
        bodyProducer: IBodyProducer | None = None,  # noqa: N803
    ) -> "Deferred[IResponse]":
        """Make a request: see `twisted.web.iweb.IAgent`."""
        try:
            attempt = self._begin()
            is_for_another = self._relay.is_for_another()
            # A redirect may lead anywhere, and nowhere.
            authority = uri.partition(b"//")[2].partition(b"/")[0]
            length = bodyProducer.length if bodyProducer is not None else 0
            watched = watch(
                authority.decode("ascii", "replace"),
                length if isinstance(length, int) else 0,
            )
        except Exception:
            # Whatever is wrong here, the request goes on.
            logger.exception("A federation request is not observed")
            return self._unobserved.request(method, uri, headers, bodyProducer)
        current = current_attempt.set(attempt)
        try:
            # Called off, it may go on for long: Synapse takes that for an answer that
            # there is no well-known file. It must not end in the caller's log context.
            asked = run_in_background(
                self._observed.request, method, uri, headers, bodyProducer
            )
        finally:
            current_attempt.reset(current)
        context = current_context()
        is_called_off = False
        # Why it is made again, if it is.
        stopped: Failure | None = None

        def call_off(_: object) -> None:
            # Afterwards nobody knows what it was waiting for.
            nonlocal is_called_off
            self._tell(watched, attempt, CancelledError())
            is_called_off = True
            asked.cancel()

        def answered(response: IResponse) -> None:
            if stopped is not None:
                _log_bug(stopped)
            if not answer.called:
                is_error = response.code >= _ERROR and attempt.wrong_delegation
                self._tell(watched, attempt, ValueError() if is_error else None)
                answer.callback(response)

        def failed(failure: Failure) -> None:
            nonlocal asked, stopped
            if answer.called:
                return
            assert failure.value is not None
            is_bug = isinstance(failure.value, NOT_AS_EXPECTED)
            if stumbled_in(failure.value).startswith("twisted."):
                # By what the other server has sent.
                is_bug = False
            if is_bug and stopped is None and not is_called_off:
                # Perhaps one of ours, which must not stop real traffic.
                stopped = failure
                with PreserveLoggingContext(context):
                    asked = run_in_background(
                        self._unobserved.request, method, uri, headers, bodyProducer
                    )
                asked.addCallbacks(answered, failed)
                return
            if stopped is not None and stopped.type is not failure.type:
                _log_bug(stopped)
            if is_for_another:
                failure = self._relayed(attempt, failure)
            elif not is_called_off:
                self._tell(watched, attempt, failure.value)
            answer.errback(failure)

        answer: Deferred[IResponse] = Deferred(call_off)
        asked.addCallbacks(answered, failed)
        return answer

    def _relayed(self, attempt: Attempt, failure: Failure) -> Failure:
        """Return a failure as another process of this homeserver is told of it."""
        try:
            assert failure.value is not None
            cause = attempt.explained(failure.value)
            return Failure(self._relay.signed(self._describe(cause)))
        except Exception:
            logger.exception("Could not tell another process why a request failed")
            return failure

    @staticmethod
    def _tell(watched: Watched, attempt: Attempt, error: BaseException | None) -> None:
        """Tell, before Synapse hears of it."""
        try:
            cause = None if error is None else attempt.explained(error)
            watched.cause = None if cause is error else cause
        except Exception:
            logger.exception("Could not tell what has stopped a federation request")


def _log_bug(stopped: Failure) -> None:
    """Log what has stopped a request that Synapse's own agent was not stopped by."""
    error = stopped.value
    assert error is not None
    logger.error(
        "A federation request was made again",
        exc_info=(type(error), error, stopped.getTracebackObject()),
    )


@implementer(IAgentEndpointFactory)
class AttemptEndpoints:
    """Makes endpoints that tell the current attempt what they meet."""

    def __init__(
        self, made_for: Callable[[Attempt, URI], IStreamClientEndpoint]
    ) -> None:
        self._made_for = made_for

    def endpointForURI(self, uri: URI) -> IStreamClientEndpoint:
        """Return what connects: see `twisted.web.iweb.IAgentEndpointFactory`."""
        return self._made_for(current_attempt.get(), uri)


class ObservedDirectAgent(MatrixFederationAgent):
    """Makes requests as Synapse's agent does, over the connections of that.

    What each of them meets is told to its own attempt, the current one.
    """

    def __init__(
        self,
        direct: MatrixFederationAgent,
        well_known_resolver: WellKnownResolver,
        endpoints: AttemptEndpoints,
    ) -> None:
        # Whatever else a later release needs to make a request.
        vars(self).update(vars(direct))
        self._well_known_resolver = well_known_resolver
        self._agent = Agent.usingEndpointFactory(
            direct._agent._reactor, endpoints, pool=direct._pool
        )
