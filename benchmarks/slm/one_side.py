"""One side of genai_peer.py: generates with one runtime, in a process of its own. One JSON line for each line asked.

{"do": "load", "path", "threads", "prompt": ids, "new_tokens"}  -> {"load_s", "versions"}
{"do": "call"}  -> {"ttft_s", "per_token_s": [of each token after the first], "ids": those made}
A failure is told as {"error"} and ends it. `edgekd` runs in edgekd's environment on a decoder's file, `genai` in the peers' on a
folder that onnxruntime-genai's model builder has written.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

now = time.perf_counter


def by_edgekd(path: Path, threads: int, prompt: list[int], new_tokens: int) -> Callable[[], dict[str, Any]]:
    """Return the call that edgekd's clock times: from the prompt's ids to so many ids."""
    import numpy as np

    from edgekd.backends import onnxruntime
    from edgekd.bench import generation

    session = onnxruntime.load(path, threads=threads)
    ids = np.array([prompt], np.int64)
    call = generation.call({"decoder": session}, {"decoder": onnxruntime.interface(path)}, ids, new_tokens)

    def once() -> dict[str, Any]:
        marks = call()
        return {
            "ttft_s": marks["ttft"] / 1e9,
            "per_token_s": [gap / 1e9 for gap in marks["tokens"]],
            "ids": call.ids[0].tolist(),
        }

    return once


def by_genai(path: Path, threads: int, prompt: list[int], new_tokens: int) -> Callable[[], dict[str, Any]]:
    """Return a call that does the same with onnxruntime-genai. Its generator, which owns the cache, is made before the clock starts."""
    import numpy as np
    import onnxruntime_genai as genai

    told = path / "genai_config.json"
    config = json.loads(told.read_text(encoding="utf-8"))
    options = config["model"]["decoder"]["session_options"]
    options |= {"intra_op_num_threads": threads, "inter_op_num_threads": 1}
    told.write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    model = genai.Model(str(path))
    length = len(prompt) + new_tokens
    ids = np.array([prompt], np.int32)

    def once() -> dict[str, Any]:
        parameters = genai.GeneratorParams(model)
        parameters.set_search_options(max_length=length, do_sample=False, past_present_share_buffer=True)
        generator = genai.Generator(model, parameters)
        made, times = [], []
        begin = now()
        generator.append_tokens(ids)
        while not generator.is_done():
            generator.generate_next_token()
            made.append(int(generator.get_next_tokens()[0]))
            times.append(now())
        if len(made) != new_tokens:
            raise SystemExit(f"{len(made)} tokens instead of {new_tokens}: an end-of-text token came up; take another seed")
        gaps = [after - before for before, after in itertools.pairwise(times)]
        return {"ttft_s": times[0] - begin, "per_token_s": gaps, "ids": made}

    return once


SIDES = {"edgekd": (by_edgekd, ("onnxruntime", "numpy")), "genai": (by_genai, ("onnxruntime", "onnxruntime-genai", "numpy"))}


def main(side: str) -> int:
    """Answer until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a runtime prints must not come between the answers
    start, packages = SIDES[side]
    call: Callable[[], dict[str, Any]] | None = None
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            if asked.pop("do") == "load":
                begin = now()
                call = start(Path(asked.pop("path")), **asked)
                answer = {"load_s": now() - begin, "versions": {name: importlib.metadata.version(name) for name in packages}}
            else:
                assert call is not None, "nothing is loaded"
                answer = call()
        except BaseException as error:  # whatever it raises is told to genai_peer.py, which stops
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
        if "error" in answer:
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
