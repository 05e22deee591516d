# SPDX-License-Identifier: Apache-2.0
"""Where tests of the command line are at home."""

import os
from pathlib import Path

import pytest


def be_at(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have nobody's own configuration say where to ask."""
    monkeypatch.setenv("HOME", str(home))
    for name in list(os.environ):
        if name.startswith("FEDERATION_ADMIN_") or name.endswith(("_proxy", "_PROXY")):
            monkeypatch.delenv(name)
    for name in ("XDG_CONFIG_HOME", "SYNAPSE_CONFIG_PATH"):
        monkeypatch.delenv(name, raising=False)
