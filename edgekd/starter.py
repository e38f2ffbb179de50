"""`edgekd init`: a recipe to start from, commented, and working as it is."""

from __future__ import annotations

from pathlib import Path

from .errors import BadInput
from .names import nearest
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

TEXT = """\
# A recipe for edgekd: sentence embeddings. Try it:   edgekd compress {folder} --dry-run
#                                         then run:   edgekd compress {folder}
task: text-embedding

data:
  source: sentence-transformers/flickr30k-captions   # texts to learn from, no labels: a hub id, a parquet, csv, jsonl or txt file, a folder
  # text: caption1             # column, where it has another name
  pairs: {{source: sentence-transformers/stsb}}      # pairs that people scored, to judge by: sentence1, sentence2, score
  max_tokens: 128              # longer texts are cut; runtimes with fixed shapes get graphs of this length
  limit: 20000

teacher: {{model: "hf:sentence-transformers/all-MiniLM-L6-v2"}}   # or hf:FOLDER, py:FILE.py:FUNCTION (with `tokenizer`), a run folder

student:
  model: teacher               # of the teacher's kind; or hf:..., with a tokenizer of its own if you like
  teacher_layers: [0, 2, 5]    # starts from these layers of the teacher
  # arguments: {{embedding_rank: 128}}   # token embeddings as a product of two matrices: most of a small model is its vocabulary

distill:
  epochs: 3
  batch_size: 64
  learning_rate: 0.0005
  # objectives: [{{kind: embedding}}, {{kind: similarities, temperature: 0.05}}]   # what stands here by itself

quantize:
  - {{name: fp32, method: none}}
  - {{name: int8, method: dynamic}}      # weights in int8, activations scaled at each call

targets: [onnxruntime-cpu]             # `edgekd targets` lists them
gate: {{max_drop: 0.03}}                 # of Spearman's correlation, from the teacher to the runtime
seed: 0
"""

RECIPES = {"image-classification": RECIPE, "text-embedding": TEXT}


def write(folder: Path, task: str = "image-classification") -> list[Path]:
    """Write recipe.yaml (of pictures: with model.py and the example's teacher) into `folder`; return what was written. Raises BadInput."""
    if task not in RECIPES:
        raise BadInput(f"--task {task}: there is a recipe to start from for {' and '.join(RECIPES)}{nearest(task, RECIPES)}")
    if folder.exists() and not folder.is_dir():
        raise BadInput(f"{folder}: is a file; give a folder")
    example = resource("models/digits")
    contents = {"recipe.yaml": RECIPES[task].format(folder=folder).encode()}
    if task == "image-classification":
        contents |= {name: (example / name).read_bytes() for name in ("model.py", "teacher.safetensors")}
    for name in contents:
        if (folder / name).exists():
            raise BadInput(f"{folder / name}: is there already, and `edgekd init` overwrites nothing; give another folder")
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return [folder / name for name in contents]
