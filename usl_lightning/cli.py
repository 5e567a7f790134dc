"""The `usl` command. Dispatch only: nothing heavy is imported until a stage really runs."""

import sys

try:
    import os
    import shlex
    import traceback
    from collections.abc import Sequence
    from contextlib import suppress
    from pathlib import Path
    from typing import NoReturn

    from usl_lightning.base.commands import COMMANDS, overview, page
    from usl_lightning.base.configs import listing, shipped_folder
    from usl_lightning.base.errors import UslError, did_you_mean, printable
    from usl_lightning.base.interrupt import CtrlC
    from usl_lightning.base.machine import ROOM
    from usl_lightning.base.streams import make_unfailing
    from usl_lightning.base.typed import home
    from usl_lightning.base.version import __version__
except KeyboardInterrupt:  # in its first moments
    print("usl: interrupted", file=sys.stderr)
    sys.exit(130)

_WORKER = ("DataLoader worker", "Too many open files", "Pin memory thread")
"""How torch begins to tell of the end of a process that reads images, or of what passes between them."""

_MEMORY = ("can't allocate memory", "out of memory")
"""What torch says where memory, or a GPU's, is not enough."""

STAGE_COMMANDS = ("fit", "validate", "test", "predict", "select", "propagate")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `usl ARGUMENTS`; exits with 0, 1 (`doctor` finds fault), 2 (a mistake), 3 (labels missing), 130 (stopped)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    ctrl_c = CtrlC()
    try:
        with ctrl_c:
            make_unfailing(heeds_readers=words[:1] in ([], ["configs"], ["doctor"]) or words[0].startswith("-"))
            for word in words:
                _check_utf8(word)
            _dispatch(words)
            sys.stdout.flush()
    except KeyboardInterrupt:
        _end_interrupted(words)
    except BrokenPipeError:  # what is printed goes to a program that has read enough, such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Exception as error:
        mistake = _mistake(error)
        if mistake is None and ctrl_c.came:
            _end_interrupted(words)
        if mistake is None:
            raise
        if debug:
            traceback.print_exc()
        line = str(mistake)
        print(line if line.startswith("usl ") else f"usl: {line}", file=sys.stderr)  # many name their command
        sys.exit(2)


def _end_interrupted(words: list[str]) -> NoReturn:
    from usl_lightning.base.machine import is_main_process

    if is_main_process():
        print(f"usl: interrupted{_how_to_go_on(words)}", file=sys.stderr)
    sys.exit(130)


def _check_utf8(word: str) -> None:
    """Refuse a name that no file of ours, all of which are UTF-8, could hold."""
    try:
        word.encode()
    except UnicodeEncodeError:
        raise UslError(f"{printable(word)}: is not UTF-8; rename the file or folder") from None


def _how_to_go_on(words: list[str]) -> str:
    """What continues an interrupted command, if there is anything to continue."""
    from usl_lightning.stage.folder import StageFolder
    from usl_lightning.stage.words import StageCommand

    command, arguments = "".join(words[:1]), words[1:]
    if command in ("run", "table", "compare"):
        return "; the same command continues"
    if command in ("select", "propagate"):
        return "; the same command begins again"
    if command == "fit":
        with suppress(UslError):
            kept = StageFolder(StageCommand.parse(command, arguments).run_dir).has_checkpoint
            return "; --ckpt_path last continues" if kept else "; nothing was saved, the same command begins again"
    return ""


def _mistake(raised: BaseException) -> UslError | None:
    """The user's mistake behind an exception: libraries wrap what is raised inside them."""
    error: BaseException | None = raised
    while error is not None and not isinstance(error, UslError):
        error = error.__cause__ or (error.__context__ if not error.__suppress_context__ else None)
    page = str(error.args[0]) if error is not None and error.args else ""
    if "\nOriginal Traceback" in page:  # torch puts a worker's whole page into the text
        return UslError(page.rstrip().rpartition("\n")[2].partition("Error: ")[2])
    if error is None and str(raised).startswith(_WORKER):
        return UslError(f"a process that reads images has ended: {str(raised).partition('. ')[0]}; {ROOM}")
    if error is None and (isinstance(raised, MemoryError) or any(words in str(raised) for words in _MEMORY)):
        reason = printable(next((line for line in str(raised).splitlines() if any(map(line.count, _MEMORY))), ""), 300)
        return UslError(f"there is not enough memory; less of data.batch_size or data.image_size needs less ({reason})")
    if error is None and isinstance(raised, FileNotFoundError) and not os.stat(".").st_nlink:
        return UslError("the folder that one is in is gone; cd to another")
    if error is None and isinstance(raised, OSError) and raised.filename is not None:  # of a disk, a right, a name
        return UslError(f"{os.fsdecode(raised.filename)}: {raised.strerror}; --debug tells where it is needed")
    return error


def _dispatch(words: list[str]) -> None:
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview(), end="")
    elif words[0] == "--version":
        print(f"usl-lightning {__version__}")
    elif words[0] in COMMANDS and _asks_for_help(words):
        print(page(words[0]), end="")
    elif words[0] == "configs":
        _print_configs(words[1:])
    elif words[0] == "init":
        from usl_lightning.init.init import main as write_chain

        write_chain(words[1:])
    elif words[0] == "run":
        from usl_lightning.chain.pipeline import main as run_chain

        run_chain(words[1:])
    elif words[0] == "table":
        from usl_lightning.chain.table import main as run_table

        run_table(words[1:])
    elif words[0] == "more":
        from usl_lightning.chain.more import main as add_round

        add_round(words[1:])
    elif words[0] == "compare":
        from usl_lightning.compare.compare import main as compare_selectors

        compare_selectors(words[1:])
    elif words[0] == "report":
        from usl_lightning.report.page import main as write_report

        write_report(words[1:])
    elif words[0] == "label":
        from usl_lightning.labelling.label import main as label

        label(words[1:])
    elif words[0] == "labels":
        from usl_lightning.labelling.sets import main as combine_labels

        combine_labels(words[1:])
    elif words[0] == "export":
        _export(words[1:])
    elif words[0] == "import":
        from usl_lightning.stage.weights_in import main as import_weights

        import_weights(words[1:])
    elif words[0] == "doctor":
        from usl_lightning.doctor import main as examine

        sys.exit(examine(words[1:]))
    elif words[0] == "views":
        _draw_views(words[1:])
    elif words[0] in COMMANDS:
        _run_stage(words[0], words[1:])
    else:
        raise UslError(
            f"unknown command '{words[0]}'{did_you_mean(words[0], COMMANDS)}; expected one of {', '.join(COMMANDS)}"
        )


def _asks_for_help(words: list[str]) -> bool:
    """For a command's page; that of a stage whose configuration is named lists its parameters instead."""
    named = words[0] in STAGE_COMMANDS and any(word.startswith(("--config", "-c")) for word in words)
    return not named and ("--help" in words or "-h" in words)


def _run_stage(command: str, words: list[str]) -> None:
    from usl_lightning.chain.naming import spelled_out
    from usl_lightning.stage.launch import run_stage
    from usl_lightning.stage.words import StageCommand

    stage = StageCommand.parse(command, spelled_out(command, [word for word in words if word not in ("--help", "-h")]))
    if "--help" in words or "-h" in words:
        from usl_lightning.stage.helptext import print_help

        print_help(stage)
    else:
        run_stage(stage)


def _export(words: list[str]) -> None:
    from usl_lightning.chain.naming import spelled_out
    from usl_lightning.stage.words import StageCommand

    stage = StageCommand.parse("export", spelled_out("export", words))
    stage.check()
    for key in stage.overrides:
        raise UslError(f"usl export: --{key} is not for it: all it writes is in the checkpoint; leave it out")
    if "out" not in stage.options:
        raise UslError("usl export: --out FILE is missing; expected a name that ends in .onnx or .pt2")
    from usl_lightning.stage.export import export_classifier

    out = Path(stage.options["out"])
    export_classifier(stage.checkpoint(), out, pixels=stage.options.get("pixels", "uint8"))
    print(f"{out}, described in {out.name}.json")
    with_what = "onnxruntime.InferenceSession" if out.suffix == ".onnx" else "torch.export.load"
    print(f"next: {with_what}({str(out)!r}) runs it where this package is not")


def _draw_views(words: list[str]) -> None:
    from usl_lightning.stage.complaints import check_parameters
    from usl_lightning.stage.words import StageCommand

    stage = StageCommand.parse("fit", words)
    out = stage.overrides.pop("out", "views.png")
    check_parameters(stage)
    from usl_lightning.stage.views import draw_views

    draw_views(stage, home(out))


def _print_configs(words: list[str]) -> None:
    if words:
        raise UslError(f"usl configs: takes nothing, got {shlex.join(words)}")
    print(f"{listing()}\n\nin {shipped_folder()}; copy one beside your data to change it")


if __name__ == "__main__":
    main()
