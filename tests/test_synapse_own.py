# SPDX-License-Identifier: Apache-2.0
"""Synapse's own tests for this API, run against our resource."""

from typing import Any

import pytest
from module_case import LoadsModule
from synapse.rest.client import login, room
from tests.rest.admin import test_federation


class AnsweredByUs(LoadsModule):
    """Synapse's own admin servlets are nowhere but in our resource."""

    servlets = [login.register_servlets, room.register_servlets]

    # As it is by default, contacts included.
    config: dict[str, Any] = {}


def stock_cases() -> dict[str, type]:
    """Return Synapse's test cases for this API, by name."""
    return {
        name: case
        for name, case in vars(test_federation).items()
        if isinstance(case, type) and case.__module__ == test_federation.__name__
    }


# Not bound to names of their own in this module: they would be run as they are, too.
globals().update(
    {
        f"Module{name}": pytest.mark.database(
            type(f"Module{name}", (AnsweredByUs, case), {"__module__": __name__})
        )
        for name, case in stock_cases().items()
    }
)


def test_there_are_cases() -> None:
    """Synapse still tests this API in the file that we take its tests from."""
    assert len(stock_cases()) >= 2
