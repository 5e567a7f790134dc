"""The checks of `device.py`: a device computes what a CPU does, and repeats itself bit for bit where it is told to."""

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from device_sizes import Size
from selection_speed import real_features
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor
from views import photos

from usl_lightning.data import views as recipes
from usl_lightning.data.keys import Key
from usl_lightning.selection.next_selector import NextSelector
from usl_lightning.vectors.density import density_distance
from usl_lightning.vectors.kmeans import kmeans
from usl_lightning.vectors.logistic import fit_logistic
from usl_lightning.vectors.neighbors import knn
from usl_lightning.vectors.propagation import propagate, propagation_graph
from usl_lightning.vectors.sinkhorn import sinkhorn_labels

sys.path.insert(0, str(Path(__file__).parent.parent))  # what the tests of the methods share

Found = Iterator[dict[str, Any]]

PIXELS = 1e-3
"""The share of a view's pixels that may differ by more than rounding: where a rotation's edge falls, for one."""

GRADIENT = 1e-6
"""How far the gradients of a step in 64 bits may be apart, in norm, relative."""


def apart(found: Any, truth: Any) -> float:
    """The distance of two tensors, relative to the second; 0 of equal ones, of integers the share that differs."""
    own, other = found.cpu(), truth.cpu()
    if not other.is_floating_point():
        return float((own != other).double().mean())
    return float((own.double() - other.double()).norm() / other.double().norm().clamp(min=1e-30))


# Views ----------------------------------------------------------------------------------------------------


def ops(device: str, size: Size) -> Found:
    """Every recipe, and with them every operation on images: the pixels of a CPU."""
    images = torch.stack([pil_to_tensor(picture) for picture in photos(size.images, 32)])
    found = {}
    for name in recipes.__all__:
        if name == "Recipe":
            continue
        view, pixels = getattr(recipes, name)(), images[:, :1] if name == "SmallGreyView" else images
        key = Key.of(0, "device", slots=torch.arange(len(pixels)))
        truth = view(pixels, key)
        own = view.to(device)(pixels.to(device), key.to(device)).cpu()
        far = (own - truth).abs()
        found[name] = {"share": float((far > 0.5 / 255).double().mean()), "largest": float(far.max())}
        yield {"holds": all(row["share"] <= PIXELS for row in found.values()), "recipes": found}


# Features -------------------------------------------------------------------------------------------------


def vectors(device: str, size: Size) -> Found:
    """Neighbours, clusters, density, transport, propagation and regression on real features."""
    x, few = real_features(size.points), torch.arange(50)
    calls: dict[str, tuple[float, Callable[[Tensor], Tensor]]] = {
        "neighbours": (0, lambda x: knn(x, 20)[1]),
        "density": (1e-6, lambda x: density_distance(x, 20)),
        "k-means": (1e-3, lambda x: kmeans(x, 40)[0]),
        "k-means, many": (1e-3, lambda x: kmeans(x, size.points // 8, iterations=10)[0]),
        "balanced labels": (1e-3, lambda x: sinkhorn_labels(20 * x[:, :16], power=5, tolerance=1e-3)),
        "propagation": (
            1e-3,
            lambda x: propagate(propagation_graph(x, 10), torch.eye(len(x), 5, device=x.device), 0.99),
        ),
        "regression": (1e-3, lambda x: _regression(x[:50], few.to(x.device) % 5)),
    }
    found = {}
    for name, (most, call) in calls.items():
        found[name] = {"apart": apart(call(x.to(device)), call(x)), "allowed": most}
        yield {"holds": all(row["apart"] <= row["allowed"] for row in found.values()), "functions": found}


def _regression(x: Tensor, labels: Tensor) -> Tensor:
    """Logits [m, 5] of the rows themselves."""
    one, penalty = torch.ones(1, len(x), device=x.device), torch.full((1,), 1e-2, device=x.device)
    weight, bias = fit_logistic(x, labels, one, penalty, num_classes=5)
    return x @ weight[0].T + bias[0]


# The command ----------------------------------------------------------------------------------------------


def placed_on(device: str) -> list[str]:
    """The options that have a stage run there."""
    return ["--trainer.accelerator", "gpu" if device == "cuda" else "cpu", "--trainer.devices", "1"]


def selectors(device: str, size: Size) -> Found:
    """Every selector that ships, by the real command: the picks of a CPU from the same features, in a file."""
    from methods import Bench, methods, model_options, usl

    class Untrained(Bench):
        def checkpoint(self, config: str) -> Path:
            """None is needed: the features are in a file."""
            return self.folder / config

    bench, found = Untrained(Path(tempfile.mkdtemp())), {}
    features = bench.folder / "features.npy"
    np.save(features, np.load(bench.folder / "data" / "train.npz")["images"].reshape(160, -1).astype(np.float32))
    chosen = [m for m in methods("select") if not issubclass(m.method, NextSelector)]
    for method in chosen[: size.methods]:
        words = [w for w in bench.words(method) if not w.startswith(("--model.init_from", "--model.backbone"))]
        picks = []
        for where in (device, "cpu"):
            run_dir = bench.folder / f"{method} {where} {len(picks)}"
            usl(*words, *model_options({"features": str(features)}), *placed_on(where), "--run_dir", run_dir)
            picks.append(json.loads((run_dir / "labels.json").read_text())["indices"])
        found[str(method)] = len(set(picks[0]) & set(picks[1])) / len(picks[1])
        yield {"holds": min(found.values()) == 1.0, "share of the picks": found}


def methods(device: str, size: Size) -> Found:
    """Every method that is trained, by the real command in 64 bits: the first step's gradient is a CPU's."""
    from methods import Bench, callbacks, methods, options, usl

    bench, found = Bench(Path(tempfile.mkdtemp())), {}
    for method in [m for m in methods("fit") if m.method.by_steps][: size.methods]:
        gradients = []
        for number, where in enumerate((device, "cpu")):
            run_dir = bench.folder / f"{method} {where} {number}"
            run_dir.mkdir()
            more = options(trainer__max_steps=1, trainer__precision="64-true", seed_everything=0)
            keep = callbacks(("training.Gradients", {"folder": str(run_dir)}))
            usl(*bench.words(method), *more, *placed_on(where), "--run_dir", run_dir, keep)
            gradients.append(torch.load(run_dir / "gradient-0.pt", map_location="cpu"))
        found[str(method)] = max(apart(gradients[0][name], truth) for name, truth in gradients[1].items())
        yield {"holds": max(found.values()) <= GRADIENT, "gradients apart": found}


def resume(device: str, size: Size) -> Found:
    """Stopped after four steps of six and continued, with deterministic kernels: the same bits, in each precision."""
    from methods import Bench, callbacks, methods, options, usl
    from runs import differing, last_checkpoint
    from training import StopError

    bench, found = Bench(Path(tempfile.mkdtemp())), {}
    known = {str(method): method for method in methods("fit")}
    wanted = ("SimCLR", "FixMatch", "MoCo", "CoMatch", "SeLa")[: size.methods]
    precisions = ("bf16-mixed", "32-true", "16-mixed") if device == "cuda" else ("32-true",)
    for name in wanted:
        for precision in precisions:
            words = [*bench.words(known[name]), *placed_on(device)]
            words += options(trainer__deterministic=True, trainer__max_steps=6, checkpoint__every_steps=2)
            words += options(trainer__precision=precision)
            straight, stopped = (bench.folder / f"{name} {precision} {kind}" for kind in ("straight", "stopped"))
            usl(*words, "--run_dir", straight)
            try:
                usl(*words, "--run_dir", stopped, callbacks(("training.Stop", {"step": 4})))
            except StopError:
                usl(*words, "--run_dir", stopped, "--ckpt_path", "last")
            states = [last_checkpoint(run_dir)["state_dict"] for run_dir in (straight, stopped)]
            found[f"{name} {precision}"] = differing(*states)
            yield {"holds": not any(found.values()), "tensors that differ": found}
