"""A recipe is read strictly, and every error says where."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from edgekd import recipe
from edgekd.errors import BadInput
from edgekd.quantize import refuses
from edgekd.recipe_file import from_manifest

GOOD = """\
data: {source: digits}
teacher: {model: "py:nets.py:big", weights: big.safetensors}
student: {model: "py:nets.py:small"}
distill:
  epochs: 4
  objectives:
    - {kind: logits, temperature: 3, weight: 0.7}
    - {kind: task, weight: 0.3}
quantize:
  - {name: fp32, method: none}
  - {name: int8, method: ptq, weights: {bits: 8}, activations: {bits: 8}}
"""


@pytest.fixture
def write(tmp_path: Path):
    def to(text: str) -> Path:
        file = tmp_path / "recipe.yaml"
        file.write_text(text)
        return file

    return to


def error_of(file: Path, *settings: str) -> str:
    with pytest.raises(BadInput) as caught:
        recipe.load(file, settings)
    return str(caught.value)


def test_a_good_recipe_has_what_was_written_and_defaults_for_the_rest(write):
    read = recipe.load(write(GOOD))
    assert read.distill is not None
    assert (read.distill.epochs, read.distill.objectives[0].temperature, read.distill.objectives[1].weight) == (4, 3, 0.3)
    assert read.quantize[1].scheme.weights.bits == 8
    assert read.targets == ("onnxruntime-cpu",)
    assert read.gate.max_drop == 0.01


def test_paths_are_relative_to_the_recipe(write, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    read = recipe.load(write(GOOD))
    assert read.teacher.weights == tmp_path / "big.safetensors"
    assert read.student.model == f"py:{tmp_path / 'nets.py'}:small"


def test_paths_in_settings_are_relative_to_the_working_directory(write, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    read = recipe.load(write(GOOD), ["teacher.weights=mine.safetensors", "data.source=./pictures"])
    assert read.teacher.weights == tmp_path / "elsewhere" / "mine.safetensors"
    assert read.data.source == str(tmp_path / "elsewhere" / "pictures")


def test_a_folder_beside_the_recipe_is_a_path_and_a_hub_id_stays_one(write, tmp_path):
    (tmp_path / "pictures").mkdir()
    assert recipe.load(write(GOOD.replace("digits", "pictures"))).data.source == str(tmp_path / "pictures")
    assert (
        recipe.load(write(GOOD.replace("digits", "zalando-datasets/fashion_mnist"))).data.source
        == "zalando-datasets/fashion_mnist"
    )


@pytest.mark.parametrize(
    ("before", "after", "line", "parts"),
    [
        ("epochs: 4", "epoch: 4", 5, ["unknown key `distill.epoch`", "did you mean `epochs`"]),
        ("temperature: 3", "temprature: 3", 7, ["`distill.objectives[0].temprature`", "did you mean `temperature`"]),
        ("kind: task", "kind: tsk", 8, ["unknown kind `tsk`", "did you mean `task`"]),
        ("epochs: 4", "epochs: four", 5, ["`distill.epochs`", "integer", "'four'"]),
        ("epochs: 4", "epochs: 0", 5, ["`distill.epochs`", "greater than or equal to 1", "0"]),
        ("bits: 8}, act", "bits: 9}, act", 11, ["`quantize[1].weights.bits`", "less than or equal to 8"]),
        ("bits: 8}, act", "bits: 8, group: 0}, act", 11, ["`quantize[1].weights.group`", "greater than or equal to 2"]),
        ("method: ptq", "method: ptp", 11, ["no method `ptp`", "did you mean `ptq`"]),
        ("name: int8", "name: fp32", 1, ["two variants are named `fp32`"]),
        ("name: int8", "name: ../int8", 11, ["`quantize[1].name`", "match"]),
        ("student: {model", "student: {modle", 3, ["did you mean `model`"]),
        ("data: {source: digits}", "date: {source: digits}", 1, ["unknown key `date`", "did you mean `data`"]),
        ("method: none", "method: none, weights: {bits: 8}", 10, ["keeps full precision"]),
        ("method: none", "method: round-to-nearest, weights: {bits: yes}", 10, ["bits", "should be a number, not true"]),
        ("  epochs: 4", "  epochs: 4\n  epochs: 5", 6, ["given twice", "line 5"]),
        ("  epochs: 4", "  epochs: [4", 6, ["not valid YAML"]),
    ],
)  # fmt: skip
def test_every_mistake_gives_file_line_and_key(write, before, after, line, parts):
    assert before in GOOD
    file = write(GOOD.replace(before, after, 1))
    said = error_of(file)
    assert f"{file}:{line}: " in said or (line == 1 and str(file) in said), said
    for part in parts:
        assert part in said


QUANTIZED = """\
data: {source: digits}
student: {model: "py:nets.py:small"}
quantize:
  - name: qd4
    method: quantized-distillation
    weights: {bits: 4, group: 256}
    style: exact
    training: {epochs: 3, learning_rate: 0.01}
  - {name: dq4, method: differentiable, weights: {bits: 4}}
  - name: both
    method: [quantized-distillation, differentiable]
    budget: {mean_bits: 3, choices: [2, 4]}
    training:
      - {epochs: 3}
      - {epochs: 2}
"""


def test_quantized_variants_are_read(write):
    qd4, dq4, both = recipe.load(write(QUANTIZED)).quantize
    assert (qd4.scheme.label, dq4.scheme.label, both.scheme.label) == ("w4g256", "w4c", "w2-4c")
    assert (qd4.methods, both.methods) == (("quantized-distillation",), ("quantized-distillation", "differentiable"))
    assert both.training[1].epochs == 2


@pytest.mark.parametrize(
    ("before", "after", "line", "parts"),
    [
        ("bits: 4, group: 256", "bits: 9, group: 256", 6, ["`quantize[0].weights.bits`", "less than or equal to 8", "9"]),
        ("bits: 4, group: 256", "bits: 0, group: 256", 6, ["`quantize[0].weights.bits`", "greater than or equal to 1", "0"]),
        ("group: 256", "group: 0", 6, ["`quantize[0].weights.group`", "greater than or equal to 2", "0"]),
        ("group: 256", "group: 1", 6, ["`quantize[0].weights.group`", "greater than or equal to 2", "1"]),
        ("method: quantized-distillation", "method: quantised-distillation", 4, ["did you mean `quantized-distillation`"]),
        ("style: exact", "style: precise", 7, ["`quantize[0].style`", "'straight-through', 'truncated' or 'exact'", "'precise'"]),
        ("{epochs: 3, learn", "{epoch: 3, learn", 8, ["unknown key `quantize[0].training.epoch`", "did you mean `epochs`"]),
        ("learning_rate: 0.01", "learning_rate: 0", 8, ["`quantize[0].training.learning_rate`", "greater than 0"]),
        ("training: {epochs: 3, learning_rate: 0.01}", "training: 3", 8, ["`quantize[0].training`: give a mapping of keys, not 3"]),
        ("      - {epochs: 2}", "      - {epochs: 2, optimiser: sgd}", 15, ["`quantize[2].training[1].optimiser`", "did you mean `optimizer`"]),
        ("      - {epochs: 2}\n", "", 10, ["training has 1 entries and method 2: give one for each"]),
        ("[quantized-distillation, differentiable]", "[ptq, differentiable]", 10, ["the chains that there are: [quantized-distillation, differentiable], [lora, round-to-nearest]"]),
        ("[quantized-distillation, differentiable]", "[none, ptq]", 10, ["the chains that there are"]),
        ("[quantized-distillation, differentiable]", "[differentiable, quantized-distillation]", 10, ["the chains that there are"]),
        ("[quantized-distillation, differentiable]", "[]", 11, ["`quantize[2].method`", "the name of a method or a list of names"]),
        ("[quantized-distillation, differentiable]", "{a: b}", 11, ["`quantize[2].method`", "the name of a method or a list of names"]),
        ("mean_bits: 3", "mean_bits: 1.5", 12, ["`quantize[2].budget`", "mean_bits 1.5 is below 2, the least of `choices`"]),
        ("mean_bits: 3", "mean_bits: 3, size_mb: 1", 12, ["either `size_mb` or `mean_bits`"]),
        ("mean_bits: 3, ", "", 12, ["either `size_mb` or `mean_bits`"]),
        ("choices: [2, 4]", "choices: [2, 9]", 12, ["`quantize[2].budget.choices[1]`", "less than or equal to 8"]),
        ("choices: [2, 4]", "choices: [4, 4]", 12, ["leave nothing to choose"]),
        ("choices: [2, 4]", "by: gradients", 12, ["`quantize[2].budget.by`", "'sensitivity' or 'gradient-norm'"]),
    ],
)  # fmt: skip
def test_every_mistake_in_a_quantized_variant_gives_file_line_and_key(write, before, after, line, parts):
    assert before in QUANTIZED
    file = write(QUANTIZED.replace(before, after, 1))
    said = error_of(file)
    assert f"{file}:{line}: " in said, said
    assert len(said.splitlines()) == 1, said
    for part in parts:
        assert part in said


def test_a_list_of_one_method_is_that_method(write):
    alone, listed = (recipe.load(write(GOOD.replace("method: ptq", f"method: {m}"))) for m in ("ptq", "[ptq]"))
    assert listed == alone
    assert listed.model_dump(mode="json") == alone.model_dump(mode="json")
    assert recipe.VariantRecipe(name="v", method=("ptq",), weights={"bits": 8}).method == "ptq"
    assert "keeps full precision" in error_of(write(GOOD.replace("method: none", "method: [none], weights: {bits: 4}")))


@pytest.mark.parametrize("text", ["on", "off", "auto", "'on'"])
def test_the_overflow_fix_is_switched_by_the_words_that_the_advice_names(write, text):
    read = recipe.load(write(GOOD), [f"quantize.int8.calibration.overflow_fix={text}"])
    assert read.quantize[1].calibration.overflow_fix == text.strip("'")


def test_settings_reach_into_the_training_of_a_variant(write):
    file = write(QUANTIZED)
    read = recipe.load(
        file, ["quantize.qd4.training.epochs=7", "quantize.both.training.1.epochs=9", "quantize.dq4.training.epochs=5"]
    )
    assert [v.training for v in read.quantize][1] == recipe.Retraining(epochs=5)
    assert (read.quantize[0].training.epochs, read.quantize[2].training[1].epochs) == (7, 9)


def test_a_group_size_reaches_a_recipe_that_a_manifest_has_written_out(write, tmp_path):
    values = recipe.load(write(QUANTIZED)).model_dump(mode="json")
    assert from_manifest(values, tmp_path / "m", ["quantize.dq4.weights.group=32"]).quantize[1].scheme.label == "w4cg32"
    with pytest.raises(BadInput, match="go together"):
        recipe.load(write(QUANTIZED), ["quantize.dq4.weights={bits: 4, granularity: tensor, group: 32}"])


@pytest.mark.parametrize("bits", [4, 8])
def test_bits_beside_a_budget_are_refused_and_a_written_out_default_is_not(write, tmp_path, bits):
    budgets = QUANTIZED.replace("weights: {bits: 4}}", "weights: {group: 64}, budget: {mean_bits: 3}}")
    read = recipe.load(write(budgets))
    assert [refuses(v) for v in read.quantize] == [None] * 3
    again = from_manifest(json.loads(json.dumps(read.model_dump(mode="json"))), tmp_path / "manifest.json")
    assert [refuses(v) for v in again.quantize] == [None] * 3
    wrong = recipe.load(write(budgets), [f"quantize.dq4.weights.bits={bits}"]).quantize[1]
    assert refuses(wrong) == f"weights of {bits} bits and a budget: the bits are chosen among budget.choices; leave `bits` out"


def test_the_training_of_a_variant_is_the_recipes_but_for_what_it_changes(write):
    read = recipe.load(
        write(QUANTIZED), ["train.epochs=40", "train.batch_size=17", "train.gradient_clip=2", "train.learning_rate=0.5"]
    )
    qd4, dq4, both = (dict(v.lessons(read.teaching)) for v in read.quantize)
    assert (qd4["quantized-distillation"].epochs, qd4["quantized-distillation"].learning_rate) == (3, 0.01)
    assert dq4["differentiable"] == read.teaching.model_copy(
        update={"epochs": 10, "learning_rate": 0.001, "optimizer": "adamw", "dropout": False}
    )
    assert (dq4["differentiable"].batch_size, dq4["differentiable"].gradient_clip) == (17, 2)
    assert both["quantized-distillation"].learning_rate == pytest.approx(0.1)
    assert recipe.Retraining(gradient_clip=0).over(read.teaching, "differentiable").gradient_clip is None
    assert read.teaching.objectives == recipe.Distill().objectives  # without `distill` the objectives are its own


def test_all_mistakes_are_told_at_once(write):
    said = error_of(write(GOOD.replace("epochs", "epoch").replace("bits: 8}, act", "bits: 9}, act")))
    assert len(said.splitlines()) == 2


def test_a_missing_key_is_named(write):
    assert "`student` is missing" in error_of(write("data: {source: digits}\n"))


def test_a_teacher_is_needed_to_distill(write):
    said = error_of(write("\n".join(line for line in GOOD.splitlines() if not line.startswith("teacher"))))
    assert "objective `logits` needs a teacher" in said


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "just words\n"])
def test_what_is_no_mapping_is_no_recipe(write, text):
    assert "a recipe is a mapping" in error_of(write(text))


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "r.yaml").write_bytes(b"\xff\xfe\x00")
    assert "not a text file" in error_of(tmp_path / "r.yaml")


def test_yaml_tags_run_nothing(write):
    said = error_of(write('data: !!python/object/apply:os.system ["touch owned"]\n'))
    assert "not valid YAML" in said
    assert not Path("owned").exists()


def test_a_recipe_that_is_not_there_names_those_that_ship():
    assert "models/digits" in error_of(Path("no/such/recipe.yaml"))


def test_settings_override_and_items_go_by_name_or_position(write):
    file = write(GOOD)
    read = recipe.load(file, ["quantize.int8.weights.bits=4", "quantize.0.name=full", "gate.max_drop=0.5", "bench.min_count=9"])
    assert read.quantize[1].weights.bits == 4
    assert read.quantize[0].name == "full"
    assert (read.gate.max_drop, read.bench.min_count) == (0.5, 9)


@pytest.mark.parametrize(
    ("setting", "part"),
    [
        ("gate.max_drp=1", "--set gate.max_drp=1: unknown key `gate.max_drp` (did you mean `max_drop`?)"),
        ("quantize.int9.weights.bits=4", "its name (fp32, int8)"),
        ("quantize.int8.weights.bits=99", "--set quantize.int8.weights.bits=99: `quantize[1].weights.bits`"),
        ("nothing", "write KEY=VALUE"),
        ("=3", "write KEY=VALUE"),
        ("seed=[1", "not valid YAML"),
        ("preprocess.size=0", "`preprocess.size`: height and width must be at least 1, not 0"),
        ("preprocess.size=[32, -1]", "`preprocess.size`: height and width must be at least 1, not (32, -1)"),
        ("gate.max_drop=.nan", "`gate.max_drop`: input should be a finite number"),
        ("bench.min_seconds=.inf", "`bench.min_seconds`: input should be a finite number"),
        ("preprocess={mean: [.nan], std: [1.0]}", "`preprocess.mean[0]`: input should be a finite number"),
        ("student.arguments={widths: [1.0, .inf]}", "`student.arguments`: numbers must be finite, not inf"),
        ("bench.batch_sizes=[1, 0]", "`bench.batch_sizes[1]`: input should be greater than or equal to 1"),
        ("bench.threads=100000", "`bench.threads`: input should be less than or equal to 1024"),
        ("targets=[onnxruntime-cpu, onnxruntime-cpu]", "two targets are named `onnxruntime-cpu`"),
        ("targets=[a/board.toml, b/board.toml]", "two targets are named `board`"),
    ],
)
def test_a_wrong_setting_is_named(write, setting, part):
    assert part in error_of(write(GOOD), setting)


def test_an_installed_objective_takes_finite_numbers_alone(monkeypatch):
    monkeypatch.setattr("edgekd.plugins.found", lambda group: {"mine": None})
    assert recipe.Installed(kind="mine", weight=0.5, tau=2.0).model_extra == {"tau": 2.0}
    for wrong in ({"weight": float("inf")}, {"tau": float("nan")}, {"taus": [1.0, float("-inf")]}):
        with pytest.raises(ValidationError, match="finite"):
            recipe.Installed(kind="mine", **wrong)


@pytest.mark.parametrize("text", [GOOD, QUANTIZED])
def test_a_manifest_gives_the_same_recipe_back(write, tmp_path, text):
    read = recipe.load(write(text))
    again = from_manifest(read.model_dump(mode="json"), tmp_path / "manifest.json")
    assert again == read
