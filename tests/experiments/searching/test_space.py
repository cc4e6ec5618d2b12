from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.searching.space import RL_M2_CHOICES, RL_S2_CHOICES, RL_S_CHOICES, SPACE, pick, spec_of
from mnv4_rl.models.network import build
from mnv4_rl.models.registry import get_spec


def test_rl_s_is_a_point_of_the_space():
    assert replace(spec_of(RL_S_CHOICES), name="rl_s") == get_spec("rl_s")
    assert pick(lambda name, _: RL_S_CHOICES[name]) == RL_S_CHOICES


@pytest.mark.parametrize(("name", "choices"), [("rl_s2", RL_S2_CHOICES), ("rl_m2", RL_M2_CHOICES)])
def test_the_later_rows_are_points_of_it_too(name, choices):
    """But for the borders of the stages, which are names alone."""
    found, row = spec_of(choices), get_spec(name)
    assert list(found.blocks()) == list(row.blocks())
    assert replace(found, name=name, stages=row.stages) == row


@given(st.data())
def test_every_point_is_a_row_with_a_name_of_its_own(data):
    picked = pick(lambda name, options: data.draw(st.sampled_from(options)))
    spec = spec_of(picked)
    assert spec_of(dict(reversed(picked.items()))) == spec
    assert ("start" in picked) == (spec.norm == "none") == (spec.start is not None)
    other = dict(picked) | {"width": "16" if picked["width"] != "16" else "24"}
    assert spec_of(other).name != spec.name


@pytest.mark.parametrize(
    ("choice", "option"), [(name, option) for name, options in SPACE.items() for option in options]
)
def test_every_option_builds(choice, option):
    picked = {**RL_S_CHOICES, choice: option}
    if picked["norm"] != "none":
        del picked["start"]
    network = build(spec_of(picked), 3, 0, (64, 64))
    assert sum(p.numel() for p in network.parameters()) > 0
