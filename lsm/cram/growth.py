"""Which target comes next: longer by a factor until one fails, then half way between what was reached and what failed."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

from lsm.cram.settings import GrowthSettings


@dataclass
class Growth:
    """Where the search for one text's capacity stands, in tokens."""

    limit: int
    """Longest target there is."""
    held: int = 0
    """Longest target reached."""
    failed: int | None = None
    """Shortest target that failed."""

    def target(self, settings: GrowthSettings) -> int | None:
        """The next target; None when the search is over."""
        if self.held >= self.limit:
            return None
        if self.failed is None:
            longer = settings.first_tokens if self.held == 0 else max(self.held + 1, math.ceil(self.held * settings.factor))
            return min(self.limit, longer)
        return (self.held + self.failed) // 2 if self.failed - self.held > settings.resolution_tokens and self.failed > 1 else None

    def record(self, target: int, *, reached: bool) -> None:
        """Move on after a stage."""
        if reached:
            self.held = target
        else:
            self.failed = target

    @property
    def at_limit(self) -> bool:
        """Whether the search ended because there was nothing longer to try."""
        return self.held >= self.limit

    def most_stages(self, settings: GrowthSettings) -> int:
        """Stages that a search of this limit can have at most: for plans."""
        search, n, held = Growth(self.limit), 0, [0]
        while (target := search.target(settings)) is not None:
            held.append(target)
            search.record(target, reached=True)
            n += 1
        gaps = [after - before for before, after in itertools.pairwise(held)]
        return n + math.ceil(math.log2(max([1, *gaps]) / settings.resolution_tokens + 1))
