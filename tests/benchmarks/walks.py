"""How many files of the package a command walks through: those that run a function, not those that are only imported.

    python tests/benchmarks/walks.py [--package DIR]

`fit`: `usl fit` of FixMatch on digits up to its first step. `step`: one training step. `select`: `usl select` of USL
to its end. `--package` counts in another checkout.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parents[2]
WALKER = """
import sys
from pathlib import Path
from usl_lightning.cli import main
import usl_lightning
root = str(Path(usl_lightning.__file__).parent)
walks, now = {name: set() for name in ("start", "step", "rest")}, ["start"]
def importing(frame):
    while frame is not None:
        if frame.f_code.co_name == "<module>" and frame.f_code.co_filename.startswith(root):
            return True
        frame = frame.f_back
    return False
def note(frame, event, argument):
    code = frame.f_code
    if event == "call" and code.co_filename.startswith(root) and not importing(frame):
        if code.co_name == "training_step":
            now[0] = "step"
        walks[now[0]].add(code.co_filename[len(root) + 1:])
    elif event == "return" and code.co_name == "optimizer_step" and now[0] == "step":
        if code.co_filename.startswith(root):
            now[0] = "rest"
sys.setprofile(note)
try:
    main(sys.argv[1:])
except SystemExit as stop:
    assert not stop.code, stop.code
finally:
    sys.setprofile(None)
    for name, files in walks.items():
        print("WALK", name, *sorted(files))
"""


def walk(package: Path, folder: Path, *words: str) -> dict[str, list[str]]:
    """Files by part of the walk: `start` (up to the first training step), `step` (the first one), `rest`."""
    environment = {**os.environ, "PYTHONPATH": str(package), "USL_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", WALKER, *words]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    lines = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("WALK ")]
    return {name: files for name, *files in lines}


def walks(package: Path) -> dict[str, list[str]]:
    """The three walks of a checkout."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        small = ("--trainer.max_steps=2", "--trainer.accelerator=cpu")
        walk(package, folder, "fit", "--config=digits_simclr.yaml", "--run_dir=stage1", *small)
        stage1 = "--model.init_from=stage1/checkpoints/last.ckpt"
        select = walk(package, folder, "select", "--config=digits_usl.yaml", "--run_dir=chosen", stage1)
        labels = "--data.labels=chosen/labels.json"
        fit = walk(package, folder, "fit", "--config=digits_fixmatch.yaml", "--run_dir=stage3", labels, stage1, *small)
    return {"fit": fit["start"], "step": fit["step"], "select": select["start"]}


def main() -> None:
    """Print the counts and the files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--package", type=Path, default=HERE, help="the checkout (default: this one)")
    for name, files in walks(parser.parse_args().package.resolve()).items():
        print(f"{name:7} {len(files):3} files: {' '.join(files)}")


if __name__ == "__main__":
    main()
