"""Which target comes next: longer by a factor until one fails, then half way between what is held and what failed."""

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
    """Most tokens given back, by vectors that reached their target or by vectors that failed at a longer one."""
    failed: int | None = None
    """Shortest target that failed."""
    restarts: int = 0
    """Times that the first target was tried again."""

    def target(self, settings: GrowthSettings) -> int | None:
        """The next target; None when the search is over."""
        if self.held >= self.limit:
            return None
        if self.failed is None:
            first = self.held < settings.first_tokens
            longer = settings.first_tokens if first else max(self.held + 1, math.ceil(self.held * settings.factor))
            return min(self.limit, longer)
        return (self.held + self.failed) // 2 if self.failed - self.held > settings.resolution_tokens and self.failed > 1 else None

    def record(self, target: int, written: int, settings: GrowthSettings) -> None:
        """Move on after a stage whose vectors write the first `written` tokens of its target."""
        self.held = max(self.held, written)
        if written >= target:
            return
        if self.failed is None and target <= settings.first_tokens and self.restarts < settings.restarts:
            self.restarts += 1
        else:
            self.failed = target

    def most_stages(self, settings: GrowthSettings) -> int:
        """Stages that a search of this limit can have at most: for plans."""
        search, n, held = Growth(self.limit), 0, [0]
        while (target := search.target(settings)) is not None:
            held.append(target)
            search.record(target, target, settings)
            n += 1
        gaps = [after - before for before, after in itertools.pairwise(held)]
        return n + settings.restarts + math.ceil(math.log2(max([1, *gaps]) / settings.resolution_tokens + 1))
