"""Which of the processes of a stage this one is, told without importing torch."""

import os


def is_main_process() -> bool:
    """False in the further processes that a launcher (Lightning, torchrun, SLURM) starts for a stage."""
    return all(
        os.environ.get(name, "0") == "0" for name in ("LOCAL_RANK", "RANK", "SLURM_PROCID", "NODE_RANK", "GROUP_RANK")
    )
