# SPDX-License-Identifier: Apache-2.0
"""How a request comes from a server name to the place to which it is sent."""

import attr

from synapse_federation_admin.failures.reasons import Worded


class How(Worded):
    """How a place was found, with what people are told of it.

    Of a link the text has `{to}` and `{port}`. What is found otherwise, by the server
    name alone, has no link.
    """

    def __init__(self, first: str, later: str = "") -> None:
        """Say what is told of the first link, and of one that comes after another."""
        self.first = first
        self.later = later

    # The server name has a port: nothing else is asked where the server is.
    PORT = "The server name itself has port {port}"

    FILE = "Their well-known file names {to} port {port}"
    FILE_WITHOUT_PORT = (
        "Their well-known file names {to} without a port, which means {port}"
    )
    SERVICE = (
        "Their SRV record names {to} port {port}",
        "Their well-known file names {from_}, and the SRV record of that names {to} "
        "port {port}",
    )

    # The name to which a file delegates has a file of its own. Nobody follows that.
    SECOND_FILE = (
        "Their well-known file delegates on to {to} port {port}; nobody follows that",
        "Their well-known file names {from_}, and that delegates on to {to} port "
        "{port}, which nobody follows",
    )

    # Of the well-known file itself.
    REDIRECT = "Their web server redirects the file to {to}"


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Link:
    """One step from a server name to a place.

    Attributes:
        how: How it was found.
        to: The host, or the URL, as it may be told.
        port: The port there; None of a URL.
    """

    how: How
    to: str
    port: int | None = None
