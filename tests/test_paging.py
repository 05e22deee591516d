# SPDX-License-Identifier: Apache-2.0
"""A token of v2's lists is good for the list that it is of, and for no other."""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Any

import pytest
from synapse.module_api.errors import SynapseError

from synapse_federation_admin.api._paging import Paging
from synapse_federation_admin.api.audit import AuditQuery
from synapse_federation_admin.api.runs import RunsQuery
from synapse_federation_admin.api.schemas.destinations import DestinationsQuery
from synapse_federation_admin.api.schemas.model import Paged

pytestmark = pytest.mark.one_synapse

# A value of every parameter, which is not its default.
VALUES: dict[str, Any] = {
    "status": ["retry_due", "backing_off"],
    "destination": "a.example",
    "failing_for": "7d",
    "failing_under": "30d",
    "has_backlog": True,
    "failure": ["tls_expired", "unknown"],
    "order_by": "failure_ts",
    "user": "@admin:test",
    "action": ["reset", "reconnect"],
    "outcome": "connected",
    "run_id": "r",
    "since_ts": 0,
    "until_ts": 99,
}
NOT_OF_THE_LIST = {"limit", "from_", "include", "total"}
DIRECTION = {DestinationsQuery: "b", AuditQuery: "f"}

# Every list, with each parameter of its own that makes it another one.
LISTS: list[tuple[type[Paged], dict[str, Any], tuple[str, ...]]] = [
    *((model, {}, ()) for model in (DestinationsQuery, AuditQuery, RunsQuery)),
    *(
        (model, {name: {**VALUES, "dir": DIRECTION[model]}[name]}, ())
        for model in (DestinationsQuery, AuditQuery)
        for name in sorted(set(model.model_fields) - NOT_OF_THE_LIST)
    ),
    (DestinationsQuery, {"status": ["retry_due"]}, ()),
    (DestinationsQuery, {"destination": "a*"}, ()),
    (Paged, {}, ("outages", "a.example")),
    (Paged, {}, ("outages", "b.example")),
]
QUERY = {"status": ["retry_due", "backing_off"]}


def token_of(model: type[Paged], values: dict[str, Any], *of: str) -> str:
    paging = Paging(model.model_validate({**values, "limit": 1}), *of)
    rows, next_token = paging.cut([7, 8], lambda last: [last, "x"])
    assert rows == [7]
    return next_token["next_token"]


def read(token: str, model: type[Paged], values: dict[str, Any], *of: str) -> Any:
    return Paging(model.model_validate({**values, "from": token}), *of).after


def refuses(token: str, model: type[Paged], values: dict[str, Any], *of: str) -> bool:
    with pytest.raises(SynapseError, match="'from'") as raised:
        read(token, model, values, *of)
    return bool((raised.value.code, raised.value.errcode) == (400, "M_INVALID_PARAM"))


def test_every_list() -> None:
    """Its own list takes it, and every other refuses it."""
    for number, (model, values, of) in enumerate(LISTS):
        token = token_of(model, values, *of)
        for other_number, (other, other_values, other_of) in enumerate(LISTS):
            if number == other_number:
                assert read(token, model, values, *of) == (7, "x")
            else:
                assert refuses(token, other, other_values, *other_of)


def test_the_same_list() -> None:
    """What keeps the same rows in the same order may be asked for in another way."""
    token = token_of(DestinationsQuery, QUERY)
    for more in (
        {"limit": 5, "include": ["backlog"], "total": True},
        {"status": ["backing_off", "retry_due", "backing_off"]},
    ):
        assert read(token, DestinationsQuery, {**QUERY, **more}) == (7, "x")


def test_changed() -> None:
    """One that is cut, changed or made up is refused."""
    token = token_of(DestinationsQuery, QUERY)
    raw = urlsafe_b64decode(token + "=" * (-len(token) % 4))
    changed = [
        bytes(byte ^ (at == position) for at, byte in enumerate(raw))
        for position in range(len(raw))
    ]
    changed += [bytes(8) + body for body in (b"[7]", b"", b"{}", b"\xff", b"[" * 9000)]
    texts = [urlsafe_b64encode(each).rstrip(b"=").decode() for each in changed]
    texts += [token[:length] for length in range(len(token))]
    texts += [token + "A", token + "=", token + "==", " " + token, "\u00fc"]
    # Base64 has several texts for the same bytes.
    last = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    texts += [token[:-1] + char for char in last if char != token[-1]]
    for text in texts:
        assert refuses(text, DestinationsQuery, QUERY)
