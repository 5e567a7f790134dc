"""`usl report`: the page says what the run's files say, is well formed, loads nothing, and trusts no name."""

import json
import os
import re
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import html5lib
import pytest
from made_run import BUDGET, CLASSES, EVIL_FILE, PLAN, chosen_of, make_run

from usl_lightning.chain.plan import Plan
from usl_lightning.cli import main
from usl_lightning.labels import LabelIndex
from usl_lightning.report import chosen
from usl_lightning.report.page import write_report
from usl_lightning.stage.folder import StageFolder
from usl_lightning.stage.overview import Overview

Tree = ElementTree.Element


def parse(path: Path) -> Tree:
    """The page as a tree; fails on anything that is not valid HTML syntax."""
    parser = html5lib.HTMLParser(strict=True, namespaceHTMLElements=False)
    return parser.parse(path.read_text(encoding="utf-8"))


def words(element: Tree) -> str:
    """All text in an element."""
    return " ".join("".join(element.itertext()).split())


def name_of(element: Tree) -> str:
    """The tag without a namespace."""
    return str(element.tag).rpartition("}")[2]


def part(page: Tree, identity: str) -> Tree:
    """The element with this id."""
    return next(each for each in page.iter() if each.get("id") == identity)


def tables(section: Tree) -> dict[str, dict[str, list[str]]]:
    """Caption -> first cell of a row -> the others."""
    found = {}
    for each in section.iter("table"):
        rows = [[words(cell) for cell in row] for row in each.iter("tr")]
        found[words(each.find("caption"))] = {row[0]: row[1:] for row in rows}
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; not to be changed."""
    return make_run(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def page(run: Path) -> Tree:
    return parse(write_report(run))


# What it says --------------------------------------------------------------------------------------------


def test_results(page: Tree) -> None:
    rows = tables(part(page, "results"))["Classifiers"]
    assert rows["USL"] == ["6", "3 of 3", "FlexMatch", "91.7%", "–", "8.3%", "1 min 02 s"]
    assert rows["Random"] == ["6", "2 of 3", "FlexMatch", "66.7%", "–", "33.3%", "1 min 02 s"]
    lead = next(each for each in page.iter("p") if each.get("class") == "lead")
    assert words(lead).startswith("Test accuracy: 91.7% with 6 labels chosen by USL (FlexMatch); 66.7% with 6")
    assert not [each for each in page.iter() if each.get("id") == "unfinished"]


def test_chosen_images_are_there_by_class_with_density_and_cluster(page: Tree, run: Path) -> None:
    index = LabelIndex.read(run / "select_usl/labels.json")
    overview = Overview.read(run / "select_usl/overview.npz")
    assert overview is not None
    first, contrast, second = (each for each in part(page, "chosen").iter("ul") if "gallery" in str(each.get("class")))
    assert [len(list(each.iter("img"))) for each in (first, contrast, second)] == [BUDGET, 12, BUDGET]
    titles = [words(each) for each in first.iter("strong")]
    assert titles == sorted(titles), "by class"
    assert set(titles) == set(CLASSES)
    for item in first.iter("li"):
        facts = [words(span) for span in item.iter("span")]
        place = int(facts[0].removeprefix("#")) - 1
        assert words(item.find("figure/figcaption/strong")) == index.classes[index.labels[place] or 0]
        assert facts[1] == f"density {overview.density[place]:.3g}"
        assert facts[2] == f"share {(overview.nearest == place).mean():.1%}"
        assert facts[3] == f"cluster {index.indices[place] // 8 + 1}: 8"
        assert item.find("figure/img").get("alt").endswith(index.files[place])
    shown = {int(re.findall(r"\d+", each.get("alt"))[0]) for each in contrast.iter("img")}
    assert not shown & set(chosen_of("select_usl"))
    rest = [overview.density[row] for row in range(overview.chosen, 24)]
    assert words(next(contrast.iter("span"))) == f"density {min(rest):.3g}"
    assert [words(span) for span in second.iter("span")] == [f"#{i}" for i in (1, 2, 3, 4, 5, 6)], "without features"


def test_how_many_stand_for_least_is_a_parameter(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for typed, shown in (([], 12), (["--contrast", "3"], 3), (["--contrast=0"], 0)):
        main(["report", str(run), f"--out={tmp_path / 'page.html'}", *typed])
        text = "".join(parse(tmp_path / "page.html").itertext())
        assert ("For contrast" in text) == (shown > 0)
        if shown:
            assert f"the {shown} least representative images" in text
    with pytest.raises(SystemExit):
        main(["report", str(run), "--contrast", "-1"])
    assert "--contrast -1: expected a number of images" in capsys.readouterr().err


def test_classes_of_the_chosen(page: Tree) -> None:
    rows = tables(part(page, "classes"))["Chosen images of each class"]
    assert rows["Class"] == ["USL", "Random"]
    names = sorted(CLASSES)
    assert [rows[name] for name in names] == [["2", "4"], ["2", "2"], ["2", "0"]]


def test_beside_chance_where_no_random_choice_was_made(run: Path) -> None:
    from usl_lightning.report.run import read_run

    found = [choice for choice in chosen.read_choices(read_run(run)) if choice.name == "USL"]
    rows = tables(html5lib.parseFragment(str(chosen.classes(found)), namespaceHTMLElements=False))
    (counts,) = rows.values()
    assert counts["Class"] == ["USL", "Random, on average"]
    assert [counts[name][1] for name in CLASSES] == ["2", "2", "2"], "all classes are as large"


def test_map_shows_every_image_and_numbers_the_chosen(page: Tree) -> None:
    figure = next(part(page, "map").iter("figure"))
    dots = sum(str(each.get("d")).count("M") for each in figure.iter() if "dots" in str(each.get("class")))
    assert dots == 24
    numbers = [words(each) for each in figure.iter() if name_of(each) == "text"]
    assert numbers == [str(i + 1) for i in range(BUDGET)]
    assert "t-SNE" in words(part(page, "map"))
    assert "24 of 24 images" in words(part(page, "map"))


def test_curves_and_last_values(page: Tree) -> None:
    found = tables(part(page, "curves"))
    last = found["FlexMatch: last values"]
    assert last["Metric"] == ["train_usl", "train_random"]
    assert last["Loss"] == ["1.01 (step 100)"] * 2
    assert last["Test accuracy (EMA)"] == ["75.0% (step 100)"] * 2
    assert last["Unlabelled images that teach (mask rate)"] == ["49.5% (step 100)"] * 2
    assert [last[f"Thresholds, {word} of the classes"][0] for word in ("least", "mean", "largest")] == [
        "0.1 (step 100)", "0.4 (step 100)", "0.7 (step 100)",
    ]  # fmt: skip
    assert found["SimCLR: last values"]["Metric"] == ["pretrain"]
    told = [words(each) for each in part(page, "curves").iter() if name_of(each) == "desc"]
    assert "pretrain: from 1.91 at step 10 to 1.01 at step 100" in told


def test_confusions(page: Tree) -> None:
    rows = tables(part(page, "confusions"))["train_usl: 12 test images"]
    assert list(rows.values())[1:] == [["3", "1", "0", "75.0%"], ["0", "4", "0", "100.0%"], ["0", "0", "4", "100.0%"]]


def test_times_commands_machine(page: Tree, run: Path) -> None:
    assert "5 min 08 s in all" in words(part(page, "times"))
    assert tables(part(page, "times"))["Time of each stage"]["train_usl"][2] == "complete"
    commands = "".join(part(page, "commands").itertext())
    assert "usl run chain.yaml '--data.dir=my images' --name=again" in commands
    assert f"usl select --config={run}/select_usl/config.yaml --run_dir=runs/again/select_usl" in commands
    facts = [words(each) for each in part(page, "machine").iter("dd")]
    assert any("torch" in fact for fact in facts)
    assert "32-true" in facts


# How it is made ------------------------------------------------------------------------------------------


def test_nothing_is_loaded_from_anywhere(page: Tree, run: Path) -> None:
    for each in page.iter():
        assert name_of(each) not in ("script", "link", "iframe", "object", "base", "form")
        assert not [name for name in each.attrib if name.lower().startswith("on")], "no code"
        if each.get("src") is not None:
            assert each.get("src").startswith("data:image/")
        if each.get("href") is not None:
            assert each.get("href").startswith("#")
    text = (run / "report.html").read_text()
    assert "http:" not in text
    assert "https:" not in text
    assert "url(" not in text
    policy = next(each for each in page.iter("meta") if each.get("http-equiv"))
    assert "default-src 'none'" in policy.get("content")


def test_names_are_only_text(page: Tree, run: Path) -> None:
    text = (run / "report.html").read_text()
    for attack in (*CLASSES[:2], EVIL_FILE):
        assert attack not in text
        assert attack in words(page) or any(attack in str(each.get("alt")) for each in page.iter("img"))


def test_for_screen_readers(page: Tree) -> None:
    assert len(list(page.iter("h1"))) == 1
    levels = [int(name_of(each)[1]) for each in page.iter() if re.fullmatch("h[1-6]", name_of(each))]
    assert all(after <= before + 1 for before, after in pairwise(levels)), "no level is left out"
    identities = [each.get("id") for each in page.iter() if each.get("id")]
    assert len(identities) == len(set(identities))
    for each in page.iter():
        for name in str(each.get("aria-labelledby", "")).split():
            assert name in identities
        if name_of(each) == "a":
            assert each.get("href")[1:] in identities
        if name_of(each) == "img":
            assert each.get("alt")
        if name_of(each) == "th":
            assert each.get("scope") in ("row", "col")
        if name_of(each) == "svg" and each.get("aria-hidden") != "true":
            assert [name_of(child) for child in each][:2] == ["title", "desc"]


# Other folders -------------------------------------------------------------------------------------------


def test_half_finished(tmp_path: Path) -> None:
    page = parse(write_report(make_run(tmp_path, upto=3)))
    text = words(part(page, "unfinished"))
    assert "train_usl: interrupted, step 50 of 100 or later" in text
    assert "train_random: not begun" in text
    assert "usl run chain.yaml --name=run '--data.dir=my images'" in text
    assert tables(part(page, "results"))["Classifiers"]["USL"][3] == "interrupted"
    assert tables(part(page, "curves"))["FlexMatch: last values"]["Loss"] == ["1.51 (step 50)"]


def test_the_time_of_a_stage_that_was_killed_is_that_of_its_last_metric(tmp_path: Path) -> None:
    run = make_run(tmp_path, upto=3)
    began = (run / "train_usl/stage.json").stat().st_mtime
    os.utime(run / "train_usl/metrics.csv", (began + 83, began + 83))
    page = parse(write_report(run))
    assert tables(part(page, "times"))["Time of each stage"]["train_usl"][3] == "1 min 23 s"
    assert "4 min 28 s in all" in words(part(page, "times")), "three of 61.5 s, and this"


def test_advice_holds_where_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = "usl run chain.yaml --name=run '--data.dir=my images'"
    (tmp_path / "here/runs").mkdir(parents=True)
    run = make_run(tmp_path, upto=3).rename(tmp_path / "here/runs/run")
    there = f"cd {tmp_path}/here && "
    for place, change in ((run, there), (run.parent, there), (run.parent.parent, "")):
        monkeypatch.chdir(place)
        main(["report", str(run)])
        assert capsys.readouterr().out.endswith(f"next: {change}{command}\n")
        text = words(parse(run / "report.html"))
        assert f"goes on where it stopped:{change}{command}" in text
        assert f"{change}usl run chain.yaml '--data.dir=my images' --name=again" in text
    with StageFolder(run / "train_usl").locked():
        main(["report", str(run)])
    assert capsys.readouterr().out.endswith(f"next: usl report {run} shows how far it is; it is at work\n")


def test_advice_for_a_stage_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stage = make_run(tmp_path, upto=3) / "train_usl"
    command = f"usl fit --config={stage}/config.yaml --run_dir={stage}"
    text = words(part(parse(write_report(stage)), "unfinished"))
    assert text.endswith(f"Nothing of it was saved yet; this begins it again:{command}")
    (stage / "checkpoints").mkdir()
    (stage / "checkpoints/last.ckpt").symlink_to("step=00000050.ckpt")
    text = words(part(parse(write_report(stage)), "unfinished"))
    assert text.endswith(f"This goes on where it stopped:{command} --ckpt_path=last")
    main(["report", str(stage)])
    assert capsys.readouterr().out.endswith(f"next: {command} --ckpt_path=last\n")
    with StageFolder(stage).locked():
        text = words(part(parse(write_report(stage)), "unfinished"))
    assert text.endswith("It is at work: this page shows how far it was, make it again to see more.")


@pytest.mark.parametrize("typed", [".", "../run", "../run/."])
def test_of_the_folder_one_is_in(run: Path, tmp_path: Path, typed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = shutil.copytree(run, tmp_path / "run", symlinks=True)
    monkeypatch.chdir(copy)
    main(["report", typed])
    page = parse(copy / "report.html")
    assert words(next(page.iter("h1"))) == "run"
    assert "usl run chain.yaml '--data.dir=my images' --name=again" in words(part(page, "commands"))


def test_without_test_images_it_says_why_there_is_no_accuracy(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    for stage in ("train_usl", "train_random"):
        record = run / stage / "stage.json"
        record.write_text(json.dumps({**json.loads(record.read_text()), "metrics": {}}))
        (run / stage / "evaluation.json").unlink()
    page = parse(write_report(run))
    assert "is not known: no image with a known class was kept aside" in words(part(page, "results"))
    lead = next(each for each in page.iter("p") if each.get("class") == "lead")
    assert words(lead) == "Complete; there were no test images to tell the accuracy by."


def test_waiting_for_labels(tmp_path: Path) -> None:
    run = make_run(tmp_path, upto=3, labelled=False)
    page = parse(write_report(run))
    text = words(part(page, "unfinished"))
    assert "12 chosen images have no label yet" in text
    for stage in ("select_usl", "select_random"):
        assert f"usl label {run}/{stage}/labels.json" in text
    assert {words(each) for each in next(part(page, "chosen").iter("ul")).iter("strong")} == {"not labelled"}
    assert not [each for each in page.iter() if each.get("id") == "classes"]
    assert "How good the chosen images are" not in words(page), "nothing is known of that"
    assert "can be taken over" not in words(part(page, "commands"))


def test_labels_that_people_gave_are_taken_over_by_a_repetition(tmp_path: Path, page: Tree) -> None:
    run = make_run(tmp_path, upto=3, labelled=False)
    path = run / "select_usl/labels.json"
    index = LabelIndex.read(path)
    replace(index, labels=(0,) * BUDGET, classes=("a", "b")).write(path)
    again = "".join(part(parse(write_report(run)), "commands").itertext())
    assert (
        f"usl labels export {path} --out select_usl_answers.csv\nusl labels import {tmp_path}/again/select_usl" in again
    )
    assert "select_random_answers" not in again, "nobody labelled those"
    assert "taken over" not in words(part(page, "commands")), "where labels are known, nothing stops"


@pytest.mark.parametrize("stage", ["pretrain", "select_usl", "train_usl"])
def test_a_single_stage(stage: str, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    main(["report", str(run / stage), "--out", str(out)])
    page = parse(out)
    assert words(next(page.iter("h1"))) == stage
    has = {each.get("id") for each in page.iter("section")}
    wanted = {"pretrain": "curves", "select_usl": "map", "train_usl": "confusions"}
    assert has >= {wanted[stage], "times", "commands", "machine"}
    assert not (run / stage / "report.html").exists()


def test_images_that_are_gone_are_said_to_be(tmp_path: Path) -> None:
    run = make_run(tmp_path, upto=3)
    (tmp_path / "images").rename(tmp_path / "moved")
    text = words(part(parse(write_report(run)), "chosen"))
    assert "The images cannot be shown" in text
    assert "images: no such folder" in text


def test_labels_of_another_choice_have_no_map(tmp_path: Path) -> None:
    run = make_run(tmp_path, upto=3)
    (run / "select_usl" / "labels.json").write_text("[0, 1]")
    assert all(section.get("id") != "map" for section in parse(write_report(run)).iter("section"))


def test_the_size_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chosen, "SHOWN", 2)
    run = make_run(tmp_path, upto=3, side=300)
    index = LabelIndex.read(run / "select_random/labels.json")
    more = LabelIndex(index.dataset, index.method, tuple(range(24)), (0,) * 24, index.classes)
    more.write(run / "select_random/labels.json")
    path = write_report(run)
    pictures = list(parse(path).iter("img"))
    assert len(pictures) == BUDGET + 12 + 10
    assert all(max(int(each.get("width")), int(each.get("height"))) == 112 for each in pictures)
    assert path.stat().st_size < 500_000


# Refusals ------------------------------------------------------------------------------------------------


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(["report", *arguments])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/digits").mkdir(parents=True)
    assert "expected the folder of a run, e.g." in refusal(capsys)
    assert "unknown option --uot (did you mean 'out'?)" in refusal(capsys, "runs/digits", "--uot", "x")
    assert "--out: its value is missing" in refusal(capsys, "runs/digits", "--out")
    assert "runs/digit: no such folder (did you mean 'digits'?)" in refusal(capsys, "runs/digit")
    assert "runs/digits: not the folder of a run, it holds no stage; expected" in refusal(capsys, "runs/digits")
    with PLAN.written(Path("runs/digits"), StageFolder(Path("runs"))):
        assert "nothing of this run has begun; `usl run chain.yaml" in refusal(capsys, "runs/digits")
        named = "runs: not the folder of a run, it holds no stage; expected one of the runs in it, runs/digits"
        assert refusal(capsys, "runs").endswith(named)
    (tmp_path / "runs/digits/pretrain").mkdir()
    (tmp_path / "runs/digits/pretrain/stage.json").write_text("[1]")
    assert "stage.json: not the record of a stage" in refusal(capsys, "runs/digits")
    assert sorted(path.name for path in (tmp_path / "runs/digits").iterdir()) == ["pretrain"], "nothing was written"


def test_damaged_files_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path, upto=5)
    for file, content in (("run.json", "{}"), ("train_usl/evaluation.json", "{"), ("select_usl/overview.npz", "x")):
        whole = (run / file).read_bytes()
        (run / file).write_text(content)
        assert file.rpartition("/")[2] in refusal(capsys, str(run))
        (run / file).write_bytes(whole)
    main(["report", str(run)])
    main(["report", str(run)])  # its own page it replaces
    (run / "notes.html").write_text("<title>notes</title>")
    assert "notes.html is there already, and not by this command" in refusal(
        capsys, str(run), "--out", f"{run}/notes.html"
    )
    assert (run / "notes.html").read_text() == "<title>notes</title>"


# The plan of a run ---------------------------------------------------------------------------------------


def test_a_plan_is_kept_unless_nothing_came_of_it(tmp_path: Path) -> None:
    stage = StageFolder(tmp_path / "pretrain")
    with PLAN.written(tmp_path, stage):
        assert Plan.read(tmp_path) == PLAN
    assert Plan.read(tmp_path) is None, "the stage was refused"
    with PLAN.written(tmp_path, stage):
        stage.begin({"command": "fit"})
    assert Plan.read(tmp_path) == PLAN


def test_a_plan_leaves_out_what_was_for_once() -> None:
    plan = Plan.of(["a.yaml", "--seed=2", "--redo=train", "--only=train", "--x.y=1 2"], 2, [])
    assert plan.arguments == ("a.yaml", "--seed=2", "--x.y=1 2")


def test_the_record_of_a_stage_tells_the_machine(tmp_path: Path) -> None:
    folder = StageFolder(tmp_path)
    folder.begin({"command": "fit"})
    machine: dict[str, Any] = json.loads(folder.record_path.read_text())["machine"]
    assert {"python", "platform", "processor", "packages"} <= machine.keys()
    assert "torch " in machine["packages"]
