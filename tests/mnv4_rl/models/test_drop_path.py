"""Stochastic depth: which blocks drop, how much, and that nothing else changes."""

import pytest
import torch as th

from mnv4_rl import create_model
from mnv4_rl.models.blocks import UIB
from mnv4_rl.models.layers import DropPath
from mnv4_rl.models.network import set_drop_path


def test_rate_grows_linearly_with_the_block_index():
    network = create_model("mobilenet_v4_nano", 1, 10)
    set_drop_path(network, 0.4)
    blocks = [block for stage in network.stages for block in stage]
    rates = {i: block.drop_path.rate for i, block in enumerate(blocks) if hasattr(block, "drop_path")}
    assert rates[0] == 0
    assert rates == {i: pytest.approx(0.4 * i / len(blocks)) for i in rates}
    assert len(rates) == len(blocks) - 4  # nano's four SE blocks have no residual


def test_each_image_keeps_or_loses_the_whole_branch():
    drop_path = DropPath()
    drop_path.rate = 0.25
    th.manual_seed(0)
    out = drop_path(th.ones(4000, 2, 3, 3))
    per_image = out.flatten(1)
    assert (per_image == per_image[:, :1]).all()
    assert per_image.unique().tolist() == pytest.approx([0, 4 / 3])
    assert out.mean().item() == pytest.approx(1, abs=0.05)


def test_a_dropped_branch_leaves_the_input():
    block = UIB(8, 8, 16, 3, 3, norm="layer")
    block.drop_path.rate = 1 - 1e-9
    x = th.randn(2, 8, 5, 5)
    assert th.equal(block(x), x)


def test_evaluation_and_weights_do_not_change():
    network = create_model("mobilenet_v4_nano", 1, 10)
    x = th.rand(2, 1, 16, 16)
    names = list(network.state_dict())
    before = network.eval()(x)
    set_drop_path(network, 0.5)
    assert th.equal(network(x), before)
    assert list(network.state_dict()) == names
    network.train()
    assert not th.equal(network(x), network(x))


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_rate_outside_the_range_is_refused(rate):
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\)"):
        set_drop_path(create_model("mobilenet_v4_nano", 1, 10), rate)
