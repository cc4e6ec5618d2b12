import numpy as np
import pytest
from ale_py import roms
from hypothesis import given
from hypothesis import strategies as st

from mnv4_rl.atari import make_atari_env
from mnv4_rl.atari.games import list_games, minimal_actions, resolve_game

SPELLINGS = {
    "rom id": "{rom}",
    "upper": "{upper}",
    "hyphens": "{hyphens}",
    "pascal": "{pascal}",
    "v5": "ALE/{pascal}-v5",
    "v4": "{pascal}-v4",
    "no frame skip": "{pascal}NoFrameskip-v4",
    "deterministic": "{pascal}Deterministic-v0",
    "spaces": "  {spaces} ",
}


def spell(rom, form):
    words = rom.split("_")
    return form.format(
        rom=rom,
        upper=rom.upper(),
        hyphens="-".join(words),
        pascal=rom.title().replace("_", ""),
        spaces=" ".join(word.title() for word in words),
    )


@pytest.mark.parametrize("form", SPELLINGS.values(), ids=SPELLINGS)
def test_every_game_by_every_spelling(form):
    assert [resolve_game(spell(rom, form)) for rom in list_games()] == list(list_games())


def test_list_is_every_rom_that_one_player_can_play():
    assert set(roms.get_all_rom_ids()) - set(list_games()) == {"combat", "joust", "maze_craze", "warlords"}
    assert list(list_games()) == sorted(list_games())


@given(st.sampled_from(list_games()), st.integers(min_value=0), st.characters(categories=["Ll"], max_codepoint=127))
def test_one_wrong_letter_is_refused_with_the_right_name(rom, position, letter):
    position %= len(rom) + 1
    wrong = rom[:position] + letter + rom[position:]
    if len(rom) < 5 or wrong.replace("_", "") in {other.replace("_", "") for other in list_games()}:
        return
    with pytest.raises(ValueError, match="Unknown game .*" + repr(rom)):
        resolve_game(wrong)


@pytest.mark.parametrize(
    "name, error, words",
    [
        ("", ValueError, "Unknown game ''"),
        ("doom", ValueError, "list_games"),
        ("brakeout", ValueError, "Did you mean 'breakout'"),
        ("Pong-ram-v5", ValueError, "RAM, not pixels. Name the game alone, such as 'pong'"),
        ("Pong-ramNoFrameskip-v4", ValueError, "RAM, not pixels"),
        ("joust", ValueError, "for two players"),
        (7, TypeError, "named by a string"),
    ],
)
def test_wrong_names(name, error, words):
    with pytest.raises(error, match=words):
        resolve_game(name)


def test_nickname_with_punctuation():
    assert resolve_game("Ms. Pac-Man") == "ms_pacman" and resolve_game("Q*bert") == "qbert"


def test_minimal_actions_are_the_games_own():
    assert minimal_actions("breakout") == ("NOOP", "FIRE", "RIGHT", "LEFT")
    assert minimal_actions("freeway") == ("NOOP", "UP", "DOWN")


@pytest.mark.slow
@pytest.mark.parametrize("rom", list_games())
def test_every_game_runs(rom):
    env = make_atari_env(rom, 1, num_threads=1)
    observations = [env.reset()] + [env.step(np.array([action]))[0] for action in range(env.action_space.n)]
    assert {observation.shape for observation in observations} == {(1, 4, 84, 84)}
    assert np.any(observations)  # not in each: tic_tac_toe_3d blanks the screen while it thinks
    env.close()
