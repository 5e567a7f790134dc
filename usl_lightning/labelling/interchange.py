"""Labels for and from other programs: Label Studio's tasks and exports, and CSV for a spreadsheet."""

import base64
import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

from usl_lightning.base.atomic import read_file
from usl_lightning.base.commands import known_options
from usl_lightning.base.documents import guarded
from usl_lightning.base.errors import UslError
from usl_lightning.base.files import write_text
from usl_lightning.base.typed import home
from usl_lightning.labelling.answers import COLUMNS, by_number, read_answers
from usl_lightning.labelling.store import LabelStore, answers_of, name_of
from usl_lightning.labels import LabelIndex
from usl_lightning.labels.index import images_to_label
from usl_lightning.labels.names import NOT_SURE
from usl_lightning.stage.captions import redraw_captions

PREFIX = "/data/local-files/?d="
"""What Label Studio's own server calls files below its document root."""

MODEL = "usl-lightning"
"""What Label Studio calls who has guessed."""

OPTIONS = {"export": ("out", "prefix", "dir"), "import": ()}
USAGE = {
    "export": f"usl labels export LABELS.json --out TASKS.json|FILE.csv [--prefix {PREFIX}] [--dir FOLDER]",
    "import": "usl labels import LABELS.json ANSWERS.json|.csv",
}


def main(arguments: Sequence[str]) -> None:
    """`usl labels export` and `usl labels import`.

    `export` writes the chosen images, with what answers they have, as a CSV or as Label Studio's tasks, then with the
    guesses for the others too; beside the latter its labelling set-up. `import` notes in the label file what the
    others answered.

    Args:
        arguments: `export` or `import` and what follows it.

    Raises:
        UslError: a mistake in the arguments or a file, or the file to write exists.
    """
    operation, *words = arguments
    files = [word for word in words[: 1 if operation == "export" else 2] if not word.startswith("-")]
    given = known_options(f"labels {operation}", words[len(files) :], OPTIONS[operation])
    if len(files) < (1 if operation == "export" else 2) or (operation == "export" and "out" not in given):
        raise UslError(f"usl labels {operation}: a file is missing; use {USAGE[operation]}")
    store = LabelStore(home(files[0]))
    if operation == "export":
        _export(store, home(given["out"]), given.get("prefix", PREFIX), given.get("dir"))
    else:
        _import(store, home(files[1]))


def _export(store: LabelStore, out: Path, prefix: str, dir: str | None) -> None:
    index = store.read()
    setup = out.with_suffix(".xml")
    if dir is not None and (index.files is not None or out.suffix.lower() == ".csv"):
        raise UslError(
            f"usl labels export: --dir {dir}: is for images that go into the tasks themselves, and these are told by"
            " their files' names; leave it out"
        )
    if out.suffix.lower() not in (".json", ".csv"):
        raise UslError(f"--out {out}: expected .json (Label Studio's tasks) or .csv")
    in_two = out.suffix.lower() == ".json"
    kept = in_two and _holds(setup, label_studio_setup(index.classes))  # a command that was killed has written it
    for path in (out, *([setup] * (in_two and not kept))):
        if os.path.lexists(path):
            raise UslError(f"{path}: exists already; choose another --out")
    if out.suffix.lower() == ".csv":
        write_text(out, f"\ufeff{to_csv(index)}")  # spreadsheets take it for UTF-8 by that
        print(f"{out}: {len(index)} images; fill in the column label ('{NOT_SURE}' is an answer too)")
        return
    guesses = _guesses(store)
    tasks = to_label_studio(index, _addresses(index, prefix, dir), guesses)
    write_text(setup, label_studio_setup(index.classes))
    write_text(out, json.dumps(tasks, indent=1, ensure_ascii=False) + "\n")
    guessed = sum("predictions" in task for task in tasks)
    print(f"{out}: {len(index)} tasks{f', {guessed} with a guess' if guessed else ''}; {setup}: the set-up for them")


def _holds(path: Path, text: str) -> bool:
    """Whether a file is there and holds nothing but a text."""
    try:
        return read_file(path) == text.encode()
    except OSError:
        return False


def _import(store: LabelStore, path: Path) -> None:
    index = store.read()
    read = read_answers(path, index)
    answers, classes = by_number(read, index)
    known = answers_of(index)
    changed = sum(known[image] not in (None, answer) for image, answer in answers.items())
    added = classes[len(index.classes) :]
    index = store.merge(answers, classes)
    redraw_captions(store.path, index)
    news = f", {changed} other than before" if changed else ""
    news += f"; new classes: {', '.join(added)}" if added else ""
    print(f"{store.path}: {len(answers)} answer{'s' * (len(answers) != 1)}{news}; {images_to_label(index)}")
    if read.disputed:
        image, names = next(iter(read.disputed.items()))
        count = "1 image is" if len(read.disputed) == 1 else f"{len(read.disputed)} images are"
        print(f"{count} left without a new answer, as annotators do not agree: image {image} ({', '.join(names)}), …")


def to_csv(index: LabelIndex) -> str:
    """`index,file,label`, a line for each image; the label is the class's name, or empty. No cell is a formula."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    files = index.files or ("",) * len(index)
    for (image, answer), file in zip(answers_of(index).items(), files, strict=True):
        writer.writerow((image, guarded(file), "" if answer is None else guarded(name_of(answer, index))))
    return text.getvalue()


def to_label_studio(
    index: LabelIndex, addresses: Sequence[str], guesses: Mapping[int, tuple[str, float]] | None = None
) -> list[dict[str, Any]]:
    """Label Studio's tasks, with an annotation where an image has an answer, and a prediction where it has a guess.

    Args:
        index: the chosen images.
        addresses: of each image, for the browser.
        guesses: image -> class and its probability.
    """
    files = index.files or (None,) * len(index)
    tasks = []
    for (image, answer), file, address in zip(answers_of(index).items(), files, addresses, strict=True):
        data = {"image": address, "index": image} | ({} if file is None else {"file": file})
        task: dict[str, Any] = {"data": data}
        if answer is not None:
            task["annotations"] = [{"result": [_choice(name_of(answer, index))]}]
        elif guesses and image in guesses:
            name, sure = guesses[image]
            task["predictions"] = [{"model_version": MODEL, "score": round(sure, 3), "result": [_choice(name)]}]
        tasks.append(task)
    return tasks


def _choice(name: str) -> dict[str, Any]:
    return {"from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": [name]}}


def _guesses(store: LabelStore) -> dict[int, tuple[str, float]]:
    """Of the images without an answer, by the answers to the others; none before two classes have some."""
    from usl_lightning.labelling.guessing import Guessing
    from usl_lightning.labelling.similar import SimilarImages

    index = store.read()
    similar = SimilarImages.beside(index, store.path.parent / "overview.npz")
    if similar is None or len({label for label in index.labels if label is not None}) < 2:
        return {}
    guesses = Guessing(store, similar).once()
    sure = {int(guesses.images[place]): guesses.p[place] for place in guesses.known.nonzero()[0]}
    return {image: (index.classes[int(p.argmax())], float(p.max())) for image, p in sure.items()}


def label_studio_setup(classes: Sequence[str]) -> str:
    """Label Studio's labelling interface for these tasks, to paste into a project's settings."""
    choices = "\n".join(f"    <Choice value={quoteattr(name)}/>" for name in (*classes, NOT_SURE))
    return (
        '<View>\n  <Image name="image" value="$image"/>\n  <Choices name="label" toName="image" choice="single">\n'
        f"{choices}\n  </Choices>\n</View>\n"
    )


def _addresses(index: LabelIndex, prefix: str, dir: str | None) -> list[str]:
    """Files by their path; images that are in memory only travel in the task itself."""
    if index.files is not None:
        return [prefix + quote(file) for file in index.files]
    from usl_lightning.labelling.pictures import open_pictures

    pictures = open_pictures(index, dir)
    encoded = (pictures.encoded(image, 1024) for image in index.indices)
    return [f"data:{kind};base64,{base64.b64encode(content).decode()}" for content, kind in encoded]
