# SPDX-License-Identifier: Apache-2.0
"""The stages of a diagnosis, in words. Pure."""

STAGES = {
    "name": "Name",
    "well_known": "Delegation",
    "addresses": "Addresses",
    "connections": "Connections",
    "version": "Version",
    "keys": "Keys",
    "authenticated": "Transaction",
    "clock": "Clock",
    "sender": "Our sender",
    "stored": "Real traffic",
}
"""What is told of each stage."""

SIGNS = {
    "ok": ("✓", "good", "as it should be"),
    "warning": ("!", "warn", "not as it should be"),
    "failed": ("✗", "fail", "nothing gets past here"),
    "skipped": ("\u2013", "skipped", "not tried"),
}
"""What came of a stage: its sign, its class, and a word."""
