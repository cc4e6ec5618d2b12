"""What can be chosen about a Procgen environment, checked: how hard its levels are, and which of them it draws from."""

from __future__ import annotations

import dataclasses

from mnv4_rl.checks import check_choice, check_count
from mnv4_rl.plain import numbers_as_pythons

DISTRIBUTION_MODES = ("easy", "hard", "extreme", "memory", "exploration")
_LEVEL_LIMIT = 2**31 - 1  # levels are named by C ints


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProcgenOptions:
    """Options of a Procgen environment; the defaults are Procgen's own but for the mode, which is `easy`."""

    distribution_mode: str = "easy"
    """easy, hard, and for some games extreme, memory or exploration."""
    num_levels: int = 0
    """Levels to draw from; 0 for all there are."""
    start_level: int = 0
    """The first of them; of no meaning where num_levels is 0."""

    def __post_init__(self) -> None:
        numbers_as_pythons(self)
        check_choice("distribution_mode", self.distribution_mode, DISTRIBUTION_MODES)
        check_count("num_levels", self.num_levels, 0)
        check_count("start_level", self.start_level, 0)
        if self.start_level + self.num_levels > _LEVEL_LIMIT:
            raise ValueError(
                f"The last level is 2**31 - 2, got start_level={self.start_level} and num_levels={self.num_levels}. "
                "Lower one of them."
            )

    @property
    def levels(self) -> range:
        """The levels drawn from."""
        if not self.num_levels:
            return range(_LEVEL_LIMIT)
        return range(self.start_level, self.start_level + self.num_levels)

    def unseen(self) -> ProcgenOptions | None:
        """The same with all levels past these; None where there are none."""
        first = self.levels.stop
        if first == _LEVEL_LIMIT:
            return None
        return dataclasses.replace(self, start_level=first, num_levels=_LEVEL_LIMIT - first)
