"""What a chain waits for: images that a person has yet to label. Imports nothing heavy."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from usl_lightning.chain.file import Stage
from usl_lightning.labels import LabelIndex
from usl_lightning.labels.index import answers_so_far, images_to_label

WAITING = 3
"""Exit code of `usl run` when the chain goes on only after images were labelled."""


def _classes(index: LabelIndex) -> set[int]:
    """Those that have a label."""
    return {label for label in index.labels if label is not None}


def _is_enough(index: LabelIndex, kept: LabelIndex | None) -> bool:
    """Whether somebody may have stopped labelling here: two classes have a label, and of a round some answer is new.

    Args:
        index: the label file.
        kept: that of the rounds before, if it has any.
    """
    asked_more = kept is not None and index.chosen > kept.chosen
    nothing_new = kept is not None and len(index) - index.unlabelled <= len(kept) - kept.unlabelled
    return len(_classes(index)) > 1 and not (asked_more and nothing_new)


def _leaves_out(stage: Stage) -> bool:
    """Whether it goes on without the images that have no answer."""
    return stage.set.get("data.unanswered") == "leave_out"


class Waiting:
    """Which stages of a chain have to wait for labels, told one by one in the chain's order.

    A stage waits if it takes a label file in which images have no answer yet (those that a person was not sure of
    have one), or something of a stage that waits. With `data.unanswered: leave_out` it goes on as soon as two classes
    have a label and, where images of rounds before were kept, there are more answers than those had; so does a
    selection that keeps the images of such a stage. Once one waits, the only others to go on are the selections and
    what these need: so all images that are to be labelled are known at once, and nothing long is begun meanwhile.

    Args:
        stages: of the chain.

    Attributes:
        files: the label files that are waited for, in the order met.
    """

    def __init__(self, stages: Sequence[Stage]) -> None:
        self.files: dict[Path, LabelIndex] = {}
        self._whole: set[Path] = set()  # of which every image has to have an answer
        self._held: set[str] = set()
        self._choosing: set[str] = set()
        self._left_out = {name for stage in stages if _leaves_out(stage) for name in stage.needs("labels")}
        for stage in reversed(stages):
            if stage.command == "select" or stage.name in self._choosing:
                self._choosing |= {stage.name, *stage.needs()}

    def holds(self, stage: Stage, label_files: Mapping[Path, Path | None]) -> bool:
        """Whether the next stage has to wait.

        Args:
            stage: the next one.
            label_files: those that earlier stages left and this one takes, and the file whose images each has kept.

        Raises:
            UslError: a label file is damaged.
        """
        unlabelled = {path: index for path in label_files if (index := LabelIndex.read(path)).unlabelled}
        keeps = stage.command == "select" and set(stage.needs("labels")) <= self._left_out
        if _leaves_out(stage) or keeps:
            kept = {path: LabelIndex.read(file) for path, file in label_files.items() if file is not None}
            unlabelled = {p: index for p, index in unlabelled.items() if not _is_enough(index, kept.get(p))}
        else:
            self._whole |= unlabelled.keys()
        self.files |= unlabelled
        later = bool(self._held) and stage.name not in self._choosing
        if unlabelled or later or self._held & set(stage.needs()):
            self._held.add(stage.name)
        return stage.name in self._held

    def lines(self, then: str) -> list[str]:
        """What to tell the user: a line for each file with the command that labels its images.

        Args:
            then: what to do after that.
        """
        lines = []
        for path, index in self.files.items():
            done = answers_so_far(index)
            progress = f"  # {done}" if done else ""
            if done and path not in self._whole and len(_classes(index)) < 2:
                progress += "; it goes on as soon as two classes have a label"
            lines.append(f"{images_to_label(index)}: usl label {shlex.quote(str(path))}{progress}")
        return [*lines, f"then {then}: it goes on from here"]
