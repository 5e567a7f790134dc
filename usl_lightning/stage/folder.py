"""The folder that a stage leaves, and the record of it. Imports nothing heavy."""

import fcntl
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

from usl_lightning.base.atomic import open_lock
from usl_lightning.base.configs import load_yaml
from usl_lightning.base.errors import UslError
from usl_lightning.base.files import read_json, write_json
from usl_lightning.base.machine import this_machine
from usl_lightning.stage.answers import KEY, answers_in, in_words
from usl_lightning.stage.identity import class_at, differences, digest, flatten, revisions
from usl_lightning.stage.record import problem_of


class _Look(NamedTuple):
    """What is in a folder: its own times in ns, and the stamp of each file but the lock."""

    times: tuple[int, int]
    files: dict[str, tuple[int, int]]


def _look(folder: Path) -> _Look:
    status = folder.stat()
    found = {entry.name: entry.stat(follow_symlinks=False) for entry in os.scandir(folder) if entry.name != ".lock"}
    files = {name: (each.st_ino, each.st_mtime_ns) for name, each in found.items()}
    return _Look((status.st_atime_ns, status.st_mtime_ns), files)


def _remove(folders: Sequence[Path]) -> None:
    """Those that are empty, from the innermost outwards."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


class StageFolder:
    """`runs/<run>/<stage>/`: what a stage leaves behind.

    `config.yaml` (everything resolved), `stage.json` (identity and status), `checkpoints/`, `metrics.csv`,
    `result.json`, for a selection `labels.json`, `chosen.png` and `overview.npz`, and in `outputs/` what else its
    method hands on.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.record_path = path / "stage.json"
        self.last_checkpoint = path / "checkpoints" / "last.ckpt"
        self.labels = path / "labels.json"
        self.label_page = path / "label.html"
        self.result = path / "result.json"
        self.picture = path / "chosen.png"
        self.overview = path / "overview.npz"
        self.files = path / "outputs"
        self.evaluation = path / "evaluation.json"
        self.filters = path / "filters.png"

    def record(self) -> dict[str, Any] | None:
        """`stage.json`, or None if the stage was never begun.

        Raises:
            UslError: the file is damaged, or not what was written.
        """
        try:
            record: dict[str, Any] = read_json(self.record_path, "use another --run_dir")
        except FileNotFoundError:
            return None
        problem = problem_of(record)
        if problem is not None:
            raise UslError(f"{self.record_path}: {problem}; was the file edited? use another --run_dir")
        return record

    @property
    def in_chain(self) -> bool:
        """Whether the stage is one of a chain's."""
        return (self.path.parent / "run.json").exists()

    @property
    def has_checkpoint(self) -> bool:
        """A run has saved its state here, even if the newest file has been lost since: the one before may be there."""
        return os.path.lexists(self.last_checkpoint)

    @property
    def complete(self) -> bool:
        """The stage has run to its end."""
        record = self.record()
        return record is not None and record["status"] == "complete"

    def changes(self, identity: Mapping[str, Any], labels: str | Path | None = None) -> list[str]:
        """What differs between the run in this folder and `identity`; empty if nothing does.

        Args:
            identity: of the run to be.
            labels: the label file that it is to be trained from.
        """
        record = self.record()
        if record is None or record["identity_hash"] == digest(identity):
            return []
        lines, answers = differences(record["identity"], identity), record.get("answers")
        if labels is None or not isinstance(answers, dict):
            return lines
        return [in_words(labels, answers) if line.startswith(f"{KEY} ") else line for line in lines]

    def as_recorded(self, identity: Mapping[str, Any]) -> dict[str, Any]:
        """Identity fields without those that the run in this folder left to their defaults, if they have these values.

        What a run resolved to is in its `config.yaml`, by which it is continued as by what was typed once.

        Args:
            identity: of the run to be.
        """
        record, path = self.record(), self.path / "config.yaml"
        if record is None or not path.exists():
            return dict(identity)
        try:
            resolved = flatten(load_yaml(path))
        except UslError:  # damaged: it resolves nothing
            return dict(identity)
        before, resolved = record["identity"], resolved | revisions(resolved)

        def left_out(key: str) -> bool:
            place = key.removesuffix(".revision")
            return key not in before and class_at(before, place) == place and key in resolved

        return {key: value for key, value in identity.items() if not left_out(key) or resolved[key] != value}

    def outputs(self) -> dict[str, str]:
        """Name -> path of what later stages can take from this one."""
        paths = {"checkpoint": self.last_checkpoint, "labels": self.labels}
        paths |= {path.stem: path for path in sorted(self.files.glob("[!.]*"))}
        return {name: str(path) for name, path in paths.items() if path.exists()}

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder: a second run in it is refused as long as this process lives.

        Raises:
            UslError: another process holds it, or it cannot be written.
        """
        made: list[Path] = []
        try:
            made += takewhile(lambda folder: not folder.exists(), (self.path, *self.path.parents))
            before = None if made else _look(self.path)
            was_lockable = os.path.lexists(self.path / ".lock")
            self.path.mkdir(parents=True, exist_ok=True)
            lock = open_lock(self.path / ".lock")
        except OSError as error:
            _remove(made)
            raise UslError(f"{self.path}: cannot be written ({error.strerror}); choose another --run_dir") from error
        # Forked workers would hold the lock for seconds after this process was killed.
        os.register_at_fork(after_in_child=lock.close)
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UslError(
                    f"{self.path}: another run is using this folder; wait for it or choose another"
                ) from None
            except OSError as error:  # a cluster's file system may have none
                print(
                    f"usl: {self.path}: this file system has no locks ({error.strerror}); do not start two runs in it",
                    file=sys.stderr,
                )
            try:
                yield
            finally:
                self._leave_as_found(made, before, keep_lock=was_lockable)

    def _leave_as_found(self, made: Sequence[Path], before: "_Look | None", *, keep_lock: bool) -> None:
        """A refused command leaves no folder behind, and one that was there as it was."""
        with suppress(OSError):
            unchanged = before is not None and _look(self.path).files == before.files
            if not keep_lock and (unchanged or not self.record_path.exists()):
                (self.path / ".lock").unlink(missing_ok=True)
            _remove(made)
            if before is not None and unchanged:
                os.utime(self.path, ns=before.times)

    def check_foreign(self, advice: str) -> None:
        """Of a folder without a record: it has no file that a run would write over, of whoever it may be.

        Args:
            advice: what to do, the end of the message.

        Raises:
            UslError: names one.
        """
        names = ("config.yaml", "checkpoints", "metrics.csv", "speed.csv")
        own = [*(self.path / name for name in names), self.labels, self.result, self.picture, self.overview, self.files]
        for path in (*own, self.evaluation, self.filters):
            if os.path.lexists(path) and self.record() is None:
                raise UslError(f"{path}: is there already, and no {self.record_path.name} says of which run; {advice}")

    def begin(self, identity: Mapping[str, Any], labels: str | Path | None = None) -> None:
        """Note that the stage is running, and the answers in the label file that it is trained from."""
        answers = {} if labels is None else {"answers": answers_in(labels)}
        self._write(identity, "running", seconds=self._spent(), **answers)

    def pause(self, seconds: float) -> None:
        """Note the time spent by a run that was interrupted; a kill leaves no chance to."""
        record = self.record()
        if record is not None and record["status"] == "running":
            write_json(self.record_path, {**record, "seconds": round(self._spent() + seconds, 1)})

    def finish(self, identity: Mapping[str, Any], seconds: float, metrics: Mapping[str, Any]) -> None:
        """Note that the stage is complete, what came out, and the seconds of all its runs."""
        spent, record = round(self._spent() + seconds, 1), self.record() or {}
        answers = {"answers": record["answers"]} if "answers" in record else {}
        self._write(identity, "complete", seconds=spent, metrics=dict(metrics), outputs=self.outputs(), **answers)

    def _spent(self) -> float:
        record = self.record() or {}
        return float(record.get("seconds", 0.0)) if record.get("status") == "running" else 0.0

    def _write(self, identity: Mapping[str, Any], status: str, **more: Any) -> None:
        record = {"status": status, "identity_hash": digest(identity), "identity": dict(identity), **more}
        record["machine"] = this_machine()
        write_json(self.record_path, record)
