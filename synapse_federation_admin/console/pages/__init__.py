# SPDX-License-Identifier: Apache-2.0
"""What answers at the console's paths: a file for each topic."""
