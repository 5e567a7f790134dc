"""Guided by a prior: the posterior by hand, when it is over, what is made anew, and what is refused."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from training import few_labels, train

from usl_lightning.base.errors import UslError
from usl_lightning.compute.optim import Optimization
from usl_lightning.data.modules import ImageData, SemiSupervisedData
from usl_lightning.data.views import FixMatchStrong, Weak
from usl_lightning.evaluation.priors import prior_figures
from usl_lightning.features.prior_files import read_prior, write_prior
from usl_lightning.models.guesses import posterior_logits
from usl_lightning.semisup.flexmatch import FlexMatch
from usl_lightning.semisup.guidance import Guidance
from usl_lightning.vectors.priors import Prior, Recipe


def test_the_posterior_is_equation_5() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(6, 4, generator=generator, dtype=torch.float64)
    prior = torch.rand(6, 4, generator=generator, dtype=torch.float64) / 5
    prior[2:4] = 0
    found = posterior_logits(logits, prior)
    for row, shares, posterior in zip(logits.tolist(), prior.tolist(), found.softmax(1).tolist(), strict=True):
        p = [math.exp(value) / sum(math.exp(other) for other in row) for value in row]
        total = sum(a + b for a, b in zip(shares, p, strict=True))
        assert posterior == pytest.approx([(a + b) / total for a, b in zip(shares, p, strict=True)])
    assert torch.equal(found[2:4], logits[2:4])
    assert bool(posterior_logits(torch.tensor([[500.0, 0.0]]), torch.tensor([[0.5, 0.0]])).isfinite().all())


def test_at_first_training_follows_the_prior_alone() -> None:
    """A flat prediction and a full prior are ½ + 1/2c: below FlexMatch's τ, so nothing is recorded and all passes."""
    posterior = posterior_logits(torch.zeros(1, 10), torch.eye(10)[:1]).softmax(1)
    assert float(posterior.max()) == pytest.approx((1 + 1 / 10) / 2)


# In training ---------------------------------------------------------------------------------------------


def prior_file(folder: Path, recipe: Recipe | None = None) -> Path:
    """What some labels say, spread in the pixels."""
    data = few_labels()
    rows, labels = (torch.tensor(column) for column in data.index.for_training())
    recipe = recipe or Recipe(clusters=(10, 20))
    write_prior(folder / "priors.npz", recipe.prior(_pixels(data), rows, labels, 10, seed=0), recipe, data)
    return folder / "priors.npz"


def _pixels(data: ImageData) -> Tensor:
    data.setup("predict")
    return torch.cat([batch.images for batch in data.whole_set()]).flatten(1).float() + 1


STEADY = Optimization(schedule="constant")


def flexmatch(data: ImageData, **options: Any) -> FlexMatch:
    return FlexMatch(data.spec, Weak(), FixMatchStrong(), STEADY, backbone="small_w16", ema_decay=0.9, **options)


def test_it_ends_after_its_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, bool]] = []
    real = Guidance.forward

    def noted(self: Guidance, logits: Tensor, indices: Tensor, step: int) -> Tensor:
        found = real(self, logits, indices, step)
        asked.append((step, torch.equal(found, logits)))
        return found

    monkeypatch.setattr(Guidance, "forward", noted)
    file = str(prior_file(tmp_path))
    none: dict[str, Any] = {"prior_after": "update"}  # of no steps: there is nothing to make anew
    for steps, more, last in ((2, {}, 2), (0.5, {}, 3), (0.0, {}, 0), (0.0, none, 0), (0.05, none, 0)):
        asked.clear()
        how = {"prior_file": file, "prior_steps": steps, **more}
        train(lambda data: flexmatch(data, **how), few_labels, tmp_path / f"{steps}{len(more)}", 6)  # noqa: B023
        assert asked == [(step, step >= last) for step in range(6)]


def test_a_prior_is_made_anew_of_the_moving_average(tmp_path: Path) -> None:
    """Every two steps, last at step 4; the state says so, and which it is."""
    file = str(prior_file(tmp_path))
    how = {"prior_file": file, "prior_steps": 2, "prior_after": "update"}
    checkpoint = train(lambda data: flexmatch(data, **how), few_labels, tmp_path / "five", 5)
    state = checkpoint["state_dict"]
    assert int(state["guidance.made"]) == 4
    data = few_labels()
    first, recipe = read_prior(file, data)
    assert recipe == Recipe(clusters=(10, 20))
    found = Prior(*(state[f"guidance.{name}"] for name in Prior._fields))
    assert not torch.equal(found.clusters, first.clusters)
    before = train(lambda data: flexmatch(data, **how), few_labels, tmp_path / "four", 4)
    assert int(before["state_dict"]["guidance.made"]) == 2
    rows, _ = (torch.tensor(column) for column in data.index.for_training())
    assert prior_figures(found, rows, data.train_source.labels)["prior_accuracy"] > 0.2
    model = flexmatch(data, **how)
    model.on_load_checkpoint(before)
    model.load_state_dict(before["state_dict"])
    assert model.guidance is not None
    data.setup("predict")
    model.guidance._recipe = recipe
    model.guidance.update(model.ema.module.encoder, data, 4)
    assert torch.equal(model.guidance.clusters, found.clusters), "the average of the step before, all images, once"


# Files ---------------------------------------------------------------------------------------------------


def saved(folder: Path, change: dict[str, Any]) -> str:
    with np.load(prior_file(folder)) as kept:
        arrays = {name: kept[name] for name in kept.files}
    about = json.loads(str(arrays["about"]))
    about |= change.pop("told", {})
    np.savez(folder / "changed.npz", **{**arrays, "about": np.array(json.dumps(about)), **change})
    return str(folder / "changed.npz")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"told": {"dataset": f"sha256:{'0' * 64}"}}, "are of other images"),
        ({"told": {"classes": ["cat", "dog"]}}, r"is of 10 classes \(cat, dog\), the labels of 10 \(0, 1, 2, …\)"),
        ({"told": {"recipe": {}}}, "does not say what it is of"),
        ({"weights": np.full(1437, np.nan, np.float32)}, "not finite"),
        ({"weights": np.full(1437, 2.0, np.float32)}, "add up to more than 1"),
        ({"weights": np.ones(3, np.float32)}, "do not fit together"),
        ({"clusters": np.zeros((3, 2), np.int32)}, "3 rows for 1437 images"),
        ({"clusters": np.zeros(1437)}, "clusters is float64"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UslError, match=message) as error:
        read_prior(saved(tmp_path, dict(change)), few_labels())
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("model.prior_file: ")


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.zeros((1437, 9), np.float32), "is of 9 classes"),
        (np.zeros((1436, 10), np.float32), "1436 rows for 1437 images"),
        (np.full((1437, 10), 0.2, np.float32), "add up to more than 1, image 0 to 2"),
        (np.full((1437, 10), -0.1, np.float32), "negative"),
        (np.full((1437, 10), np.inf, np.float32), "not finite"),
        (np.zeros((1437, 10), np.int64), "expected class shares"),
    ],
)
def test_a_matrix_that_does_not_fit_is_refused(matrix: Any, message: str, tmp_path: Path) -> None:
    np.save(tmp_path / "matrix.npy", matrix)
    with pytest.raises(UslError, match=message):
        read_prior(str(tmp_path / "matrix.npy"), few_labels())
    with pytest.raises(UslError, match="no such file; usl propagate writes one"):
        read_prior(str(tmp_path / "none.npz"), few_labels())


def test_a_matrix_of_shares_will_do(tmp_path: Path) -> None:
    matrix = np.random.default_rng(0).dirichlet(np.ones(10), 1437).astype(np.float32)
    np.savez(tmp_path / "matrix.npz", probabilities=matrix)
    prior, recipe = read_prior(str(tmp_path / "matrix.npz"), few_labels())
    assert torch.equal(prior.rows(torch.arange(1437)), torch.from_numpy(matrix))
    assert recipe == Recipe()


def test_too_few_images_for_an_update_are_told_before_the_first_step(tmp_path: Path) -> None:
    file = str(prior_file(tmp_path, Recipe(clusters=(10,))))
    Guidance(file, 2, "update").begin(few_labels(), 10)
    with np.load(file) as kept:
        told = json.loads(str(kept["about"]))
        told["recipe"]["clusters"] = [2000]
        arrays = {**{name: kept[name] for name in kept.files}, "about": np.array(json.dumps(told))}
    np.savez(file, **arrays)
    Guidance(file, 2, "drop").begin(few_labels(), 10)
    with pytest.raises(UslError, match=r"k=2000 clusters .* to 1437, the images there are"):
        Guidance(file, 2, "update").begin(few_labels(), 10)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    data: SemiSupervisedData = few_labels()
    recipe = Recipe("graph", None, True, 7, 9)
    rows, labels = (torch.tensor(column) for column in data.index.for_training())
    prior = recipe.prior(_pixels(data), rows, labels, 10, seed=0)
    write_prior(tmp_path / "p.npz", prior, recipe, data)
    found, told = read_prior(str(tmp_path / "p.npz"), data)
    assert all(torch.equal(a, b) for a, b in zip(found, prior, strict=True))
    assert told == recipe == replace(told)
    assert (tmp_path / "p.npz").stat().st_size < 4 * 1437 * 10, "smaller than the matrix"


def test_figures_are_those_of_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    tables = torch.rand(1, 50, 4, generator=generator) / 4
    tables[0, 10:15] = 0
    prior = Prior(torch.arange(50, dtype=torch.int32)[:, None], tables, torch.ones(50))
    labels = torch.randint(-1, 4, (50,), generator=generator)
    rows = torch.tensor([0, 1, 2])
    figures = prior_figures(prior, rows, labels)
    shares = tables[0][3:].tolist()
    known = [
        (max(row), row.index(max(row)) == label)
        for row, label in zip(shares, labels[3:].tolist(), strict=True)
        if label >= 0
    ]
    known = [(confidence, right and confidence > 0) for confidence, right in known]
    assert figures["prior_coverage"] == pytest.approx(sum(max(row) > 0 for row in shares) / 47)
    assert figures["prior_confidence"] == pytest.approx(sum(map(max, shares)) / 47)
    assert figures["prior_accuracy"] == pytest.approx(sum(right for _, right in known) / len(known))
    error = 0.0
    for number in range(15):
        some = [each for each in known if number / 15 < each[0] <= (number + 1) / 15 or (number == 0 and each[0] == 0)]
        error += abs(sum(right - confidence for confidence, right in some)) / len(known)
    assert figures["prior_calibration_error"] == pytest.approx(error)
