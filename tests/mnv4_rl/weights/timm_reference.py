"""timm as the reference of the paper models, where it is installed."""

import pytest
from torch import nn

from mnv4_rl.models.timm_network import import_timm


def timm_model(name: str, **kwargs: object) -> nn.Module:
    """A randomly initialised timm model; skips the test, saying why, where timm cannot be imported."""
    try:
        timm = import_timm()
    except ModuleNotFoundError as error:
        pytest.skip(str(error))
    return timm.create_model(name, **kwargs)
