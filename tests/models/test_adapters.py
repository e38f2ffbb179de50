"""A finished adapter, of peft or of ours, is merged when the model is loaded; one that does not belong there is refused."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from quantize import lora_nets
from safetensors.torch import load_file, save_file

from edgekd import models, plan, recipe_file
from edgekd.errors import BadInput
from edgekd.models import text_model
from edgekd.models.adapters import peft_here
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
