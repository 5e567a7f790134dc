"""How many images two selectors choose alike."""

import csv
import io
import itertools
import statistics
from collections.abc import Iterable, Mapping
from typing import Any

from usl_lightning.base.documents import guarded

COLUMNS = ("budget", "selector", "other", "in_common")


def overlaps(cells: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each budget and pair of selectors the share of the images that both choose, from 0 to 1.

    Of two selectors it is the mean over the seeds that both have; of one with itself the mean over pairs of different
    seeds: what is missing to 1 is what chance decides. A pair that cannot be compared is left out.

    Args:
        cells: with `selector`, `budget`, `seed` and `indices`.
    """
    chosen: dict[int, dict[str, dict[int, set[int]]]] = {}
    for cell in cells:
        of_budget = chosen.setdefault(cell["budget"], {})
        of_budget.setdefault(cell["selector"], {})[cell["seed"]] = set(cell["indices"])
    rows = []
    for budget, selectors in chosen.items():
        for one, other in itertools.combinations_with_replacement(selectors, 2):
            if one == other:
                pairs = list(itertools.combinations(selectors[one].values(), 2))
            else:
                seeds = selectors[one].keys() & selectors[other].keys()
                pairs = [(selectors[one][seed], selectors[other][seed]) for seed in sorted(seeds)]
            if pairs:
                share = statistics.mean(len(a & b) / budget for a, b in pairs)
                rows.append(dict(zip(COLUMNS, (budget, one, other, share), strict=True)))
    return rows


def overlap_csv(rows: Iterable[Mapping[str, Any]]) -> str:
    """The rows of `overlaps` as text."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        names = {key: guarded(row[key]) for key in ("selector", "other")}
        writer.writerow({**row, **names, "in_common": f"{row['in_common']:.4f}"})
    return text.getvalue()
