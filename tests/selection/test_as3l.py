"""AS3L's selection against a loop, and its fine-tuning against the least-squares solution."""

import numpy as np
import pytest
import torch
from real_features import NAMES, real_features

from usl_lightning.base.errors import UslError
from usl_lightning.selection.as3l import Largest, select_as3l
from usl_lightning.vectors.kmeans import kmeans
from usl_lightning.vectors.tightened import finetuned_features, run_seed, tightened


@pytest.mark.parametrize("largest", ["of_all", "of_each"])
@pytest.mark.parametrize("name", NAMES)
def test_equals_a_loop(name: str, largest: Largest) -> None:
    x = real_features(name, 200)
    runs = [kmeans(x, 8, seed=run_seed(3, "before", c)) for c in range(4)]
    centres = sum(centroids[labels] for labels, centroids in runs) / 4
    tuned = finetuned_features(x, centres, epochs=5, seed=3)
    labels = [kmeans(tuned, 8, seed=run_seed(3, "after", c))[0].tolist() for c in range(4)]
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, row in enumerate(zip(*labels, strict=True)):
        groups.setdefault(row, []).append(i)
    in_order = sorted(groups)
    if largest == "of_all":
        middles = sorted(in_order, key=lambda g: -len(groups[g]))[:8]
    else:
        each = [[g for g in in_order if g[0] == cluster] for cluster in sorted(set(labels[0]))]
        middles = [max(some, key=lambda g: len(groups[g])) for some in each]
    chosen = []
    for middle_of in middles:
        members = groups[middle_of]
        points = tuned[members].double().numpy()
        middle = np.sort(points, 0)[(len(members) - 1) // 2]
        chosen.append(members[int(((points - middle) ** 2).sum(1).argmin())])
    picks = select_as3l(x, 8, seed=3, clusterings=4, epochs=5, largest=largest)
    assert picks[: len(chosen)].tolist() == chosen


def test_fine_tuning_is_least_squares_in_the_limit() -> None:
    x = real_features("cells", 300)
    labels, centroids = kmeans(x, 6)
    centres = centroids[labels]
    design = torch.cat([x, torch.ones(300, 1)], 1).double()
    best = design @ torch.linalg.lstsq(design, centres.double()).solution
    error, least, start = (
        float((features - centres).square().mean())
        for features in (finetuned_features(x, centres, epochs=400), best, x)
    )
    assert least <= error < least + 0.1 * (start - least)
    assert torch.equal(finetuned_features(x, centres, epochs=0), x)


def test_with_one_grouping_it_is_the_middles_of_clusters_of_fine_tuned_features() -> None:
    """K-medoids on fine-tuned features, as the paper's Table 4 means it: the fine-tuning stays that of C runs."""
    x = real_features("digits", 200)
    tuned = tightened(x, 8, seed=3, clusterings=4, epochs=5, iterations=200)
    labels = kmeans(tuned, 8, seed=run_seed(3, "after", 0))[0]
    middles = []
    for cluster in labels.bincount().argsort(descending=True, stable=True):
        members = torch.nonzero(labels == cluster)[:, 0]
        points = tuned[members].double()
        middles.append(int(members[(points - points.median(0).values).square().sum(1).argmin()]))
    assert select_as3l(x, 8, seed=3, clusterings=4, epochs=5, groupings=1).tolist() == middles
    assert torch.equal(select_as3l(x, 8, epochs=2, groupings=6), select_as3l(x, 8, epochs=2))
    with pytest.raises(UslError, match="groupings=0: expected at least 1, 0 and 1"):
        select_as3l(x, 8, groupings=0)


def test_what_the_first_run_cut_in_two_is_not_privileged() -> None:
    """The default is the plainer reading: the largest groups of all."""
    x = real_features("digits", 300)
    assert torch.equal(select_as3l(x, 10, epochs=2), select_as3l(x, 10, epochs=2, largest="of_all"))
    assert not torch.equal(select_as3l(x, 10, epochs=2), select_as3l(x, 10, epochs=2, largest="of_each"))


def test_equal_starts_of_the_first_run_only() -> None:
    assert run_seed(5, "before", 0) == 5
    assert len({run_seed(5, when, run) for when in ("before", "after") for run in range(1, 6)}) == 10
    x = real_features("digits", 300)
    assert not torch.equal(select_as3l(x, 10, clusterings=1), select_as3l(x, 10, clusterings=6))
