"""Which layers are batch norms, by public names: those of PyTorch's common base."""

import pytest
import timm
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from usl_lightning.compute.batch_norm import batch_norms


@pytest.mark.parametrize("name", ["resnet18", "tf_efficientnet_lite0", "vit_tiny_patch16_224"])
def test_those_of_networks_are_found(name: str) -> None:
    network = timm.create_model(name)
    for net in (network, nn.SyncBatchNorm.convert_sync_batchnorm(network)):
        found = batch_norms(net)
        assert found == [module for module in net.modules() if isinstance(module, _BatchNorm)]
        assert bool(found) == (name != "vit_tiny_patch16_224")


def test_other_norms_are_none() -> None:
    norms = [nn.BatchNorm1d(2), nn.BatchNorm3d(2), nn.InstanceNorm2d(2, track_running_stats=True), nn.GroupNorm(1, 2)]
    assert batch_norms(nn.Sequential(*norms)) == norms[:2]
