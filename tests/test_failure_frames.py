# SPDX-License-Identifier: Apache-2.0
"""What an error keeps alive once it is told, and an answer once it is read."""

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet import error as net
from twisted.internet.defer import Deferred, succeed
from twisted.internet.protocol import Protocol
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone, ResponseNeverReceived
from twisted.web.http_headers import Headers

from synapse_federation_admin.homeserver.agents import AttemptAgent
from synapse_federation_admin.homeserver.errors import RequestSendFailed, forget_frames

pytestmark = pytest.mark.one_synapse


class Local:
    """A local of a frame."""


def raised(kept: list[Any]) -> Exception:
    """Return an error from a frame that keeps a Failure of it, and a local."""
    local = Local()
    kept.append(weakref.ref(local))
    try:
        raise net.ConnectionRefusedError
    except net.ConnectionRefusedError as e:
        # From the Failure to the frame, and back.
        failure = Failure()
        failure.kept = failure.getTracebackObject()
        return e


def caused_by(inner: Exception) -> Exception:
    error = KeyError("outer")
    error.__cause__ = inner
    return error


def by_reason(inner: Exception) -> Exception:
    # A Failure made where the error is caught has its traceback too.
    try:
        raise inner
    except Exception:
        return ResponseNeverReceived([Failure()])


@pytest.mark.parametrize(
    "link",
    [
        lambda inner: inner,
        caused_by,
        lambda inner: RequestSendFailed(inner, can_retry=False),
        by_reason,
        lambda inner: by_reason(caused_by(inner)),
    ],
)
def test_forget(link: Callable[[Exception], Exception]) -> None:
    """Whatever links an error to another, neither keeps a frame alive: no garbage."""
    gc.collect()
    gc.disable()
    try:
        kept: list[Any] = []
        inner = raised(kept)
        outer = link(inner)
        assert kept[0]() is not None
        forget_frames(outer)
        assert inner.__traceback__ is None
        assert kept[0]() is None
    finally:
        gc.enable()


def test_forget_loop() -> None:
    """Errors that refer to each other in a circle are looked at once each."""
    a, b = KeyError("a"), KeyError("b")
    a.__context__, b.__context__ = b, a
    forget_frames(a)
    assert a.__context__ is b.__context__ is None


# How a body ends that is all there.
ENDED = Failure(ResponseDone())


class Answering:
    """An agent, and its answer."""

    code = 200
    phrase = b"OK"

    def __init__(self) -> None:
        self.headers = Headers()

    def request(self) -> "Deferred[Answering]":
        return succeed(self)

    def deliverBody(self, reader: Protocol) -> None:
        reader.connectionLost(ENDED)


def test_answer() -> None:
    """Neither an answer that is read nor its reader, which has the body, is garbage."""
    ended = []

    class Reader(Protocol):
        def connectionLost(self, reason: Failure = ENDED) -> None:
            ended.append(reason.type)

    answer, reader = Answering(), Reader()
    kept = weakref.ref(answer), weakref.ref(reader)
    gc.collect()
    gc.disable()
    try:
        AttemptAgent(answer).request()  # type: ignore[arg-type]
        answer.deliverBody(reader)
        del answer, reader
        assert ended == [ResponseDone]
        assert [each() for each in kept] == [None, None]
    finally:
        gc.enable()
