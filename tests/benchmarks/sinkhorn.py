"""Memory and time of SeLa's balanced labels, on a part of ImageNet's rows, and what all of them would take.

    python tests/benchmarks/sinkhorn.py [--rows 10000 20000 40000] [--clusters 3000] [--device cpu] [--iterations 20]

Each size runs in a process of its own, so that its peak is its own. The logits are a linear head of features, computed
chunk by chunk as in training and never held at once. Memory must grow as 4 bytes for each entry of the rows, which
gives the figure for 1,281,167 rows; time is that of a fixed number of iterations, of which a reassignment
takes some hundreds. Prints a table and writes tests/benchmarks/results/sinkhorn.json.
"""

import argparse
import json
import multiprocessing
import resource
import sys
import time
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from machine import machine

from usl_lightning.vectors import sinkhorn

IMAGENET, DIMENSIONS, POWER = 1_281_167, 64, 25.0


def memory(device: str) -> int:
    """The most memory held so far, in bytes: of the GPU, or of this process."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measure(rows: int, clusters: int, iterations: int, device: str, threads: int, pipe: Connection) -> None:
    """Balance random features' scores for `iterations`; sends bytes beyond the features, and seconds."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    features = torch.randn(rows, DIMENSIONS, device=device)
    scores = partial(torch.nn.functional.linear, weight=torch.randn(clusters, DIMENSIONS, device=device) / 8)
    sinkhorn.MAX_ITERATIONS = 1
    balance = partial(sinkhorn.balanced_labels, scores=scores, classes=clusters, power=POWER, tolerance=1e-300)
    balance(features[: sinkhorn.CHUNK_ENTRIES // clusters])  # what libraries allocate once
    before, start = memory(device), time.perf_counter()
    balance(features)
    once = time.perf_counter() - start
    sinkhorn.MAX_ITERATIONS = 1 + iterations
    start = time.perf_counter()
    balance(features)
    pipe.send((memory(device) - before, once, max(0.0, time.perf_counter() - start - once) / iterations))


def run(rows: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """One size, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    given = (rows, arguments.clusters, arguments.iterations, arguments.device, torch.get_num_threads(), theirs)
    process = context.Process(target=measure, args=given)
    process.start()
    theirs.close()
    used, once, each = ours.recv()
    process.join()
    entries = rows * arguments.clusters
    return {
        "rows": rows,
        "clusters": arguments.clusters,
        "peak_mib": round(used / 2**20),
        "bytes_per_entry": round(used / entries, 2),
        "setup_s": round(once, 2),
        "iteration_s": round(each, 3),
        "ns_per_entry_and_iteration": round(1e9 * each / entries, 2),
    }


def main() -> None:
    """Measure every size, extrapolate, print the table, write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 20_000, 40_000])
    parser.add_argument("--clusters", type=int, default=3000)
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "sinkhorn.json")
    arguments = parser.parse_args()
    print(f"{'rows':>9} {'K':>6} {'peak':>10} {'bytes/entry':>12} {'set-up':>9} {'iteration':>10}")
    results = []
    for rows in arguments.rows:
        r = run(rows, arguments)
        results.append(r)
        print(
            f"{rows:9,} {arguments.clusters:6,} {r['peak_mib']:6,} MiB {r['bytes_per_entry']:12.2f}"
            f" {r['setup_s']:7.1f} s {r['iteration_s']:8.3f} s",
            flush=True,
        )
    last = results[-1]
    scale = IMAGENET / last["rows"]
    imagenet = {
        "rows": IMAGENET,
        "clusters": arguments.clusters,
        "rows_stored_gib": round(4 * IMAGENET * arguments.clusters / 2**30, 1),
        "peak_gib": round(last["bytes_per_entry"] * IMAGENET * arguments.clusters / 2**30, 1),
        "iteration_s": round(scale * last["iteration_s"], 1),
    }
    print(
        f"extrapolated to {IMAGENET:,} rows: {imagenet['peak_gib']} GiB, of which the rows"
        f" {imagenet['rows_stored_gib']}; {imagenet['iteration_s']} s an iteration"
    )
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    record = {"device": arguments.device, "machine": machine(), "results": results, "extrapolated": imagenet}
    arguments.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
