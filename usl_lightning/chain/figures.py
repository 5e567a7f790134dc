"""Which figures a stage may tell, from the sources of the package."""

import re
from functools import cache

from usl_lightning.base.classes import ROOT
from usl_lightning.base.errors import UslError
from usl_lightning.chain.file import Stage
from usl_lightning.stage.words import StageCommand

_LATE = re.compile(r"_(median|evaluations|interval)$")


def check_figure(name: str, stage: Stage) -> None:
    """Refuse a metric that nothing in the package is called, of a stage whose method is the package's.

    Args:
        name: as in `result.json`.
        stage: whose figure it is to be.

    Raises:
        UslError: names it.
    """
    method = str(StageCommand(stage.command, [stage.config], dict(stage.set)).flat().get("model.class_path"))
    if method.startswith(f"{ROOT.name}.") and not _is_told(_LATE.sub("", name)):
        raise UslError(
            f"metric: no stage tells a figure '{name}'; expected one of a result.json, such as test_accuracy of "
            "`usl fit` or classes_covered of `usl select`"
        )


@cache
def _is_told(name: str) -> bool:
    """Whether some text of the sources is the name, or may be made up to be."""
    words = name.split("_")
    parts = [f"""["']{re.escape(name)}["']"""]
    for place in range(1, len(words)):
        parts.append(rf"""["']{re.escape("_".join(words[:place]))}_\{{""")
        parts.append(rf"""\}}_{re.escape("_".join(words[place:]))}["']""")
    return re.search("|".join(parts), _sources()) is not None


@cache
def _sources() -> str:
    return "\n".join(path.read_text(encoding="utf-8") for path in sorted(ROOT.rglob("*.py")))
