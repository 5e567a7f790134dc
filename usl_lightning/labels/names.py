"""Names of classes: which can be one, which look the same, and what tables write where there is none."""

import re
import unicodedata
from collections.abc import Collection, Iterable, Sequence

from usl_lightning.base.documents import composed
from usl_lightning.base.errors import UslError, printable

NOT_SURE = "not sure"
"""What an image is called that a person could not name; no class can be called so."""

LONGEST_NAME = 80

MISSING = ("", "-1", "-1.0", "nan", "NaN", "NAN", "-nan", "None", "null", "NULL", "<NA>", "NaT")
"""Cells that say "no label", as NumPy, pandas, databases and most repositories write it."""

_DOUBTFUL = {text.casefold() for text in (
    *MISSING, "NA", "N/A", "N.A.", "nil", "undefined", "unlabeled", "unlabelled", "not labeled", "not labelled",
    "no label", "nolabel", "not annotated", "unannotated", "unassigned", "unset", "not available", "missing", "skip",
    "skipped", "unsup", "unsure", "notsure", NOT_SURE, "todo", "tbd", "\\N",
)}  # fmt: skip
"""Cells that may mean "no label", or be the name of a class."""

_NO_NAME = re.compile(r"-\d+([.,]\d*)?|[-._*/\\?]+|#n/?[a-z]{1,2}|#\S+[!?]")
"""The same of negative numbers, strokes and dots, and of the errors of spreadsheets in any language."""

_DASHES = dict.fromkeys(map(ord, "\u2010\u2011\u2012\u2013\u2014\u2015\u2212"), "-")

_NUMBER = re.compile(r"[-+]?[\d\s.,']*\d[\d\s.,']*(e[-+]?\d+)?\s?%?")

_UNSEEN = re.compile(
    r"[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
"""What is no control character (Cf) and shows nothing either."""

_TWINS = str.maketrans(
    "АВЕЅІЈКМНОРСТУХаеѕіјорсухһԁԛԝΑΒΕΖΗΙΚΜΝΟΡΤΥΧον",
    "ABESIJKMHOPCTYXaesijopcyxhdqwABEZHIKMNOPTYXov",
)
"""Cyrillic and Greek letters that look like Latin ones."""

_LISTED = re.compile(r"[\[({]\s*['\"]|\[.*\]$|\{.*\}$|\(.*,.*\)$")
_ALWAYS_BETWEEN = re.compile(r"[;|]")
_BETWEEN = re.compile(r"[,;|]")
_PERHAPS_BETWEEN = re.compile(r"[/&+\\:·•~‖]+|[-=]*>|\s[-–—]+\s|\b(?:and|or|vs)\b")
_SIGNS = str.maketrans("，、،；؛｜／＆＋＼：＞～", ",,,;;|/&+\\:>~")
"""Signs between words in other scripts."""

_BRACKETS = "()[]{}<>\"'`\u00b4\u2018\u2019\u201a\u201c\u201d\u201e\u00ab\u00bb"
"""What programs and people put around a word; no name needs it to be told from another."""

_JOINERS = "\u200c\u200d"
"""Zero width, but Persian, Indian scripts and emoji are not written without them."""


def clean(name: str) -> str:
    """A name as it is kept: composed, with single spaces between its words."""
    return " ".join(composed(name).split())


def look(name: str, *, case: bool = False) -> str:
    """The same text for all names that look alike: but for case, width, script, spaces and what is not seen at all.

    Args:
        name: any text.
        case: whether letters that differ by case alone look different.
    """
    plain = unicodedata.normalize("NFKC", name).translate(_TWINS)
    folded = unicodedata.normalize("NFKC", plain if case else plain.casefold())
    return " ".join("".join(c for c in _UNSEEN.sub("", folded) if unicodedata.category(c) != "Cf").split())


def _key(name: str) -> str:
    """The same text for names that look alike or are one name as several programs write it.

    Those differ in quotes or brackets around it, in a stop at its end, in what is between its words (`red_fox`,
    `red-fox`), or in how a whole number is written (`1`, `01.0`).
    """
    seen = look(name).translate(_DASHES)
    bare = _between_words(seen.strip(_BRACKETS + " ").rstrip(".,;: ")) or seen
    number = re.fullmatch(r"0*(\d+)(\.0*)?", bare)
    return number[1] if number else bare


def _between_words(text: str) -> str:
    """A text with blanks in place of the strokes between its words."""
    return re.sub(r"(?<=\w)[-_]+(?=\w)", " ", text.replace("_", "-"))


def reads_as_number(name: str) -> bool:
    """Whether it is a number in some spelling: `1.5`, `1e0`, `50 %`."""
    return _NUMBER.fullmatch(look(name).translate(_DASHES)) is not None


def is_not_sure(name: str) -> bool:
    """Whether it is how `NOT_SURE` may be written."""
    return look(name) == NOT_SURE


def _told(name: str) -> str:
    """A name in a message: what cannot be seen is escaped."""
    return ascii(name[:LONGEST_NAME])


def check_name(name: str) -> None:
    """Refuse what no class can be called.

    Raises:
        UslError: nothing that can be seen, a control character, or `NOT_SURE`.
    """
    for character in name:
        if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") and character not in _JOINERS:
            raise UslError(
                f"a class needs a name that can be seen; {_told(name)} has the control character {character!a}"
            )
    if not look(name):
        raise UslError(f"a class needs a name of 1 to {LONGEST_NAME} characters")
    if is_not_sure(name):
        raise UslError(f"'{name}' cannot be the name of a class: it is what images without a class are called")


def check_length(name: str) -> None:
    """Refuse what is too long for a class that a person adds.

    Raises:
        UslError: see there.
    """
    if len(name) > LONGEST_NAME:
        raise UslError(f"a class needs a name of 1 to {LONGEST_NAME} characters")


def check_new(name: str, classes: Iterable[str]) -> None:
    """Refuse a name that people cannot tell from one there is.

    Raises:
        UslError: names both.
    """
    for known in classes:
        if known.casefold() == name.casefold():
            raise UslError(f"'{name}' differs from the class '{known}' by its case only; use that one")
        if _key(known) == _key(name):
            raise UslError(f"'{name}' ({_told(name)}) looks like the class '{known}' ({_told(known)}); use that one")


def checked(names: Sequence[str], where: str) -> tuple[str, ...]:
    """The class names of a data set or a label file, as they are kept, see `clean`.

    Args:
        names: as they were found. Some may differ by case alone: letters are a data set too.
        where: the beginning of the message.

    Raises:
        UslError: no class can be called so, or two are the same, to the eye too.
    """
    kept = tuple(map(clean, names))
    for number, name in enumerate(kept):
        try:
            check_name(name)
        except UslError as error:
            raise UslError(f"{where}: class {number}: {error}") from error
    if len(set(kept)) < len(kept):
        twice = next(name for name in kept if kept.count(name) > 1)
        raise UslError(f"{where} names a class twice: '{printable(twice, LONGEST_NAME)}'")
    seen: dict[str, str] = {}
    for name in kept:
        other = seen.setdefault(look(name, case=True), name)
        if other != name:
            raise UslError(f"{where}: the classes {_told(other)} and {_told(name)} look the same; rename one")
    return kept


def name_in(cell: str, known: Collection[str] = ()) -> str | None:
    """The class name in a cell of a table; None where it says that there is none.

    Args:
        cell: of the table.
        known: names that are classes for certain.

    Raises:
        UslError: it may mean either, or cannot be a name.
    """
    name = clean(cell)
    if name in known:
        return name
    if name in MISSING:
        return None
    check_one_line(cell)
    shown = printable(name, LONGEST_NAME)
    if is_not_sure(name):
        return name
    if may_be_none(name):
        raise UslError(f"'{shown}' may mean 'no label', or be a class; leave the cell empty for no label")
    if _LISTED.match(name):
        raise UslError(f"'{shown}' is a list, expected the name of one class")
    check_name(name)
    return name


def check_one_line(cell: str) -> None:
    """Refuse a cell of several lines or columns, each of which may be a class.

    Raises:
        UslError: it is one.
    """
    if len(cell.strip().replace("\t", "\n").splitlines()) > 1:
        shown = printable(clean(cell), LONGEST_NAME)
        raise UslError(f"'{shown}' is of several lines or columns, expected the name of one class")


def may_be_none(name: str) -> bool:
    """Whether it may say that there is no label, as `no_label`, `-1` or `n/a` do."""
    seen = look(name).translate(_DASHES)
    bare = seen.strip(_BRACKETS) if len(seen) > 1 else seen
    return seen != "" and (bool({seen, bare, _between_words(bare)} & _DOUBTFUL) or _NO_NAME.fullmatch(bare) is not None)


def check_single(name: str, names: Collection[str]) -> None:
    """Refuse what may be several classes in place of one, as in `cat,dog`.

    Args:
        name: in a table.
        names: that are classes, or stand in the table.

    Raises:
        UslError: something is between its parts that is in no name; one of them is among the names; or all are, where
            what is between them may be of a name too.
    """
    plain = name.translate(_SIGNS)
    parts = [part.strip() for part in _BETWEEN.split(plain)]
    several = [part.strip() for part in _PERHAPS_BETWEEN.split(plain) if part.strip()]
    listed = _ALWAYS_BETWEEN.search(plain) or (len(parts) > 1 and any(part in names for part in parts))
    if listed or (len(several) > 1 and {*several} <= {*names}):
        raise UslError(f"'{printable(name, LONGEST_NAME)}' names several classes, expected one")


def check_apart(names: Iterable[str]) -> None:
    """Refuse names of which two are the same to the eye, or the same number.

    Raises:
        UslError: names two.
    """
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(_key(name), name)
        if other != name:
            raise UslError(f"{_told(other)} and {_told(name)} would be two classes; settle on one")
