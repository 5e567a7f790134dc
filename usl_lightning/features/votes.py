"""What a stored classifier of few labels makes of features."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from usl_lightning.base.errors import UslError
from usl_lightning.models.encoder import read_checkpoint
from usl_lightning.models.heads import VOTES
from usl_lightning.vectors.logistic import LinearHead
from usl_lightning.vectors.propagation import NeighborHead
from usl_lightning.vectors.votes import Votes

NEIGHBORS = "usl_neighbors"
"""Key of a checkpoint under which the neighbours are stored that a head looks at; it was 5 before there was a key."""


def load_votes(path: str | Path) -> Votes:
    """The heads of a Probe, Propagate or Blend, in evaluation mode: unit features [b, d] -> logits [b, c].

    Args:
        path: the checkpoint.

    Raises:
        UslError: the file is missing, damaged, or of another method.
    """
    checkpoint = read_checkpoint(path)
    state: dict[str, Tensor] = checkpoint.get("state_dict", {})
    states, k = states_of_heads(state), int(checkpoint.get(NEIGHBORS, 5))
    if not states:
        raise UslError(f"{path}: holds no classifier of few labels; expected a checkpoint of Probe, Propagate or Blend")
    votes = Votes([NeighborHead.like(each, k) if "bank" in each else LinearHead.like(each) for each in states])
    votes.load_state_dict({name.removeprefix(VOTES): value for name, value in state.items() if name.startswith(VOTES)})
    return votes.eval()


def states_of_heads(state: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """The state dict of each head, from that of the method."""
    states: dict[int, dict[str, Tensor]] = {}
    for name, value in state.items():
        if name.startswith(f"{VOTES}heads."):
            number, _, rest = name.removeprefix(f"{VOTES}heads.").partition(".")
            states.setdefault(int(number), {})[rest] = value
    return [states[number] for number in sorted(states)]
