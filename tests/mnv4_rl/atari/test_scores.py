from __future__ import annotations

import numpy as np
import pytest

from mnv4_rl.atari.games import list_games
from mnv4_rl.atari.scores import REFERENCE_SCORES, human_normalised


def test_the_table_has_the_57_games_under_their_rom_ids():
    assert len(REFERENCE_SCORES) == 57
    assert set(REFERENCE_SCORES) <= set(list_games())


def test_the_human_beats_random_play_everywhere():
    assert all(reference.human > reference.random for reference in REFERENCE_SCORES.values())


def test_random_play_is_0_and_the_human_1_in_every_game():
    ends = {(human_normalised(game, random), human_normalised(game, human))
            for game, (random, human) in REFERENCE_SCORES.items()}  # fmt: skip
    assert ends == {(0, 1)}


def test_the_scale_is_linear_and_open_at_both_ends():
    # (20.6 + 20.7) / (14.6 + 20.7)
    assert human_normalised("ALE/Pong-v5", 20.6) == pytest.approx(41.3 / 35.3)
    assert human_normalised("pong", -21) < 0


def test_a_game_without_reference_has_no_normalised_score():
    assert human_normalised("tetris", 3.0) is None


def test_a_name_that_is_no_game_is_refused():
    with pytest.raises(ValueError, match="Unknown game 'pongg'"):
        human_normalised("pongg", 3.0)


def test_the_numbers_of_the_table_stay_as_they_are():
    values = np.array(list(REFERENCE_SCORES.values()))
    assert (len(values), *values.sum(0).round(1)) == (57, 50864.9, 606494.2)
