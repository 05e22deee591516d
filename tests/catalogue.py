# SPDX-License-Identifier: Apache-2.0
"""The catalogue of faults, whole."""

import faults_answers  # noqa: F401
import faults_files  # noqa: F401
import faults_tls  # noqa: F401
import faults_ways  # noqa: F401
from faults import CATALOGUE

__all__ = ["CATALOGUE"]
