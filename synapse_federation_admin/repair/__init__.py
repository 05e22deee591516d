# SPDX-License-Identifier: Apache-2.0
"""Bringing federation with a destination back."""
