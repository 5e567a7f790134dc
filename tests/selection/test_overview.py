"""The overview of a selection: density and groups against plain loops, components against scikit-learn."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from usl_lightning.base.errors import UslError
from usl_lightning.report.chosen import group_shares, least_representative
from usl_lightning.report.embedding import plane
from usl_lightning.stage import overview as module
from usl_lightning.stage.overview import Overview, make_overview, principal_components


def points(n: int, d: int = 6) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(1))


def test_density_groups_and_rows() -> None:
    x, chosen = points(60), torch.tensor([5, 40, 2])
    found = make_overview(x, chosen, k=4)
    assert found is not None
    assert (found.chosen, found.total, found.neighbors) == (3, 60, 4)
    assert found.images.tolist() == [5, 40, 2, *(i for i in range(60) if i not in (5, 40, 2))]
    unit = torch.nn.functional.normalize(x.double(), dim=1)
    squared = (unit[:, None] - unit[None]).square().sum(2)
    for row, image in enumerate(found.images.tolist()):
        assert found.density[row] == pytest.approx(1 / squared[image].sort().values[:4].mean().item(), rel=1e-4)
        assert found.nearest[row] == int(squared[image, chosen].argmin())
    assert sum(group_shares(found).values()) == pytest.approx(1)
    rest = sorted(range(3, 60), key=lambda row: found.density[row])
    assert least_representative(found, 5) == rest[:5]


def test_of_a_large_set_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHOSEN", 4)
    monkeypatch.setattr(module, "OTHERS", 10)
    chosen = torch.arange(0, 100, 10)
    found = make_overview(points(200), chosen, seed=3)
    assert found is not None
    assert found.images[:4].tolist() == [0, 10, 20, 30]
    assert len(found.images) == 14
    assert not set(found.images[4:].tolist()) & set(chosen.tolist())
    assert found.nearest.max() > 3, "also of those that are not shown"
    other = make_overview(points(200), chosen, seed=4)
    assert other is not None
    assert found.images[4:].tolist() != other.images[4:].tolist()


def test_the_methods_own_clusters() -> None:
    clusters = torch.arange(60) % 7
    found = make_overview(points(60), torch.tensor([5, 40, 2]), k=4, clusters=clusters)
    assert found is not None
    assert found.clusters is not None
    assert found.cluster_sizes is not None
    assert found.clusters.tolist() == [image % 7 for image in found.images.tolist()]
    assert found.cluster_sizes.tolist() == [9, 9, 9, 9, 8, 8, 8]


def test_no_features_no_overview() -> None:
    assert make_overview(torch.empty(5, 0), torch.tensor([1])) is None
    assert make_overview(torch.eye(5)[:, :4], torch.tensor([1])) is None, "a row of zeros"


def test_components_are_those_of_scikit_learn() -> None:
    x = points(80, 7) * torch.arange(1, 8)
    ours = principal_components(x, 3).numpy()
    theirs = PCA(3).fit_transform(x.double().numpy())
    np.testing.assert_allclose(np.abs(ours), np.abs(theirs), atol=1e-9)
    assert (ours[np.abs(ours).argmax(0), range(3)] > 0).all()


def test_read_what_was_written(tmp_path: Path) -> None:
    made = make_overview(points(30), torch.tensor([3, 4]), clusters=torch.arange(30) % 4)
    assert made is not None
    made.write(tmp_path / "a.npz")
    read = Overview.read(tmp_path / "a.npz")
    assert read is not None
    for name in ("images", "density", "nearest", "features", "clusters", "cluster_sizes"):
        np.testing.assert_array_equal(getattr(read, name), getattr(made, name))
    assert (read.chosen, read.total, read.neighbors) == (made.chosen, made.total, made.neighbors)
    assert Overview.read(tmp_path / "b.npz") is None
    without = make_overview(points(30), torch.tensor([3, 4]))
    assert without is not None
    without.write(tmp_path / "c.npz")
    again = Overview.read(tmp_path / "c.npz")
    assert again is not None
    assert again.clusters is again.cluster_sizes is None
    (tmp_path / "a.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:200])
    with pytest.raises(UslError, match=r"a\.npz: damaged"):
        Overview.read(tmp_path / "a.npz")


def test_plane_keeps_groups_apart_and_says_how() -> None:
    x = torch.randn(60, 8, generator=torch.Generator().manual_seed(0)) + 40 * torch.eye(3, 8).repeat_interleave(20, 0)
    features = principal_components(x, 5).numpy()
    for most, method in ((3000, "t-SNE"), (59, "PCA")):
        places, how = plane(features, most=most)
        assert how.startswith(method)
        groups = places.reshape(3, 20, 2)
        inside = max(np.linalg.norm(group - group.mean(0), axis=1).max() for group in groups)
        centres = groups.mean(1)
        assert min(np.linalg.norm(centres[i] - centres[j]) for i, j in ((0, 1), (0, 2), (1, 2))) > inside
    assert plane(features[:5])[1].startswith("PCA"), "too few for t-SNE"
    assert plane(features[:, :1])[0].shape == (60, 2)
