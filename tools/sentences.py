"""Collect sentences to learn from out of tables and running text: one a line, no two alike, in random order.

python tools/sentences.py -o sentences.txt captions.parquet:text stsb/train.parquet:sentence1,sentence2 wikitext2-valid.txt

A table (parquet, csv, jsonl) gives the columns that are named behind the colon; a .txt file is cut at the ends of its sentences, lines
that begin with "=" (headings of WikiText) left out.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from edgekd.data import text_rows
from edgekd.data.texts import wrong
from edgekd.errors import BadInput
from edgekd.recipe import Data

SHORTEST, LONGEST = 20, 400
"""Characters of a sentence of running text."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the sentences; say how many. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+", metavar="FILE[:COLUMN,...]")
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    try:
        found = dict.fromkeys(" ".join(text.split()) for source in options.sources for text in _texts(source))
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    found.pop("", None)
    sentences = list(found)
    random.Random(options.seed).shuffle(sentences)
    options.out.write_text("\n".join(sentences) + "\n", encoding="utf-8")
    print(f"{len(sentences)} sentences in {options.out}")
    return 0


def _texts(source: str) -> Iterator[str]:
    name, _, columns = source.partition(":")
    if Path(name).suffix == ".txt":
        for line in text_rows.read(Data(source=name), ["text"])["train"]["text"]:
            if not line.startswith("="):
                yield from (one for one in _sentences(_untokenized(line)) if SHORTEST < len(one) < LONGEST)
        return
    for column in columns.split(",") if columns else [None]:
        for part in text_rows.read(Data(source=name, text=column), ["text"]).values():
            for text in part["text"]:
                if (reason := wrong(text)) is None:
                    yield text
                elif reason != "empty":
                    raise BadInput(f"{source}: {text!r} is {reason}")


def _sentences(line: str) -> list[str]:
    return re.split(r"(?<=[.!?]) (?=[A-Z])", line.strip())


def _untokenized(line: str) -> str:
    """Undo what WikiText did to its text: spaces around punctuation, @-@ for hyphens, <unk> for rare words."""
    line = re.sub(r" @(.)@ ", r"\1", line).replace("<unk>", "it").replace("( ", "(").replace(" 's", "'s")
    return re.sub(r" ([,.;:!?)])", r"\1", line)


if __name__ == "__main__":
    sys.exit(main())
