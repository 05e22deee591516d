# SPDX-License-Identifier: Apache-2.0
"""Synapse's resolvers of delegation, which tell an attempt what they find."""

import json
import logging
import re
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, cast

from synapse.http.federation.srv_resolver import Server, SrvResolver
from synapse.http.federation.well_known_resolver import (  # type: ignore[attr-defined]  # where json_decoder is differs by release
    WellKnownLookupResult,
    WellKnownResolver,
    json_decoder,
)
from twisted.internet import error as net
from twisted.internet.defer import CancelledError, Deferred
from twisted.web.client import RedirectAgent
from twisted.web.iweb import IAgent, IResponse
from zope.interface import implementer

from synapse_federation_admin import limits
from synapse_federation_admin.homeserver.attempt import Attempt
from synapse_federation_admin.homeserver.errors import (
    FileAnswer,
    Obstacle,
    ObstacleError,
    host_in,
    innermost,
)
from synapse_federation_admin.homeserver.lookups import Answers, LookUps
from synapse_federation_admin.homeserver.newest import keep_newest
from synapse_federation_admin.homeserver.server_name import is_server_name

logger = logging.getLogger(__name__)

# What SRV records may lead to.
_HOST_NAME = re.compile(rb"[0-9A-Za-z._-]{1,255}")

# What Synapse says of an answer that it does not read.
_STATUS = re.compile(r"([0-9]{3})$")


# Makes what fetches the file for an attempt.
MakeAgent = Callable[[Attempt], IAgent]


@implementer(IAgent)
class _UrlsAgent:
    """An agent that keeps for what it was asked."""

    def __init__(self, agent: IAgent, urls: list[bytes]) -> None:
        self._agent = agent
        self._urls = urls

    def request(self, method: bytes, uri: bytes, *args: Any) -> "Deferred[IResponse]":
        """Make a request: see `twisted.web.iweb.IAgent`."""
        self._urls.append(uri)
        return self._agent.request(method, uri, *args)


@implementer(IAgent)
class _FileAgent:
    """Fetches files for the current attempt, with what is made then: most are cached.

    Whoever follows a redirect is not within the request any more.
    """

    def __init__(self, attempt: Callable[[], Attempt], make: MakeAgent) -> None:
        self._attempt = attempt
        self._make = make

    def request(self, *args: Any, **kwargs: Any) -> "Deferred[IResponse]":
        """Make a request: see `twisted.web.iweb.IAgent`."""
        attempt = self._attempt()
        agent = _UrlsAgent(self._make(attempt), attempt.file_urls)
        answer: Deferred[IResponse] = RedirectAgent(agent).request(*args, **kwargs)
        return answer


class AttemptWellKnownResolver(WellKnownResolver):
    """Asks for well-known files, and tells an attempt what they delegate to."""

    def __init__(
        self,
        attempt: Callable[[], Attempt],
        make_agent: MakeAgent,
        goes_through_proxy: Callable[[str], bool],
        **kwargs: Any,
    ) -> None:
        """Ask for nothing yet.

        Args:
            attempt: Returns that of the request that a file is asked for.
            make_agent: Makes what fetches the file.
            goes_through_proxy: Tells whether the proxy is to connect to a host.
            kwargs: What Synapse's wants.
        """
        agent = _FileAgent(attempt, make_agent)
        super().__init__(agent=agent, **kwargs)
        # Which follows redirects.
        self._well_known_agent = cast(RedirectAgent, agent)
        self._attempt = attempt
        self._own_name = str(kwargs["server_name"])
        self._goes_through_proxy = goes_through_proxy
        # What was met in place of files, by server name: of what Synapse has cached, it
        # does not say why.
        self._known: dict[bytes, FileAnswer] = {}

    async def get_well_known(self, server_name: bytes) -> WellKnownLookupResult:
        """Return what the file says: see Synapse's."""
        attempt = self._attempt()
        attempt.is_fetching = True
        found = await super().get_well_known(server_name)
        attempt.file_fetched()
        self._look_at((found.delegated_server or b"").decode("ascii", "replace"))
        if found.delegated_server:
            attempt.file = None
            self._known.pop(server_name, None)
        else:
            attempt.file = attempt.file or self._known.get(server_name)
        return found

    async def _make_well_known_request(
        self, server_name: bytes, retry: bool
    ) -> tuple[IResponse, bytes]:
        """Make the request: see Synapse's."""
        self._known.pop(server_name, None)
        self._attempt().file_urls.clear()
        try:
            response, body = await super()._make_well_known_request(server_name, retry)
        except CancelledError:
            raise
        except Exception as e:
            # Synapse raises another one while it handles what was met.
            met = e.__context__ or e
            self._keep(server_name, lambda: self._why_not(met))
            raise
        self._keep(
            server_name,
            lambda: self._answer(
                status=response.code,
                content_type=response.headers.getRawHeaders(b"Content-Type", [b""])[0],
                body=body,
            ),
        )
        return response, body

    def _why_not(self, met: BaseException) -> FileAnswer:
        if type(met) is Exception:
            # Synapse's, of a status of 500 or more.
            found = _STATUS.search(str(met))
            return self._answer(status=int(found[1]) if found else 500)
        attempt = self._attempt()
        cause = innermost(attempt.explained(met))
        # What was raised refers to the frames it came through.
        cause.__traceback__ = cause.__context__ = None
        host = cause.host if isinstance(cause, ObstacleError) else ""
        return self._answer(error=cause, addresses=attempt.addresses_of(host))

    def _answer(self, **kwargs: Any) -> FileAnswer:
        first, *_ = urls = self._attempt().file_urls or [b""]
        url = urls[-1][: limits.TEXT].decode("latin-1")
        return FileAnswer(
            url,
            is_redirected=urls[-1] != first,
            is_proxied=self._goes_through_proxy(host_in(url)),
            **kwargs,
        )

    def _keep(self, server_name: bytes, tell: Callable[[], FileAnswer]) -> None:
        try:
            answer = tell()
        except Exception:
            # Whatever is wrong here, the request goes on.
            logger.exception("Could not tell what is in place of a well-known file")
            return
        self._attempt().file = answer
        body = answer.body
        if len(body) > limits.BAD_FILE_BYTES:
            if body.lstrip().startswith(b"{"):
                # Its beginning would not tell what is wrong.
                return
            answer = answer._replace(body=body[: limits.BAD_FILE_BYTES])
        keep_newest(self._known, server_name, answer, limits.BAD_FILES)

    def _look_at(self, m_server: str) -> None:
        # An empty one delegates to nobody.
        attempt = self._attempt()
        if not m_server or attempt.delegated_to is not None:
            return
        if not is_server_name(m_server):
            attempt.delegated_to = m_server[: limits.WORD]
        elif m_server.lower() == self._own_name.lower():
            attempt.is_delegated_to_us = m_server


class ContactWellKnownResolver(AttemptWellKnownResolver):
    """Has Synapse log no more of well-known files than it needs."""

    def __init__(
        self,
        attempt: Attempt,
        delegation: WellKnownLookupResult | None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        super().__init__(lambda: attempt, *args, **kwargs)
        self._delegation = delegation

    async def get_well_known(self, server_name: bytes) -> WellKnownLookupResult:
        """Return what the file says, if that is not known: see Synapse's."""
        return self._delegation or await super().get_well_known(server_name)

    async def _make_well_known_request(
        self, server_name: bytes, retry: bool
    ) -> tuple[IResponse, bytes]:
        """Make the request: see Synapse's."""
        response, body = await super()._make_well_known_request(server_name, retry)
        if response.code != HTTPStatus.OK:
            # It is not looked into.
            return response, b""
        try:
            # As Synapse reads it.
            content = json_decoder.decode(body.decode("utf-8"))
        except (ValueError, RecursionError):
            # Of what is no JSON it logs nothing.
            return response, body
        m_server = content.get("m.server") if isinstance(content, dict) else None
        if not isinstance(m_server, str) or not m_server.isascii():
            return response, b"{}"
        self._look_at(m_server)
        if not m_server.isprintable() or len(m_server) > limits.SERVER_NAME:
            m_server = "not-a-server-name."
        return response, json.dumps({"m.server": m_server}).encode()


class AttemptSrvResolver(SrvResolver):
    """Looks SRV records up, and tells an attempt of it."""

    def __init__(self, attempt: Attempt, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._attempt = attempt

    async def resolve_service(self, service_name: bytes) -> list[Server]:
        """Look up: see Synapse's."""
        self._attempt.require_time()
        name = service_name.decode("ascii", "replace")
        self._attempt.looked_up.append(name)
        try:
            found = await super().resolve_service(service_name)
        except net.ConnectError:
            self._attempt.is_service_refused = True
            raise
        finally:
            self._attempt.looked_up.remove(name)
        self._attempt.has_services = bool(found)
        # The root is the target of a service that is decidedly not there (RFC 2782).
        # Synapse sees it in some of its forms only.
        if found and all(server.host in (b"", b".") for server in found):
            self._attempt.is_service_refused = True
        return found


class ContactSrvResolver(AttemptSrvResolver):
    """Looks up within limits, and passes nothing on that can be no host name."""

    def __init__(self, attempt: Attempt, look_ups: LookUps) -> None:
        super().__init__(attempt, dns_client=self)
        self._look_ups = look_ups

    def lookupService(self, name: bytes) -> "Deferred[Answers]":
        """Look up: see `twisted.names.client.lookupService`."""
        return self._look_ups.services(name.decode("ascii"), self._attempt.left_s)

    async def resolve_service(self, service_name: bytes) -> list[Server]:
        """Look up: see Synapse's."""
        found = await super().resolve_service(service_name)
        plain = [server for server in found if _HOST_NAME.fullmatch(server.host)]
        if found and not plain:
            name = service_name.decode("ascii", "replace")
            raise ObstacleError(Obstacle.NO_HOST_NAME, name)
        return plain[: limits.SRV_SERVERS]
