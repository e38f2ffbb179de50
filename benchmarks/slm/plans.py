"""Networks of equal parameter counts: encoder-decoders with 2/3 of their layers in the encoder, and decoder-only ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

VOCABULARY = 32_128
HEAD = 64


@dataclass(frozen=True)
class Plan:
    """Sizes of one network. layers: (encoder, decoder), or (decoder,). hidden: width of the gated feed-forward block.

    The paper's 332M (papers: Return of the Encoder, its code) has 20 and 10 layers, width 1024, 6 query and 3 key-value heads of 64,
    feed-forward of 4096 without a gate: with a gate (three matrices for two) 2728 is as much.
    """

    width: int
    heads: int
    key_value_heads: int
    hidden: int
    layers: tuple[int, ...]

    @property
    def block(self) -> int:
        """Weights of a layer but its norms: self-attention and feed-forward."""
        return self.width * HEAD * (2 * self.heads + 2 * self.key_value_heads) + 3 * self.width * self.hidden

    def pairs(self, queries_and_keys: int) -> int:
        """Multiplications of a layer's attention, for so many pairs of a query and a key that it looks at."""
        return 2 * self.heads * HEAD * queries_and_keys


SIZES: dict[str, dict[str, Plan]] = {
    "30M": {
        "encoder-decoder": Plan(384, 6, 3, 1024, (8, 4)),
        "decoder-only": Plan(384, 6, 3, 1024, (13,)),
    },
    "100M": {
        "encoder-decoder": Plan(640, 10, 5, 1704, (12, 6)),
        "decoder-only": Plan(640, 10, 5, 1704, (20,)),
    },
    "330M": {
        "encoder-decoder": Plan(1024, 6, 3, 2728, (20, 10)),
        "decoder-only": Plan(1024, 6, 3, 2728, (31,)),
    },
}


def first_token(plan: Plan, prompt: int) -> int:
    """Return the floating-point operations of matrix products up to the first token; of what comes after a token nothing is counted."""
    scores = plan.width * VOCABULARY
    if len(plan.layers) == 1:
        return 2 * (plan.layers[0] * (plan.block * prompt + plan.pairs(prompt * (prompt + 1) // 2)) + scores)
    encoder, decoder = plan.layers
    crossing = plan.width * HEAD * 2 * plan.key_value_heads * prompt  # keys and values of the text, once for all steps
    return 2 * (encoder * (plan.block * prompt + plan.pairs(prompt * prompt)) + decoder * crossing) + step(plan, prompt, 0)


def step(plan: Plan, prompt: int, written: int) -> int:
    """Return the floating-point operations of a token's matrix products, behind a prompt and so many tokens written before."""
    scores = plan.width * VOCABULARY
    crossing = plan.width * HEAD * 2 * plan.heads if len(plan.layers) == 2 else 0
    return 2 * (plan.layers[-1] * (plan.block + crossing + plan.pairs(prompt + written + 1)) + scores)


def cache_bytes(plan: Plan, prompt: int, written: int) -> int:
    """Return the bytes of float32 keys and values that a token looks at."""
    return plan.layers[-1] * 2 * plan.key_value_heads * HEAD * 4 * (prompt + written)


def network(plan: Plan, context: int) -> Any:
    """Return a network of transformers with random weights: T5Gemma, or Llama for the decoder-only form. Embeddings are tied.

    context: positions it can hold.
    """
    from edgekd._torchvision import ensure

    ensure()
    import transformers

    if len(plan.layers) == 1:
        return transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                vocab_size=VOCABULARY,
                hidden_size=plan.width,
                intermediate_size=plan.hidden,
                num_hidden_layers=plan.layers[0],
                num_attention_heads=plan.heads,
                num_key_value_heads=plan.key_value_heads,
                head_dim=HEAD,
                max_position_embeddings=context,
                tie_word_embeddings=True,
                attn_implementation="eager",
            )
        )
    encoder, decoder = (
        transformers.T5GemmaModuleConfig(
            vocab_size=VOCABULARY,
            hidden_size=plan.width,
            intermediate_size=plan.hidden,
            num_hidden_layers=layers,
            num_attention_heads=plan.heads,
            num_key_value_heads=plan.key_value_heads,
            head_dim=HEAD,
            query_pre_attn_scalar=HEAD,
            max_position_embeddings=context,
            sliding_window=context,
            layer_types=["full_attention"] * layers,
            attn_logit_softcapping=None,
            final_logit_softcapping=None,
        )
        for layers in plan.layers
    )
    config = transformers.T5GemmaConfig(
        encoder=encoder, decoder=decoder, vocab_size=VOCABULARY, tie_word_embeddings=True, attn_implementation="eager"
    )
    made = transformers.T5GemmaForConditionalGeneration(config)
    made.get_encoder().embed_tokens = made.get_decoder().embed_tokens  # one table, as in the paper
    return made


def parameters(net: Any) -> int:
    """Return how many parameters a network has, shared ones once."""
    return sum(parameter.numel() for parameter in net.parameters())
