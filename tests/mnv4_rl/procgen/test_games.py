import pytest

from mnv4_rl.procgen.games import REFERENCE_RETURNS, list_games, normalised, resolve_game


def test_any_common_spelling_names_the_game():
    names = (
        "starpilot",
        "StarPilot",
        " star_pilot ",
        "procgen/starpilot",
        "procgen:procgen-starpilot-v0",
        "StarpilotEasy-v0",
        "StarpilotHard-v0",
    )
    assert {resolve_game(name) for name in names} == {"starpilot"}
    for game in list_games():
        assert resolve_game(f"{game.capitalize()}Easy-v0") == resolve_game(game) == game


@pytest.mark.parametrize("name, hint", [("starpilo", "'starpilot'"), ("", "bigfish"), ("easy", "bigfish")])
def test_an_unknown_name_says_what_there_is(name, hint):
    with pytest.raises(ValueError, match=hint):
        resolve_game(name)
    with pytest.raises(TypeError, match="string"):
        resolve_game(3)


def test_the_papers_table():
    assert len(REFERENCE_RETURNS) == 16
    assert normalised("starpilot", 2.5) == 0 and normalised("starpilot", 64) == 1
    assert normalised("FruitBot", 15.45) == pytest.approx(0.5)
    assert normalised("starpilot", 35, "hard") == 1 and normalised("maze", 10) == normalised("maze", 10, "hard") == 1
    assert normalised("starpilot", 10, "extreme") is None
    assert all(low < high for modes in REFERENCE_RETURNS.values() for low, high in modes.values())
