"""Make one small tokenizer for two languages: byte-level BPE over both columns of a data set's training split.

    python tools/train_tokenizer.py bentrevett/multi30k --input en --output de --size 4096 -o models/slm/tokenizer

Ids: 0 pads, 1 ends a text, 2 is what a decoder begins with, 3 stands for nothing (bytes leave no unknown text). The same text makes
the same file.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from edgekd.data import text_rows
from edgekd.recipe import Data

SPECIAL = ("<pad>", "</s>", "<s>", "<unk>")


def main() -> None:
    """Train, write tokenizer.json and tokenizer_config.json, and say how large it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="hub id, folder or file")
    parser.add_argument("--input", required=True, help="column of the one language")
    parser.add_argument("--output", required=True, help="column of the other")
    parser.add_argument("--size", type=int, default=4096, help="how many tokens")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder to write into")
    options = parser.parse_args()
    data = Data(source=options.source, input=options.input, output=options.output)
    rows = text_rows.read(data, ["input", "output"])["train"]
    made = train([*rows["input"], *rows["output"]], options.size)
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "tokenizer.json"
    file.write_text(json.dumps(json.loads(made.to_str()), ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")
    pad, end, begin, unknown = SPECIAL
    told = {
        "tokenizer_class": "PreTrainedTokenizerFast", "pad_token": pad, "eos_token": end, "bos_token": begin, "unk_token": unknown,
        "add_prefix_space": True, "clean_up_tokenization_spaces": False,
    }  # fmt: skip
    (options.out / "tokenizer_config.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    print(f"{file}: {made.get_vocab_size()} tokens, {file.stat().st_size:,} bytes")


def train(texts: list[str], size: int) -> Tokenizer:
    """Return a tokenizer of `size` tokens that puts the end-of-text token after each text."""
    made = Tokenizer(models.BPE(unk_token=SPECIAL[3]))
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    end = SPECIAL[1]
    made.post_processor = processors.TemplateProcessing(single=f"$A {end}", special_tokens=[(end, 1)])
    return made


if __name__ == "__main__":
    main()
