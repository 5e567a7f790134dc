"""What is said never costs what is done: a full disk, a closed output, a terminal without the character."""

import io
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from runs import environment

from usl_lightning.base.streams import Unfailing, make_unfailing

SELECT = ["select", "--config", "digits_random.yaml", "--run_dir", "s"]


def shell(folder: Path, words: Sequence[str], redirection: str) -> int:
    """The exit code of a command whose output goes where the redirection says."""
    command = f"{shlex.join([sys.executable, '-m', 'usl_lightning.cli', *words])} {redirection}"
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], cwd=folder, env=environment(), check=False
    ).returncode


@pytest.mark.parametrize("redirection", [">/dev/full 2>&1", ">&- 2>&- <&-", "2>&1 | true"])
def test_finished_work_ends_well_though_nothing_can_be_said(tmp_path: Path, redirection: str) -> None:
    assert shell(tmp_path, SELECT, redirection) == 0
    assert '"complete"' in (tmp_path / "s/stage.json").read_text()


def test_a_refusal_keeps_its_exit_code_though_nothing_can_be_said(tmp_path: Path) -> None:
    assert shell(tmp_path, ["fit", "--config", "none.yaml"], ">/dev/full 2>&1") == 2
    assert shell(tmp_path, ["fit", "--config", "none.yaml"], "2>&-") == 2


def test_no_file_takes_the_number_of_a_closed_output(tmp_path: Path) -> None:
    """Else a message would be written into the first file that is opened."""
    code = (
        "from usl_lightning.base.streams import make_unfailing; make_unfailing(heeds_readers=True); "
        "import os; print('lost'); f = open('a', 'w'); f.write(str(f.fileno() > 2)); f.close()"
    )
    words = ["bash", "-c", 'exec "$@" <&- >&- 2>&-', "bash", sys.executable, "-c", code]
    subprocess.run(words, cwd=tmp_path, env=environment(), check=True)
    assert (tmp_path / "a").read_text() == "True"


def test_characters_that_a_terminal_lacks_are_spelled(tmp_path: Path) -> None:
    code = (
        "from usl_lightning.base.streams import make_unfailing; make_unfailing(heeds_readers=True); "
        "import sys; print('8×8 … ≥ π', 'b\\udcff'); print('→', file=sys.stderr)"
    )
    for encoding, spelled in (("ascii", "8x8 ... >= \\u03c0 b\\udcff"), ("utf-8", "8×8 … ≥ π b\\udcff")):
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment(PYTHONIOENCODING=encoding), capture_output=True, check=True
        )
        assert done.stdout.decode() == f"{spelled}\n"
        assert done.stderr.decode() == {"ascii": "->\n", "utf-8": "→\n"}[encoding]


def test_after_a_failure_nothing_is_written_and_nothing_raised(tmp_path: Path) -> None:
    full = open("/dev/full", "w", encoding="utf-8")  # noqa: SIM115
    stream = Unfailing(full, heeds_readers=False)
    assert stream.write("lost") == 4
    stream.flush()
    assert os.readlink(f"/proc/self/fd/{full.fileno()}") == os.devnull
    stream.write("lost too")
    full.close()


def test_a_reader_who_has_gone_ends_what_only_prints() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", encoding="utf-8") as pipe:
        stream = Unfailing(pipe, heeds_readers=True)
        stream.write("unread")
        with pytest.raises(BrokenPipeError):
            stream.flush()
        Unfailing(pipe, heeds_readers=False).flush()


def test_who_listens_already_goes_on_listening(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stdout", "stderr"):
        listener = io.StringIO()
        monkeypatch.setattr(sys, name, listener)
        make_unfailing(heeds_readers=True)
        assert getattr(sys, name) is listener
