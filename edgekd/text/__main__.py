"""Try a language model that was made: `python -m edgekd.text ARTIFACT PROMPT...`, or prompts on the standard input, one a line.

What it writes goes to the standard output, a line for each prompt. Exit codes: those of edgekd.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence

from ..errors import EdgekdError


def main(arguments: Sequence[str] | None = None) -> int:
    """Write on from each prompt. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m edgekd.text", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("artifact", metavar="ARTIFACT", help="a folder RUN/targets/TARGET/VARIANT")
    parser.add_argument("prompts", metavar="PROMPT", nargs="*", help="texts (without: a line each of the standard input)")
    parser.add_argument("--max-new", type=int, metavar="N", help="tokens at most (default: as many as the model was made for)")
    parser.add_argument("--temperature", type=float, metavar="T", help="draw tokens instead of taking the likeliest")
    parser.add_argument("--top-k", type=int, metavar="K", help="draw from the K likeliest alone")
    parser.add_argument(
        "--top-p", type=float, metavar="P", help="draw from the likeliest that hold this share of the probability"
    )
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn")
    parser.add_argument("--threads", type=int, metavar="N", help="of the runtime (default: every core)")
    asked = parser.parse_intermixed_args(arguments)  # options may stand between the artifact and its prompts
    try:
        from . import shipped
        from .generate import Sampling

        draws = any(value is not None for value in (asked.temperature, asked.top_k, asked.top_p))
        sampling = Sampling(1.0 if asked.temperature is None else asked.temperature, asked.top_k, asked.top_p, asked.seed)
        model = shipped.load(asked.artifact, asked.threads)
        for prompt in asked.prompts or _lines():
            (text,) = shipped.write(model, [prompt], asked.max_new, sampling if draws else None)
            print(text, flush=True)
    except EdgekdError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


def _lines() -> Iterable[str]:
    if sys.stdin.isatty():
        print("a prompt a line; Ctrl-D ends", file=sys.stderr)
    return (line.strip("\r\n") for line in sys.stdin if line.strip())


if __name__ == "__main__":
    sys.exit(main())
