# SPDX-License-Identifier: Apache-2.0
"""What a page is called with, and what it gives back; and the page for an error."""

import logging
import secrets
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, NamedTuple, TypeAlias

import attr
from synapse.module_api import Requester, SynapseRequest
from synapse.module_api.errors import SynapseError

from synapse_federation_admin import limits
from synapse_federation_admin.api import ROUTES, Services
from synapse_federation_admin.api._base import Asked
from synapse_federation_admin.console.cookie import Origin, Session
from synapse_federation_admin.console.desk import Desk
from synapse_federation_admin.homeserver.features import FeatureOffError
from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.homeserver.newest import keep_newest

logger = logging.getLogger(__name__)

# Parameters by name; a list where one is repeated.
Values: TypeAlias = Mapping[str, str | list[str]]

# The operations of the API.
_OPERATIONS = {route.name: route for route in ROUTES}


class Kept:
    """Keeps what came of a form, for the page that it leads to: answers of the API.

    So a reload of that page, and the way back to it, does nothing again. They are kept
    for some minutes, in this process: another one does not have them.
    """

    def __init__(self, homeserver: Homeserver) -> None:
        self._homeserver = homeserver
        # By ID: when it was kept, what it is of, and the answer.
        self._answers: dict[str, tuple[int, str, Any]] = {}

    def keep(self, of: str, answer: Any) -> str:
        """Keep an answer; return its ID.

        Args:
            of: What it is of: `diagnosis`, and the server.
            answer: That of the API.
        """
        key = secrets.token_urlsafe(9)
        kept = (self._homeserver.now_ms(), of, answer)
        keep_newest(self._answers, key, kept, limits.KEPT_ANSWERS)
        return key

    def find(self, of: str, key: str) -> Any:
        """Return an answer; None if this process does not have it."""
        kept_ms, kept_of, answer = self._answers.get(key, (0, None, None))
        is_old = self._homeserver.now_ms() > kept_ms + limits.KEPT_ANSWERS_MS
        return None if is_old or kept_of != of else answer


class Page(NamedTuple):
    """A template and what is in it.

    Attributes:
        template: Its file: `servers.html`.
        context: What it shows, by name.
        status: The HTTP status.
    """

    template: str
    context: Mapping[str, Any]
    status: int = 200


class See(NamedTuple):
    """Leads to another page of the console: `/runs/7`, with its query."""

    path: str


# None: the answer is written already.
Answered: TypeAlias = Page | See | None


@attr.s(slots=True, frozen=True, auto_attribs=True, eq=False)
class Visit:
    """A request for a page, or with a form.

    Attributes:
        services: What the homeserver and the features are reached through.
        desk: Signs people in and out.
        kept: What came of forms.
        request: The request itself.
        session: The session of who sends it.
        query: The parameters of the URL.
        requester: Who is signed in, an admin; None only where a page opens to everyone.
        parameters: Those of the path, by name.
        form: The fields of the form, without the token; empty in a GET.
    """

    services: Services
    desk: Desk
    kept: Kept
    request: SynapseRequest
    session: Session
    query: Values
    requester: Requester | None = None
    parameters: Mapping[str, str] = attr.Factory(dict)
    form: Values = attr.Factory(dict)

    @property
    def now_ms(self) -> int:
        """The time, in ms since the epoch."""
        return self.services.homeserver.now_ms()

    def text(self, name: str, default: str = "") -> str:
        """Return a field of the form, or else of the URL: the first, if repeated."""
        value = self.form.get(name) or self.query.get(name) or default
        return value if isinstance(value, str) else value[0]

    def texts(self, name: str) -> list[str]:
        """Return all values of a field of the form, or else of the URL."""
        value = self.form.get(name) or self.query.get(name) or []
        return [value] if isinstance(value, str) else value

    @property
    def asked(self) -> Asked:
        """What operations of the API are called with."""
        assert self.requester is not None
        return Asked(self.services, self.request, self.requester)

    def operation(self, name: str) -> Any:
        """Return an operation of the API, which may be in what cannot be imported.

        Args:
            name: That of its handler.

        Raises:
            FeatureOffError: What it needs is off.
        """
        route = _OPERATIONS[name]
        self.services.features.require(*route.needs)
        return route.load()

    async def ask(
        self,
        name: str,
        values: Mapping[str, object] | None = None,
        **parameters: str,
    ) -> Any:
        """Call an operation of the API.

        Args:
            name: That of its handler.
            values: Its query parameters, as texts or values, or the keys of its body.
            parameters: Those of its path.

        Returns:
            The object of JSON that its model describes.

        Raises:
            SynapseError: As the API answers; a `FeatureOffError` if what it needs is
                off.
        """
        operation = self.operation(name)
        taken = operation.take(values or {})
        return await operation.handler(self.asked, taken, **parameters)

    async def ask_if_on(
        self,
        name: str,
        values: Mapping[str, object] | None = None,
        **parameters: str,
    ) -> Any:
        """Call an operation as `ask`; None if it is off, as the foot tells."""
        try:
            return await self.ask(name, values, **parameters)
        except FeatureOffError:
            return None


# -- where there is nothing to show: never "nothing found" ----------------------------


def error_page(error: Exception, homeserver: Homeserver, origin: Origin) -> Page:
    """Return the page for an error.

    Args:
        error: What was raised.
        homeserver: Knows what its database says.
        origin: Where the access token comes from.
    """
    if isinstance(error, FeatureOffError):
        return _page(
            HTTPStatus.SERVICE_UNAVAILABLE, "This is switched off here", error.msg
        )
    if isinstance(error, SynapseError):
        return _of_synapse(error, origin)
    if homeserver.is_database_away(error):
        logger.warning("The console cannot reach the database: %s", error)
        return _page(
            HTTPStatus.SERVICE_UNAVAILABLE,
            "The database of this homeserver cannot be used just now",
            "Nothing is known of the servers until it can.",
            retries=True,
        )
    logger.error("A page of the console has failed", exc_info=error)
    return _page(
        HTTPStatus.INTERNAL_SERVER_ERROR,
        "This page has failed",
        "That is a fault of this module; the log of Synapse has what went wrong.",
    )


def _of_synapse(error: SynapseError, origin: Origin) -> Page:
    status = HTTPStatus(error.code)
    if status == HTTPStatus.FORBIDDEN:
        if error.errcode == "M_FORGED":
            return _page(status, "This was refused", error.msg)
        if origin is Origin.SERVICE:
            return _page(
                status,
                "This user is no server admin here",
                "The authentication service gave an access token without the scope "
                "urn:synapse:admin:*, which it gives to those who may be admins. "
                f"Synapse says: {error.msg}",
            )
        return _page(
            status,
            "This user is no server admin",
            "Only server admins of this homeserver may see how it federates. "
            f"Synapse says: {error.msg}",
        )
    is_ours = status >= HTTPStatus.INTERNAL_SERVER_ERROR
    other = "The homeserver has failed" if is_ours else "This cannot be done"
    is_away = status == HTTPStatus.SERVICE_UNAVAILABLE
    return _page(status, _TITLES.get(status, other), error.msg, retries=is_away)


_TITLES = {
    HTTPStatus.NOT_FOUND: "This was not found",
    HTTPStatus.SERVICE_UNAVAILABLE: "This does not work just now",
}


def _page(status: HTTPStatus, title: str, text: str, *, retries: bool = False) -> Page:
    return Page(
        "error.html", {"title": title, "text": text, "retries": retries}, status
    )
