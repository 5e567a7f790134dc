"""What a report says of how good a classifier is by its labels alone."""

import json
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import html5lib
import pytest
from made_run import make_run

from usl_lightning.base.errors import UslError
from usl_lightning.report.estimates import merged
from usl_lightning.report.page import write_report
from usl_lightning.report.results import headline
from usl_lightning.report.run import read_run

TOLD = {
    "estimated_accuracy": 0.79,
    "estimated_interval": [0.647, 0.907],
    "estimated_from": 6,
    "estimated_with_40_more": 0.879,
}
BINS = [[0, 0, 0.0], [4, 1, 1.0], [0, 0, 0.0], [4, 4, 3.6]]


def judged(run: Path, metrics: dict[str, Any], bins: Any, labels: list[int | None] | None = None) -> Path:
    """The run, with other figures of its first classifier."""
    stage = run / "train_usl"
    record = json.loads((stage / "stage.json").read_text())
    (stage / "stage.json").write_text(json.dumps({**record, "metrics": metrics}))
    evaluation = {"classes": ["a", "b", "c"], "judged_by_labels": {"reliability": bins}}
    (stage / "evaluation.json").write_text(json.dumps(evaluation))
    if labels is not None:
        path = run / "select_usl/labels.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "labels": labels}))
    return run


def results(run: Path) -> tuple[str, Element]:
    """The text of the section on results, and the section."""
    page = html5lib.parse(write_report(run).read_text(), namespaceHTMLElements=False)
    found = next(each for each in page.iter("section") if each.get("id") == "results")
    return " ".join("".join(found.itertext()).split()), found


def test_an_estimate_is_told_with_its_interval_and_what_more_labels_bring(tmp_path: Path) -> None:
    run = judged(make_run(tmp_path, upto=4), TOLD, BINS)
    text, found = results(run)
    assert headline(read_run(run)).startswith("Estimated accuracy: 79.0% (64.7% to 90.7%) with 6 labels chosen by USL")
    cells = [["".join(cell.itertext()) for cell in row] for row in found.iter("tr")]
    assert cells[0][5] == "Estimated accuracy"
    assert cells[1][5] == "79.0% (64.7% to 90.7%)"
    assert "the images that nobody labelled are told rightly, by 6 labels. With 40 labels more" in text
    assert "about 87.9%" in text
    assert "not known" not in text
    (described,) = ["".join(each.itertext()) for each in found.iter() if str(each.tag).endswith("}desc")]
    assert described.startswith("held-out labels: from 25.0% at confidence in % 25 to 100.0% at confidence in % 90")


def test_it_is_said_where_labels_are_too_few_to_tell(tmp_path: Path) -> None:
    text, found = results(judged(make_run(tmp_path, upto=4), {}, BINS))
    assert "FlexMatch (train_usl): there are too few labels to tell how often it is right" in text
    assert "How often the classifier is right is not known" in text
    assert not [each for each in found.iter() if str(each.tag).endswith("}svg")]


def test_where_test_images_tell_the_estimate_stands_beside(tmp_path: Path) -> None:
    run = judged(make_run(tmp_path), {**TOLD, "test_accuracy": 0.75}, BINS)
    text, _ = results(run)
    assert headline(read_run(run)).startswith("Test accuracy: 75.0% with 6 labels")
    assert "79.0% (64.7% to 90.7%)" in text
    assert "75.0%" in text


def test_labels_that_nobody_gave_are_not_counted(tmp_path: Path) -> None:
    run = judged(make_run(tmp_path, upto=4), TOLD, BINS, labels=[0, 0, 1, None, None, None])
    _, found = results(run)
    row = ["".join(cell.itertext()) for cell in list(found.iter("tr"))[1]]
    assert row[1:3] == ["3", "2 of 3"]


def test_bins_are_joined_until_each_tells_something() -> None:
    bins = [(0, 0, 0.0), (1, 1, 0.2), (5, 2, 2.0), (3, 3, 2.4), (3, 2, 2.9)]
    assert merged(bins, 2) == [(6, 3, 2.2), (6, 5, pytest.approx(5.3))]
    assert merged(bins, 100) == [each for each in bins if each[0]]
    assert merged([(0, 0, 0.0)] * 4) == []


@pytest.mark.parametrize("bins", [None, [[1, 2]], [[1, 2, "x"]], [[1, -1, 0.5]], "x"])
def test_an_evaluation_that_was_edited_is_named(bins: Any, tmp_path: Path) -> None:
    with pytest.raises(UslError, match=r"evaluation\.json: not an evaluation, judged_by_labels: reliability"):
        write_report(judged(make_run(tmp_path, upto=4), TOLD, bins))
