# SPDX-License-Identifier: Apache-2.0
"""What one process of a homeserver tells another of a failure cannot be faked."""

import json
from unittest import mock

import pytest
from twisted.internet import error as net
from twisted.python.failure import Failure

from synapse_federation_admin.failures.classify import described, failure_of, is_ours
from synapse_federation_admin.homeserver.errors import (
    HttpResponseException,
    MetElsewhereError,
    Obstacle,
    ObstacleError,
    RequestSendFailed,
)
from synapse_federation_admin.homeserver.relay import Relay

pytestmark = pytest.mark.one_synapse

OUT = OSError(24, "Too many open files")


def relay(secret: str | None) -> Relay:
    hs = mock.Mock()
    hs.config.worker.worker_replication_secret = secret
    return Relay(hs)


def answered(error: BaseException, status: int = 502) -> RequestSendFailed:
    """Return what is raised if `synapse/http/proxy.py` answers with an error."""
    text = f"ProxyResource: Error when proxying request: PUT a -> {Failure(error)}"
    body = json.dumps({"errcode": "M_UNKNOWN", "err": text}).encode()
    answer = HttpResponseException(status, "Bad Gateway", body)
    return RequestSendFailed(answer, can_retry=False)


def test_told() -> None:
    """What the other process has met is told with its kind; also that it is its own."""
    for error in (OUT, net.ConnectionRefusedError()):
        wrapped = RequestSendFailed(error, can_retry=True)
        told = relay("secret").signed(described(wrapped))
        met = relay("secret").met(answered(told))
        assert isinstance(met, MetElsewhereError)
        assert is_ours(met) == (error is OUT)
        assert failure_of(met).facts.is_relayed


@pytest.mark.parametrize(
    "error",
    [OUT, relay("other").signed(described(OUT)), relay(None).signed(described(OUT))],
    ids=["text", "other secret", "no secret"],
)
def test_faked(error: Exception) -> None:
    """What a server could have written is not believed."""
    met = relay("secret").met(answered(error))
    assert isinstance(met, ObstacleError)
    assert met.obstacle is Obstacle.UNTOLD
    assert not is_ours(met)
    other_status = answered(relay("secret").signed("[]"), 500)
    assert relay("secret").met(other_status) is other_status


def test_not_reached() -> None:
    """That the other process is not reached is no failure of a server's."""
    met = relay("secret").met(RequestSendFailed(net.ConnectError(), can_retry=True))
    assert failure_of(met).kind.value == "sender_down"
