"""Answers that other programs bring back: Label Studio's exports (JSON, JSON-MIN, CSV), and our own CSV."""

import logging
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from usl_lightning.base.atomic import read_file
from usl_lightning.base.documents import composed, unguarded
from usl_lightning.base.errors import UslError
from usl_lightning.base.files import parse_json
from usl_lightning.labelling.store import Answer, with_class
from usl_lightning.labels import LabelIndex
from usl_lightning.labels.entries import short
from usl_lightning.labels.names import (
    MISSING,
    NOT_SURE,
    check_length,
    check_new,
    check_single,
    clean,
    is_not_sure,
    name_in,
    reads_as_number,
)
from usl_lightning.labels.tables import is_number, parse_rows, warn_of_marks, whole_numbers

log = logging.getLogger("usl_lightning")

COLUMNS = ("index", "file", "label")

LABEL = "label"
"""What our set-up calls the field of the choice, and so exports of it."""

ANNOTATOR = "annotator"
"""What Label Studio's flat exports call who has answered."""

_CHOICES = ("choice", "choices", "class", "category")
"""What Label Studio's templates call it."""

_NOTHING: tuple[Any, ...] = (None, "", [], {})

_OWN = frozenset({
    "id", "image", "index", "file", "annotator", "annotation_id", "created_at", "updated_at", "lead_time", "agreement",
    "inner_id", "total_annotations", "cancelled_annotations", "total_predictions", "comment_count", "project",
    "unresolved_comment_count", "last_comment_updated_at", "updated_by", "comment_authors", "file_upload", "meta",
})  # fmt: skip
"""Fields of Label Studio's flat exports (JSON-MIN, CSV) that hold no answer."""

About = Mapping[str, Any]
Given = tuple[str, str]
"""Who has said it, "" if that is not told; the name of a class."""

Row = tuple[str, About, list[Given]]
"""Where it stands, which image it is about (`index`, `file`), and the answers given to it."""


class Answers(dict[int, str]):
    """Position in the data set -> the class that a file says it is, or how `NOT_SURE` may be written.

    Attributes:
        disputed: what was said of each image for which no more than half of its annotators say the same.
    """

    def __init__(self) -> None:
        super().__init__()
        self.disputed: dict[int, list[str]] = {}


def read_answers(path: Path, index: LabelIndex) -> Answers:
    """The answers in Label Studio's export (JSON, JSON-MIN, CSV) or our own CSV.

    Skipped tasks, empty labels and marks of a missing one (`-1`, `nan`, …) have no answer, and are left out. Of several
    annotators, each of whom has one vote, the majority counts.

    Args:
        path: `.json` or `.csv`.
        index: the images they are about.

    Raises:
        UslError: the file is of no such kind, its answers are not a choice each, an image is not in the index, or two
            answers for one image are by the same annotator, or by nobody knows whom.
    """
    reader = {".json": _rows_of_json, ".csv": _rows_of_csv}.get(path.suffix.lower())
    if reader is None:
        raise UslError(f"{path}: expected Label Studio's export as .json or .csv, or a .csv of {','.join(COLUMNS)}")
    try:
        content = read_file(path)
    except OSError as error:
        raise UslError(f"{path}: cannot be read ({error.strerror})") from error
    file_of = dict(zip(index.indices, index.files or ("",) * len(index), strict=True))
    image_of = {composed(file).strip(): image for image, file in file_of.items() if file}
    said: dict[int, dict[str, str]] = {}  # of each image: annotator -> name
    marks = Counter[str]()
    new: dict[str, str] = {}  # name that is no class yet -> where it stands
    for where, about, names in reader(path, content, index.classes):
        image = _image(about, file_of, image_of, where)
        for who, cell in names:
            name = _name(cell, index.classes, where)
            if name is None:
                marks[clean(cell)] += 1
                continue
            votes = said.setdefault(image, {})
            before = next(iter(votes.values())) if votes and "" in (who, *votes) else votes.get(who, name)
            if before != name:
                raise UslError(f"{where}: image {image} is {short(before)} and {short(name)}; settle on one")
            votes[who] = name
            if name not in index.classes and not is_not_sure(name):
                new.setdefault(name, where)
    warn_of_marks(path, marks)
    _check_new(new, index.classes)
    kept = {} if index.classes else whole_numbers(new)
    return _by_majority({i: {who: kept.get(name, name) for who, name in votes.items()} for i, votes in said.items()})


def _check_new(new: Mapping[str, str], classes: Sequence[str]) -> None:
    """Refuse several classes in place of one, and names that look like one that is there.

    Raises:
        UslError: names the entry.
    """
    known = list(classes)
    for name, where in new.items():
        try:
            check_length(name)
            check_single(name, {*classes, *new})
            check_new(name, known)
        except UslError as error:
            raise UslError(f"{where}: {error}") from error
        known.append(name)


def _by_majority(said: Mapping[int, Mapping[str, str]]) -> Answers:
    answers = Answers()
    for image, votes in said.items():
        (name, count), *_ = Counter(NOT_SURE if is_not_sure(name) else name for name in votes.values()).most_common()
        if 2 * count > len(votes):
            answers[image] = name
        else:
            answers.disputed[image] = list(votes.values())
    return answers


def by_number(names: Mapping[int, str], index: LabelIndex) -> tuple[dict[int, Answer], tuple[str, ...]]:
    """(answers, classes): names as class numbers of the index's classes, which new names are added to.

    Raises:
        UslError: a name that no class can have.
    """
    answers: dict[int, Answer] = {}
    for image, name in names.items():
        if is_not_sure(name):
            answers[image] = "unsure"
        else:
            index = with_class(index, name)
            answers[image] = index.classes.index(clean(name))
    return answers, index.classes


def _name(text: str, classes: Collection[str], where: str) -> str | None:
    try:
        name = name_in(text, classes)
    except UslError as error:
        raise UslError(f"{where}: {error}") from error
    if name is None or name in classes:
        return name
    whole = re.sub(r"\.0+$", "", name)  # spreadsheets and pandas write numbers as they like
    if whole in classes:
        return whole
    some = ", ".join(list(classes)[:3])
    if reads_as_number(name) and classes and not any(map(reads_as_number, classes)):
        raise UslError(f"{where}: {name} is a number, but the classes have names ({some}, …); write the name")
    if reads_as_number(name) and classes and not is_number(whole) and all(map(is_number, classes)):
        raise UslError(f"{where}: {name} is no whole number, as the classes are ({some}, …); write it as one of them")
    return name


def _image(about: About, file_of: Mapping[int, str], image_of: Mapping[str, int], where: str) -> int:
    """The image that an entry is about: by its `index`, or by its `file`."""
    number, file = str(about.get("index", "")).strip(), composed(str(about.get("file") or "")).strip()
    number = number.removesuffix(".0")  # pandas, of a column that has a gap
    image = int(number) if is_number(number) else image_of.get(file, -1)
    if image not in file_of:
        raise UslError(
            f"{where}: index {short(about.get('index'))}, file {short(about.get('file'))}: not one of the images to"
            " label"
        )
    if file and file_of[image] and file != composed(file_of[image]).strip():
        raise UslError(f"{where}: index {image} is {short(file)} there, but {file_of[image]} in the label file")
    return image


# CSV -----------------------------------------------------------------------------------------------------


def _rows_of_csv(path: Path, content: bytes, classes: Collection[str]) -> Iterator[Row]:
    rows = parse_rows(path, content, ",;\t")  # spreadsheets write the separator of their country
    columns = rows[0][1] if rows else []
    if len(set(columns)) < len(columns):
        raise UslError(f"{path}: its columns are {short(','.join(columns))}; expected each once")
    exported = bool({"annotation_id", "annotator"} & set(columns))  # by Label Studio; its choice may have another name
    if not (LABEL in columns or exported) or not {"index", "file"} & set(columns):
        raise UslError(f"{path}: its columns are {short(','.join(columns))}; expected {', '.join(COLUMNS)}")
    flat = [{c: unguarded(cell) for c, cell in zip(columns, cells, strict=False)} for _, cells in rows[1:]]
    field = _field(path, flat, classes)
    for entry, (row, (line, _)) in enumerate(zip(flat, rows[1:], strict=True)):
        where = f"{path}: entry {entry} (line {line})"
        who = row.get(ANNOTATOR, "").strip()
        yield where, row, [(who, name) for name in _names_in_cell(row.get(field, ""), classes, where)]


def _names_in_cell(cell: str, classes: Collection[str], where: str) -> list[str]:
    """The name in a cell; Label Studio writes several choices as JSON."""
    if cell[:1] not in ("{", "[") or clean(cell) in classes:
        return [cell]
    try:
        value = parse_json(cell)
    except ValueError:
        return [cell]
    try:
        return _single(value)
    except (KeyError, TypeError, ValueError) as error:
        raise UslError(f"{where}: {short(cell)} is not one choice; settle on one") from error


# JSON ----------------------------------------------------------------------------------------------------


def _rows_of_json(path: Path, content: bytes, classes: Collection[str]) -> Iterator[Row]:
    try:
        tasks = parse_json(content)
    except ValueError as error:
        raise UslError(f"{path}: not JSON ({error}); expected Label Studio's export") from error
    if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
        raise UslError(f"{path}: not Label Studio's export; expected a list of tasks")
    field = _field(path, [task for task in tasks if "data" not in task], classes)
    question = _question(path, [task for task in tasks if "data" in task], classes)
    drafts = sum(bool(task.get("drafts")) and not task.get("annotations") for task in tasks)
    if drafts:
        log.warning("%s: passed over %d drafts, which nobody has submitted", path, drafts)
    for entry, task in enumerate(tasks):
        where = f"{path}: entry {entry}"
        try:
            if "data" in task:
                about, names = task["data"], list(_choices(task, question))
            else:  # JSON-MIN: everything of a task in one object
                given = [] if task.get(field) in _NOTHING else _single(task[field])
                about, names = task, [(_who(task.get(ANNOTATOR)), name) for name in given]
            if not isinstance(about, dict):
                raise TypeError(about)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise UslError(f"{where}: {short(task)}: not a task of one choice each") from error
        yield where, about, names


def _question(path: Path, tasks: Sequence[About], classes: Collection[str]) -> str:
    """Which choice of the annotations is the answer: what a project calls it, if that is one thing.

    Raises:
        UslError: it cannot be told.
    """
    said: list[dict[str, Any]] = [{} for _ in tasks]
    for task, choices in zip(tasks, said, strict=True):
        with suppress(KeyError, TypeError, AttributeError):  # told with its entry
            for annotation in _annotations(task):
                choices |= {str(name): value for name, value in _chosen(annotation)}
    fields = {name for choices in said for name in choices}
    if len(fields) < 2:
        return next(iter(fields), LABEL)
    names = ", ".join(sorted(fields))
    if LABEL not in fields:
        raise UslError(f"{path}: its choices are of several questions, {short(names)}; call that of the class {LABEL}")
    _check_others(path, said, sorted(fields - {LABEL}), classes)
    log.warning("%s: choices of %s; those of %s alone are taken", path, names, LABEL)
    return LABEL


def _field(path: Path, rows: Sequence[About], classes: Collection[str]) -> str:
    """Where flat rows have their answers: the project's set-up names that.

    Raises:
        UslError: it cannot be told.
    """
    filled = sorted({key for row in rows for key, value in row.items() if _says(value, classes)} - _OWN)
    answered = [row for row in rows if _says(row.get(LABEL), classes)]
    if not filled:
        marked = {key for row in rows for key, value in row.items() if value not in _NOTHING} - _OWN
        return marked.pop() if len(marked) == 1 else LABEL
    if answered:
        _check_others(path, rows, [field for field in filled if field != LABEL], classes)
        return LABEL
    if len(filled) == 1:
        (field,) = filled
        if field in _CHOICES or _are_classes(field, rows, set(classes)):
            return field
    raise UslError(f"{path}: '{LABEL}' is empty; if the answers are in {short(', '.join(filled))}, call that {LABEL}")


def _check_others(path: Path, rows: Sequence[About], fields: Sequence[str], classes: Collection[str]) -> None:
    """Refuse answers beside `LABEL` where that has none; tell of others that it does not say.

    Raises:
        UslError: names the field and the first entry.
    """
    known = {*classes, *(_text(row[LABEL]) for row in rows if _says(row.get(LABEL), classes))}
    for field in fields:
        said = [entry for entry, row in enumerate(rows) if _says(row.get(field), classes)]
        alone = [entry for entry in said if not _says(rows[entry].get(LABEL), classes)]
        meant = field.casefold() in (LABEL, *_CHOICES) or _are_classes(field, rows, known)
        if alone and meant:
            beside = f"'{LABEL}' is empty, but '{field}' is {short(rows[alone[0]][field])}"
            advice = f"put all answers into {LABEL}, or leave {field} out"
            raise UslError(f"{path}: entry {alone[0]}: {beside}; {advice}")
        other = [entry for entry in said if _text(rows[entry][field]) != _text(rows[entry].get(LABEL))]
        if alone or (other and meant):
            log.warning(
                "%s: passed over what '%s' says in %d entries, of which '%s' says nothing in %d",
                path, field, len(other), LABEL, len(alone),
            )  # fmt: skip


def _says(value: Any, classes: Collection[str]) -> bool:
    """Whether a cell holds anything but a mark of nothing."""
    if not isinstance(value, str):
        return value not in _NOTHING
    return clean(value) in classes or clean(value) not in MISSING


def _are_classes(field: str, rows: Sequence[About], names: Collection[str]) -> bool:
    """Whether a field names a class wherever it says something; numbers in JSON are no answers."""
    values = [row[field] for row in rows if _says(row.get(field), names)]
    return all(isinstance(value, str | dict | list) for value in values) and all(
        name in names or is_not_sure(name) for name in map(_text, values)
    )


def _text(value: Any) -> str:
    """An answer as text; one that is none, as it is written."""
    try:
        return clean(_single(value)[0])
    except (KeyError, TypeError, ValueError):
        return clean(str(value))


def _who(annotator: Any) -> str:
    """An annotator as text: Label Studio writes a number, or an object that has one."""
    value = annotator.get("id", annotator.get("email")) if isinstance(annotator, dict) else annotator
    return "" if value is None else str(value).strip()


def _annotations(task: About) -> list[Any]:
    """Those of a task that count; earlier versions of Label Studio called them completions."""
    return [each for each in task.get("annotations") or task.get("completions") or [] if not each.get("was_cancelled")]


def _chosen(annotation: About) -> list[tuple[str, Any]]:
    """Question and choice of each result that is one."""
    return [(each.get("from_name", LABEL), each["value"]) for each in annotation["result"] if each["type"] == "choices"]


def _choices(task: About, question: str) -> Iterator[Given]:
    """The choices of all annotations of a task that answer a question."""
    for annotation in _annotations(task):
        chosen = _chosen(annotation)
        if annotation["result"] and not chosen:
            raise ValueError("answers, but of other kinds")
        for field, value in chosen:
            if field == question:
                yield from ((_who(annotation.get("completed_by")), name) for name in _single(value))


def _single(value: Any) -> list[str]:
    """The one name in `"cat"`, `["cat"]` or `{"choices": ["cat"]}`."""
    names = value["choices"] if isinstance(value, dict) else value
    (name,) = [names] if isinstance(names, str) else names
    if not isinstance(name, str):
        raise TypeError(name)
    return [name]
