"""Training without dropout, and evaluation for a while."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm

from edgekd._torchvision import ensure
from edgekd.models.mode import evaluation, without_dropout
from edgekd.quantize.uniform import MinMax

ensure()
import timm  # noqa: E402


class Noisy(nn.Module):
    """Random in every way that networks are: a layer, a function that asks for the mode, a quantizer; and BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.drop, self.last = nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.drop(self.norm(self.first(x)))
        return self.last(nn.functional.dropout(x, 0.5, self.training))


def test_without_dropout_nothing_is_random_and_batchnorm_learns_on():
    torch.manual_seed(0)
    net, x = Noisy(), torch.randn(16, 8)
    without_dropout(net.train())
    before = net.norm.running_mean.clone()
    one, other = net(x), net(x)
    assert torch.equal(one, other)
    mean = net.first(x).mean(0)
    wanted = 0.9 * (0.9 * before + 0.1 * mean) + 0.1 * mean
    torch.testing.assert_close(net.norm.running_mean, wanted)
    normed = (net.first(x) - mean) / (net.first(x).var(0, unbiased=False) + net.norm.eps).sqrt()
    torch.testing.assert_close(one, net.last(normed))
    net.train()
    assert not torch.equal(net(x), net(x))


def test_a_networks_stochastic_depth_is_off_too():
    torch.manual_seed(0)
    net = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=4, drop_path_rate=0.5, drop_rate=0.5)
    nn.init.normal_(net.head.weight)
    x = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        wanted = net.eval()(x)
        assert not torch.equal(net.train()(x), wanted)
        without_dropout(net)
        torch.testing.assert_close(net(x), wanted)


def test_recurrent_layers_stay_in_training_without_dropout():
    """cuDNN refuses the gradient of one in evaluation: "cudnn RNN backward can only be called in training mode"."""
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.LSTM(8, 8, num_layers=2, dropout=0.5)), torch.randn(5, 4, 8)
    wanted = net.eval()(x)[0]
    assert not torch.equal(net.train()(x)[0], wanted)
    without_dropout(net)
    assert [module.training for module in net.modules()] == [False, True]
    torch.testing.assert_close(net(x)[0], wanted)


def test_parametrizations_stay_in_training():
    net = nn.Sequential(nn.Linear(40, 40, bias=False), nn.Dropout(0.5), spectral_norm(nn.Linear(40, 40)))
    parametrize.register_parametrization(net[0], "weight", MinMax(40, 2, stochastic=True))
    without_dropout(net.train())
    assert not torch.equal(net[0].weight, net[0].weight)  # rounds at random, each time
    assert not net[1].training
    assert all(part.training for part in net[2].parametrizations.weight.modules())


def test_after_an_evaluation_every_module_is_in_its_own_mode_again():
    net = nn.Sequential(nn.Dropout(), nn.Dropout(), nn.Sequential(nn.Dropout()))
    net.train()
    net[1].eval()
    was = [module.training for module in net.modules()]
    try:
        with evaluation(net):
            assert not any(module.training for module in net.modules())
            raise KeyError
    except KeyError:
        assert [module.training for module in net.modules()] == was
