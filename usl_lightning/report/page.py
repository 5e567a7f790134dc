"""`usl report RUN_DIR`: one HTML file that shows what a run did. It loads nothing from anywhere."""

import shlex
import time
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from usl_lightning.base.atomic import check_replaceable
from usl_lightning.base.commands import known_options
from usl_lightning.base.errors import UslError
from usl_lightning.base.files import write_text
from usl_lightning.base.machine import this_machine
from usl_lightning.base.typed import as_count, home
from usl_lightning.base.version import __version__
from usl_lightning.report.markup import Html, Names, render, tag
from usl_lightning.report.run import RunReport, read_run

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""What a browser may load for the page: nothing but what is in it."""


CONTRAST = 12
"""Least representative images that are shown beside the chosen ones of a selection."""

TITLE = ": report of a run"
"""What the title of every report ends in."""


def main(arguments: Sequence[str]) -> None:
    """`usl report RUN_DIR [--out FILE.html] [--contrast N]`: write the page and say where it is.

    Args:
        arguments: the words after `usl report`.

    Raises:
        UslError: no run folder, an option that means nothing, or a damaged file in the folder.
    """
    folder, out, contrast = _parse(arguments)
    path = write_report(folder, out, contrast)
    print(f"{path} ({path.stat().st_size / 1e6:.1f} MB): open it in a browser")
    print(f"next: {what_next(read_run(folder))}")


def what_next(run: RunReport) -> str:
    """The command that goes on with a run."""
    if run.waiting:
        return shlex.join(["usl", "label", str(run.folder)])
    if any(stage.state == "running" for stage in run.missing):
        return f"{shlex.join(['usl', 'report', str(run.folder)])} shows how far it is; it is at work"
    if run.missing:
        return run.next_command or "the command that made this folder goes on where it stopped"
    if any(stage.trained for stage in run.stages):
        return f"{shlex.join(['usl', 'predict', str(run.folder)])} FOLDER classifies other images"
    return "usl configs lists what can be done with its features"


def _parse(arguments: Sequence[str]) -> tuple[Path, Path | None, int]:
    words = list(arguments)
    folder = words.pop(0) if words and not words[0].startswith("-") else None
    if folder is None and len(words) > 1 and not words[-1].startswith("-") and words[-2] not in ("--out", "--contrast"):
        folder = words.pop()
    given = known_options("report", words)
    if given.get("out") == "true":
        raise UslError("usl report: --out: its value is missing; expected FILE.html")
    if folder is None:
        raise UslError("usl report: expected the folder of a run, e.g. usl report runs/digits_quickstart")
    contrast = as_count(given.get("contrast", str(CONTRAST)))
    if contrast is None or contrast > 9999:
        raise UslError(f"usl report: --contrast {given['contrast']}: expected a number of images, from 0 to 9999")
    return home(folder), home(given["out"]) if "out" in given else None, contrast


def write_report(folder: Path, out: Path | None = None, contrast: int = CONTRAST) -> Path:
    """Write the page of a run, atomically.

    Args:
        folder: of a chain (`runs/NAME`) or of one of its stages; it may be unfinished.
        out: the file; None: `report.html` in the folder.
        contrast: least representative images to show, at most.

    Returns:
        The file.

    Raises:
        UslError: it is no run folder, nothing has begun, or a file in it is damaged.
    """
    run = read_run(folder)
    path = run.folder / "report.html" if out is None else out
    if path.is_dir():
        raise UslError(f"usl report: --out {path}: a folder; expected the name of a file")
    check_replaceable(path, lambda start: f"{TITLE}</title>".encode() in start, "usl report: --out")
    write_text(path, page(run, contrast, path.parent))
    return path


def page(run: RunReport, contrast: int = CONTRAST, beside: Path | None = None) -> Html:
    """The page of a run.

    Args:
        run: what was read of its folder.
        contrast: least representative images to show, at most.
        beside: the folder that the page is written to; None: that of the run.
    """
    from usl_lightning.report import chosen, predictions, pseudo_classes, results, rounds, training

    names = Names()
    choices = chosen.read_choices(run)
    parts: dict[str, Html | None] = {
        "Not finished": results.unfinished(run),
        "Results": results.results(run, names),
        "Rounds": rounds.rounds(run, names),
        "Predictions": predictions.predictions(run, beside or run.folder),
        "Chosen images": chosen.galleries(choices, contrast) if choices else None,
        "Classes": chosen.classes(choices),
        "Map": chosen.maps(choices, names),
        "Pseudo-classes": pseudo_classes.pseudo_classes(run),
        "Figures": results.stage_figures(run),
        "Curves": training.learning_curves(run, names),
        "Confusions": training.confusions(run),
        "Time": results.times(run),
        "Commands": results.commands(run),
        "Machine": results.machine(run, this_machine()),
    }
    return document(run.name, results.headline(run), {name: part for name, part in parts.items() if part})


def document(title: str, lead: str, parts: dict[str, Html]) -> Html:
    """A whole page.

    Args:
        title: of the page.
        lead: the sentence below it.
        parts: name in the contents -> section, whose id is the first there is in it.
    """
    style = resources.files("usl_lightning.report").joinpath("page.css").read_text(encoding="utf-8")
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{title}{TITLE}"),
        tag("style", Html(style)),
    )
    links = [tag("li", tag("a", name, href=f"#{_identity(part)}")) for name, part in parts.items()]
    body = tag(
        "body",
        tag("a", "Skip to the results", href="#content", class_="skip"),
        tag("header", tag("h1", title), tag("p", lead, class_="lead")),
        tag("nav", tag("ul", links), aria_label="Contents"),
        tag("main", *parts.values(), id="content", tabindex="-1"),
        tag("footer", tag("p", f"Made by usl-lightning {__version__} on {time.strftime('%Y-%m-%d %H:%M')}.")),
    )
    return render(Html("<!DOCTYPE html>\n"), tag("html", head, "\n", body, lang="en"), "\n")


def _identity(part: Html) -> str:
    return part.partition('id="')[2].partition('"')[0]
