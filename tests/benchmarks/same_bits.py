"""Do two checkouts compute the same bits? For a change of the code that is to change nothing of what comes out.

    python tests/benchmarks/same_bits.py OLD NEW [--only NAME …] [--work DIR] [--record FILE.json]

OLD and NEW are git checkouts. `usl` of each runs USL and FixMatch on digits whole; then, for every method, view and
data module that a configuration shipped with OLD names, a few steps or a selection by the first such configuration: one
for digits, else another cut down to them. The command, and which stage's results it takes, is read from its header.
Weights, buffers, states of optimizers, labels, features and results are compared; paths, times, versions and the names
of classes are not. Every run has one thread of the CPU, a folder and a cache of its own.

DIR keeps what a commit has left, in a folder named by it, so that it need not be run again (if NEW is the same commit
as OLD, it is run twice); uncommitted changes are run every time. Prints a table; exits with 1 if anything differs.
"""

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import machine

from usl_lightning.base.configs import compose, config_parts

CHAIN, LABELS, SETS = "digits_usl_fixmatch", "digits_usl", ("digits_", "fashion_mnist_")
"""The case that is run whole; the one whose labels others train with; how names of configurations begin that are taken
before the others."""

FIT = {"trainer.max_steps": "8", "trainer.val_check_interval": "4", "data.batch_size": "32"}
FIT_GIVEN = {"model.threshold": "0.15", "data.unlabelled_ratio": "3"}
FOREIGN_GIVEN = {"data.dataset": "digits", "data.image_size": "8", "model.backbone": "small"}
"""Settings of all that is trained; others, where it has them (after so few steps a high threshold would let no
pseudo-label count); and those of what is for another data set."""

Cases = dict[str, tuple[str, ...]]
"""Name of the configuration -> words after `usl`; `{NAME}` is where that case leaves its results, `{}` the folder above
its own."""


def find_cases(checkout: Path) -> Cases:
    """The chain, and the first configuration of each class, by what ships with a checkout."""
    folder = next(path for path in (checkout / "usl_lightning" / "configs", checkout / "configs") if path.is_dir())
    texts = {path.stem: path.read_text(encoding="utf-8") for path in folder.glob("*.yaml")}
    names = sorted(texts, key=lambda name: (*(not name.startswith(start) for start in SETS), name))
    parts = {name: config_parts(folder / f"{name}.yaml") for name in names}
    settings = {name: dict(leaves(compose([tree for _, tree in parts[name]], {}))) for name in names}
    seen, cases, case_of, stands_for = set[str](), [CHAIN], dict[str, str](), dict[str, str]()
    for name in (name for name in names if "model.class_path" in settings[name]):
        named = {value for key, value in settings[name].items() if key.endswith("class_path") and ".steps." not in key}
        if not named <= seen:
            cases.append(name)
            seen |= named
        stands_for[name] = case_of.setdefault(settings[name]["model.class_path"], name)
    return {name: words_of(name, texts[name], settings[name], stands_for) for name in cases}


def words_of(name: str, text: str, settings: Mapping[str, Any], stands_for: Mapping[str, str]) -> tuple[str, ...]:
    """The first command in the header of a configuration, made short, and given what other cases leave.

    Args:
        text: of the configuration.
        settings: the same by their places.
        stands_for: name of a configuration -> the case that runs its method.
    """
    (line, *_) = re.findall(r"^#\s+usl (.+)$", re.sub(r" \\\n#\s+", " ", text), re.MULTILINE)  # long ones go on
    line = line.replace(" labels.json", f" runs/{LABELS}/labels.json")
    line = re.sub(r" --(data\.dir|data\.class_list|trainer\.devices) \S+", "", line)
    line = re.sub(r"runs/(\w+)/", lambda found: f"{{{stands_for[found[1]]}}}/", line)
    if name == CHAIN:
        return (*shlex.split(line), "--seed", "0", "--out", "{}", "--name", name)
    given = {key.replace(".init_args", "") for key in settings}
    changed = {**FIT, **{key: FIT_GIVEN[key] for key in FIT_GIVEN if key in given}} if line.startswith("fit") else {}
    if settings["data.init_args.dataset"] != FOREIGN_GIVEN["data.dataset"]:
        changed |= {key: FOREIGN_GIVEN[key] for key in FOREIGN_GIVEN if key in given}
    return (*shlex.split(line), *(f"--{key}={value}" for key, value in changed.items()), "--run_dir", f"{{{name}}}")


@dataclass(frozen=True)
class Outcome:
    """What a case left, by place; how long it took; and why it failed, if it did."""

    values: dict[str, Any]
    seconds: float
    failure: str = ""


class Checkout:
    """A checkout, and the folder of what its cases leave.

    Args:
        work: the folder of the folders of all checkouts.
        other: a checkout with a folder of its own, even if it is of the same commit.
    """

    def __init__(self, path: Path, work: Path, other: "Checkout | None" = None) -> None:
        self.path, self.outcomes = path.resolve(), dict[str, Outcome]()
        self.changed = self._output("git", "status", "--porcelain", "--", "usl_lightning", "configs") != ""
        self.commit = self._output("git", "rev-parse", "HEAD") + "-changed" * self.changed
        self.folder = work.resolve() / self.commit
        if other is not None and other.folder == self.folder:
            self.folder = self.folder.with_name(f"{self.commit}-again")
        found = self._output(sys.executable, "-c", "import usl_lightning; print(usl_lightning.__file__)")
        assert Path(found).is_relative_to(self.path), f"{path}: the package of another would run: {found}"

    def outcome(self, name: str, cases: Cases) -> Outcome:
        """What a case leaves. It is run, after those it needs, unless it has been."""
        if name not in self.outcomes:
            needs = [need for need in re.findall(r"\{(\w+)\}", " ".join(cases[name])) if need != name]
            failed = [Outcome({}, 0.0, f"needs {need}") for need in needs if self.outcome(need, cases).failure]
            self.outcomes[name] = failed[0] if failed else self._run(name, cases[name], needs)
        return self.outcomes[name]

    def _run(self, name: str, words: tuple[str, ...], needs: list[str]) -> Outcome:
        own, done, log = (self.folder / name / part for part in ("", "done.json", "log.txt"))
        if self.changed or not done.exists() or json.loads(done.read_text())["words"] != list(words):
            shutil.rmtree(own, ignore_errors=True)
            own.mkdir(parents=True)
            folders = {place: str(self.folder / place / place) for place in (name, *needs)}
            command = [sys.executable, "-m", "usl_lightning.cli", *(word.format(own, **folders) for word in words)]
            begin, environment = time.monotonic(), self._environment(own / "cache")
            with open(log, "wb") as file:
                code = subprocess.run(command, cwd=self.path, env=environment, stdout=file, stderr=file).returncode
            seconds = time.monotonic() - begin
            if code:
                said = log.read_text(errors="replace").strip().rpartition("\n")[2]
                return Outcome({}, seconds, f"exit code {code}: {said}")
            done.write_text(json.dumps({"words": words, "seconds": round(seconds, 1)}))
        values = dict(values_in(own))
        return Outcome(values, json.loads(done.read_text())["seconds"], "" if values else "nothing came out")

    def _environment(self, cache: Path) -> dict[str, str]:
        own = {"PYTHONPATH": str(self.path), "USL_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
        return {**os.environ, **own, "CUDA_VISIBLE_DEVICES": "", "WANDB_MODE": "disabled"}

    def _output(self, *command: str) -> str:
        return subprocess.check_output(command, cwd=self.path, env=self._environment(self.path), text=True).strip()


def values_in(folder: Path) -> Iterator[tuple[str, Any]]:
    """Place and value of all that is compared of what a case left."""
    for path in sorted(folder.rglob("*")):
        where = re.sub("-[0-9a-f]{20}", "", str(path.relative_to(folder)))  # a hash of the version, among others
        if path.name == "last.ckpt":
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
            yield from leaves({part: checkpoint.get(part) for part in ("state_dict", "optimizer_states")}, where)
        elif path.name == "labels.json":
            index = json.loads(path.read_text())
            yield from ((f"{where}.{key}", index.get(key)) for key in ("indices", "labels", "followers"))
        elif path.name == "result.json":
            yield from leaves(json.loads(path.read_text()), where)
        elif path.suffix == ".npy":
            yield where, torch.from_numpy(np.load(path))
        elif path.suffix == ".npz":
            arrays = {name: array for name, array in np.load(path).items() if array.dtype.kind in "biuf"}  # no texts
            yield from ((f"{where}.{name}", torch.from_numpy(array)) for name, array in arrays.items())


def leaves(value: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """Place and value of everything in nested mappings and lists."""
    if isinstance(value, (Mapping, list, tuple)):
        for key, inner in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from leaves(inner, f"{where}.{key}" if where else str(key))
    else:
        yield where, value


def bits(value: Any) -> Any:
    """What is equal only if every bit is."""
    if isinstance(value, torch.Tensor):
        return value.dtype, value.shape, value.contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return repr(value)


def compare(old: Outcome, new: Outcome) -> dict[str, Any]:
    """The row of the record, `verdict` being the last column of the table."""
    failed = [f"{name} {one.failure}" for name, one in (("OLD:", old), ("NEW:", new)) if one.failure]
    a, b = ({place: bits(value) for place, value in one.values.items()} for one in (old, new))
    differs = [place for place in {**a, **b} if a.get(place) != b.get(place)]
    verdict = f"DIFFERENT in {len(differs)}, first {differs[0]}" if differs else "equal"
    verdict = f"FAILED {', '.join(failed)}" if failed else verdict
    tensors, seconds = sum(isinstance(value, torch.Tensor) for value in old.values.values()), [old.seconds, new.seconds]
    return {"tensors": tensors, "others": len(a) - tensors, "seconds": seconds, "verdict": verdict}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="cases: names of their configurations")
    parser.add_argument("--work", type=Path, help="folder that keeps what was run; default: a temporary one")
    parser.add_argument("--record", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    cases, rows = find_cases(arguments.old), dict[str, dict[str, Any]]()
    if unknown := set(arguments.only or ()) - set(cases):
        parser.error(f"unknown case {', '.join(unknown)}; expected some of {', '.join(cases)}")
    with tempfile.TemporaryDirectory() as folder:
        old = Checkout(arguments.old, arguments.work or Path(folder))
        new = Checkout(arguments.new, arguments.work or Path(folder), old)
        print(f"{'case':26} {'tensors':>7} {'others':>6} {'s OLD':>6} {'s NEW':>6}")
        for name in arguments.only or cases:
            row = rows[name] = compare(old.outcome(name, cases), new.outcome(name, cases))
            seconds = "".join(f" {value:6.1f}" for value in row["seconds"])
            print(f"{name:26} {row['tensors']:7} {row['others']:6}{seconds}  {row['verdict']}", flush=True)
    if arguments.record:
        about = {"machine": {**machine(), "torch_threads": 1}, "old": old.commit, "new": new.commit}
        arguments.record.write_text(json.dumps({**about, "cases": rows}, indent=1) + "\n")
    sys.exit(any(row["verdict"] != "equal" for row in rows.values()))


if __name__ == "__main__":
    main()
