"""Jigsaw, relative patches and PIRL: pieces of images, against loops."""

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from by_hand import IMAGE, IMAGES, assert_steps_are
from torch import Tensor

from usl_lightning.base.errors import UslError
from usl_lightning.compute.optim import Optimization
from usl_lightning.data.batch import Batch
from usl_lightning.data.keys import Key
from usl_lightning.data.views import Recipe, Weak
from usl_lightning.data.views.patches import patches
from usl_lightning.data.views.steps import RandomResizedCrop
from usl_lightning.pretrain.jigsaw import Jigsaw, spread_permutations
from usl_lightning.pretrain.pirl import PIRL
from usl_lightning.pretrain.relative_patch import NEIGHBOURS, RelativePatch

LARGE = Recipe([RandomResizedCrop(24, (0.5, 1.0))])


def test_patches_lie_in_their_cells_at_random_places() -> None:
    images = torch.arange(2 * 13 * 16, dtype=torch.float32).view(2, 1, 13, 16).repeat(40, 1, 1, 1)
    key = Key.of(3, slots=torch.arange(80))
    found, places = patches(images, key, grid=3, size=3), set()
    assert list(found.shape) == [80, 9, 1, 3, 3]
    for number in range(80):
        for cell in range(9):
            first = int(found[number, cell, 0, 0, 0]) % (13 * 16)
            row, column = divmod(first, 16)
            assert cell // 3 * 4 <= row <= cell // 3 * 4 + 1
            assert cell % 3 * 5 <= column <= cell % 3 * 5 + 2
            places.add((row - cell // 3 * 4, column - cell % 3 * 5))
            torch.testing.assert_close(found[number, cell, 0], images[number, 0, row : row + 3, column : column + 3])
    assert len(places) == 6
    torch.testing.assert_close(patches(images[5:], key[5:], grid=3, size=3), found[5:])
    with pytest.raises(
        UslError, match=r"model\.patch: 5 pixels do not fit into the cells of 4×5 that 3×3 of the views"
    ):
        patches(images, key, grid=3, size=5)


def test_permutations_are_the_greedy_ones() -> None:
    """Of four pieces, by loops; of nine, far apart."""
    every, chosen = list(itertools.permutations(range(4))), [tuple(spread_permutations(1, 4)[0].tolist())]
    for _ in range(5):
        rest = [each for each in every if each not in chosen]
        chosen.append(max(rest, key=lambda p: sum(a != b for other in chosen for a, b in zip(p, other, strict=True))))
    assert [tuple(row) for row in spread_permutations(6, 4).tolist()] == chosen
    nine = spread_permutations(30)
    apart = (nine[:, None] != nine).sum(2)[~torch.eye(30, dtype=torch.bool)]
    assert float(apart.double().mean()) > 8
    assert len(set(map(tuple, spread_permutations(24, 4).tolist()))) == 24


def pieces_of(method: Any, batch: Batch, view: Tensor) -> Tensor:
    return patches(view, batch.key.fold("pieces"), grid=3, size=method.patch)


def test_jigsaw_by_hand() -> None:
    jigsaw = Jigsaw(IMAGE, LARGE, Optimization(), backbone="small_w16", patch=7, permutations=5, hidden_dim=6)

    def slow(batch: Batch, step: int) -> Tensor:
        pieces = pieces_of(jigsaw, batch, jigsaw.view(batch.images, batch.key.fold("view")))
        drawn = batch.key.fold("order").integers(1, 5)[:, 0].tolist()
        rows = torch.stack([pieces[i, piece] for i, d in enumerate(drawn) for piece in spread_permutations(5)[d]])
        features = jigsaw.piece_head(jigsaw.encoder(rows))
        losses = []
        for i, d in enumerate(drawn):
            logits = jigsaw.head(torch.cat(list(features[9 * i : 9 * i + 9])))
            losses.append(logits.logsumexp(0) - logits[d])
        return torch.stack(losses).mean()

    assert_steps_are(jigsaw, slow)


def test_relative_patches_by_hand() -> None:
    method = RelativePatch(IMAGE, LARGE, Optimization(), backbone="small_w16", patch=7, hidden_dim=12)

    def slow(batch: Batch, step: int) -> Tensor:
        pieces = pieces_of(method, batch, method.view(batch.images, batch.key.fold("view")))
        places = batch.key.fold("place").integers(1, 8)[:, 0].tolist()
        others = torch.stack([pieces[i, NEIGHBOURS[place]] for i, place in enumerate(places)])
        features = method.encoder(torch.cat([pieces[:, 4], others]))
        logits = method.head(torch.stack([torch.cat([features[i], features[8 + i]]) for i in range(8)]))
        return torch.stack([row.logsumexp(0) - row[place] for row, place in zip(logits, places, strict=True)]).mean()

    assert_steps_are(method, slow)


def test_pirl_by_hand() -> None:
    """The bank moves by the image alone."""
    pirl = PIRL(
        IMAGE, Weak(), Optimization(), piece_view=LARGE, backbone="small_w16", patch=7, projection_dim=6,
        pieces_weight=0.3, temperature=0.2,
    )  # fmt: skip
    bank = pirl.bank.clone().double()

    def slow(batch: Batch, step: int) -> Tensor:
        v = F.normalize(pirl.projector(pirl.encoder(pirl.view(batch.images, batch.key.fold("view")))), dim=1)
        pieces = pieces_of(pirl, batch, pirl.piece_view(batch.images, batch.key.fold("pieces view")))
        order = batch.key.fold("order").order(9)
        shuffled = torch.stack([pieces[i, piece] for i in range(8) for piece in order[i]])
        each = pirl.piece_head(pirl.encoder(shuffled))
        joined = torch.stack([torch.cat(list(each[9 * i : 9 * i + 9])) for i in range(8)])
        w = F.normalize(pirl.pieces_head(joined), dim=1)
        rows = bank.clone()
        losses = []
        for own in (v, w):
            for row, image in zip(own, batch.indices.tolist(), strict=True):
                p = torch.stack([(row @ rows[other] / 0.2).exp() for other in range(IMAGES)])
                losses.append(-(p[image] / p.sum()).log())
        for image, row in zip(batch.indices.tolist(), v.detach(), strict=True):
            bank[image] = F.normalize((bank[image] + row) / 2, dim=0)
        return 0.7 * torch.stack(losses[:8]).mean() + 0.3 * torch.stack(losses[8:]).mean()

    assert_steps_are(pirl, slow)
