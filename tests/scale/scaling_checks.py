"""The wall time of a race against the nodes of a Ray cluster; `make test-ray`.

Not collected by the other targets, whose environment has no Ray.
"""

import shutil
import time

from tests.scale.nodes import cluster, finish, games, start
from tests.scale.race_checks import GAMES, flags


def test_the_same_race_on_one_two_and_four_nodes(tmp_path):
    """All nodes share this machine's cores, so this shows what the engine costs, not what more machines bring."""
    seconds, curves = {}, {}
    for n_nodes in (1, 2, 4):
        folder = tmp_path / str(n_nodes)
        with cluster(n_nodes) as nodes:
            started = time.monotonic()
            flagged = flags(folder, "r", GAMES[1:2], (0, 1), 512)
            finish(start("race.py", *flagged, "--engine", "ray", "--address", nodes.address))
            seconds[n_nodes] = time.monotonic() - started
        curves[n_nodes] = [games(run) for run in sorted((folder / "races" / "r").glob("*/"))]
    assert curves[1] == curves[2] == curves[4] and len(curves[1]) == 4
    print("4 runs of 512 timesteps:", *(f"{n} nodes {wall:.0f} s" for n, wall in seconds.items()), sep="  ")
    shutil.rmtree(tmp_path)
