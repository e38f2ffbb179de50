"""Networks of transformers whose configuration is changed, and those that are told before they are loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_causal
import tiny_texts
import torch
import translation
from safetensors.torch import load_file, save_file

from edgekd import models
from edgekd.errors import BadInput
from edgekd.models import factorised, taken_over, text_model
from edgekd.models.transformers_model import transformers_here
from edgekd.recipe import Model

transformers = transformers_here()

IDS = torch.tensor([[3, 9, 1, 14, 7, 22, 5]])


def load(model: Path | str, role: str = "student", teacher: Any = None, **config: Any) -> Any:
    reference = model if isinstance(model, str) else f"hf:{model}"
    asked = Model(model=reference, **config)
    return models.causal_lm(asked, role=role, seed=0, need_weights=True, teacher=teacher)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.module.net(input_ids=IDS).logits


# --- fewer or more layers ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["Qwen2Config", "Qwen3Config", "Gemma2Config"])
def test_a_student_of_a_teachers_layers_keeps_their_kinds_and_is_loaded_again(kind: str, tmp_path: Path) -> None:
    kinds = ["full_attention", "sliding_attention", "full_attention", "sliding_attention"]
    others = {"use_sliding_window": True} if kind.startswith("Qwen") else {}
    tiny_causal.model(tmp_path / "hub", kind, num_hidden_layers=4, layer_types=kinds, sliding_window=3, **others)
    teacher = load(tmp_path / "hub", "teacher")
    made = load(tmp_path / "hub", teacher=teacher, teacher_layers=(1, 3))
    assert made.module.net.config.layer_types == ["sliding_attention"] * 2
    assert [layer.attention_type for layer in made.module.net.model.layers] == ["sliding_attention"] * 2
    models.save(made, tmp_path / "run" / "student")
    again = load(str(tmp_path / "run"))
    assert torch.equal(logits(again), logits(made))
    with_weights = load(tmp_path / "hub", teacher_layers=(1, 3), weights=tmp_path / "run" / "student" / "model.safetensors")
    assert torch.equal(logits(with_weights), logits(made))  # as deep as teacher_layers says, wherever the weights come from
    whole = load(tmp_path / "hub", teacher=teacher, teacher_layers=(0, 1, 2, 3))
    assert torch.equal(logits(whole), logits(teacher))


@pytest.mark.parametrize("deep", [2, 6])
def test_a_student_of_another_depth_is_loaded_again(deep: int, tmp_path: Path) -> None:
    tiny_causal.config("Qwen3Config", num_hidden_layers=4).save_pretrained(tmp_path / "hub")
    tiny_causal.tokenizer(tmp_path / "hub")
    asked = Model(model=f"hf:{tmp_path / 'hub'}", arguments={"num_hidden_layers": deep})
    made = models.causal_lm(asked, role="student", seed=0, need_weights=False)
    assert len(made.module.net.model.layers) == len(made.module.net.config.layer_types) == deep
    models.save(made, tmp_path / "run" / "student")
    assert torch.equal(logits(load(str(tmp_path / "run"))), logits(made))


def test_layers_of_two_stacks_are_not_chosen_from(tmp_path: Path) -> None:
    translation.saved(translation.t5gemma(), tmp_path / "hub", weights=True)
    with pytest.raises(BadInput, match=r"student\.teacher_layers: hf:.* has no single stack of layers to choose from"):
        text_model.network(
            Model(model=f"hf:{tmp_path / 'hub'}", teacher_layers=(0,)), "AutoModelForSeq2SeqLM", role="student", seed=0
        )


# --- what lies on disk ---------------------------------------------------------------------------


def test_weights_of_16_bits_in_several_files_are_read_as_they_are(tmp_path: Path) -> None:
    net = tiny_causal.network().bfloat16()
    net.save_pretrained(tmp_path / "hub", max_shard_size="20KB")
    tiny_causal.tokenizer(tmp_path / "hub")
    files = sorted((tmp_path / "hub").glob("model-*.safetensors"))
    assert len(files) > 1
    assert json.loads((tmp_path / "hub" / "config.json").read_text())["dtype"] == "bfloat16"
    state = load(tmp_path / "hub", "teacher").module.net.state_dict()
    for file in files:
        for name, values in load_file(file).items():
            assert state[name].dtype == torch.float32
            assert torch.equal(state[name], values.float())


def test_what_starts_untrained_starts_in_float32_whatever_the_configuration_says(tmp_path: Path) -> None:
    states = []
    for kind in (torch.bfloat16, torch.float32):
        config = tiny_causal.config()
        config.dtype = kind
        config.save_pretrained(tmp_path / str(kind))
        made = text_model.network(Model(model=f"hf:{tmp_path / str(kind)}"), "AutoModelForCausalLM", role="student", seed=0)
        states.append(made.net.state_dict())
    assert all(torch.equal(states[0][name], values) for name, values in states[1].items())


def test_a_model_of_quantized_weights_is_refused_with_the_reason(tmp_path: Path) -> None:
    tiny_causal.model(tmp_path / "hub")
    file = tmp_path / "hub" / "config.json"
    quantized = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    file.write_text(json.dumps({**json.loads(file.read_text()), "quantization_config": quantized}))
    with pytest.raises(
        BadInput, match=r"teacher: hf:.* stores its weights quantized \(bitsandbytes\).*start from full precision"
    ):
        load(tmp_path / "hub", "teacher")
    with pytest.raises(BadInput, match="adapters are not merged into those: the merged weights would have to be rounded again"):
        load(tmp_path / "hub", adapter=tmp_path / "adapter")


def test_a_folder_that_holds_an_adapter_alone_is_told(tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(
        BadInput, match="is an adapter: give the model that it belongs to as `model`, and this folder as `adapter`"
    ):
        load(tmp_path / "adapter")


def test_arguments_that_a_configuration_cannot_have_are_told(tmp_path: Path) -> None:
    translation.saved(translation.t5gemma(), tmp_path / "hub")
    for arguments in ({"encoder": {"num_hidden_layers": 3}}, {"vocab_size": "many"}):
        with pytest.raises(BadInput, match="cannot be loaded with AutoModelForSeq2SeqLM"):
            text_model.network(
                Model(model=f"hf:{tmp_path / 'hub'}", arguments=arguments), "AutoModelForSeq2SeqLM", role="student", seed=0
            )


def test_an_encoder_decoder_is_no_text_encoder(tmp_path: Path) -> None:
    translation.saved(translation.t5(), tmp_path / "hub", weights=True)
    translation.tokenizer(tmp_path / "hub")
    with pytest.raises(BadInput, match=r"teacher: hf:.* is an encoder-decoder \(T5Model\).*takes encoders"):
        models.text_encoder(Model(model=f"hf:{tmp_path / 'hub'}"), role="teacher", seed=0, need_weights=True, max_tokens=8)


def test_a_teacher_without_the_weights_of_a_tied_output_is_whole(tmp_path: Path) -> None:
    tiny_causal.model(tmp_path / "hub", tie_word_embeddings=True)
    state = load_file(tmp_path / "hub" / "model.safetensors")
    assert "lm_head.weight" not in state
    save_file(state, tmp_path / "hub" / "model.safetensors", metadata={"format": "pt"})
    net = load(tmp_path / "hub", "teacher").module.net
    assert net.lm_head.weight is net.model.embed_tokens.weight


# --- factorised embeddings -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rank", "says"), [(0, "0 is none: 23 tokens of width 32 take a rank from 1 to 13"), (-3, "-3 is none")]
)
def test_a_rank_below_one_is_told(rank: int, says: str, tmp_path: Path) -> None:
    folder = tiny_texts.bert(tmp_path / "bert")
    with pytest.raises(BadInput, match=says):
        text_model.network(Model(model=f"hf:{folder}", arguments={"embedding_rank": rank}), "AutoModel", role="student", seed=0)


def test_the_largest_rank_saves_something_and_the_next_does_not() -> None:
    class Table(torch.nn.Module):
        def __init__(self, tokens: int, width: int) -> None:
            super().__init__()
            self.table = torch.nn.Embedding(tokens, width)

        def get_input_embeddings(self) -> Any:
            return self.table

        def set_input_embeddings(self, value: Any) -> None:
            self.table = value

    for tokens, width in ((20, 20), (23, 32), (100, 7)):
        most = max(rank for rank in range(1, width) if rank * (tokens + width) < tokens * width)
        net = Table(tokens, width)
        factorised.factorise(net, most, "student")
        assert sum(p.numel() for p in net.parameters()) < tokens * width
        with pytest.raises(BadInput, match=f"{most + 1} saves nothing.* from 1 to {most}$"):
            factorised.factorise(Table(tokens, width), most + 1, "student")


def test_a_table_that_scales_what_is_looked_up_is_not_factorised(tmp_path: Path) -> None:
    net = tiny_causal.network("Gemma3TextConfig", tie_word_embeddings=False, sliding_window=8)
    table = net.get_input_embeddings()
    scaled = table(torch.tensor([5]))[0].detach().numpy()
    assert not np.allclose(scaled, table.weight[5].detach().numpy())
    with pytest.raises(BadInput, match="no plain table"):
        factorised.factorise(net, 4, "student")


# --- what is taken from a teacher ----------------------------------------------------------------


def test_with_a_tokenizer_of_its_own_a_students_tokens_start_from_the_teachers_for_the_same_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(taken_over, "say", said.append)
    kept = tiny_texts.WORDS[2:]
    folder, tokens = tiny_texts.bert(tmp_path / "bert"), tiny_texts.tokenizer(tmp_path / "tokens", (*reversed(kept), "new"))

    def encoder(role: str, teacher: Any = None, **config: Any) -> Any:
        asked = Model(model=f"hf:{folder}", **config)
        return models.text_encoder(asked, role=role, seed=0, need_weights=True, max_tokens=16, teacher=teacher)

    teacher = encoder("teacher")
    made = encoder("student", teacher, teacher_layers=(0, 1, 2), tokenizer=str(tokens), arguments={"vocab_size": len(kept) + 5})
    mine, theirs = (one.module.net.embeddings.word_embeddings.weight for one in (made, teacher))
    for token in ("[CLS]", "cat", "carries"):
        rows = mine[made.tokenizer.get_vocab()[token]], theirs[teacher.tokenizer.get_vocab()[token]]
        assert torch.equal(*rows)
    assert f"{len(kept) + 4} of {len(kept) + 5} tokens start from what the teacher has for them" in said[0]
    texts = ["cat sees dog", "child paints bird"]

    def embedded(model: Any) -> torch.Tensor:
        read = model.tokenizer(texts, padding=True, return_tensors="pt")
        with torch.no_grad():
            return model.module(read["input_ids"], read["attention_mask"])

    assert torch.equal(embedded(made), embedded(teacher))
    plain = encoder("student", teacher, teacher_layers=(0,))
    assert torch.equal(plain.module.net.embeddings.word_embeddings.weight, theirs)
    assert len(said) == 1


def modern(folder: Path) -> Path:
    torch.manual_seed(0)
    config = transformers.ModernBertConfig(
        vocab_size=23, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=48, pad_token_id=0,
        max_position_embeddings=32, local_attention=8, global_attn_every_n_layers=2,
    )  # fmt: skip
    transformers.ModernBertModel(config).save_pretrained(folder)
    return tiny_texts.tokenizer(folder)


def test_layers_that_are_of_another_kind_at_their_new_place_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(taken_over, "say", said.append)
    modern(tmp_path / "hub")

    def encoder(role: str, teacher: Any = None, **config: Any) -> Any:
        asked = Model(model=f"hf:{tmp_path / 'hub'}", **config)
        return models.text_encoder(asked, role=role, seed=0, need_weights=True, max_tokens=16, teacher=teacher)

    teacher = encoder("teacher")
    with pytest.raises(
        BadInput, match=r"the teacher has `layers\.0\.attn_norm\.weight`, and the student nothing there.*begin with layer 0"
    ):
        encoder("student", teacher, teacher_layers=(1, 3))
    encoder("student", teacher, teacher_layers=(0, 1))
    assert not said
    encoder("student", teacher, teacher_layers=(0, 2))
    assert (
        "the teacher's layer 2 is layer 1 of the student, and its local_attention, which goes by the place, is (4, 4) there and was (-1, -1)"
        in said[0]
    )
