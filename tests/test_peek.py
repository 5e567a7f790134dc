"""What a checkpoint says beside its tensors: as torch reads it, from whole files; of damaged ones nothing, at once."""

import os
import tracemalloc
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from usl_lightning.base.peek import peek

NO_CHECKPOINTS = {
    "a memo of billions": b"\x80\x02}r\xff\xff\xff\x0f.",
    "a frame of exabytes": b"\x80\x04\x95" + (2**62).to_bytes(8, "little") + b".",
    "bytes of gigabytes": b"\x80\x04\x8e" + (2**33).to_bytes(8, "little") + b".",
    "a number of gigabytes": b"\x80\x02\x8b\xff\xff\xff\x7f.",
    "a number without end": b"I" + b"9" * 5000 + b"\n.",
    "nothing that was kept": b"\x80\x02h\x05.",
    "a key that is none": b"\x80\x02}]K\x01s.",
    "no dictionary": b"\x80\x02].",
    "half a file": b"\x80\x02}X",
}


def test_the_rest_of_a_checkpoint_is_as_torch_reads_it(tmp_path: Path) -> None:
    weights = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).state_dict()
    torch.save({"state_dict": weights, "global_step": 7, "names": ["a", "b"]}, tmp_path / "some.ckpt")
    told = peek(str(tmp_path / "some.ckpt"))
    assert (told["global_step"], told["names"]) == (7, ["a", "b"])
    assert list(told["state_dict"]) == list(weights)


@pytest.mark.parametrize("content", NO_CHECKPOINTS.values(), ids=NO_CHECKPOINTS)
def test_of_others_nothing_is_told(content: bytes, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "odd.ckpt", "w") as file:
        file.writestr("odd/data.pkl", content)
    tracemalloc.start()
    assert peek(str(tmp_path / "odd.ckpt")) == {}
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**24


def test_nothing_that_it_names_is_called(tmp_path: Path) -> None:
    mark = tmp_path / "called"
    with zipfile.ZipFile(tmp_path / "bad.ckpt", "w") as file:
        file.writestr("bad/data.pkl", b"\x80\x02cos\nmkdir\nX" + len(os.fsencode(mark)).to_bytes(4, "little")
                      + os.fsencode(mark) + b"\x85R.")  # fmt: skip
    assert peek(str(tmp_path / "bad.ckpt")) == {}
    assert not mark.exists()
