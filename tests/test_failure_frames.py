# SPDX-License-Identifier: Apache-2.0
"""What an error keeps alive once it is told."""

import contextlib
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet import error as net
from twisted.python.failure import Failure
from twisted.web.client import ResponseNeverReceived

from synapse_federation_admin.failures.classify import forget_frames
from synapse_federation_admin.homeserver.errors import RequestSendFailed


class Local:
    """A local of a frame."""


def raised_in_frame(error: Exception, kept: list[Any]) -> None:
    local = Local()
    kept.append(weakref.ref(local))
    raise error


def really_raised(kept: list[Any]) -> Exception:
    error = net.ConnectionRefusedError()
    with contextlib.suppress(net.ConnectionRefusedError):
        raised_in_frame(error, kept)
    assert error.__traceback__ is not None
    return error


def by_cause(inner: Exception) -> Exception:
    error = KeyError("outer")
    error.__cause__ = inner
    return error


def by_context(inner: Exception) -> Exception:
    error = KeyError("outer")
    error.__context__ = inner
    return error


def by_inner_exception(inner: Exception) -> Exception:
    return RequestSendFailed(inner, can_retry=False)


def by_reason(inner: Exception) -> Exception:
    # A Failure made where the error is caught has its traceback too.
    try:
        raise inner
    except Exception:
        reason = Failure()
    assert reason.tb is not None
    return ResponseNeverReceived([reason])


def by_cause_of_reason(inner: Exception) -> Exception:
    return by_reason(by_cause(inner))


LINKS = [by_cause, by_context, by_inner_exception, by_reason, by_cause_of_reason]


@pytest.mark.parametrize("link", LINKS)
def test_forget_each_link(link: Callable[[Exception], Exception]) -> None:
    """Whatever links an error to another, the other keeps no frame alive either."""
    gc.collect()
    gc.disable()
    try:
        kept: list[Any] = []
        inner = really_raised(kept)
        outer = link(inner)
        (local,) = kept
        assert local() is not None
        forget_frames(outer)
        assert inner.__traceback__ is None
        assert outer.__cause__ is None
        assert outer.__context__ is None
        for reason in getattr(outer, "reasons", ()):
            assert reason.tb is None
        assert local() is None
    finally:
        gc.enable()


def test_forget_loop() -> None:
    """Errors that refer to each other in a circle are looked at once each."""
    a, b = KeyError("a"), KeyError("b")
    a.__context__, b.__context__ = b, a
    forget_frames(a)
    assert a.__context__ is b.__context__ is None


def test_forget_own_failure() -> None:
    """A frame that keeps a Failure of what it has raised is emptied: no garbage."""
    gc.collect()
    gc.disable()
    try:
        kept: list[Any] = []

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

        error: Exception | None = None
        try:
            keeps_failure()
        except net.ConnectionRefusedError as e:
            error = e
        assert error is not None
        assert kept[0]() is not None
        forget_frames(error)
        assert kept[0]() is None
    finally:
        gc.enable()
