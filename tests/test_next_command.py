"""The last line of every command that fills or looks at a stage names the command that goes on, and that one starts."""

import shlex
from pathlib import Path

import pytest

from usl_lightning.base.configs import names_of_all
from usl_lightning.cli import main
from usl_lightning.stage.complaints import check_parameters
from usl_lightning.stage.next_command import config_beside
from usl_lightning.stage.words import StageCommand

SMALL = ["--model.backbone", "small_w16", "--data.batch_size", "64", "--trainer.max_steps", "1"]


@pytest.mark.parametrize(
    ("config", "method", "first", "expected"),
    [
        ("digits_simclr.yaml", "usl", (), "digits_usl.yaml"),
        ("digits_relative_patch.yaml", "usl", (), "digits_usl.yaml"),
        ("/elsewhere/fashion_mnist_usl_copy.yaml", "fixmatch", (), "fashion_mnist_fixmatch.yaml"),
        ("digits_uslt.yaml", "usl", ("digits_uslt_select.yaml",), "digits_uslt_select.yaml"),
        ("imagenet100_moco.yaml", "usl", (), "imagenet100_usl.yaml"),
        ("mine.yaml", "usl", ("mine_select.yaml",), "FILE"),
    ],
)
def test_the_configuration_of_the_next_stage(config: str, method: str, first: tuple[str, ...], expected: str) -> None:
    assert config_beside(Path(config), method, *first) == expected
    assert expected == "FILE" or expected in names_of_all()


def test_each_stage_names_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    def last(*words: str) -> str:
        main(list(words))
        return capsys.readouterr().out.splitlines()[-1]

    def goes_on(line: str, command: str, config: str) -> list[str]:
        """The words of the command that the line names, which the front has nothing against."""
        words = shlex.split(line)
        assert words[:3] == ["next:", "usl", command], line
        end = max(place for place, word in enumerate(words) if word.startswith("--")) + 2
        stage = StageCommand.parse(command, words[3:end])
        assert stage.configs[-1].name == config
        stage.check()
        check_parameters(stage)
        return words[2:end]

    picks = goes_on(last("fit", "--config", "digits_simclr.yaml", *SMALL), "select", "digits_usl.yaml")
    trains = goes_on(last(*picks, "--model.budget", "20"), "fit", "digits_fixmatch.yaml")
    labels = trains[trains.index("--data.labels") :]
    guided = goes_on(last("propagate", "--config", "digits_priors.yaml", *labels), "fit", "digits_flexmatch.yaml")
    assert guided[-2:] == ["--model.prior_file", "runs/digits_priors/outputs/priors.npz"]
    assert last("fit", "--config", "digits_probe.yaml", *labels).startswith(
        "next: usl predict runs/digits_probe FOLDER"
    )
    assert last("export", "runs/digits_probe", "--out", "a.pt2").startswith("next: torch.export.load('a.pt2') runs it")
    goes_on(last("views", "--config", "digits_simclr.yaml"), "fit", "digits_simclr.yaml")
