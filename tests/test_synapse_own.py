# SPDX-License-Identifier: Apache-2.0
"""Synapse's own tests for this API, run against our resource."""

import pytest
from module_case import LoadsModule
from synapse.rest.client import login, room
from tests.rest.admin import test_federation

from synapse_federation_admin.rest import SERVLETS


class AnsweredByUs(LoadsModule):
    """Synapse's own admin servlets are nowhere but in our resource."""

    servlets = [login.register_servlets, room.register_servlets]


CASES = [
    case
    for case in vars(test_federation).values()
    if isinstance(case, type) and case.__module__ == test_federation.__name__
]

for case in CASES:
    name = f"Module{case.__name__}"
    globals()[name] = pytest.mark.database(
        type(name, (AnsweredByUs, case), {"__module__": __name__})
    )


def test_there_are_cases() -> None:
    """Synapse still tests this API in the file that we take its tests from."""
    assert len(CASES) >= 2
    assert SERVLETS
