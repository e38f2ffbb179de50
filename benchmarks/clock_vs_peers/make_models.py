"""Make the folders that all tools time, from configurations and random weights: nothing comes from a hub. Runs with the peers' Python.

python make_models.py FOLDER
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PretrainedConfig,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

PIXELS, TOKENS, LABELS = 224, 128, 10
VOCABULARY = 10000
"""bert_perf_test makes token ids from 0 to 9,999, onnxruntime_test from 0 to 999."""


class Nothing(nn.Module):
    """Almost no work: a mean of each colour and a product. What a call of it takes is what a tool adds to any call."""

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__()
        self.last = nn.Linear(3, config.num_labels)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.last(pixel_values[..., ::16, ::16].mean((2, 3)))
        return logits


class Logits(nn.Module):
    """One input, one output; all tokens count."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.net(given).logits
        return logits


RESNET = ResNetConfig(
    embedding_size=64, hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type="basic", num_labels=LABELS
)
"""ResNet-18."""
BERT = BertConfig(
    vocab_size=VOCABULARY, hidden_size=384, num_hidden_layers=6, num_attention_heads=6, intermediate_size=1536,
    num_labels=LABELS, attn_implementation="eager",
)  # fmt: skip
VIT = ViTConfig(
    image_size=PIXELS, hidden_size=320, num_hidden_layers=10, num_attention_heads=5, intermediate_size=1280,
    num_labels=LABELS, attn_implementation="eager",
)  # fmt: skip
MODELS: dict[str, tuple[PretrainedConfig, Callable[[PretrainedConfig], nn.Module]]] = {
    "nothing": (RESNET, Nothing),
    "resnet": (RESNET, lambda config: Logits(ResNetForImageClassification(config))),
    "bert": (BERT, lambda config: Logits(BertForSequenceClassification(config))),
    "vit": (VIT, lambda config: Logits(ViTForImageClassification(config))),
}


def main(folder: Path) -> None:
    """Write FOLDER/NAME/model.onnx and config.json of every model, of BERT once more with int8 weights."""
    for name, (config, make) in MODELS.items():
        torch.manual_seed(0)
        file = _folder(folder / name, config) / "model.onnx"
        if config is BERT:
            inputs, given = "input_ids", torch.randint(0, VOCABULARY, (1, TOKENS))
        else:
            inputs, given = "pixel_values", torch.rand(1, 3, PIXELS, PIXELS)
        with torch.inference_mode():
            torch.onnx.export(
                make(config).eval(),
                (given,),
                file,
                dynamo=False,
                input_names=[inputs],
                output_names=["logits"],
                opset_version=17,
            )
    int8 = _folder(folder / "bert-int8", BERT) / "model.onnx"
    quantize_dynamic(folder / "bert" / "model.onnx", int8, weight_type=QuantType.QInt8)


def _folder(folder: Path, config: PretrainedConfig) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config.to_diff_dict(), indent=1) + "\n")
    return folder


if __name__ == "__main__":
    main(Path(sys.argv[1]))
