import pytest

from experiments.racing.protocol import PROTOCOL, check_tuning
from mnv4_rl.atari.games import resolve_game as resolve_atari
from mnv4_rl.procgen.games import resolve_game as resolve_procgen


@pytest.mark.parametrize("name", PROTOCOL)
def test_what_is_tuned_on_is_never_judged_on(name):
    benchmark = PROTOCOL[name]
    assert not set(benchmark.tuning_games) & set(benchmark.test_games)
    assert not set(benchmark.tuning_seeds) & set(benchmark.test_seeds)
    for values in (benchmark.tuning_games, benchmark.test_games, benchmark.tuning_seeds, benchmark.test_seeds):
        assert values and len(set(values)) == len(values)


def test_every_game_exists_under_its_one_name():
    for games in (PROTOCOL["atari"].tuning_games, PROTOCOL["atari"].test_games):
        assert tuple(map(resolve_atari, games)) == games
    for games in (PROTOCOL["procgen"].tuning_games, PROTOCOL["procgen"].test_games):
        assert tuple(f"procgen/{resolve_procgen(game)}" for game in games) == games


def test_choosing_by_the_test_is_refused():
    for benchmark in PROTOCOL.values():
        check_tuning(benchmark.tuning_games, benchmark.tuning_seeds)
        for game in benchmark.test_games:
            with pytest.raises(ValueError, match=game):
                check_tuning([benchmark.tuning_games[0], game], [0])
        for seed in benchmark.test_seeds:
            with pytest.raises(ValueError, match=str(seed)):
                check_tuning(iter([]), iter([0, seed]))
