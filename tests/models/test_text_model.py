"""Text encoders: what they compute, what they start from, what is refused."""

import json
import logging

import numpy as np
import pytest
import tiny_texts
import torch
from safetensors.torch import load_file
from torch import nn

from edgekd import models
from edgekd.errors import BadInput
from edgekd.models import factorised, text_model
from edgekd.models.text_encoder import MASKED
from edgekd.models.transformers_model import transformers_here
from edgekd.recipe import Model

transformers = transformers_here()

IDS = torch.tensor([[2, 5, 7, 16, 3], [2, 9, 3, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
CODE = """
from torch import nn

class Bag(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.table = nn.Embedding(40, width)

    def forward(self, input_ids, attention_mask):
        return self.table(input_ids)

def bag(width=8): return Bag(width)

def flat():
    made = Bag(8)
    made.forward = lambda input_ids, attention_mask: made.table(input_ids)[..., 0]
    return made
"""


@pytest.fixture
def bert(tmp_path):
    return tiny_texts.bert(tmp_path / "bert")


def load(folder, role="teacher", teacher=None, max_tokens=16, **config):
    made = Model(**{"model": folder if isinstance(folder, str) else f"hf:{folder}", **config})
    needs = role == "teacher"
    return models.text_encoder(made, role=role, seed=0, need_weights=needs, max_tokens=max_tokens, teacher=teacher)


def message(*arguments, **config):
    with pytest.raises(BadInput) as caught:
        load(*arguments, **config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def embedded(model, ids=IDS, mask=MASK):
    with torch.inference_mode():
        return model.module(ids, mask)


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_embeddings_are_as_sentence_transformers_defines_them(bert, pooling):
    made = load(bert, pooling=pooling)
    plain = transformers.AutoModel.from_pretrained(bert).eval()
    with torch.inference_mode():
        states = plain(input_ids=IDS, attention_mask=MASK).last_hidden_state.double().numpy()
    mask = MASK.numpy()
    of_text = {
        "mean": [states[i][mask[i] == 1].mean(0) for i in range(2)],
        "cls": [states[i][0] for i in range(2)],
        "last": [states[0][4], states[1][2]],
    }[pooling]
    expected = np.array([one / np.linalg.norm(one) for one in of_text])
    np.testing.assert_allclose(embedded(made).numpy(), expected, atol=2e-6)
    assert made.pooling == pooling
    assert made.parameters == sum(p.numel() for name, p in plain.named_parameters() if not name.startswith("pooler"))


def test_padding_changes_nothing(bert):
    made = load(bert)
    alone = embedded(made, IDS[1:, :3], MASK[1:, :3])
    torch.testing.assert_close(embedded(made)[1:], alone, atol=1e-6, rtol=0)
    other = IDS.clone()
    other[1, 3:] = 11  # whatever stands there
    torch.testing.assert_close(embedded(made, other), embedded(made), atol=1e-6, rtol=0)


def test_masks_stay_numbers_in_16_bits(bert):
    made = load(bert)
    seen = []
    attention = made.module.net.encoder.layer[0].attention.self
    attention.register_forward_pre_hook(
        lambda _, args, kwargs: seen.extend(v for v in (*args, *kwargs.values()) if torch.is_tensor(v) and v.ndim == 4),
        with_kwargs=True,
    )
    embedded(made)
    assert len(seen) == 1
    assert seen[0].unique().tolist() == [MASKED, 0.0]
    assert torch.isfinite(seen[0].half()).all()


def test_pooling_is_what_the_folder_says(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(text_model, "say", said.append)
    for stored, pooling in (("cls_token", "cls"), ("lasttoken", "last"), ("mean_tokens", "mean")):
        assert load(tiny_texts.bert(tmp_path / stored, pooling=stored)).pooling == pooling
    assert not said
    assert load(tiny_texts.bert(tmp_path / "none", pooling=None)).pooling == "mean"
    assert "says nothing of pooling" in said[0]
    folder = tiny_texts.bert(tmp_path / "max", pooling="max_tokens")
    assert "pools by max_tokens" in message(folder)
    assert load(folder, pooling="cls").pooling == "cls"


def test_layers_after_the_pooling_are_told(bert):
    kinds = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Dense", "2_Dense"), ("Normalize", "3_Normalize")]
    modules = [{"type": f"sentence_transformers.models.{kind}", "path": path} for kind, path in kinds]
    (bert / "modules.json").write_text(json.dumps(modules))
    assert "puts a Dense layer on its pooling" in message(bert)
    assert load(bert, pooling="mean").pooling == "mean"
    (bert / "modules.json").write_text(json.dumps([modules[0], {**modules[1], "path": "pool"}]))
    (bert / "1_Pooling").rename(bert / "pool")
    (bert / "pool" / "config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    assert load(bert).pooling == "cls"
    (bert / "modules.json").write_text("{")
    assert "damaged" in message(bert)


@pytest.mark.parametrize("rank", [1, 5, 12])
def test_the_factorised_table_is_the_nearest_of_its_rank(bert, rank):
    made = load(bert, "student", arguments={"embedding_rank": rank})
    table = load_file(bert / "model.safetensors")["embeddings.word_embeddings.weight"].double().numpy()
    u, s, v = np.linalg.svd(table, full_matrices=False)
    nearest = (u[:, :rank] * s[:rank]) @ v[:rank]
    small, projection = made.module.net.get_input_embeddings()
    assert (small.weight.shape, projection.weight.shape) == ((len(table), rank), (32, rank))
    product = small.weight.detach().double().numpy() @ projection.weight.detach().double().numpy().T
    np.testing.assert_allclose(product, nearest, atol=1e-5)
    assert projection.bias is None
    # both parts of like size: an optimizer moves both
    assert small.weight.square().mean().sqrt().item() == pytest.approx(np.sqrt((table**2).mean()), rel=1e-4)
    whole = sum(v.size for v in (table,))
    assert made.parameters == load(bert).parameters - whole + rank * (len(table) + 32)


def test_ranks_that_save_nothing_are_told(bert):
    assert "99 saves nothing: 23 tokens of width 32 take a rank from 1 to 13" in message(
        bert, "student", arguments={"embedding_rank": 99}
    )
    assert "a whole number, not '8'" in message(bert, "student", arguments={"embedding_rank": "8"})

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.head = nn.Embedding(20, 8), nn.Linear(8, 20, bias=False)
            self.head.weight = self.table.weight

        def get_input_embeddings(self):
            return self.table

    with pytest.raises(BadInput, match="`head` shares the table"):
        factorised.factorise(Tied(), 2, "student")


def test_a_student_starts_from_its_teachers_layers(bert):
    teacher = load(bert)
    made = load(bert, "student", teacher, teacher_layers=(2, 0), arguments={"embedding_rank": 6})
    mine, theirs = made.module.net, teacher.module.net
    assert len(mine.encoder.layer) == 2
    for at, layer in enumerate((2, 0)):
        for name, value in mine.encoder.layer[at].state_dict().items():
            assert torch.equal(value, theirs.encoder.layer[layer].state_dict()[name])
    assert torch.equal(mine.embeddings.position_embeddings.weight, theirs.embeddings.position_embeddings.weight)
    mine.encoder.layer[0].output.dense.weight.data.zero_()
    assert theirs.encoder.layer[2].output.dense.weight.abs().sum() > 0  # copies, not the teacher's own
    whole = load(bert, "student", teacher, teacher_layers=(0, 1, 2))
    assert torch.equal(embedded(whole), embedded(teacher))


def test_layers_that_cannot_be_taken_over_are_told(bert, tmp_path):
    teacher = load(bert)
    assert "the teacher has layers 0 to 2, no 3" in message(bert, "student", teacher, teacher_layers=(0, 3))
    assert "there is no teacher to take layers from" in message(bert, "student", teacher_layers=(0,))
    told = message(bert, "student", teacher, teacher_layers=(0, 1), arguments={"num_hidden_layers": 3})
    assert "2 layers for a student of 3; leave num_hidden_layers out" in told
    told = message(bert, "student", teacher, teacher_layers=(0,), arguments={"hidden_size": 16})
    assert "only models of the same kind and width share layers" in told
    (tmp_path / "net.py").write_text(CODE)
    tokens = str(tiny_texts.tokenizer(tmp_path / "words"))
    told = message(f"py:{tmp_path / 'net.py'}:bag", "student", teacher, teacher_layers=(0,), tokenizer=tokens)
    assert "of a model of transformers alone" in told


def test_a_run_folder_is_a_model(bert, tmp_path):
    teacher = load(bert, pooling="cls")
    made = load(bert, "student", teacher, teacher_layers=(0, 2), arguments={"embedding_rank": 6}, pooling="cls")
    with torch.no_grad():
        for parameter in made.module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    models.save(made, tmp_path / "run" / "student")
    assert (tmp_path / "run" / "student" / "tokenizer.json").is_file()
    again = load(str(tmp_path / "run"), "student")
    assert torch.equal(embedded(again), embedded(made))
    assert (again.pooling, again.parameters) == ("cls", made.parameters)
    models.save(again, tmp_path / "second")
    assert torch.equal(embedded(load(str(tmp_path / "second"), "teacher")), embedded(made))


def test_a_student_of_a_run_folders_kind_starts_from_its_layers_too(bert, tmp_path):
    first = load(bert, "student", load(bert), teacher_layers=(0, 1, 2), arguments={"embedding_rank": 6})
    models.save(first, tmp_path / "student")
    teacher = load(str(tmp_path))
    made = load(str(tmp_path), "student", teacher, teacher_layers=(1,))
    assert len(made.module.net.encoder.layer) == 1
    assert torch.equal(
        made.module.net.encoder.layer[0].output.dense.weight, teacher.module.net.encoder.layer[1].output.dense.weight
    )
    tables = [one.module.net.get_input_embeddings()(torch.arange(20)) for one in (made, teacher)]
    torch.testing.assert_close(tables[0], tables[1], atol=1e-5, rtol=0)


def test_a_narrower_student_starts_untrained_and_says_so(bert, monkeypatch):
    said = []
    monkeypatch.setattr(text_model, "say", said.append)
    made = load(bert, "student", arguments={"hidden_size": 16, "intermediate_size": 24})
    assert embedded(made).shape == (2, 16)
    assert "start untrained" in said[0]
    again = load(bert, "student", arguments={"hidden_size": 16, "intermediate_size": 24})
    assert torch.equal(embedded(made), embedded(again))
    with pytest.raises(BadInput, match="has no trained weights"):
        models.text_encoder(
            Model(model=f"hf:{bert}", arguments={"hidden_size": 16}), role="student", seed=0, need_weights=True, max_tokens=16
        )


def test_a_teacher_with_weights_missing_is_told(bert, caplog):
    from safetensors.torch import save_file

    state = load_file(bert / "model.safetensors")
    state.pop("encoder.layer.1.output.dense.weight")
    save_file(state, bert / "model.safetensors", metadata={"format": "pt"})
    logging.disable(logging.CRITICAL)
    try:
        assert "has no weights for `encoder.layer.1.output.dense.weight` (1 such)" in message(bert)
    finally:
        logging.disable(logging.NOTSET)


def test_models_that_do_not_fit_are_told(bert, tmp_path):
    assert "reads pictures; a model for text is" in message("timm:resnet18", "student")
    assert "has no `num_layers`" in message(bert, "student", arguments={"num_layers": 2})
    assert "data.max_tokens: 40, and the teacher reads 32 tokens at most" in message(bert, max_tokens=40)
    more = str(tiny_texts.tokenizer(tmp_path / "more", (*tiny_texts.WORDS, "one", "two")))
    assert "its tokenizer makes ids up to 24, and the model knows 23" in message(bert, tokenizer=more)
    (tmp_path / "net.py").write_text(CODE)
    tokens = str(tiny_texts.tokenizer(tmp_path / "words"))
    told = message(f"py:{tmp_path / 'net.py'}:flat", "student", tokenizer=tokens)
    assert "gives (2, 16) for (2, 16) tokens; a text encoder returns a state for each" in told
    many = str(tiny_texts.tokenizer(tmp_path / "many", tuple(f"w{n}" for n in range(90))))
    told = message(f"py:{tmp_path / 'net.py'}:bag", "student", tokenizer=many)
    assert "cannot be called with input_ids and attention_mask of 16 tokens and ids up to 93" in told
    assert "brings no tokenizer" in message(f"py:{tmp_path / 'net.py'}:bag", "student")


def test_a_network_of_ones_own(tmp_path):
    (tmp_path / "net.py").write_text(CODE)
    tokens = str(tiny_texts.tokenizer(tmp_path / "words"))
    made = load(f"py:{tmp_path / 'net.py'}:bag", "student", tokenizer=tokens, arguments={"width": 6})
    table = made.module.net.table.weight.detach().numpy().astype(np.float64)
    expected = table[[2, 9, 3]].mean(0)
    np.testing.assert_allclose(embedded(made)[1].numpy(), expected / np.linalg.norm(expected), atol=1e-6)


def test_a_hub_id_without_a_network_is_told_at_once(monkeypatch):
    import huggingface_hub.constants

    from edgekd import hub_access

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub_access, "_resolves", lambda host: False)
    monkeypatch.setattr(hub_access, "getproxies", dict)
    assert "hf:nobody/nothing: neither a folder with a config.json nor to be had from the hub or its cache" in message(
        "hf:nobody/nothing"
    )


def test_positions_that_begin_after_the_padding(tmp_path):
    config = transformers.RobertaConfig(
        vocab_size=23,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=18,
    )
    transformers.RobertaModel(config).save_pretrained(tmp_path / "roberta")
    tiny_texts.tokenizer(tmp_path / "roberta")
    assert "data.max_tokens: 17, and the teacher reads 16 tokens at most" in message(tmp_path / "roberta", max_tokens=17)
    assert embedded(load(tmp_path / "roberta", max_tokens=16)).shape == (2, 16)
