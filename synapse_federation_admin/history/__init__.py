# SPDX-License-Identifier: Apache-2.0
"""What happened, and when: failures of real requests, and outages."""
