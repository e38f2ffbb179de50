"""The command line: parses, calls a verb, prints. No logic; imports neither torch nor a backend to show its help."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from .errors import EdgekdError, GateFailed

app = typer.Typer(
    help="A teacher, data and the devices you ship to go in; for every device, a small model proven to run there comes out.",
    epilog="Start with:  edgekd compress models/digits -o runs/digits",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Recipe = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A recipe file, a folder with a recipe.yaml, or a pair that ships.")
]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder: the -o of an earlier verb.")]
Out = Annotated[Path | None, typer.Option("--out", "-o", metavar="RUN", help="The run folder (default: runs/NAME-OF-RECIPE).")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one key of the recipe, such as distill.epochs=3."),
]
Targets = Annotated[
    list[str] | None, typer.Option("--target", metavar="NAME", help="Only for this target, or `all` of them; may be repeated.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON, for machines.")]


def _example(*lines: str) -> dict[str, Any]:
    """Return the command's epilog: examples that work as printed (a test runs them)."""
    return {"epilog": "Example:\n\n" + "\n\n".join(lines)}


@app.callback(invoke_without_command=True)
def _main(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        from . import __version__

        print(__version__)
        raise typer.Exit


@app.command(**_example("edgekd compress models/digits -o runs/digits"))
def compress(
    recipe: Recipe,
    out: Out = None,
    settings: Settings = None,
    target: Targets = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan and stop: stages, what is cached, what is missing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Distill, quantize, export, verify and measure: the whole way from a recipe to files you can ship."""
    from . import tables, verbs

    if dry_run:
        _show(verbs.dry_run(recipe, out, settings or (), target or ()), as_json, tables.plan)
        return
    _finish(verbs.compress(recipe, out, settings or (), target or ()), as_json, verbs.home_of(recipe, out) / "report.html")


@app.command(**_example("edgekd train models/digits -o runs/digits-teacher --set train.epochs=2"))
def train(
    recipe: Recipe,
    out: Out = None,
    model: Annotated[
        str, typer.Option("--model", metavar="ROLE", help="Which model of the recipe: teacher or student.")
    ] = "teacher",
    settings: Settings = None,
    as_json: Json = False,
) -> None:
    """Train the recipe's teacher (or student) on labels alone, as an ordinary supervised run."""
    from . import tables, verbs

    _show(verbs.train(recipe, out, model, settings or ()), as_json, tables.training)


@app.command(**_example("edgekd distill models/digits -o runs/steps"))
def distill(recipe: Recipe, out: Out = None, settings: Settings = None, as_json: Json = False) -> None:
    """Fit the student to the teacher, and score both on the test samples."""
    from . import tables, verbs

    _show(verbs.distill(recipe, out, settings or ()), as_json, tables.training)


@app.command(**_example("edgekd distill models/digits -o runs/steps", "edgekd quantize runs/steps"))
def quantize(run: Run, settings: Settings = None, as_json: Json = False) -> None:
    """Make the recipe's variants of a distilled student."""
    from . import tables, verbs

    _show(verbs.quantize(run, settings or ()), as_json, tables.variants)


@app.command(**_example("edgekd distill models/digits -o runs/steps", "edgekd quantize runs/steps", "edgekd export runs/steps"))
def export(run: Run, target: Targets = None, settings: Settings = None, as_json: Json = False) -> None:
    """Write every variant for every target: files, I/O contract, golden samples, check.py."""
    from . import tables, verbs

    _show(verbs.export(run, settings or (), target or ()), as_json, tables.artifacts)


@app.command(**_example("edgekd compress models/digits -o runs/digits", "edgekd verify runs/digits"))
def verify(
    run: Run,
    target: Targets = None,
    settings: Settings = None,
    records: Annotated[
        list[Path] | None,
        typer.Option("--import", metavar="FILE", help="What `check.py --json` wrote on a device; may be repeated."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Prove each artifact on its runtime: the gate on the task metric, through every stage."""
    from . import verbs

    _finish(verbs.verify(run, settings or (), target or (), records or ()), as_json)


@app.command(
    **_example(
        "edgekd compress models/digits -o runs/digits",
        "edgekd bench runs/digits",
        "edgekd bench runs/digits/targets/onnxruntime-cpu/int8 --device local --streams 2 -o runs/clock",
    )
)
def bench(
    things: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="THING...",
            help="A run folder, an artifact folder, a file (.onnx, .ort, .xml, .mlpackage, .engine), a folder of .onnx files "
            "that belong together; or one suite (.yaml).",
        ),
    ] = None,
    device: Annotated[
        list[str] | None,
        typer.Option(
            "--device", metavar="D", help="local, ssh://user@host[:port], browser, adb (see `edgekd devices`); may be repeated."
        ),
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare/--no-compare", help="Time several things in alternation and say which is faster.")
    ] = True,
    batch: Annotated[list[int] | None, typer.Option("--batch", metavar="N", help="Batch size; may be repeated.")] = None,
    streams: Annotated[
        list[int] | None, typer.Option("--streams", metavar="K", help="Besides, K calls at once; may be repeated.")
    ] = None,
    threads: Annotated[
        list[int] | None,
        typer.Option("--threads", metavar="N", help="Threads of the runtime; repeated, each thing is timed with each number."),
    ] = None,
    sustained: Annotated[
        float | None, typer.Option("--sustained", metavar="MINUTES", help="Besides, so long without a pause, for each thing.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FOLDER", help="Where results go (default: runs/bench, runs/NAME-OF-SUITE)."),
    ] = None,
    target: Targets = None,
    settings: Settings = None,
    records: Annotated[
        list[Path] | None,
        typer.Option("--import", metavar="FILE", help="What a kit wrote on a device that cannot be reached; may be repeated."),
    ] = None,
    kit: Annotated[
        Path | None,
        typer.Option(
            "--kit", metavar="FILE.pyz", help="Time nothing: write one file that times the things on any device with Python."
        ),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure a suite's finished cells again.")] = False,
    as_json: Json = False,
) -> None:
    """Measure: how fast is each file, and is one really faster than the other.

    Things are timed alternately (A B A B), each in a process of its own, until
    the interval of their ratio is narrow (bench.interval), or bench.max_seconds
    are spent. What the numbers mean:

    load: the file's path to a session that is ready
    first call: the call after loading, inputs in memory
    warm latency: a call after warm-up, arrays to arrays in memory; the median
    sustained latency: the same, minutes without a pause
    throughput: samples a second; calls one after the other, or K streams
    parts and whole: of models of several graphs, each graph and the call
    TTFT: the prompt's token ids in memory to the first new token id
    time per output token: from one new token id to the next
    tokens per second: of the tokens after the first
    prefill rate: tokens of the prompt / TTFT
    energy: joules a call, where the device can tell; peak memory: resident
    ratio: median over neighbouring blocks, with a 95 % interval
    roofline fraction: attainable time / warm latency

    Tokenization is never inside; choosing the likeliest token always is. A
    percentile is given only where the sample supports it, no call is dropped,
    raw samples are kept beside the report. More: edgekd/bench/README.md
    """
    import shlex

    from . import tables, verbs

    asked = [
        *(settings or ()),
        *([f"bench.batch_sizes={batch}"] if batch else []),
        *([f"bench.streams={streams}"] if streams else []),
        *([f"bench.sustained_minutes={sustained}"] if sustained is not None else []),
    ]
    if kit is not None:
        unused = {"--device": device, "--out": out, "--import": records, "--no-compare": not compare, "--fresh": fresh}
        verbs.without_effect("--kit times nothing here", **unused)
        _show(verbs.bench_kit(things or (), kit, asked, target or (), threads or ()), as_json, tables.kit)
        return
    command = shlex.join(["edgekd", *sys.argv[1:]])
    try:
        found = verbs.bench(
            things or (),
            asked,
            target or (),
            device or (),
            out,
            compare=compare,
            fresh=fresh,
            command=command,
            records=records or (),
            threads=threads or (),
        )
    except EdgekdError as error:  # one device, or one thing of several: what was measured is shown all the same
        if error.told:
            _show(error.told, as_json, tables.bench)
        raise
    _show(found, as_json, tables.bench)


@app.command(**_example("edgekd devices"))
def devices(
    addresses: Annotated[
        list[str] | None, typer.Argument(metavar="[DEVICE...]", help="Such as ssh://pi@raspberrypi; without: all found here.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the devices that things can be timed on, and try to reach them."""
    from . import tables, verbs

    found = verbs.devices(addresses or ())
    _show(found, as_json, tables.devices)
    if any(not one["reached"] for one in found if one["address"] in (addresses or ())):
        raise typer.Exit(4)


@app.command(**_example("edgekd compress models/digits -o runs/digits", "edgekd report runs/digits"))
def report(run: Run, as_json: Json = False) -> None:
    """Write the run's report.html again from its manifest."""
    from . import verbs

    path = verbs.report(run)
    print(json.dumps({"report": str(path)}) if as_json else path)


@app.command(**_example("edgekd targets"))
def targets(as_json: Json = False) -> None:
    """List the device classes that edgekd knows, and what is missing here for each."""
    from . import tables, verbs

    _show(verbs.targets(), as_json, tables.targets)


@app.command(**_example("edgekd models"))
def models(as_json: Json = False) -> None:
    """List the ready pairs of teacher and student that ship with edgekd."""
    from . import tables, verbs

    _show(verbs.models(), as_json, tables.models)


@app.command(**_example("edgekd doctor"))
def doctor(as_json: Json = False) -> None:
    """Try what edgekd needs by doing it on a tiny graph; say what is missing and how to get it."""
    from .doctor import examine, table

    findings = examine()
    _show(findings, as_json, table)
    if any(f["needed"] and not f["works"] for f in findings):
        raise typer.Exit(4)


@app.command(**_example("edgekd init my-model", "edgekd compress my-model --dry-run"))
def init(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where to write the recipe and the models.")],
    task: Annotated[
        str,
        typer.Option(
            help="image-classification, text-embedding, causal-lm or seq2seq-lm (the data of the last three: from the hub)."
        ),
    ] = ("image-classification"),
    as_json: Json = False,
) -> None:
    """Write a recipe to start from: commented, and working as it is."""
    from .starter import write

    written = [str(path) for path in write(folder, task)]
    print(json.dumps({"written": written}) if as_json else "\n".join(written))


def _show(result: Any, as_json: bool, table: Any) -> None:
    if not _is_first_process():
        return
    if as_json:
        print(json.dumps(result, indent=2))
    else:
        from rich.console import Console

        Console(highlight=False).print(table(result))


def _finish(manifest: Any, as_json: bool, report: Path | None = None) -> None:
    """Print a run's outcome and where its report is; exit 3 when an artifact failed the gate."""
    from . import summary, verbs

    _show(manifest, as_json, summary.table)
    if report and not as_json and _is_first_process():
        print(f"report: {report}")
    if failed := verbs.failed(manifest):
        raise GateFailed(failed)


def _is_first_process() -> bool:
    from .distributed import is_main_process

    return is_main_process()


def main() -> None:
    """Run the command line; every expected failure is one message and an exit code, never a traceback."""
    # Threads that spin while they wait make training up to 25 times slower on a machine with other work to do (seen with
    # two cores at a load of 4), and gain little on a quiet one. Read when torch is first imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without µ must not cost a finished run
    interrupted = _Interrupted()
    signal.signal(signal.SIGINT, interrupted)
    try:
        code = app(standalone_mode=False)
        if code == 130:  # typer turns Ctrl-C into this
            raise KeyboardInterrupt
        sys.exit(code if isinstance(code, int) else 0)
    except (KeyboardInterrupt, Exception) as error:
        # some libraries swallow Ctrl-C and fail a little later, of something else
        if interrupted.yes or isinstance(error, KeyboardInterrupt):
            _fail("interrupted; what was finished is kept, and the same command goes on from there", 130)
        _tell(error)


class _Interrupted:
    """A handler of Ctrl-C that remembers."""

    yes = False

    def __call__(self, number: int, frame: Any) -> None:
        self.yes = True
        raise KeyboardInterrupt


def _tell(error: Exception) -> NoReturn:
    """Print an expected failure and exit with its code; raise what is a bug."""
    if isinstance(error, EdgekdError):
        _fail(str(error), error.exit_code)
    if isinstance(error, BrokenPipeError):
        sys.stderr.close()
        sys.exit(1)
    if isinstance(error, OSError):
        _fail(_explain(error), 2)
    code = getattr(error, "exit_code", None)
    if code is None:
        raise error
    if show := getattr(error, "show", None):  # click's own usage errors print themselves
        show()
    sys.exit(code)


def _explain(error: OSError) -> str:
    import errno

    where = f"{error.filename}: " if error.filename else ""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return f"{where}the disk is full; free some space and run the same command again, finished stages are kept"
    if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
        return f"{where}no permission; give -o a folder that you may write to, or mend the permissions"
    return f"{where}{error.strerror or error}"


def _fail(message: str, code: int) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
