"""Registered variants as parameters of tests: those that take seconds each are slow tests."""

import pytest

from mnv4_rl import list_models

LARGE = {"mobilenet_v4_large", "mobilenet_v4_hybrid_large", "mnv4_conv_l", "mnv4_hybrid_m", "mnv4_hybrid_l"}
BY_SIZE = [pytest.param(name, marks=pytest.mark.slow if name in LARGE else ()) for name in list_models()]
