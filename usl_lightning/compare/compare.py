"""`usl compare CONFIG`: what is to be compared, read and checked before anything heavy is imported."""

from collections.abc import Sequence

from usl_lightning.base.atomic import check_replaceable
from usl_lightning.base.configs import find_config
from usl_lightning.base.errors import UslError
from usl_lightning.base.typed import home, options
from usl_lightning.compare.spec import USAGE, Comparison
from usl_lightning.stage.folder import StageFolder

WRITTEN = ("table.csv", "table.json", "comparison.png")


def main(arguments: Sequence[str]) -> None:
    """Compare selectors on the same features, and write the table and the plot.

    Args:
        arguments: what follows `usl compare`.

    Raises:
        UslError: a mistake in the arguments, the configuration or a file.
    """
    if not arguments or arguments[0].startswith("-"):
        raise UslError(f"usl compare: the configuration is missing; use {USAGE}")
    given = dict(options(arguments[1:]))
    out = given.pop("out", None)
    comparison = Comparison.read(find_config(arguments[0]), given, None if out is None else home(out))
    for name in () if (comparison.out / "cells").is_dir() else WRITTEN:
        check_replaceable(comparison.out / name, lambda _: False, "usl compare: --out")
    with StageFolder(comparison.out).locked():
        from usl_lightning.compare.comparison import compare

        compare(comparison)
