# SPDX-License-Identifier: Apache-2.0
"""The status of a server, and of a process of ours, in words. Pure."""

STATUSES = {
    "invalid": ("bad", "no server name"),
    "online": ("good", "not failing"),
    "unknown": ("muted", "nothing sent yet"),
}
"""What is told of each status of what is not failing: its look, and a word."""

SENDERS = {
    "running": ("good", "running"),
    "late": ("warn", "late"),
    "nobody": ("bad", "no process sends"),
    "never_seen": ("bad", "never seen with this module"),
    "gone": ("bad", "gone"),
}
"""What is told of each state of a process that sends."""

NOT_ALLOWED = "not in federation_domain_whitelist"
"""What is told of a server that is shut out."""
