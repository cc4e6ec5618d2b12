"""What some tests need that a plain install has not, each with the reason a skip prints."""

import pytest

from mnv4_rl.procgen import make_procgen_env

try:
    make_procgen_env("starpilot", 1).close()
    _MISSING = ""
except ModuleNotFoundError as error:
    _MISSING = str(error)
needs_envpool = pytest.mark.skipif(bool(_MISSING), reason=_MISSING)
