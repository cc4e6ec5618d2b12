import pytest

from mnv4_rl.games import family_of, reference_scores, resolve_game


@pytest.mark.parametrize(
    "name, game",
    [("Pong-v5", "pong"), ("procgen/StarPilot", "procgen/starpilot"), (" Procgen/starpilot ", "procgen/starpilot")],
)
def test_a_name_says_which_kind_of_game_it_is(name, game):
    assert resolve_game(name) == resolve_game(resolve_game(name)) == game
    assert family_of(name) == family_of(game) == ("procgen" if "/" in game else "atari")


@pytest.mark.parametrize("name", ["starpilot", "procgen/pong", "procgen/"])
def test_a_game_of_the_other_kind_is_unknown(name):
    with pytest.raises(ValueError):
        resolve_game(name)


def test_each_kind_has_its_scale():
    assert reference_scores("ALE/Pong-v5") == (-20.7, 14.6) and reference_scores("tetris") is None
    assert reference_scores("procgen/StarPilot") == (2.5, 64)
