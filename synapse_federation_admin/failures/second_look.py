# SPDX-License-Identifier: Apache-2.0
"""Finds out more of a failure, where that takes a request or a look-up of its own."""

from http import HTTPStatus

from synapse_federation_admin.failures.bounds import word
from synapse_federation_admin.failures.classify import result_or_failure
from synapse_federation_admin.failures.kinds import Failure, FailureKind, Reason
from synapse_federation_admin.homeserver.homeserver import Homeserver

_NOT_FOUND = (Reason.NO_SUCH_HOST, Reason.NO_ADDRESS)


def may_be_more(failure: Failure) -> bool:
    """Tell whether a second look may tell more of a failure."""
    return failure.facts.status == HTTPStatus.UNAUTHORIZED or (
        failure.kind is FailureKind.DNS_NOT_FOUND and failure.reason in _NOT_FOUND
    )


async def second_look(
    homeserver: Homeserver, name: str, failure: Failure, *, timeout_ms: int
) -> Failure:
    """Return a failure, or what it really is.

    Args:
        homeserver: Asks the server, and the DNS.
        name: The server name.
        failure: Of which `may_be_more`.
        timeout_ms: How long the server has to answer.
    """
    federation = homeserver.federation
    if failure.facts.status == HTTPStatus.UNAUTHORIZED:
        # So this homeserver answers itself, if a name leads back to it: it is not for
        # us.
        asked = federation.is_us(name, timeout_ms=timeout_ms)
        is_us = await result_or_failure(asked) is True
        return Failure(FailureKind.IS_US) if is_us else failure
    alias = await result_or_failure(federation.alias_of(failure.facts.host))
    return failure if isinstance(alias, Failure) else dangling(failure, alias)


def dangling(failure: Failure, alias: str) -> Failure:
    """Return that a host is not found, because it is an alias if it is one.

    Args:
        failure: That it is not found.
        alias: Of what it is one; "" if it is none.
    """
    if not alias:
        return failure
    return failure.but(Reason.DANGLING_ALIAS, target=word(alias) or "")
