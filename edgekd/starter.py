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

CAUSAL = """\
# A recipe for edgekd: a language model that writes a text on. Try it:   edgekd compress {folder} --dry-run
#                                                          then run:   edgekd compress {folder}
#                                                   and let it write:   python -m edgekd.text runs/NAME/targets/onnxruntime-cpu/fp32 "Once"
task: causal-lm

data:
  source: Salesforce/wikitext          # plain text: a hub id, a txt, parquet, csv or jsonl file, a folder
  config: wikitext-2-raw-v1            # of the hub's data set
  # text: text                         # column, where it has another name
  max_tokens: 256                      # texts are joined and cut into blocks of this length
  limit: 4000

teacher: {{model: "hf:HuggingFaceTB/SmolLM2-135M"}}   # or hf:FOLDER, a run folder

student:
  model: teacher                                  # of the teacher's kind; or hf:... with the same tokenizer
  teacher_layers: [0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28]   # starts from every other layer of the teacher

distill:
  epochs: 1
  batch_size: 8
  learning_rate: 0.0003
  gradient_clip: 1
  # vocabulary: cut                    # where the models' tokens or their number differ: refuse (usual), cut, align
  # lora: {{rank: 16}}                   # train adapters alone, merged in the end
  # objectives: [{{kind: logits, divergence: kl, temperature: 1, weight: 0.9}}, {{kind: task, weight: 0.1}}]   # what stands here by itself

quantize:
  - {{name: fp32, method: none}}
  - {{name: int8, method: dynamic}}      # weights in int8, activations scaled at each call
  - {{name: w4, method: round-to-nearest, weights: {{bits: 4, group: 32, symmetric: true}}, keep: [lm_head, "*embed_tokens"]}}

targets: [onnxruntime-cpu]             # `edgekd targets` lists them
gate: {{max_drop: 0.1}}                  # of how often the next token is the likeliest one, from the teacher to the runtime
seed: 0
"""

SEQ2SEQ = """\
# A recipe for edgekd: one text is read, another is written (translation here).
# First the teacher:    edgekd train {folder} -o runs/teacher
# then the student:     edgekd compress {folder} --set teacher.model=runs/teacher -o runs/student
# and let it write:     python -m edgekd.text runs/student/targets/onnxruntime-cpu/int8 "A dog runs across the grass."
task: seq2seq-lm

data:
  source: bentrevett/multi30k          # pairs of texts: a hub id, a parquet, csv or jsonl file, a folder of them
  input: en                            # column that is read
  output: de                           # column that is to be written
  max_tokens: 64

teacher: {{model: "hf:teacher", tokenizer: tokenizer}}   # decoder-only, made here; or hf:ID-or-folder with weights
student: {{model: "hf:student", tokenizer: tokenizer, arguments: {{share_embeddings: true}}}}   # T5Gemma, 4 + 2 layers; T5 works too

train: {{epochs: 10, batch_size: 64, learning_rate: 0.001, weight_decay: 0.1, label_smoothing: 0.1, gradient_clip: 1}}

distill:
  epochs: 16
  batch_size: 64
  learning_rate: 0.002
  weight_decay: 0.05
  gradient_clip: 1
  # targets: student                   # learn on what the student writes itself, instead of the data's
  # objectives: [{{kind: logits, divergence: kl, temperature: 1, weight: 0.9}}, {{kind: task, weight: 0.1}}]   # what stands here by itself

quantize:
  - {{name: fp32, method: none}}
  - {{name: int8, method: dynamic}}      # weights in int8, activations scaled at each call

targets: [onnxruntime-cpu]             # `edgekd targets` lists them
gate: {{max_drop: 0.03}}                 # of chrF / 100, from the teacher to the runtime
seed: 0
"""

RECIPES = {"image-classification": RECIPE, "text-embedding": TEXT, "causal-lm": CAUSAL, "seq2seq-lm": SEQ2SEQ}
_BESIDE = {
    "image-classification": ("models/digits", ("model.py", "teacher.safetensors")),
    "seq2seq-lm": ("models/slm", ("teacher/config.json", "student/config.json", "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json")),
}  # fmt: skip
"""Task -> the pair that ships, and what of it goes beside the recipe."""


def write(folder: Path, task: str = "image-classification") -> list[Path]:
    """Write recipe.yaml, and what it names of the pairs that ship, into `folder`; return what was written. Raises BadInput."""
    if task not in RECIPES:
        raise BadInput(f"--task {task}: there is a recipe to start from for {', '.join(RECIPES)}{nearest(task, RECIPES)}")
    if folder.exists() and not folder.is_dir():
        raise BadInput(f"{folder}: is a file; give a folder")
    pair, names = _BESIDE.get(task, ("", ()))
    contents = {"recipe.yaml": RECIPES[task].format(folder=folder).encode()}
    contents |= {name: (resource(pair) / name).read_bytes() for name in names}
    for name in contents:
        if (folder / name).exists():
            raise BadInput(f"{folder / name}: is there already, and `edgekd init` overwrites nothing; give another folder")
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return [folder / name for name in contents]
