# SPDX-License-Identifier: Apache-2.0
"""Answers that are written while they are read, at the pace of the client."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from http import HTTPStatus

from synapse.module_api import SynapseRequest, make_deferred_yieldable
from synapse.module_api.errors import Codes, SynapseError
from twisted.internet.defer import (
    Deferred,
    DeferredSemaphore,
    TimeoutError as DeferredTimeoutError,
)
from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer

from synapse_federation_admin import limits
from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.homeserver.responses import (
    finish_request,
    set_cors_headers,
)

# How many bytes are written at a time: as many as Twisted takes before it pauses us.
_SLICE = 64 * 1024

# What writes, in this process, and the turns of those that do.
_under_way: "list[_Writer]" = []
_turns = DeferredSemaphore(limits.LONG_ANSWERS)


async def respond_in_chunks(
    homeserver: Homeserver,
    request: SynapseRequest,
    content_type: str,
    chunks: AsyncGenerator[bytes, None],
    *,
    file_name: str | None = None,
) -> None:
    """Answer 200 with a body that comes in chunks.

    The next chunk is asked for when the client has taken those before. If the client
    goes away, no further chunk is. For HEAD no chunk is asked for.

    Of all that this process answers so, some are under way at once; the others wait for
    their turn for some seconds, and then it is for the client to come again. One whose
    client reads too slowly makes room.

    Args:
        homeserver: The homeserver.
        request: The request to answer.
        content_type: The value of `Content-Type`.
        chunks: The body.
        file_name: The name under which a browser shall save the answer.

    Raises:
        Exception: Whatever `chunks` raises. Synapse then cuts the connection, or, if
            nothing has been written yet, answers as it does for any request.
        SynapseError: 429 `M_LIMIT_EXCEEDED`: there are too many others. Or the client
            has taken nothing for minutes.
    """
    request.setHeader(b"Content-Type", content_type.encode("ascii"))
    request.setHeader(b"Cache-Control", b"no-cache, no-store, must-revalidate")
    if request.method == b"HEAD":
        # Twisted drops a body, and so keeps no pace with the client.
        await chunks.aclose()
        _begin(request, file_name)
        finish_request(request)
        return
    writer = _Writer(homeserver, request)
    try:
        await _take_turn(homeserver)
    except BaseException:
        await chunks.aclose()
        raise
    _under_way.append(writer)
    try:
        await _write(writer, request, chunks, file_name)
    finally:
        _under_way.remove(writer)
        # Not in the midst of this request: who is next has another log context.
        homeserver.reactor.callLater(0, _turns.release)


async def _write(
    writer: "_Writer",
    request: SynapseRequest,
    chunks: AsyncGenerator[bytes, None],
    file_name: str | None,
) -> None:
    async with aclosing(chunks):
        async for chunk in chunks:
            if not writer.has_begun:
                _begin(request, file_name)
                writer.begin()
            await writer.write(chunk)
            if writer.is_gone:
                return
    if not writer.has_begun:
        _begin(request, file_name)
        writer.begin()
    if not writer.is_gone:
        request.unregisterProducer()
        finish_request(request)


async def _take_turn(homeserver: Homeserver) -> None:
    if len(_turns.waiting) >= limits.LONG_ANSWERS_WAITING:
        raise _too_many()
    turn = _turns.acquire()
    if turn.called:
        return
    slowest = max(_under_way, key=lambda writer: writer.behind_s, default=None)
    if slowest and slowest.behind_s > limits.CLIENT_PAUSE_WHILE_FULL_S:
        slowest.give_up()
    turn.addTimeout(limits.LONG_ANSWER_WAITS_S, homeserver.reactor)
    try:
        await make_deferred_yieldable(turn)
    except DeferredTimeoutError:
        raise _too_many() from None


def _too_many() -> SynapseError:
    wait_s = limits.CLIENT_PAUSE_WHILE_FULL_S
    return SynapseError(
        HTTPStatus.TOO_MANY_REQUESTS,
        f"Long answers: {limits.LONG_ANSWERS} others are being read from this "
        "process; ask again when one of them is complete, or for shorter pages",
        Codes.LIMIT_EXCEEDED,
        additional_fields={"retry_after_ms": wait_s * 1000},
        headers={"Retry-After": str(wait_s)},
    )


def _begin(request: SynapseRequest, file_name: str | None) -> None:
    """Set what only an answer has that succeeds."""
    request.setResponseCode(HTTPStatus.OK)
    # The console, whose answers all have a policy, lets no other origin in.
    if not request.responseHeaders.hasHeader(b"Content-Security-Policy"):
        set_cors_headers(request)
    if file_name is not None:
        disposition = f'attachment; filename="{file_name}"'
        request.setHeader(b"Content-Disposition", disposition.encode("ascii"))


@implementer(IPushProducer)
class _Writer:
    """Writes to a request, and waits while its connection takes no more.

    Attributes:
        has_begun: Whether something has been written.
        is_gone: Whether the client has gone away.
    """

    def __init__(self, homeserver: Homeserver, request: SynapseRequest) -> None:
        self._homeserver = homeserver
        self._request = request
        self._is_paused = False
        self._resumed: Deferred[None] | None = None
        self._waits_since_s = 0.0
        self._late_s = 0.0
        self.has_begun = False
        # A request that has lost its connection has no channel, and tells no more.
        self.is_gone = request.channel is None
        # Its success, at the end of the answer, needs nothing done.
        request.notifyFinish().addErrback(lambda _: self.stopProducing())

    def begin(self) -> None:
        """Begin to be told how the connection fares."""
        self.has_begun = True
        if not self.is_gone:
            self._request.registerProducer(self, True)

    async def write(self, data: bytes) -> None:
        """Write, a little each time that the connection takes something.

        Raises:
            SynapseError: It has taken nothing for minutes.
        """
        for begin in range(0, len(data), _SLICE):
            await self._write(data[begin : begin + _SLICE])

    async def _write(self, data: bytes) -> None:
        if self._is_paused and not self.is_gone:
            self._resumed = Deferred()
            self._resumed.addTimeout(limits.CLIENT_PAUSE_S, self._homeserver.reactor)
            self._waits_since_s = self._homeserver.reactor.seconds()
            try:
                await make_deferred_yieldable(self._resumed)
            except DeferredTimeoutError:
                raise SynapseError(
                    HTTPStatus.REQUEST_TIMEOUT,
                    "The client did not read the answer",
                    Codes.UNKNOWN,
                ) from None
            finally:
                self._resumed = None
                self._late_s += self._waits_s
        if not self.is_gone:
            self._request.write(data)
            on_time_s = len(data) / limits.CLIENT_BYTES_PER_S
            self._late_s = max(self._late_s - on_time_s, 0)

    @property
    def _waits_s(self) -> float:
        return self._homeserver.reactor.seconds() - self._waits_since_s

    @property
    def behind_s(self) -> float:
        """By how much its client, which it waits for, is late; 0 if it does not wait.

        On time is who takes `limits.CLIENT_BYTES_PER_S`.
        """
        return 0 if self._resumed is None else self._late_s + self._waits_s

    def give_up(self) -> None:
        """Wait no longer."""
        if self._resumed is not None:
            # Not in the midst of who wants its place: that has another log context.
            self._homeserver.reactor.callLater(0, self._expire, self._resumed)

    @staticmethod
    def _expire(resumed: "Deferred[None]") -> None:
        if not resumed.called:
            resumed.errback(DeferredTimeoutError())

    def pauseProducing(self) -> None:
        """Take note that the connection takes no more for now."""
        self._is_paused = True

    def resumeProducing(self) -> None:
        """Take note that the connection takes more."""
        self._is_paused = False
        self._go_on()

    def stopProducing(self) -> None:
        """Take note that the client has gone away."""
        self.is_gone = True
        self._go_on()

    def _go_on(self) -> None:
        if self._resumed is not None and not self._resumed.called:
            self._resumed.callback(None)
