"""`usl run --slurm` with a cluster of one shell script; the recipes of `configs/cluster` on this machine."""

import os
import re
import shlex
import shutil
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning_fabric.plugins.environments import LightningEnvironment, SLURMEnvironment
from runs import SIMCLR, Outcome, assert_same_run, environment, kill, together, usl

from usl_lightning.base.configs import shipped_folder
from usl_lightning.base.errors import UslError
from usl_lightning.chain import pipeline, slurm
from usl_lightning.cli import main
from usl_lightning.engine.trainer import cluster_environment
from usl_lightning.stage.folder import StageFolder

CLUSTER = shipped_folder() / "cluster"
SMALL = {"model.backbone": "small_w16", "trainer.max_steps": 4, "data.batch_size": 64, "trainer.log_every_n_steps": 1}
STAGES: list[dict[str, Any]] = [
    {"name": "pretrain", "command": "fit", "config": "digits_simclr.yaml", "set": SMALL},
    *(
        {"name": name, "command": "select", "config": f"digits_{name}.yaml", "set": needs}
        for name, needs in (("usl", {"model.init_from": "${pretrain.checkpoint}"}), ("random", {}))
    ),
    {
        "name": "train",
        "command": "fit",
        "config": "digits_fixmatch.yaml",
        "set": {
            **SMALL,
            "data.batch_size": 8,
            "data.unlabelled_ratio": 3,
            "data.labels": "${usl.labels}",
            "model.init_from": "${pretrain.checkpoint}",
        },
    },
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a chain, a `sbatch` that numbers the scripts it keeps, and a `srun` that runs."""
    monkeypatch.chdir(tmp_path)
    Path("chain.yaml").write_text(yaml.safe_dump({"seed": 0, "stages": STAGES}))
    tools = tmp_path / "tools"
    (tools / "jobs").mkdir(parents=True)
    fakes = {
        "sbatch": 'cd "${0%/*}/jobs"; n=$((41 + $(ls | wc -l))); cat > $n.sh; echo "$@" >> ../asked; echo "$n;x"',
        "srun": 'echo "$@" >> "$(dirname "$0")/ran"; shift; exec "$@"',
    }
    for name, body in fakes.items():
        (tools / name).write_text(f"#!/bin/sh\n{body}\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    return tmp_path


def run(*arguments: str) -> None:
    main(["run", "chain.yaml", *arguments])


def test_a_chain_is_submitted_with_its_dependencies(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("--slurm", "submit", "--name", "night", "--seed", "3", "--train.model.threshold", "0.5")
    assert capsys.readouterr().out.splitlines() == [
        "pretrain: job 41", "usl: job 42, after 41", "random: job 43", "train: job 44, after 42, 41",
    ]  # fmt: skip
    after = [re.findall(r"--dependency=(\S+)", line) for line in (folder / "tools/asked").read_text().splitlines()]
    assert after == [[], ["afterok:41"], [], ["afterok:42:41"]]
    script = (folder / "tools/jobs/44.sh").read_text()
    assert script.startswith("#!/bin/bash\n#SBATCH --job-name=night/train\n")
    assert f"#SBATCH --output={folder}/runs/night/train.log\n" in script
    assert "#SBATCH --signal=USR1@120\n" in script
    assert "#SBATCH --requeue\n" in script
    words = shlex.split(script.splitlines()[-1])
    assert words[4:] == [
        "run", "chain.yaml", "--name=night", "--seed=3", "--train.model.threshold=0.5", "--only=train",
        "--launcher=srun --kill-on-bad-exit=1",
    ]  # fmt: skip
    assert (folder / "runs/night").is_dir(), "SLURM does not make the folder of the log"


def test_values_of_a_job_survive_its_script(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As `sbatch` reads them: blanks part words, `#` begins a comment, quotes and backslashes quote; then % means."""
    name = """50% of a "cat's" #1\\lab"""
    run("--slurm", "--out", "my runs", "--name", name)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("#SBATCH --")]
    assert shlex.split(lines[0].removeprefix("#SBATCH "), comments=True) == [f"--job-name={name}/pretrain"]
    assert shlex.split(lines[1].removeprefix("#SBATCH "), comments=True) == [
        f"--output={folder}/my runs/{name}/pretrain.log"  # a backslash keeps % from standing for anything
    ]
    run("--slurm", "--name", "50%j")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("#SBATCH --")]
    assert lines[:2] == ["#SBATCH --job-name=50%j/pretrain", f"#SBATCH --output={folder}/runs/50%%j/pretrain.log"]


def test_without_srun_a_process_of_a_job_is_one(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A batch script, or a notebook, in a job of four tasks; nothing but `srun` makes four of it."""
    for name in [name for name in os.environ if name.startswith(("SLURM_", "TORCHELASTIC_"))]:
        monkeypatch.delenv(name)
    assert cluster_environment() is None
    job = {"NTASKS": "4", "JOB_ID": "7", "JOB_NAME": "train", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}
    for name, value in job.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert isinstance(cluster_environment(), LightningEnvironment)
    assert "SLURM_NTASKS is 4, but not srun started this process: it runs alone" in caplog.text
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    with pytest.raises(UslError, match=r"--ntasks=4.*--ntasks-per-node=4") as refused:
        cluster_environment()
    assert "\n" not in str(refused.value)
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "4")
    found = cluster_environment()
    assert isinstance(found, SLURMEnvironment)
    assert not found.auto_requeue


def test_printing_asks_nobody(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("header.sh").write_text("#!/bin/bash\n#SBATCH --gpus=3\nmodule load python\n")
    run("--slurm", "--slurm-header", "header.sh")
    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if line.startswith("# ----")] == [
        "# ---- pretrain", "# ---- usl, after pretrain", "# ---- random", "# ---- train, after usl, pretrain",
    ]  # fmt: skip
    assert out.count("#SBATCH --gpus=3\nmodule load python\n") == 4
    assert "--slurm" not in out
    assert not (folder / "tools/asked").exists()
    assert not (folder / "runs").exists()


def test_what_is_complete_is_not_submitted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = pipeline.RunOptions.parse(["chain.yaml"])
    done = StageFolder(folder / "runs/chain/pretrain")
    done.path.mkdir(parents=True)
    command = pipeline.stage_command(options, options.chain.stages[0])
    done.begin(command.identity())
    done.finish(command.identity(), 1.0, {})
    run("--slurm", "submit")
    after = [re.findall(r"--dependency=(\S+)", line) for line in (folder / "tools/asked").read_text().splitlines()]
    assert after == [[], [], ["afterok:41"]], "usl, random, train"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--slurm", "later"], "--slurm later: expected print or submit"),
        (["--slurm", "--redo", "train"], "--slurm takes whole chains"),
        (["--slurm", "--slurm-header", "no.sh"], "--slurm-header no.sh: cannot be read"),
        (["--slurm", "--name", "a\nb"], "--name: a\\nb is no name of one folder"),
        (["--slurm", "--slurm-header", "chain.yaml"], "chain.yaml: no line begins with #SBATCH"),
        (["--only", "usl"], "--only usl: it takes from pretrain, not complete in runs/chain"),
        (["--only", "uls"], "--only uls: expected one of the stages pretrain, usl, random, train"),
        (["--only", "random", "--launcher", "no-such-launcher -n 2"], "no-such-launcher: No such file"),
    ],
)
def test_refusals(folder: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run(*arguments)
    assert stop.value.code == 2
    assert said in capsys.readouterr().err


def test_a_refusal_of_sbatch_names_what_is_queued(folder: Path) -> None:
    sbatch = folder / "tools/sbatch"
    sbatch.write_text('#!/bin/sh\n[ -e once ] && { echo "sbatch: error: quota" >&2; exit 1; }\ntouch once; echo 7\n')
    jobs = [slurm.job("r", name, [], folder, ["c"], slurm.HEADER) for name in "ab"]
    with pytest.raises(UslError, match=r"refused stage b: sbatch: error: quota; jobs 7 are in the queue, scancel"):
        slurm.submit(jobs, folder)


def test_without_slurm_there_is_nothing_to_submit_to(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UslError, match="there is no sbatch here"):
        slurm.submit([slurm.job("r", "a", [], folder, ["c"], slurm.HEADER)], folder)


@pytest.mark.slow
def test_the_jobs_of_a_chain_do_what_the_chain_does(folder: Path) -> None:
    """Each script is run by a shell; the one of the first stage twice, because a time limit ended it."""
    alone = usl(folder, "run", "chain.yaml", "--name", "alone").done()
    usl(folder, "run", "chain.yaml", "--slurm", "submit", kill(2, by="SIGUSR1", stage="pretrain")).done()
    jobs = sorted((folder / "tools/jobs").iterdir())

    def job(place: int) -> Outcome:
        done = subprocess.run(["bash", jobs[place]], capture_output=True, text=True, env=environment(), check=False)
        return Outcome(done.returncode, done.stdout, done.stderr)

    assert job(0).code == 130
    assert "resuming digits_simclr.yaml" in job(0).done().out
    together(lambda: job(1).done(), lambda: job(2).done())
    last = job(3).done()
    assert "selection" in last.out, "the table comes with the last job"
    assert (folder / "runs/chain/summary.json").exists()
    assert (folder / "tools/ran").read_text().count("--kill-on-bad-exit=1") == 5
    for name in ("pretrain", "train"):
        assert_same_run(folder / "runs/chain" / name, folder / "runs/alone" / name, but=["usl_identity"])
    assert alone.out.splitlines()[-2].split()[:5] == last.out.splitlines()[-2].split()[:5]


def test_recipes_are_scripts_with_a_command() -> None:
    recipes = sorted(CLUSTER.iterdir())
    assert [path.name for path in recipes] == ["header.sh", "stage.sbatch", "torchrun.sh"]
    for path in recipes:
        subprocess.run(["bash", "-n", path], check=True)
        assert re.search(r"^# {3}\S", path.read_text(), re.MULTILINE), "its header says its command"
    assert "#SBATCH" in slurm.read_header(CLUSTER / "header.sh")


WORDS = [
    *SIMCLR[3:], "--model.backbone", "small_nf", "--model.projection_norm", "false", "--trainer.max_steps", "6",
    "--checkpoint.every_steps", "2", "--trainer.accelerator", "cpu",
]  # fmt: skip


FIT = ["fit", "--config", "digits_simclr.yaml", *WORDS]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def losses(run_dir: Path) -> list[float]:
    """Of the six steps."""
    rows = [row.split(",") for row in (run_dir / "metrics.csv").read_text().splitlines()]
    found = [float(value) for _, name, value in rows if name == "loss"]
    assert len(found) == 6
    return found


def tasks(folder: Path, *words: str, run_dirs: Sequence[str]) -> list[Outcome]:
    """Two, as `srun` starts them on two machines: the variables are all they know of each other."""
    job = {
        "SLURM_JOB_ID": "77001", "SLURM_JOB_NAME": "usl", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "1",
        "SLURM_NNODES": "2", "SLURM_JOB_NUM_NODES": "2", "MASTER_PORT": str(free_port()),
        **dict.fromkeys(("SLURM_NODELIST", "SLURM_JOB_NODELIST", "SLURM_STEP_NODELIST"), "127.0.0.1"),
    }  # fmt: skip
    devices = ["--trainer.strategy", "ddp", "--trainer.devices", "1", "--trainer.num_nodes", "2"]

    def task(rank: int) -> Outcome:
        here = {"SLURM_PROCID": str(rank), "SLURM_NODEID": str(rank), "SLURM_LOCALID": "0"}
        return usl(folder, *FIT, *devices, *words, "--run_dir", run_dirs[rank], **job, **here)

    return together(lambda: task(0), lambda: task(1))


@pytest.mark.slow
def test_two_tasks_of_a_slurm_job(folder: Path) -> None:
    usl(folder, *FIT, "--run_dir", "runs/one").done()
    for each in tasks(folder, run_dirs=["runs/two"] * 2):
        each.done()
    assert losses(folder / "runs/two") == pytest.approx(losses(folder / "runs/one"), rel=1e-4)


@pytest.mark.slow
def test_machines_that_see_other_checkpoints_do_not_train_together(folder: Path) -> None:
    """One cannot read the newest to its last bit, and would take the one before."""
    usl(folder, *FIT, "--checkpoint.every_steps", "2", "--run_dir", "runs/one", kill(5)).killed()
    shutil.copytree(folder / "runs/one", folder / "runs/other", symlinks=True)
    newest = folder / "runs/other/checkpoints/last.ckpt"
    newest.write_bytes(newest.read_bytes()[:-1000])
    for each in tasks(folder, "--ckpt_path", "last", run_dirs=["runs/one", "runs/other"]):
        assert "process 1 has a checkpoint of step 2, process 0 of step 4; give all of them the same" in each.err
        assert each.code == 2


@pytest.mark.slow
def test_two_machines_by_torchrun(folder: Path) -> None:
    """Two launchers that know of each other by address only; killed and started again, they go on."""
    port, words = free_port(), [*WORDS, "--trainer.strategy", "ddp"]

    def machine(*more: str) -> Outcome:
        recipe = [str(CLUSTER / "torchrun.sh"), "digits_simclr.yaml", "runs/two", *words, *more]
        variables = environment(HEAD="127.0.0.1", PORT=str(port), NODES="2")
        done = subprocess.run(
            recipe, cwd=folder, env=variables, capture_output=True, text=True, timeout=300, check=False
        )
        return Outcome(done.returncode, done.stdout, done.stderr)

    usl(folder, "fit", "--config", "digits_simclr.yaml", *WORDS, "--run_dir", "runs/one").done()
    killed = together(*[lambda: machine(kill(4, rank=1))] * 2)
    assert all(each.code != 0 for each in killed)
    assert (folder / "runs/two/checkpoints/last.ckpt").resolve().name == "step=00000004.ckpt", killed
    for each in together(machine, machine):
        each.done()
    assert losses(folder / "runs/two") == pytest.approx(losses(folder / "runs/one"), rel=1e-4)
