"""A finished adapter, of peft or of ours, is merged when the model is loaded; one that does not belong there is refused."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import tiny_causal
import torch
import translation
from quantize import lora_nets
from safetensors.torch import load_file, save_file

from edgekd import models, plan, recipe_file
from edgekd.errors import BadInput
from edgekd.models import text_model
from edgekd.models.adapters import owners, peft_here
from edgekd.quantize import lora
from edgekd.recipe import Lora, Model

peft = peft_here("a test")
IDS = torch.randint(1, 40, (3, 9), generator=torch.Generator().manual_seed(0))


def randomly(net, size=0.3):
    torch.manual_seed(7)
    with torch.no_grad():
        for name, values in net.named_parameters():
            if "lora_" in name:
                values.copy_(torch.randn_like(values) * size)
            elif "modules_to_save" in name or (values.requires_grad and name.endswith("bias")):
                values.add_(torch.randn_like(values) * size)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder with a small model like Llama."""
    folder = tmp_path_factory.mktemp("hub") / "tiny-llama"
    torch.manual_seed(0)
    lora_nets.llama().save_pretrained(folder)
    return folder


def adapted(base, folder, **options):
    """Make an adapter with peft alone; return the logits of the model with it."""
    from transformers import AutoModelForCausalLM

    net = AutoModelForCausalLM.from_pretrained(base)
    config = peft.LoraConfig(**{"r": 4, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM", **options})
    net = peft.get_peft_model(net, config).eval()
    randomly(net)
    net.save_pretrained(folder)
    with torch.no_grad():
        return net(input_ids=IDS).logits


@pytest.fixture
def adapter(base, tmp_path):
    logits = adapted(base, tmp_path / "adapter")
    return tmp_path / "adapter", logits


def network(base, **config):
    made = text_model.network(Model(model=f"hf:{base}", **config), "AutoModelForCausalLM", role="student", seed=0)
    with torch.no_grad():
        return made.net, made.net.eval()(input_ids=IDS).logits


@pytest.mark.parametrize(
    "options", [{}, {"use_rslora": True, "lora_alpha": 5}, {"use_dora": True}, {"lora_bias": False, "r": 8}]
)
def test_an_adapter_of_peft_is_merged_when_the_model_is_loaded(base, tmp_path, options):
    wanted = adapted(base, tmp_path / "adapter", **options)
    _, plain = network(base)
    net, logits = network(base, adapter=tmp_path / "adapter")
    assert (plain - wanted).abs().max() > 0.01 * wanted.abs().max()
    assert (logits - wanted).abs().max() < 1e-4 * wanted.abs().max()
    assert list(net.state_dict()) == list(network(base)[0].state_dict())
    assert all(p.requires_grad for p in net.parameters())


def test_what_is_trained_here_is_read_by_peft_and_merged_at_load(base, tmp_path):
    from transformers import AutoModelForCausalLM

    model, task, splits = lora_nets.made("llama")
    model.module.net.load_state_dict(network(base)[0].state_dict())
    model = lora_nets.replace(model, reference=f"hf:{base}")
    adapters = lora.attach(model, Lora(rank=4, train=("model.norm",)), task, splits, 0, "distill.lora")
    randomly(model.module.net)
    with torch.no_grad():
        model.module.net.model.norm.weight.add_(0.5)
        wanted = model.module.net.eval()(input_ids=IDS).logits
    lora.merge(model, adapters, task, splits, tmp_path / "adapter")
    net = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "adapter").eval()
    with torch.no_grad():
        by_peft = net(input_ids=IDS).logits
    np.testing.assert_allclose(by_peft, wanted, atol=1e-5 * float(wanted.abs().max()))
    _, logits = network(base, adapter=tmp_path / "adapter")
    np.testing.assert_allclose(logits, wanted, atol=1e-4 * float(wanted.abs().max()))


def test_an_adapter_of_a_classifier_of_timm(tmp_path):
    model, task, splits = lora_nets.made("vit")
    arguments = {"img_size": 8, "patch_size": 2, "in_chans": 1, "embed_dim": 24, "depth": 2, "num_heads": 3}
    model = lora_nets.replace(model, reference="timm:vit_tiny_patch16_224")
    save_file(model.module.net.state_dict(), tmp_path / "base.safetensors")
    adapters = lora.attach(model, Lora(rank=4), task, splits, 0, "distill.lora")
    randomly(model.module.net)
    lora.merge(model, adapters, task, splits, tmp_path / "adapter")

    def load(weights):
        config = Model(
            model="timm:vit_tiny_patch16_224", weights=weights, adapter=tmp_path / "adapter", arguments=arguments,
            preprocess={"size": 8},
        )  # fmt: skip
        return models.load(config, role="student", num_classes=3, image_shape=(8, 8, 1), shared=None, seed=0, need_weights=True)

    again = load(tmp_path / "base.safetensors")
    for name, values in again.module.net.state_dict().items():
        np.testing.assert_allclose(values, model.module.net.state_dict()[name], atol=1e-6)
    save_file(model.module.net.state_dict(), tmp_path / "merged.safetensors")
    with pytest.raises(BadInput, match="was trained beside other weights than the model has"):
        load(tmp_path / "merged.safetensors")


def edited(folder, **changes):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda f: edited(f, base_model_name_or_path="meta/other-llama"), r"student\.adapter: .* was trained beside `meta/other-llama`, and the model is hf:"),
        (lambda f: edited(f, peft_type="IA3"), "is an adapter of kind IA3; edgekd merges LORA"),
        (lambda f: (f / "adapter_config.json").write_text("{"), "adapter_config.json is damaged"),
        (lambda f: (f / "adapter_config.json").unlink(), "has no adapter_config.json"),
        (lambda f: (f / "adapter_model.safetensors").unlink(), r"has no adapter_model\.safetensors"),
        (lambda f: (f / "adapter_model.safetensors").write_bytes(b"x" * 40), "damaged or not safetensors"),
        (lambda f: edited(f, target_modules=["c_attn"]), "does not fit hf:"),
        (lambda f: edited(f, target_modules=["q_proj", "down_proj", "k_proj"]), r"does not fit hf:.* the file has no .*k_proj\.lora_"),
        (lambda f: edited(f, target_modules=["q_proj"]), r"does not fit hf:.*down_proj\.lora_.*, which the model does not have"),
        (lambda f: edited(f, r=3), "does not fit hf:.*size mismatch"),
    ],
)  # fmt: skip
def test_an_adapter_that_does_not_belong_there_is_refused(base, adapter, spoil, says):
    spoil(adapter[0])
    with pytest.raises(BadInput, match=says):
        network(base, adapter=adapter[0])


def test_numbers_that_are_none_are_refused(base, adapter):
    file = adapter[0] / "adapter_model.safetensors"
    state = load_file(file)
    next(iter(state.values())).fill_(float("nan"))
    save_file(state, file)
    with pytest.raises(BadInput, match="NaN"):
        network(base, adapter=adapter[0])


def test_the_same_model_elsewhere_is_the_same(base, adapter, tmp_path):
    shutil.copytree(base, tmp_path / "elsewhere" / "Tiny-Llama")
    edited(adapter[0], base_model_name_or_path="someone/tiny-llama")
    _, logits = network(tmp_path / "elsewhere" / "Tiny-Llama", adapter=adapter[0])
    assert (logits - adapter[1]).abs().max() < 1e-4 * adapter[1].abs().max()


def test_the_plan_knows_the_folder(base, adapter, tmp_path):
    (tmp_path / "recipe.yaml").write_text(
        f"data: {{source: digits}}\nstudent: {{model: 'hf:{base}', adapter: adapter}}\nquantize: [{{name: fp32, method: none}}]\n"
    )
    read = recipe_file.load(tmp_path / "recipe.yaml")
    assert read.student.adapter == adapter[0]
    fingerprints = {plan.model_fingerprint(read.student)}
    edited(adapter[0], lora_alpha=99)
    fingerprints.add(plan.model_fingerprint(read.student))
    fingerprints.add(plan.model_fingerprint(read.student.model_copy(update={"adapter": None})))
    assert len(fingerprints) == 3
    (adapter[0] / "adapter_config.json").unlink()
    with pytest.raises(BadInput, match=r"student\.adapter: no adapter_config\.json in "):
        plan.check_model_files("student", read.student)


# --- adapters that do more than low rank ----------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 3}},
        {"target_modules": "all-linear"},
        {"layers_to_transform": [1], "target_modules": ["v_proj"]},
        {"modules_to_save": ["norm"]},
    ],
)
def test_patterns_and_modules_trained_whole(base, tmp_path, options):
    wanted = adapted(base, tmp_path / "adapter", **options)
    net, logits = network(base, adapter=tmp_path / "adapter")
    assert (network(base)[1] - wanted).abs().max() > 0.01 * wanted.abs().max()
    assert (logits - wanted).abs().max() < 1e-4 * wanted.abs().max()
    assert all(p.requires_grad for p in net.parameters())
    assert net.lm_head.weight is net.model.embed_tokens.weight


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub") / "tiny-gpt2"
    torch.manual_seed(0)
    lora_nets.gpt2().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_biases_that_were_trained_beside_are_taken(gpt2, tmp_path, bias):
    wanted = adapted(gpt2, tmp_path / "adapter", bias=bias, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True)
    net, logits = network(gpt2, adapter=tmp_path / "adapter")
    plain = network(gpt2)[0]
    changed = {name for name, values in net.state_dict().items() if not torch.equal(values, plain.state_dict()[name])}
    assert "transformer.h.0.attn.c_attn.bias" in changed
    assert ("transformer.ln_f.bias" in changed) == (bias == "all")
    assert (logits - wanted).abs().max() < 1e-4 * wanted.abs().max()


def test_a_merge_of_a_layer_whose_weights_lie_the_other_way_round_is_checked(gpt2, tmp_path, monkeypatch):
    adapted(gpt2, tmp_path / "adapter", target_modules=["c_attn"], fan_in_fan_out=True)
    layer = peft.tuners.lora.Linear
    merge = layer.merge

    def inexact(self, **given):
        merge(self, **given)
        self.get_base_layer().weight.data.mul_(1.01)

    monkeypatch.setattr(layer, "merge", inexact)
    with pytest.raises(BadInput, match=r"merged, layer `transformer\.h\.0\.attn\.c_attn` gives other values"):
        network(gpt2, adapter=tmp_path / "adapter")


def test_an_adapter_of_one_of_two_tied_layers_is_refused(base, tmp_path):
    for name, other in (("embed_tokens", "lm_head"), ("lm_head", r"model\.embed_tokens")):
        adapted(base, tmp_path / name, target_modules=["q_proj", name])
        with pytest.raises(
            BadInput, match=rf"adapts `.*{name}`, which shares its weights with `{other}`: merged, it would change both"
        ):
            network(base, adapter=tmp_path / name)


def test_an_adapter_of_embeddings_that_are_not_tied_is_merged(tmp_path):
    folder = tmp_path / "tiny-llama"
    torch.manual_seed(0)
    net = lora_nets.llama()
    net.config.tie_word_embeddings = False
    net.lm_head.weight = torch.nn.Parameter(torch.randn(40, 16))
    net.save_pretrained(folder)
    wanted = adapted(folder, tmp_path / "adapter", target_modules=["q_proj", "embed_tokens", "lm_head"])
    _, logits = network(folder, adapter=tmp_path / "adapter")
    assert (logits - wanted).abs().max() < 1e-4 * wanted.abs().max()


def test_embeddings_that_an_adapter_has_set_apart_stay_so(base, tmp_path):
    wanted = adapted(base, tmp_path / "adapter", modules_to_save=["embed_tokens", "lm_head"])
    tokens = str(tiny_causal.tokenizer(tmp_path / "tokens"))
    asked = Model(model=f"hf:{base}", adapter=tmp_path / "adapter", tokenizer=tokens)
    made = models.causal_lm(asked, role="student", seed=0, need_weights=True)
    net = made.module.net
    assert all(p.requires_grad for p in net.parameters())  # what comes next may train them
    assert not torch.equal(net.lm_head.weight, net.model.embed_tokens.weight)
    models.save(made, tmp_path / "run" / "student")
    again = models.causal_lm(Model(model=str(tmp_path / "run")), role="student", seed=0, need_weights=True).module.net
    with torch.no_grad():
        for one in (net, again):
            assert (one(input_ids=IDS).logits - wanted).abs().max() < 1e-4 * wanted.abs().max()


def test_t5_cannot_have_its_output_set_apart(tmp_path):
    from transformers import AutoModelForSeq2SeqLM

    torch.manual_seed(0)
    lora_nets.t5().save_pretrained(tmp_path / "tiny-t5")
    net = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "tiny-t5")
    net = peft.get_peft_model(net, peft.LoraConfig(r=4, target_modules=["q"], modules_to_save=["lm_head"]))
    randomly(net)
    net.save_pretrained(tmp_path / "adapter")
    asked = Model(model=f"hf:{tmp_path / 'tiny-t5'}", adapter=tmp_path / "adapter")
    with pytest.raises(BadInput, match="replaces token embeddings or output layer, which T5ForConditionalGeneration ties"):
        text_model.network(asked, "AutoModelForSeq2SeqLM", role="student", seed=0)


def test_an_adapter_with_a_part_for_the_pooler_fits_an_encoder_without(tmp_path):
    from transformers import AutoModel

    torch.manual_seed(0)
    lora_nets.bert().save_pretrained(tmp_path / "tiny-bert")
    net = AutoModel.from_pretrained(tmp_path / "tiny-bert")
    net = peft.get_peft_model(net, peft.LoraConfig(r=4, target_modules=["query", "dense"])).eval()
    randomly(net)
    net.save_pretrained(tmp_path / "adapter")
    assert any("pooler" in name for name in load_file(tmp_path / "adapter" / "adapter_model.safetensors"))
    asked = Model(model=f"hf:{tmp_path / 'tiny-bert'}", adapter=tmp_path / "adapter")
    made = text_model.network(asked, "AutoModel", role="student", seed=0)
    with torch.no_grad():
        wanted, found = (one(input_ids=IDS).last_hidden_state for one in (net, made.net.eval()))
    assert (found - wanted).abs().max() < 1e-4 * wanted.abs().max()


def test_a_folder_of_an_adapter_and_a_configuration_is_told(base, adapter):
    shutil.copy(base / "config.json", adapter[0])
    with pytest.raises(BadInput, match="holds an adapter: give the model that it belongs to as `model`"):
        network(adapter[0])


def test_a_module_whose_name_ends_others_is_read_by_peft(tmp_path):
    """peft takes `norm` for `layers.0.input_layernorm` too."""
    from transformers import AutoModel

    torch.manual_seed(0)
    lora_nets.llama().model.save_pretrained(tmp_path / "tiny-llama")
    made = text_model.network(Model(model=f"hf:{tmp_path / 'tiny-llama'}"), "AutoModel", role="student", seed=0)
    model, task, splits = lora_nets.made("llama")
    model.module.net = made.net
    model = lora_nets.replace(model, reference=f"hf:{tmp_path / 'tiny-llama'}")
    adapters = lora.attach(model, Lora(rank=4, train=("norm",)), task, splits, 0, "distill.lora")
    randomly(made.net)
    with torch.no_grad():
        made.net.norm.weight.add_(0.5)
        wanted = made.net.eval()(input_ids=IDS).last_hidden_state
    lora.merge(model, adapters, task, splits, tmp_path / "adapter")
    by_peft = peft.PeftModel.from_pretrained(AutoModel.from_pretrained(tmp_path / "tiny-llama"), tmp_path / "adapter").eval()
    again = Model(model=f"hf:{tmp_path / 'tiny-llama'}", adapter=tmp_path / "adapter")
    ours = text_model.network(again, "AutoModel", role="student", seed=0).net.eval()
    with torch.no_grad():
        for net in (by_peft, ours):
            assert (net(input_ids=IDS).last_hidden_state - wanted).abs().max() < 1e-4 * wanted.abs().max()


@pytest.mark.parametrize("kind", ["t5", "t5gemma"])
def test_an_adapter_of_an_encoder_decoder_leaves_its_ties(tmp_path, kind):
    """peft takes T5Gemma's output layer, which is tied to the decoder's table, for one apart from the encoder's."""
    from transformers import AutoModelForSeq2SeqLM

    folder = translation.saved(
        {"t5": translation.t5, "t5gemma": translation.t5gemma}[kind](), tmp_path / f"tiny-{kind}", weights=True
    )
    plain = AutoModelForSeq2SeqLM.from_pretrained(folder)
    shared = sorted(name for names in owners(plain).values() for name in names if len(names) > 1)
    net = peft.get_peft_model(plain, peft.LoraConfig(r=4, target_modules=["q", "q_proj", "wo"])).eval()
    randomly(net)
    net.save_pretrained(tmp_path / "adapter")
    ids = {"input_ids": IDS % 16, "decoder_input_ids": IDS[:, :4] % 16}
    with torch.no_grad():
        wanted = net(**ids).logits
    asked = Model(model=f"hf:{folder}", adapter=tmp_path / "adapter")
    made = text_model.network(asked, "AutoModelForSeq2SeqLM", role="student", seed=0).net
    assert made.config.tie_word_embeddings
    assert sorted(name for names in owners(made).values() for name in names if len(names) > 1) == shared
    with torch.no_grad():
        assert (made.eval()(**ids).logits - wanted).abs().max() < 1e-4 * wanted.abs().max()
