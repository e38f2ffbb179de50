"""`edgekd init`: a recipe to start from, commented, and working as it is."""

from __future__ import annotations

from pathlib import Path

from .errors import BadInput
from .resources import resource

RECIPE = """\
# A recipe for edgekd. Try it:   edgekd compress {folder} --dry-run
#                     then run:   edgekd compress {folder}
task: image-classification

data:
  source: digits            # or a hub id, a folder of pictures, a parquet, csv or jsonl file, a folder of IDX files
  # image: image            # columns, where they have other names
  # label: label

teacher:
  model: "py:model.py:teacher"      # or timm:NAME, hf:ID-or-folder, or a run folder of `edgekd train`
  weights: teacher.safetensors      # or a state dict saved with torch.save

student:
  model: "py:model.py:student"      # or timm:NAME ...

# preprocess: {{size: 224, mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]}}
#   of raw pictures; folded into every exported graph. timm and transformers models bring their own.

distill:
  epochs: 20
  objectives:
    - {{kind: logits, divergence: kl, temperature: 2, weight: 0.7}}   # match the teacher
    - {{kind: task, weight: 0.3}}                                     # and the labels
    # - {{kind: features, student: layer2, teacher: layer3, weight: 1}}

quantize:
  - {{name: fp32, method: none}}    # the control that int8 is timed against
  - {{name: int8, method: ptq, weights: {{bits: 8}}, activations: {{bits: 8}}}}
  # - {{name: qd4, method: quantized-distillation, weights: {{bits: 4}}}}   # trained on with weights of 4 bits, for size

targets: [onnxruntime-cpu]        # `edgekd targets` lists them
gate: {{max_drop: 0.02}}            # of accuracy, from the teacher to the runtime
seed: 0
"""


def write(folder: Path) -> list[Path]:
    """Write recipe.yaml, model.py and the example's teacher into `folder`; return what was written. Raises BadInput."""
    if folder.exists() and not folder.is_dir():
        raise BadInput(f"{folder}: is a file; give a folder")
    example = resource("models/digits")
    contents = {
        "recipe.yaml": RECIPE.format(folder=folder).encode(),
        "model.py": (example / "model.py").read_bytes(),
        "teacher.safetensors": (example / "teacher.safetensors").read_bytes(),
    }
    for name in contents:
        if (folder / name).exists():
            raise BadInput(f"{folder / name}: is there already, and `edgekd init` overwrites nothing; give another folder")
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return [folder / name for name in contents]
