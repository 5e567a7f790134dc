"""Images a second and core of published networks: files of a folder, through the path of a selection.

    OMP_NUM_THREADS=1 python tests/benchmarks/published_throughput.py [--seconds 20] [--networks NAME …]

The pictures are the emoji of picture_sets.py. Weights are random, as time does not depend on them: so networks whose
weights only a hub has are measured, too. Each looks at as many pictures as take it about so many seconds, three times,
of which the middle one counts. Figures go to tests/benchmarks/results/published_throughput.json.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import timm
from machine import machine
from picture_sets import made

from usl_lightning.data.batch import ImageSpec
from usl_lightning.features.published import extract_features, random_encoder
from usl_lightning.models.backbones import native_size
from usl_lightning.models.encoder import Encoder

RESULTS = Path(__file__).parent / "results" / "published_throughput.json"
NETWORKS = (
    "tf_efficientnet_lite0",
    "tf_efficientnet_lite1",
    "tf_efficientnet_lite2",
    "resnet50",
    "vit_small_patch14_dinov2.lvd142m",
    "vit_small_patch16_dinov3.lvd1689m",
    "vit_base_patch32_clip_224.openai",
    "vit_base_patch16_clip_224.openai",
    "vit_base_patch16_siglip_224.webli",
)
REPEATS = 3


def seconds(encoder: Encoder, files: list[Path]) -> float:
    """For the features of these files, on one core."""
    start = time.perf_counter()
    extract_features(files, encoder, device="cpu", workers=0)
    return time.perf_counter() - start


def main() -> None:
    """Time each network, print the table, write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--sets", type=Path, default=Path("runs/picture_sets"))
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    arguments = parser.parse_args()
    files = sorted((made("emoji", arguments.sets) / "train").rglob("*.png"))
    rows = {}
    for name in arguments.networks:
        size, _ = native_size(name)
        encoder = random_encoder(name, ImageSpec(3, size, size, (0.5,) * 3, (0.5,) * 3))
        seconds(encoder, files[:8])
        count = max(8, min(len(files), int(8 / seconds(encoder, files[:8]) * arguments.seconds)))
        speeds = [count / seconds(encoder, files[:count]) for _ in range(REPEATS)]
        rows[name] = {
            "size": size,
            "million_weights": round(sum(parameter.numel() for parameter in encoder.parameters()) / 1e6, 1),
            "images": count,
            "images_a_second": round(statistics.median(speeds), 2),
        }
        print(name, rows[name], flush=True)
    about = {"machine": machine(), "timm": timm.__version__}
    RESULTS.write_text(json.dumps({**about, "networks": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
