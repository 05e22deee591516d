# SPDX-License-Identifier: Apache-2.0
"""What is a server name, and why something is none."""

import pytest
from hypothesis import given, strategies as st
from synapse.util.stringutils import parse_and_validate_server_name

from synapse_federation_admin.failures.kinds import Failure, FailureKind, Reason
from synapse_federation_admin.failures.names import invalid_name
from synapse_federation_admin.homeserver.server_name import (
    InvalidServerNameError,
    ServerName,
    is_server_name,
)

pytestmark = pytest.mark.one_synapse


@pytest.mark.parametrize(
    ("name", "host", "port", "is_literal"),
    [
        ("a.example", "a.example", None, False),
        ("A-1.example:8448", "A-1.example", 8448, False),
        ("1.2.3.4", "1.2.3.4", None, True),
        ("1.2.3.4:1", "1.2.3.4", 1, True),
        ("1.2.3.999", "1.2.3.999", None, False),
        ("[2001:db8::1]", "2001:db8::1", None, True),
        ("[::ffff:1.2.3.4]:65535", "::ffff:1.2.3.4", 65535, True),
        ("a" * 63 + ".example", "a" * 63 + ".example", None, False),
    ],
)
def test_name(name: str, host: str, port: int | None, is_literal: bool) -> None:
    """Names of the specification's grammar, and what they are made of."""
    parsed = ServerName.parse(name)
    assert (parsed.host, parsed.port, parsed.is_literal) == (host, port, is_literal)
    assert parsed.netloc == name


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", Reason.NAME_MALFORMED),
        ("a b", Reason.NAME_MALFORMED),
        ("https://a.example", Reason.NAME_IS_URL),
        ("a.example/b", Reason.NAME_IS_URL),
        ("m\u00fcller.example", Reason.NAME_NOT_ASCII),
        ("@a:b.example", Reason.NAME_MALFORMED),
        ("a.example:x", Reason.PORT_INVALID),
        ("a.example:0", Reason.PORT_INVALID),
        ("a.example:65536", Reason.PORT_INVALID),
        ("a..example", Reason.LABEL_EMPTY),
        ("a.example.", Reason.LABEL_EMPTY),
        ("a" * 64 + ".example", Reason.LABEL_TOO_LONG),
        ("[1.2.3]", Reason.IPV6_INVALID),
        ("[::1", Reason.NAME_MALFORMED),
        ("::1", Reason.NAME_MALFORMED),
        ("a.example\n", Reason.NAME_MALFORMED),
    ],
)
def test_no_name(name: str, reason: Reason) -> None:
    """What is no server name, and why."""
    with pytest.raises(InvalidServerNameError) as found:
        ServerName.parse(name)
    assert invalid_name(found.value) == Failure(FailureKind.INVALID_NAME, reason)


@given(
    st.from_regex(r"[0-9A-Za-z.-]{1,9}(:[0-9]{1,5})?", fullmatch=True)
    | st.ip_addresses().map(lambda address: f"[{address}]:1")
)
def test_accepted(name: str) -> None:
    """What is a server name is one for Synapse, too."""
    if is_server_name(name):
        parse_and_validate_server_name(name)


@given(
    st.lists(
        st.sampled_from(["a", "-", ".", ":", "0", "6", "5535", "[::1]", "_", "a" * 62]),
        max_size=9,
    ).map("".join)
)
def test_told_quickly(name: str) -> None:
    """What lists ask of every row is answered as by who parses the name."""
    try:
        ServerName.parse(name)
    except InvalidServerNameError:
        assert not is_server_name(name)
    else:
        assert is_server_name(name)
