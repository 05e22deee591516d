# SPDX-License-Identifier: Apache-2.0
"""What keeps a session in a browser: its cookies, and what it signs."""

import pytest

from synapse_federation_admin.console.cookie import (
    Origin,
    Renewal,
    Session,
    cookie_name,
)

pytestmark = pytest.mark.one_synapse


def test_renewal_cookie() -> None:
    """What renews a session comes back from its cookie; what is none of ours, not."""
    for renewal in (Renewal("a~b", 1, "c~;é"), Renewal("", 0, "")):
        assert Renewal.parse(renewal.value()) == renewal
    for wrong in ("", "a~b", "a~1~b~c", "a~-1~b", f"a~{'9' * 5000}~b"):
        assert Renewal.parse(wrong) is None


def test_names() -> None:
    """Homeservers of one host, whose cookies browsers do not tell apart by the port,
    have cookies of their own."""
    names = {
        cookie_name(server_name, purpose)
        for server_name in ("a.example", "a.example:8448", "a.example:8449")
        for purpose in ("session", "renewal")
    }
    assert len(names) == 6


def test_signing_in_makes_a_new_session() -> None:
    """Who has put a session into a browser does not know the token of the forms once
    somebody has signed in; what was begun before goes on, in other tabs. Each comes
    back from its cookie."""
    secret = b"secret"
    before = Session.new()
    after = before.signed_in(Origin.SERVICE, "a.b%41;")
    assert [Session.parse(each.value()) for each in (before, after)] == [before, after]
    assert not after.is_form_token(secret, before.form_token(secret))
    assert after.sign(secret, "state", "x") == before.sign(secret, "state", "x")
    again = after.signed_in(Origin.SERVICE, "other")
    assert again.sign(secret, "state", "x") == before.sign(secret, "state", "x")
    assert Session.new().sign(secret, "state", "x") != before.sign(secret, "state", "x")
