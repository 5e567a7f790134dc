"""The commands of `usl`: what each takes and does, for its help and for who types a wrong option."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from usl_lightning.base.errors import UslError, did_you_mean
from usl_lightning.base.typed import options

WIDTH = 116
INTRODUCTION = (
    "usl: learn features without labels, pick the images worth labelling, train from those few labels and the rest."
)


@dataclass(frozen=True)
class Option:
    """`--name VALUE`.

    Attributes:
        name: without dashes; `KEY` and the like stand for what a configuration has.
        value: what to type for it; empty for a flag.
        meaning: with the default, in one sentence.
    """

    name: str
    value: str
    meaning: str


@dataclass(frozen=True)
class Command:
    """`usl NAME OPERANDS [--OPTION VALUE …]`.

    Attributes:
        operands: what is typed first.
        does: in one line.
        options: its own.
        more: what else to know; a paragraph a line.
    """

    operands: str
    does: str
    options: tuple[Option, ...] = ()
    more: tuple[str, ...] = ()


_STAGE = (
    Option("config", "FILE", "the stage: a file, or a name of `usl configs`"),
    Option("KEY", "VALUE", "over the file: --model.threshold 0.9, --data.labels labels.json, --trainer.max_steps 100"),
    Option("run_dir", "DIR", "where results go; by default runs/ and the configuration's name"),
    Option("ckpt_path", "last|FILE", "continue this run; by default it starts afresh"),
    Option("extend", "", "with --ckpt_path: allow a larger trainer.max_steps than the run began with"),
    Option("wandb", "[offline]", "log to Weights & Biases too; by default it does not"),
)
_KEPT = (
    Option("config", "FILE", "in place of the run's folder: a stage, or the config.yaml in its folder"),
    Option("ckpt_path", "last|FILE", "the checkpoint; `last` is the newest of the folder"),
    Option("KEY", "VALUE", "over the file, e.g. --data.dir elsewhere"),
    Option("run_dir", "DIR", "the stage's folder; by default where the config.yaml lies"),
)
_PARAMETERS = "usl COMMAND --config FILE --help lists every parameter of that stage, with its value and range."

COMMANDS: dict[str, Command] = {
    "init": Command(
        "FOLDER",
        "look at a folder of images and write a chain that suits it and this machine: FOLDER.yaml",
        (
            Option("budget", "N", "images to label; by default 4 of each class that the folders tell, or 300: an hour"),
            Option("classes", "N|cat,dog,…", "how many classes, or their names; by default the sub-folders"),
            Option("minutes", "M", "how long the chain may compute; by default what suits this machine"),
            Option(
                "rounds", "N", "label in so many rounds, in each what helps most by the labels before; by default 1"
            ),
            Option(
                "backbone", "NAME,…", "published network to look with; by default the one that comes with the package"
            ),
            Option(
                "labels",
                "RUN|FILE|none",
                "labels to decide by and to keep; by default those of the run of this name",
            ),
            Option("output", "FILE.yaml", "the chain; by default beside the folder, with its name"),
            Option("force", "", "replace a chain that is there already"),
        ),
        ("Then: usl run FOLDER.yaml",),
    ),
    "run": Command(
        "CHAIN.yaml",
        "run a chain of stages; finished ones are skipped, an interrupted one resumes",
        (
            Option("name", "NAME", "of the run; by default the chain's"),
            Option("seed", "N", "of everything random; by default the chain's"),
            Option("out", "DIR", "the run is DIR/NAME; by default runs"),
            Option("redo", "STAGE", "that stage again, and what follows from it"),
            Option("dry-run", "", "check everything and print the plan"),
            Option("more", "N,…", "images of further rounds, as `usl more` adds them"),
            Option("STAGE.KEY", "VALUE", "for one stage, e.g. --select.model.budget 20"),
            Option("data.KEY", "VALUE", "for all stages; --trainer., --checkpoint. and --processes. too"),
            Option("wandb", "[offline]", "log every stage to Weights & Biases too"),
            Option("slurm", "[submit]", "print (or submit) a SLURM job for each stage"),
            Option("slurm-header", "FILE", "what the jobs ask SLURM for; by default one GPU and 8 cores for 4 hours"),
            Option("only", "STAGE", "that stage alone, as such a job does"),
            Option("launcher", "'srun …'", "words before each stage's command"),
        ),
        ("Exit codes: 0 done, 2 a mistake, 3 labels are missing (usl label, then the same command), 130 stopped.",),
    ),
    "table": Command(
        "TABLE.yaml",
        "chains as a table, rows × columns × seeds; stages that several cells share are run once",
        (
            Option("seeds", "LIST", "e.g. [0,1,2]; by default the table's; one more runs that one alone"),
            Option("rows", "LIST", "these alone, e.g. [USL,Random]; --columns too"),
            Option("columns", "LIST", "these alone"),
            Option("name", "NAME", "of the table; by default the file's"),
            Option("out", "DIR", "the table is DIR/NAME, each cell a run in it; by default runs"),
            Option("dry-run", "", "check everything and print what is left to do"),
            Option("STAGE.KEY", "VALUE", "for one stage of all cells, e.g. --train.trainer.max_steps 100"),
            Option("data.KEY", "VALUE", "for all stages; --trainer., --checkpoint. and --processes. too"),
            Option("wandb", "[offline]", "log every stage to Weights & Biases too"),
            Option("slurm", "[submit]", "print (or submit) SLURM arrays: one for each step, a task for each stage"),
            Option("slurm-header", "FILE", "what the jobs ask SLURM for; by default one GPU and 8 cores for 4 hours"),
            Option("only", "NAME", "one stage alone, as a task of such an array does"),
            Option("launcher", "'srun …'", "words before each stage's command"),
        ),
        (
            "In DIR/NAME: table.csv, .json, .md, .tex and .png. The same command continues it, and does nothing twice.",
            "Exit codes: 0 done, 1 a cell failed (the others went on), 2 a mistake, 3 labels are missing, 130 stopped.",
        ),
    ),
    "more": Command(
        "RUN_DIR",
        "one more round of labelling for a finished run: the images that help its classifier most",
        (
            Option("budget", "N", "images of the round"),
            Option("dry-run", "", "check everything and print the plan"),
        ),
        ("It stops for labels as usl run does, and says what goes on with it then.",),
    ),
    "fit": Command("", "train one stage", _STAGE, (_PARAMETERS,)),
    "select": Command(
        "",
        "choose what to label; writes a label index",
        (
            *_STAGE,
            Option("keep", "LABELS.json", "keep these images; the budget counts them"),
            Option("allow-oracle", "", "for selectors that look at labels nobody has given yet"),
        ),
        (_PARAMETERS, "Then: usl label RUN_DIR/labels.json"),
    ),
    "propagate": Command(
        "",
        "what a few labels say of all images: priors that guide stage 3",
        _STAGE,
        (_PARAMETERS, "Then: usl fit --config FILE --model.prior_file RUN_DIR/outputs/priors.npz"),
    ),
    "compare": Command(
        "CONFIG.yaml",
        "selectors on the same features, for many budgets and seeds: a table and a plot",
        (
            Option("features.init_from", "CKPT", "encoder whose features are compared on"),
            Option("data.KEY", "VALUE", "the images"),
            Option("budgets", "LIST", "e.g. [10,20,40]; by default the configuration's"),
            Option("seeds", "LIST", "e.g. [0,1,2]; by default the configuration's"),
            Option("classifiers", "LIST", "that learn from each choice: [probe, propagate, blend]; by default none"),
            Option("out", "DIR", "by default runs/ and the configuration's name"),
        ),
    ),
    "report": Command(
        "RUN_DIR",
        "one HTML page of a run, finished or not: what was chosen, how good, curves",
        (
            Option("out", "FILE.html", "by default report.html in the folder"),
            Option("contrast", "N", "least representative images to show beside the chosen; by default 12"),
        ),
    ),
    "label": Command(
        "RUN_DIR|LABELS.json",
        "name the chosen images in the browser; every answer is saved at once",
        (
            Option("classes", "cat,dog,…", "names to label by, beside those in the file; the page can add more"),
            Option("dir", "FOLDER", "of the images; by default as the selection's config.yaml says"),
            Option("image", "NAME", "to begin with, chosen or not, as a report calls it"),
            Option("port", "N", "to listen on, on this machine alone; by default 8642, or a free one"),
            Option("no-browser", "", "print the address only"),
        ),
        ("Stop it with Ctrl-C; nothing is lost, and the same command goes on.",),
    ),
    "labels": Command(
        "union|difference|convert|export|import|draw|corrupt …",
        "label indices combined, in another format, or taken to another program and back",
        (
            Option("out", "FILE", "what is written; .json, .npy or .csv"),
            Option("prefix", "TEXT", "export: what comes before each file, for Label Studio's local files"),
            Option("dir", "FOLDER", "export: of the images; draw: of the data set"),
            Option("share", "X", "draw: of each class; corrupt: of the labels"),
            Option("imbalance", "light|heavy|F", "draw: SeLa's two, or a long tail, the first class F times the last"),
            Option("seed", "N", "draw, corrupt: of what is drawn; by default 0"),
            Option("split", "NAME", "draw: of the data set; by default train"),
        ),
        (
            "union A B --out C: the entries of A, then those of B that are new",
            "difference A B --out C: the entries of A that are not in B",
            "convert A --out C: A in another format",
            "export A --out TASKS.json|FILE.csv: for Label Studio, or a spreadsheet",
            "import A ANSWERS: what came of it, into A",
            "draw DATASET --share 0.1 --out C: a tenth of each class, labelled; --imbalance: for --data.subset_file",
            "corrupt A --share 0.2 --out C: A with a fifth of its labels wrong",
        ),
    ),
    "test": Command("RUN_DIR", "how good a run's classifier is on the test split; validate is the same", _KEPT),
    "validate": Command("RUN_DIR", "how good a run's classifier is on the test split; test is the same", _KEPT),
    "predict": Command(
        "RUN_DIR [FOLDER]",
        "a CSV of the class of every image of a folder; without one, of those trained on",
        (
            Option("sort-into", "DIR", "copy the images too, into a folder for each class"),
            Option("all-probabilities", "", "a column for each class"),
            Option("split", "NAME", "a split of the data set in place of a folder, e.g. test"),
            Option("out", "FILE.csv", "by default predictions.csv in the stage's folder, or predictions_FOLDER.csv"),
            Option("folder", "DIR", "the folder, where --config is typed"),
            *_KEPT,
        ),
    ),
    "export": Command(
        "RUN_DIR",
        "a file that classifies without this package",
        (
            Option("out", "FILE", "model.onnx or model.pt2"),
            Option("config", "FILE", "in place of the run's folder: a stage, or the config.yaml in its folder"),
            Option("ckpt_path", "last|FILE", "the checkpoint; `last` is the newest of the folder"),
            Option("pixels", "uint8|float32", "what it takes: 0 to 255, by default, or 0 to 1"),
        ),
    ),
    "import": Command(
        "FILE",
        "published weights of another program as a checkpoint that init_from takes",
        (
            Option("as", "KIND", "moco, simclrv2, swav, byol, dino, cld or timm: whose file it is"),
            Option("out", "FILE.ckpt", "what is written; there must be no such file"),
            Option("backbone", "NAME", "its network; by default resnet50, of cld resnet18_cifar"),
            Option("image_size", "N", "side of the images it is for; by default the network's"),
        ),
        ("Every weight must have its place: a file of another kind or network is refused, with its keys named.",),
    ),
    "views": Command(
        "",
        "a picture of the views that a configuration draws",
        (
            Option("config", "FILE", "the stage: a file, or a name of `usl configs`"),
            Option("KEY", "VALUE", "over the file"),
            Option("out", "FILE.png", "by default views.png"),
        ),
    ),
    "configs": Command("", "list the configurations that ship with the package"),
    "doctor": Command(
        "",
        "check this machine: versions, devices, data, disk; exit code 1 if something is missing",
        (
            Option("data.dir", "DIR", "where data sets lie"),
            Option("out", "DIR", "where runs will go; by default runs"),
        ),
    ),
}


def overview() -> str:
    """What `usl --help` shows: each command in a line or two."""
    lines = [INTRODUCTION, ""]
    for name, command in COMMANDS.items():
        lines += _entry("  ", f"usl {' '.join(filter(None, (name, _operands(command))))}", command.does)
    return "\n".join(
        [
            *lines,
            "",
            "  usl COMMAND --help                what it takes, with the defaults",
            "  usl COMMAND --config FILE --help  every parameter of a stage",
            "  --debug shows the traceback of an error; --version the version.",
            "",
        ]
    )


def page(name: str) -> str:
    """What `usl NAME --help` shows.

    Args:
        name: of one of `COMMANDS`.
    """
    command = COMMANDS[name]
    words = ["usl", name, _operands(command), "[--OPTION VALUE …]" if command.options else ""]
    lines = [" ".join(filter(None, words)), f"  {command.does}", ""]
    for option in command.options:
        lines += _entry("  ", f"--{option.name} {option.value}".rstrip(), option.meaning)
    for paragraph in command.more:
        lines += ["", *textwrap.wrap(paragraph, WIDTH)] if paragraph == command.more[0] else [paragraph]
    return "\n".join(lines).rstrip() + "\n"


def _operands(command: Command) -> str:
    return command.operands or ("--config FILE" if any(o.name == "config" for o in command.options) else "")


def _entry(indent: str, left: str, right: str) -> list[str]:
    column = 36
    first, *rest = textwrap.wrap(right, WIDTH - column)
    head = f"{indent}{left}"
    start = [f"{head:{column - 1}} {first}"] if len(head) < column else [head, " " * column + first]
    return [*start, *(" " * column + line for line in rest)]


def known_options(name: str, arguments: Sequence[str], known: Sequence[str] | None = None) -> dict[str, str]:
    """`options` of a command that knows its own and no others.

    Args:
        name: of the command, `labels export` for a part of one.
        arguments: what is typed after the operands.
        known: the names; by default those of `COMMANDS`.

    Raises:
        UslError: another one; it names the nearest.
    """
    given = dict(options(arguments))
    if known is None:
        known = [option.name for option in COMMANDS[name].options]
    for key in given:
        if key not in known:
            some = f"; expected --{', --'.join(known)}" if known else "; it takes none"
            raise UslError(f"usl {name}: unknown option --{key}{did_you_mean(key, known)}{some}")
    return given
