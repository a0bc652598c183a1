"""A covering array: few runs in which every pair of options of any two groups occurs at least once."""

import itertools
import random
from collections.abc import Callable


def pairwise(axes: dict[str, list[str]], apart: Callable[[dict], bool] = lambda row: False) -> list[dict[str, str]]:
    """Greedy: each row is built axis by axis, taking the value that covers most uncovered pairs, best of 20 tries.

    apart : whether two values, {axis: value, other: value}, do not go together.
    """
    rng = random.Random(0)
    names = list(axes)
    pairs = {frozenset([(a, x), (b, y)]) for a, b in itertools.combinations(names, 2) for x in axes[a] for y in axes[b]}
    never = {pair for pair in pairs if apart(dict(pair))}
    left = pairs - never
    rows = []
    while left:
        best: tuple[int, dict] = (-1, {})
        order = sorted(map(sorted, left))
        for _ in range(20):
            row = dict(rng.choice(order))
            for name in rng.sample(names, len(names)):
                if name not in row:
                    gains = []
                    for value in axes[name]:
                        new = [frozenset([(name, value), item]) for item in row.items()]
                        if never.isdisjoint(new):
                            gains.append((sum(pair in left for pair in new), rng.random(), value))
                    row[name] = max(gains)[2]
            gain = sum(frozenset(pair) in left for pair in itertools.combinations(row.items(), 2))
            if gain > best[0]:
                best = (gain, row)
        row = best[1]
        left -= {frozenset(pair) for pair in itertools.combinations(row.items(), 2)}
        rows.append(row)
    return rows
