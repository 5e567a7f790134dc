"""Tables of labels in CSV: what spreadsheets and other programs write. Imports nothing heavy."""

import csv
import io
import logging
import re
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path

from usl_lightning.base.atomic import read_file
from usl_lightning.base.documents import composed, unguarded
from usl_lightning.base.errors import UslError, printable
from usl_lightning.base.typed import as_count
from usl_lightning.labels.entries import short
from usl_lightning.labels.names import check_one_line, check_single, clean, is_not_sure, name_in

log = logging.getLogger("usl_lightning")


def parse_rows(path: Path, content: bytes, separators: str = ",") -> list[tuple[int, list[str]]]:
    """(line, cells without the spaces around them) of each row that is not empty; the first is the header.

    Cells beyond the header's that are empty are left out, as spreadsheets write them.

    Args:
        path: of the file, for messages.
        content: its bytes, UTF-8 with or without a byte order mark.
        separators: the one the header has most of is taken.

    Raises:
        UslError: it is no such table, or a row has more cells than the header.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        advice = "save it so (a spreadsheet: 'CSV UTF-8'); as it is it cannot be read, or is not a CSV at all"
        raise UslError(f"{path}: its letters are not in UTF-8; {advice}") from error
    told = re.match(r'(?i)"?sep=([,;\t|])"?(?:\r\n?|\n)', text)  # by Excel, which shows the line to nobody
    text = text if told is None else text[told.end() :]
    separator = max(separators, key="".join(text.splitlines()[:1]).count) if told is None else told[1]
    reader, rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator), list[tuple[int, list[str]]]()
    try:
        for cells in reader:
            kept = [cell.strip() for cell in cells]
            width = len(rows[0][1]) if rows else 0
            while len(kept) > width and not kept[-1]:
                kept.pop()
            if any(kept):
                rows.append((reader.line_num + (told is not None), kept))
            if rows and len(kept) > len(rows[0][1]):
                header = len(rows[0][1])
                raise UslError(f"{path}: line {reader.line_num} has {len(kept)} cells, the first line {header}")
    except csv.Error as error:
        raise UslError(f"{path}: line {reader.line_num}: not CSV ({error})") from error
    return rows


def label_cells(path: Path) -> dict[str, tuple[int, str]]:
    """File -> (line, what is written there as its label), of a CSV `file,label`; both texts in composed form.

    Raises:
        UslError: the file cannot be read, is of another kind, or names an image twice.
    """
    try:
        rows = parse_rows(path, read_file(path))
    except OSError as error:
        raise UslError(f"{path}: cannot be read ({error.strerror})") from error
    if not rows or rows[0][1] != ["file", "label"]:
        header = short(",".join(rows[0][1])) if rows else "missing"
        raise UslError(f"{path}: first line is {header}, expected file,label")
    found: dict[str, tuple[int, str]] = {}
    for line, cells in rows[1:]:
        if len(cells) != 2:
            raise UslError(f"{path}: line {line} has {len(cells)} values, expected file,label")
        file = composed(unguarded(cells[0]))
        if file in found:
            raise UslError(f"{path}: line {line} names {printable(file, 200)} a second time")
        try:
            check_one_line(cells[1])
        except UslError as error:
            raise UslError(f"{path}: line {line}: {error}") from error
        found[file] = line, clean(unguarded(cells[1]))
    return found


def labels_in(path: Path, cells: Mapping[str, tuple[int, str]], known: Collection[str] = ()) -> dict[str, str | None]:
    """File -> class name, or None where it has no label.

    Args:
        path: of the table, for messages.
        cells: of `label_cells`.
        known: names that are classes, whatever else they may mean.

    Raises:
        UslError: a cell is no label for certain.
    """
    label_of: dict[str, str | None] = {}
    marks = Counter[str]()
    written = {cell for _, cell in cells.values()}
    for file, (line, cell) in cells.items():
        try:
            name = name_in(cell, known)
            if cell not in known:
                check_single(cell, known or written)
        except UslError as error:
            raise UslError(f"{path}: line {line}: {error}") from error
        label_of[file] = None if name is None or is_not_sure(name) else name
        if name is None:
            marks[cell] += 1
    warn_of_marks(path, marks)
    kept = {} if known else whole_numbers({name for name in label_of.values() if name})
    return {file: name and kept.get(name, name) for file, name in label_of.items()}


def warn_of_marks(path: Path, marks: Mapping[str, int]) -> None:
    """Tell which cells that are not empty were taken for no label: what -> how often."""
    told = ", ".join(f"{count} × {mark}" for mark, count in marks.items() if mark)
    if told:
        log.warning("%s: taken for no label: %s", path, told)


def whole_numbers(names: Collection[str]) -> dict[str, str]:
    """Name -> how it is kept: `1` for `1.0`, which pandas makes of whole numbers in a column that has a gap."""
    whole = {name: name.rstrip("0").removesuffix(".") if "." in name else name for name in names}
    return whole if all(map(is_number, whole.values())) else {name: name for name in names}


def is_number(text: str) -> bool:
    """Whether it is a whole number, from 0."""
    return as_count(text) is not None
