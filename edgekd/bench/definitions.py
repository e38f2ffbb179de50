"""What every number of the clock means, in print: number -> definition. The report, the README and --help say the same."""

from __future__ import annotations

DEFINITIONS = {
    "load": "From the path of the file to a session that is ready. The runtime is imported and the file lies in the "
    "system's cache already. The median over launches.",
    "first call": "The first call after loading, inputs in memory: what the runtime puts off until it is needed is in it. "
    "The median over launches.",
    "warm latency": "One call after warm-up: from input arrays in memory to output arrays in memory. Its median, with a "
    "95 % interval; a percentile only where at least 5 calls are expected beyond it. No call is dropped.",
    "sustained latency": "The same call, over minutes without a pause: its median over time, and the moment from which it "
    "stays slower, if there is one. The model is warm all the time; what changes is the machine.",
    "throughput": "Samples a second over all warm calls, one call after the other: calls x batch / their summed time.",
    "throughput (streams)": "Samples a second of K sessions at once, each in a thread of its own, the threads split between them, the next "
    "call starting when the last returned: calls x batch / time on the wall. A block opens when every stream has finished its first call and closes "
    "on the end of a call; no stream stops before that, and a call across an edge counts by its part inside.",
    "parts and whole": "For a model of several graphs. A part: from the moment its input arrays are in memory to its output arrays "
    "in memory. The whole: from the first part's start to the last one's end, with what hands arrays on. Each part is timed "
    "within the whole, never alone.",
    "TTFT": "Time to first token: from the prompt's token ids in memory to the first generated token id in memory. Encoding, "
    "reading the whole prompt (prefill) and choosing the token (greedy) are inside; tokenization and loading are not. The model is "
    "warm, its key-value cache empty.",
    "time per output token": "From one generated token id to the next, after the first: one decoding step and choosing the token "
    "(greedy) are inside, turning ids into text is not. Its median over all steps. An end-of-sequence token ends nothing: every "
    "call makes the same number of tokens.",
    "tokens per second": "Tokens after the first / the time from the first token id to the last, summed over all calls; with a "
    "batch, the tokens of all its sequences.",
    "prefill rate": "Prompt tokens a second: tokens of the prompt (x batch) / the median TTFT.",
    "encoder time": "For a model with an encoder: from the prompt's token ids in memory to the encoder's output arrays in memory. "
    "It is part of TTFT.",
    "peak memory": "The most memory that the process held at once (resident), and how much of it lies above the same "
    "process with the runtime imported and no model loaded.",
    "energy": "Joules a call: what the host's own counter added between the start and the end of a block of calls / the calls made "
    "in it, those that settle it included. It is the whole package's, idle power included; the idle watts are told beside it. Where "
    "a host has no counter that may be read, it says so.",
    "ratio": "Both files are timed in alternating blocks (A B A B, in the next launch B A B A), each in a process of its own, started afresh several times, A first in one launch, B first in the next. The "
    "ratio is the mean over launches of the median over pairs of neighbouring blocks, with a 95 % interval over launches. Below "
    "2.5 % it is not called a difference.",
    "roofline fraction": "Attainable time / median warm latency. Attainable: the longer of operations / the host's measured matrix "
    "rate and bytes / its measured memory bandwidth, at the same number of threads; the longer one is what binds.",
}
"""The order is that of a run: from loading to what the numbers add up to."""
