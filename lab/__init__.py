# SPDX-License-Identifier: Apache-2.0
"""Networks to play in and to test on: nodes as namespaces, gone without a trace afterwards."""
