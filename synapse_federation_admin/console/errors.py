# SPDX-License-Identifier: Apache-2.0
"""What a page says where there is nothing to show; never "nothing found"."""

import logging
from http import HTTPStatus
from typing import TYPE_CHECKING

from synapse.module_api.errors import SynapseError

from synapse_federation_admin.console.cookie import Origin
from synapse_federation_admin.console.visit import Page
from synapse_federation_admin.homeserver.features import FeatureOffError

if TYPE_CHECKING:
    from synapse_federation_admin.homeserver.homeserver import Homeserver

logger = logging.getLogger(__name__)


def error_page(error: Exception, homeserver: "Homeserver", origin: Origin) -> Page:
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
