# SPDX-License-Identifier: Apache-2.0
"""What happened, and when: failures of real requests, and outages.

In the order in which to read:

    recorder, unwritten, second_looks: what requests meet, until it is written
    outages: when they begin and end
    store: what was recorded
    outlook, owners: whether servers fail together, and whose they are
    gauges, changes: the same as metrics, and for those who look on
"""
