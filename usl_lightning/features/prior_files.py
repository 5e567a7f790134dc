"""Files of prior pseudo-labels: compact votes of all images of a data set, or a matrix of class shares."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from usl_lightning.base.arrays import load_arrays
from usl_lightning.base.atomic import atomic_path
from usl_lightning.base.errors import UslError
from usl_lightning.base.files import parse_json
from usl_lightning.data.modules import LabelledData
from usl_lightning.features.kept import check_dataset
from usl_lightning.vectors.priors import Prior, Recipe

ARRAYS = ("clusters", "tables", "weights")
"""Of a file that `write_prior` wrote, beside `about`."""


def write_prior(path: Path, prior: Prior, recipe: Recipe, data: LabelledData) -> None:
    """Write a prior: the arrays of `Prior`, and `about`, JSON of the images, their classes and how it was made.

    Args:
        path: the file, `.npz`.
        prior: of all images of `data`.
        recipe: it was made by.
        data: the images.
    """
    told = {"dataset": data.train_source.fingerprint, "classes": list(data.classes), "recipe": recipe.plain()}
    arrays: dict[str, Any] = {name: getattr(prior, name).cpu().numpy() for name in ARRAYS}
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, about=np.array(json.dumps(told)), **arrays)


def read_prior(path: str, data: LabelledData) -> tuple[Prior, Recipe]:
    """The prior of the images of `data`, and how it can be made anew.

    Args:
        path: a file of `usl propagate`; or `.npy`, or `.npz` with `probabilities`, of class shares [images, classes].
        data: the images and their classes.

    Raises:
        UslError: the file cannot be read, is of other images or other classes, or its shares are not finite, negative
            or add up to more than 1.
    """
    where, count, classes = f"model.prior_file: {path}", len(data.train_source), len(data.classes)
    try:
        arrays = load_arrays(Path(path), where=where)
    except FileNotFoundError as error:
        raise UslError(f"{where}: no such file; usl propagate writes one") from error
    matrix = arrays.get("", arrays.get("probabilities"))
    if matrix is not None:
        prior, told = _of_matrix(matrix, where), {}
    elif {*ARRAYS} <= arrays.keys():
        told = _told(arrays.get("about"), where)
        check_dataset(arrays["about"], data.train_source.fingerprint, "prior pseudo-labels", where)
        prior = _of_votes(arrays, where)
    else:
        raise UslError(f"{where}: holds {', '.join(arrays) or 'nothing'}; expected a file of usl propagate")
    if len(prior.clusters) != count:
        raise UslError(f"{where}: {len(prior.clusters)} rows for {count} images; expected one for each")
    known = told.get("classes", list(data.classes))
    if known != list(data.classes) or prior.tables.shape[2] != classes:
        raise UslError(
            f"{where}: is of {prior.tables.shape[2]} classes ({_some(known)}), the labels of {classes} "
            f"({_some(data.classes)}); expected the same in the same order"
        )
    prior.check(where)
    return prior, Recipe.of(told["recipe"]) if told else Recipe()


def _some(names: Any) -> str:
    return ", ".join(map(str, names[:3])) + (", …" if len(names) > 3 else "")


def _of_matrix(matrix: NDArray[Any], where: str) -> Prior:
    if matrix.ndim != 2 or matrix.dtype.kind != "f" or not matrix.size:
        raise UslError(f"{where}: {matrix.dtype} {list(matrix.shape)}; expected class shares [images, classes]")
    shares = torch.from_numpy(matrix.astype(np.float32))
    return Prior(torch.arange(len(shares), dtype=torch.int32)[:, None], shares[None], torch.ones(len(shares)))


def _of_votes(arrays: dict[str, NDArray[Any]], where: str) -> Prior:
    kinds = {"clusters": ("iu", 2, torch.int32), "tables": ("f", 3, torch.float32), "weights": ("f", 1, torch.float32)}
    found = []
    for name, (kind, dimensions, dtype) in kinds.items():
        array = arrays[name]
        if array.dtype.kind not in kind or array.ndim != dimensions:
            raise UslError(f"{where}: {name} is {array.dtype} {list(array.shape)}; make the file again")
        found.append(torch.from_numpy(array).to(dtype))
    return Prior(*found)


def _told(about: Any, where: str) -> dict[str, Any]:
    """What the file says of itself."""
    try:
        told = parse_json(str(about))
        names, recipe = told["classes"], Recipe.of(told["recipe"])
        if not isinstance(names, list) or told["dataset"][:7] != "sha256:" or recipe.plain() != told["recipe"]:
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UslError(f"{where}: does not say what it is of; make it again with usl propagate") from error
    return dict(told)
