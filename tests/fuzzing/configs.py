"""Readers of YAML: what a stage is, chains, comparisons; and the header of SLURM jobs."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from fuzzing import Reader
from fuzzing.mutations import YAML
from usl_lightning.base.configs import shipped_folder
from usl_lightning.chain.pipeline import main
from usl_lightning.chain.slurm import read_header
from usl_lightning.chain.table_spec import Table
from usl_lightning.compare.spec import Comparison
from usl_lightning.stage.complaints import check_parameters
from usl_lightning.stage.words import StageCommand

STAGES = ("digits_simclr.yaml", "digits_uslt.yaml", "digits_moco.yaml", "digits_byol.yaml", "digits_sela.yaml")
CHAINS = ("digits_quickstart.yaml", "digits_usl_simclrv2.yaml", "fashion_mnist_quickstart.yaml")

OWN_STAGE = b"""\
parts: [simclr]
seed_everything: 3
model:
  class_path: usl_lightning.pretrain.simclr.SimCLR
  init_args:
    backbone: small_w16
    temperature: 0.5
    view: {class_path: usl_lightning.data.views.SmallGreyView, init_args: {flip: false}}
data: &data
  class_path: usl_lightning.data.modules.ImageData
  init_args:
    dataset: digits
    batch_size: 32
trainer: {max_steps: 4, precision: "32-true", callbacks: []}
"""
OWN_CHAIN = b"""\
set: {data.dataset: digits, trainer.max_steps: 4}
stages:
  - {name: a, command: fit, config: digits_simclr.yaml, set: {model.backbone: small_w16}}
  - name: b
    command: select
    config: digits_usl.yaml
    set: {model.init_from: "${a.checkpoint}", model.budget: 10}
  - {name: c, command: fit, config: digits_fixmatch, set: {data.labels: "${b.labels}", data.batch_size: 8}}
"""
COMPARISON = b"""\
data: {dataset: digits}
features: {backbone: small_w16}
selectors:
  - random
  - {class_path: usl, name: "USL 5", init_args: {knn_k: 5}}
  - typiclust
budgets: [10, 20]
seeds: [0, 1]
"""
OWN_TABLE = b"""\
stages:
  - {name: choose, command: select, config: digits_random.yaml}
  - {name: train, command: fit, config: digits_supervised.yaml, set: {data.labels: "${choose.labels}"}}
set: {trainer.max_steps: 4}
rows:
  A:
  "B 2": {choose: {config: digits_usl.yaml, set: {model.backbone: small_w16}}}
columns:
  "10": {choose: {set: {model.budget: 10}}}
  "20": {metric: choose.class_coverage, choose: {set: {model.budget: 20}}}
seeds: [0, 1]
published: {A: [50.5, null], "B 2": ["61.2 \xc2\xb1 0.3", 70]}
source: nobody
"""


def _shipped(names: Sequence[str]) -> list[bytes]:
    return [(shipped_folder() / name).read_bytes() for name in names]


def read_stage(path: Path) -> None:
    """All that `usl fit` does with a configuration before anything heavy is imported."""
    stage = StageCommand.parse("fit", ["--config", str(path), "--model.backbone", "small_w16"])
    stage.check()
    check_parameters(stage)
    stage.identity()


def read_chain(path: Path) -> None:
    """`usl run CHAIN --dry-run`."""
    with suppress(SystemExit):
        main([str(path), "--dry-run", "--out", str(path.parent / "runs")])


def read_comparison(path: Path) -> None:
    """What `usl compare` reads."""
    Comparison.read(path, {})


def read_table(path: Path) -> None:
    """What `usl table TABLE --dry-run` does before it tells what is to be done, of one seed."""
    table = Table.read(path, {"seeds": "[0]"})
    for cell in table.cells():
        assert cell.pool.keys() == {stage.name for stage in cell.stages}


def read_slurm(path: Path) -> None:
    """What jobs ask SLURM for."""
    assert "#SBATCH" in read_header(path)


READERS = (
    Reader("config_yaml", ".yaml", lambda: [*_shipped(STAGES), OWN_STAGE], read_stage, YAML),
    Reader("chain_yaml", ".yaml", lambda: [*_shipped(CHAINS), OWN_CHAIN], read_chain, YAML),
    Reader("comparison_yaml", ".yaml", lambda: [COMPARISON], read_comparison, YAML),
    Reader("table_yaml", ".yaml", lambda: [OWN_TABLE], read_table, YAML),
    Reader("slurm_header", ".sh", lambda: [(shipped_folder() / "cluster" / "header.sh").read_bytes()], read_slurm),
)
