"""Checkpoints: whole or absent."""

import os

import pytest
import torch
from torch import nn

from edgekd.distill import checkpoint
from edgekd.errors import BadInput


def test_tensors_and_state_come_back_bit_for_bit(tmp_path):
    weight = torch.randn(3, 4)
    tensors = {
        "a": weight,
        "tied": weight,
        "whole": torch.tensor(7),
        "turned": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
    }
    state = {"sums": [0.1, 1 / 3, 1e-300], "epoch": 3, "best": [float("inf"), 2.0]}
    checkpoint.write(tmp_path / "deep" / "state", tensors, state)
    found, found_state = checkpoint.read(tmp_path / "deep" / "state")
    assert found_state == state
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_no_file_is_no_checkpoint(tmp_path):
    assert checkpoint.read(tmp_path / "state") is None


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_a_truncated_file_is_refused(tmp_path, keep):
    path = tmp_path / "state"
    checkpoint.write(path, {"a": torch.randn(50)}, {})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(BadInput, match="delete it"):
        checkpoint.read(path)


def test_a_write_that_is_cut_short_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "state"
    checkpoint.write(path, {"a": torch.zeros(2)}, {"epoch": 1})

    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(BadInput, match="No space left"):
        checkpoint.write(path, {"a": torch.ones(2)}, {"epoch": 2})
    assert checkpoint.read(path)[1] == {"epoch": 1}


@pytest.mark.parametrize("make", [lambda p: torch.optim.AdamW(p, fused=True), lambda p: torch.optim.SGD(p, 0.1, momentum=0.9)])
def test_an_optimizer_goes_on_bit_for_bit(tmp_path, make):
    def trained(steps, restart_at=None):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(12, 2)).to(memory_format=torch.channels_last)
        optimizer = make(net.parameters())
        for step in range(steps):
            if step == restart_at:
                checkpoint.write(tmp_path / "state", checkpoint.put("optimizer", checkpoint.optimizer_tensors(optimizer)), {})
                optimizer = make(net.parameters())
                tensors, _ = checkpoint.read(tmp_path / "state")
                checkpoint.load_optimizer(optimizer, checkpoint.take("optimizer", tensors))
            torch.manual_seed(step)
            net(torch.randn(5, 1, 4, 4)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        return net.state_dict()

    straight, resumed = trained(6), trained(6, restart_at=3)
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)
