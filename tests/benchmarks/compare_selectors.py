"""All selectors on the features of Fashion-MNIST: coverage and propagated accuracy for 10 to 100 labels, five seeds.

    OMP_NUM_THREADS=2 python tests/benchmarks/compare_selectors.py [--checkpoint CKPT | --features FILE] [--uslt CKPT]

Without a checkpoint, SimCLR is trained for a few minutes first. Then `usl compare fashion_mnist_compare.yaml`; what
is done already of either is not done again. With a checkpoint of USL-T's training (--uslt) its selection is compared
too, from the features it has learned. Some selectors take hours on 512 dimensions and two cores, so features are
projected to their first 64 (--dimensions; singular vectors without centring: cosines stay as they are). The table and
the plot go to tests/benchmarks/results/.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import yaml
from machine import machine

from usl_lightning.base.configs import find_config

RESULTS = Path(__file__).parent / "results"
CONFIG = "fashion_mnist_compare.yaml"


def usl(*words: str) -> None:
    """Run `usl WORDS`."""
    subprocess.run([sys.executable, "-m", "usl_lightning.cli", *words], check=True)


def trained(folder: Path, steps: int) -> Path:
    """The checkpoint of a SimCLR run of so many steps in the folder; an interrupted one is continued."""
    checkpoint, record = folder / "checkpoints" / "last.ckpt", folder / "stage.json"
    if not record.exists() or json.loads(record.read_text(encoding="utf-8"))["status"] != "complete":
        more = ["--ckpt_path", "last"] if checkpoint.exists() else []
        options = ["--trainer.max_steps", str(steps), "--run_dir", str(folder), *more]
        usl("fit", "--config", "fashion_mnist_simclr.yaml", *options)
    return checkpoint


def configuration(folder: Path, uslt: Path | None) -> Path:
    """The shipped comparison, with USL-T's selection if there is a checkpoint."""
    shipped = find_config(CONFIG)
    if uslt is None:
        return shipped
    content = yaml.safe_load(shipped.read_text(encoding="utf-8"))
    entry = {"name": "uslt", "class_path": "uslt_selection", "init_args": {"init_from": str(uslt)}}
    content["selectors"].insert(-1, entry)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / CONFIG
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def projected(checkpoint: Path, dimensions: int, path: Path) -> float:
    """Write the checkpoint's features, unit rows projected to their first singular vectors; the share of norm kept."""
    import numpy as np
    import torch

    from usl_lightning.data.modules import ImageData
    from usl_lightning.features.images import image_features
    from usl_lightning.models.encoder import load_encoder
    from usl_lightning.vectors.distances import unit_rows

    x = unit_rows(image_features(load_encoder(checkpoint), ImageData("fashion_mnist"))).double()
    vectors = torch.linalg.eigh(x.T @ x).eigenvectors.flip(1)[:, :dimensions]
    kept = x @ vectors
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, kept.float().numpy())
    return float(kept.square().sum() / x.square().sum())


def main() -> None:
    """Train if need be, compare, and copy what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--checkpoint", type=Path, help="of stage 1 on Fashion-MNIST")
    source.add_argument("--features", type=Path, help=".npy or .npz of features, instead")
    parser.add_argument("--uslt", type=Path, help="of USL-T's training")
    parser.add_argument("--dimensions", type=int, default=64, help="that the features of a checkpoint are projected to")
    parser.add_argument("--steps", type=int, default=400, help="of SimCLR, where there is no checkpoint")
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmark_selectors"))
    arguments = parser.parse_args()
    file, share = arguments.features, None
    if file is None:
        file = arguments.runs / "features.npy"
        checkpoint = arguments.checkpoint or trained(arguments.runs / "simclr", arguments.steps)
        share = projected(checkpoint, arguments.dimensions, file)
    config, out = configuration(arguments.runs, arguments.uslt), arguments.runs / "compare"
    usl("compare", str(config), f"--features.features={file}", f"--out={out}")
    for name in ("table.csv", "table.json", "comparison.png"):
        shutil.copy(out / name, RESULTS / f"selectors_fashion_mnist_{name}")
    about = {"dimensions": arguments.dimensions, "share_of_norm": share} if share else {"features": file.name}
    (RESULTS / "selectors_fashion_mnist_machine.json").write_text(json.dumps({**about, **machine()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
