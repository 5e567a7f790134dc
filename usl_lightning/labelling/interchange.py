"""Labels for and from other programs: Label Studio's tasks and exports, and CSV for a spreadsheet."""

import base64
import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

from usl_lightning.base.arguments import known_options
from usl_lightning.base.errors import UslError
from usl_lightning.base.files import write_text
from usl_lightning.labelling.store import NOT_SURE, Answer, LabelStore, answers_of, name_of, with_class
from usl_lightning.labels import LabelIndex
from usl_lightning.labels.entries import short
from usl_lightning.labels.index import images_to_label

PREFIX = "/data/local-files/?d="
"""What Label Studio's own server calls files below its document root."""

COLUMNS = ("index", "file", "label")
OPTIONS = {"export": ("out", "prefix", "dir"), "import": ()}
USAGE = {
    "export": f"usl labels export LABELS.json --out TASKS.json|FILE.csv [--prefix {PREFIX}] [--dir FOLDER]",
    "import": "usl labels import LABELS.json ANSWERS.json|.csv",
}


def main(arguments: Sequence[str]) -> None:
    """`usl labels export` and `usl labels import`.

    `export` writes the chosen images, with what answers they have, as a CSV or as Label Studio's tasks; beside the
    latter its labelling set-up. `import` notes in the label file what the others answered.

    Args:
        arguments: `export` or `import` and what follows it.

    Raises:
        UslError: a mistake in the arguments or a file, or the file to write exists.
    """
    operation, *words = arguments
    files = [word for word in words[: 1 if operation == "export" else 2] if not word.startswith("-")]
    given = known_options(f"usl labels {operation}", words[len(files) :], OPTIONS[operation])
    if len(files) < (1 if operation == "export" else 2) or (operation == "export" and "out" not in given):
        raise UslError(f"usl labels {operation}: a file is missing; use {USAGE[operation]}")
    store = LabelStore(Path(files[0]))
    if operation == "export":
        _export(store.read(), Path(given["out"]), given.get("prefix", PREFIX), given.get("dir"))
    else:
        _import(store, Path(files[1]))


def _export(index: LabelIndex, out: Path, prefix: str, dir: str | None) -> None:
    setup = out.with_suffix(".xml")
    if out.suffix.lower() not in (".json", ".csv"):
        raise UslError(f"--out {out}: expected .json (Label Studio's tasks) or .csv")
    for path in (out, setup):
        if path.exists() and (path == out or out.suffix.lower() == ".json"):
            raise UslError(f"{path}: exists already; choose another --out")
    if out.suffix.lower() == ".csv":
        write_text(out, f"\ufeff{to_csv(index)}")  # spreadsheets take it for UTF-8 by that
        print(f"{out}: {len(index)} images; fill in the column label ('{NOT_SURE}' is an answer too)")
        return
    tasks = to_label_studio(index, _addresses(index, prefix, dir))
    write_text(out, json.dumps(tasks, indent=1, ensure_ascii=False) + "\n")
    write_text(setup, label_studio_setup(index.classes))
    print(f"{out}: {len(index)} tasks; {setup}: the labelling set-up for them")


def _import(store: LabelStore, path: Path) -> None:
    index = store.read()
    answers, classes = by_number(read_answers(path, index), index)
    known = answers_of(index)
    changed = sum(known[image] not in (None, answer) for image, answer in answers.items())
    added = classes[len(index.classes) :]
    index = store.merge(answers, classes)
    news = f", {changed} other than before" if changed else ""
    news += f"; new classes: {', '.join(added)}" if added else ""
    print(f"{store.path}: {len(answers)} answers{news}; {images_to_label(index)}")


def to_csv(index: LabelIndex) -> str:
    """`index,file,label`, a line for each image; the label is the class's name, or empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    files = index.files or ("",) * len(index)
    for (image, answer), file in zip(answers_of(index).items(), files, strict=True):
        writer.writerow((image, file, "" if answer is None else name_of(answer, index)))
    return text.getvalue()


def to_label_studio(index: LabelIndex, addresses: Sequence[str]) -> list[dict[str, Any]]:
    """Label Studio's tasks, with an annotation where an image has an answer.

    Args:
        index: the chosen images.
        addresses: of each image, for the browser.
    """
    files = index.files or (None,) * len(index)
    tasks = []
    for (image, answer), file, address in zip(answers_of(index).items(), files, addresses, strict=True):
        data = {"image": address, "index": image} | ({} if file is None else {"file": file})
        task: dict[str, Any] = {"data": data}
        if answer is not None:
            choice = {"choices": [name_of(answer, index)]}
            result = {"from_name": "label", "to_name": "image", "type": "choices", "value": choice}
            task["annotations"] = [{"result": [result]}]
        tasks.append(task)
    return tasks


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


# what comes back -----------------------------------------------------------------------------------------


def read_answers(path: Path, index: LabelIndex) -> dict[int, str]:
    """Class names by position in the data set, from Label Studio's export (JSON, JSON-MIN, CSV) or our own CSV.

    Skipped tasks and empty labels have no answer, and are left out.

    Args:
        path: `.json` or `.csv`.
        index: the images they are about.

    Raises:
        UslError: the file is of no such kind, names an image that is not in the index, or has two answers for one.
    """
    reader = {".json": _rows_of_json, ".csv": _rows_of_csv}.get(path.suffix.lower())
    if reader is None:
        raise UslError(f"{path}: expected Label Studio's export as .json or .csv, or a .csv of {','.join(COLUMNS)}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UslError(f"{path}: its letters are not in UTF-8; save it so (a spreadsheet: 'CSV UTF-8')") from error
    except OSError as error:
        raise UslError(f"{path}: cannot be read ({error.strerror})") from error
    file_of = dict(zip(index.indices, index.files or ("",) * len(index), strict=True))
    image_of = {file: image for image, file in file_of.items() if file}
    answers: dict[int, str] = {}
    for entry, (about, names) in enumerate(reader(path, text)):
        where = f"{path}: entry {entry}"
        image = _image(about, file_of, image_of, where)
        for name in names:
            if answers.setdefault(image, name) != name:
                raise UslError(f"{where}: image {image} is {short(answers[image])} and {short(name)}; settle on one")
    return answers


def by_number(names: Mapping[int, str], index: LabelIndex) -> tuple[dict[int, Answer], tuple[str, ...]]:
    """(answers, classes): names as class numbers of the index's classes, which new names are added to.

    Raises:
        UslError: a name that no class can have.
    """
    answers: dict[int, Answer] = {}
    for image, name in names.items():
        name = " ".join(name.split())
        if name.casefold() == NOT_SURE:
            answers[image] = "unsure"
        else:
            index = with_class(index, name)
            answers[image] = index.classes.index(name)
    return answers, index.classes


def _image(about: Mapping[str, Any], file_of: Mapping[int, str], image_of: Mapping[str, int], where: str) -> int:
    """The image that an entry is about: by its `index`, or by its `file`."""
    number, file = str(about.get("index", "")).strip(), about.get("file")
    image = int(number) if number.isdecimal() else image_of.get(str(file), -1)
    if image not in file_of:
        raise UslError(
            f"{where}: index {short(about.get('index'))}, file {short(file)}: not one of the images to label"
        )
    if file and file_of[image] and file != file_of[image]:
        raise UslError(f"{where}: index {image} is {short(file)} there, but {file_of[image]} in the label file")
    return image


def _rows_of_csv(path: Path, text: str) -> Iterator[tuple[Mapping[str, Any], list[str]]]:
    separator = max(",;\t", key=text.partition("\n")[0].count)  # spreadsheets write that of their country
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator)
    try:
        columns = rows.fieldnames or []
        if "label" not in columns or not {"index", "file"} & set(columns):
            raise UslError(f"{path}: its columns are {short(','.join(columns))}; expected {', '.join(COLUMNS)}")
        for row in rows:
            label = (row["label"] or "").strip()
            yield row, [label] if label else []
    except csv.Error as error:
        raise UslError(f"{path}: line {rows.line_num + 1}: not CSV ({error})") from error


def _rows_of_json(path: Path, text: str) -> Iterator[tuple[Mapping[str, Any], list[str]]]:
    try:
        tasks = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UslError(f"{path}: not JSON ({error}); expected Label Studio's export") from error
    if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
        raise UslError(f"{path}: not Label Studio's export; expected a list of tasks")
    for entry, task in enumerate(tasks):
        try:
            if "data" in task:
                yield task["data"], list(_choices(task))
            else:  # JSON-MIN: everything of a task in one object
                yield task, _single(task["label"]) if task.get("label") else []
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise UslError(f"{path}: entry {entry}: {short(task)}: not a task of one choice each") from error


def _choices(task: Mapping[str, Any]) -> Iterator[str]:
    for annotation in task.get("annotations") or []:
        if not annotation.get("was_cancelled"):
            for result in annotation["result"]:
                if result["type"] == "choices":
                    yield from _single(result["value"])


def _single(value: Any) -> list[str]:
    """The one name in `"cat"` or `{"choices": ["cat"]}`."""
    names = value["choices"] if isinstance(value, dict) else [value]
    (name,) = names
    if not isinstance(name, str):
        raise TypeError(name)
    return [name]
