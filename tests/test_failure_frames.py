# SPDX-License-Identifier: Apache-2.0
"""What an error keeps alive once it is told."""

import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from twisted.internet import error as net
from twisted.python.failure import Failure
from twisted.web.client import ResponseNeverReceived

from synapse_federation_admin.failures.classify import forget_frames
from synapse_federation_admin.homeserver.errors import RequestSendFailed


class Local:
    """A local of a frame."""


def raised(kept: list[Any]) -> Exception:
    """Return an error from a frame that keeps a Failure of it, and a local."""

    def keeps_failure() -> None:
        local = Local()
        kept.append(weakref.ref(local))
        try:
            raise net.ConnectionRefusedError
        except net.ConnectionRefusedError:
            # From the Failure to the frame, and back.
            failure = Failure()
            failure.kept = failure.getTracebackObject()
            raise

    try:
        keeps_failure()
    except net.ConnectionRefusedError as e:
        return e
    raise AssertionError


def linked(name: str) -> Callable[[Exception], Exception]:
    def link(inner: Exception) -> Exception:
        error = KeyError("outer")
        setattr(error, name, inner)
        return error

    return link


def by_reason(inner: Exception) -> Exception:
    # A Failure made where the error is caught has its traceback too.
    try:
        raise inner
    except Exception:
        return ResponseNeverReceived([Failure()])


@pytest.fixture
def no_gc() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize(
    "link",
    [
        lambda inner: inner,
        linked("__cause__"),
        linked("__context__"),
        lambda inner: RequestSendFailed(inner, can_retry=False),
        by_reason,
        lambda inner: by_reason(linked("__cause__")(inner)),
    ],
)
@pytest.mark.usefixtures("no_gc")
def test_forget(link: Callable[[Exception], Exception]) -> None:
    """Whatever links an error to another, neither keeps a frame alive: no garbage."""
    kept: list[Any] = []
    inner = raised(kept)
    outer = link(inner)
    assert kept[0]() is not None
    forget_frames(outer)
    assert inner.__traceback__ is None
    assert kept[0]() is None


def test_forget_loop() -> None:
    """Errors that refer to each other in a circle are looked at once each."""
    a, b = KeyError("a"), KeyError("b")
    a.__context__, b.__context__ = b, a
    forget_frames(a)
    assert a.__context__ is b.__context__ is None
