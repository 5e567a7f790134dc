"""What a stored classifier makes of features."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from usl_lightning.models.encoder import ENTRY, read_checkpoint
from usl_lightning.models.heads import VOTES, load_classifier
from usl_lightning.vectors.logistic import LinearHead
from usl_lightning.vectors.propagation import NeighborHead
from usl_lightning.vectors.votes import Votes

NEIGHBORS = "usl_neighbors"
"""Key of a checkpoint under which the neighbours are stored that a head looks at; it was 5 before there was a key."""


def load_votes(path: str | Path) -> Votes:
    """What a classifier makes of features [b, d], in evaluation mode: logits [b, c].

    Args:
        path: checkpoint of a Probe, Propagate or Blend, which look at unit features; or of a network that was trained
            in steps, whose head looks at the features as they are.

    Raises:
        UslError: the file is missing, damaged, or holds no classifier.
    """
    checkpoint = read_checkpoint(path)
    state: dict[str, Tensor] = complete_state(checkpoint.get("state_dict", {}))
    states, k = states_of_heads(state), int(checkpoint.get(NEIGHBORS, 5))
    if not states:
        return Votes([load_classifier(path).head], unit=False).eval()
    votes = Votes([NeighborHead.like(each, k) if "bank" in each else LinearHead.like(each) for each in states])
    votes.load_state_dict({name.removeprefix(VOTES): value for name, value in state.items() if name.startswith(VOTES)})
    return votes.eval()


def looks_at(path: str | Path, encoder: nn.Module) -> bool:
    """Whether a classifier of few labels was learned on this network's features, as far as its checkpoint tells.

    Args:
        path: checkpoint of a Probe, Propagate or Blend; of features from a file it has no network.
        encoder: on the CPU.
    """
    checkpoint = read_checkpoint(path)
    entry = checkpoint.get(ENTRY)
    prefixes = entry.get("prefixes") if isinstance(entry, dict) else None
    prefix = prefixes.get("online") if isinstance(prefixes, dict) else None
    if not isinstance(prefix, str):
        return True
    stored = {k.removeprefix(prefix): v for k, v in checkpoint["state_dict"].items() if k.startswith(prefix)}
    own = encoder.state_dict()
    return own.keys() == stored.keys() and all(
        value.shape == stored[name].shape and bool((value == stored[name]).all()) for name, value in own.items()
    )


def complete_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a method, with what heads have had only since: all count the same, and no mean goes."""
    heads = states_of_heads(state)
    usual = {f"{VOTES}weights": torch.full((len(heads),), 1 / max(1, len(heads)))} if heads else {}
    means = {
        f"{VOTES}heads.{number}.mean": torch.zeros(each["bank"].shape[1])
        for number, each in enumerate(heads)
        if "bank" in each
    }
    return {**usual, **means, **state}


def states_of_heads(state: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """The state dict of each head, from that of the method."""
    states: dict[int, dict[str, Tensor]] = {}
    for name, value in state.items():
        if name.startswith(f"{VOTES}heads."):
            number, _, rest = name.removeprefix(f"{VOTES}heads.").partition(".")
            states.setdefault(int(number), {})[rest] = value
    return [states[number] for number in sorted(states)]
