"""ONNX Runtime Web in a real Chromium. Skips, with the reason, where one of the two is not installed."""

from __future__ import annotations

import contextlib
import functools
import gc
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import onnx
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from onnx import TensorProto, helper

from edgekd.backends import chromium, web
from edgekd.errors import BadInput, Missing
from edgekd.export import artifact as artifacts
from edgekd.export.check_parts import onnxruntime_web as part
from edgekd.parity import compare
from edgekd.quantize import make
from edgekd.quantize.variant import Variant
from edgekd.recipe import Gate, Scheme, VariantRecipe
from edgekd.targets import load_target

BROWSER, WEBGPU = load_target("browser"), load_target("browser-webgpu")
browser = pytest.mark.skipif(web.executes(BROWSER).by is None, reason=str(web.executes(BROWSER).why))


@pytest.fixture(scope="module", autouse=True)
def no_browser_is_left():
    yield
    web.close_browsers()


def webgpu_or_skip():
    means = web.executes(WEBGPU)
    if means.by is None:
        pytest.skip(means.why)


def model(file: Path, kind: int = TensorProto.FLOAT, shape: tuple[str | int, ...] = ("batch", 2)) -> Path:
    """Write y = x + x, z = x of any type and shape."""
    nodes = [helper.make_node("Add", ["x", "x"], ["y"], name="twice"), helper.make_node("Identity", ["x"], ["z"], name="same")]
    if kind == TensorProto.BOOL:
        nodes[0] = helper.make_node("Not", ["x"], ["y"], name="not")
    ends = [helper.make_tensor_value_info(name, kind, shape) for name in ("x", "y", "z")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:])
    file.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), file)
    return file


KINDS = st.sampled_from(
    ["bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float16", "float64"]
)


@settings(deadline=None)
@given(KINDS.flatmap(lambda kind: arrays(kind, array_shapes(min_dims=0, min_side=0))), st.text())
def test_what_is_packed_is_unpacked(values, word):
    head, made = part.unpack(part.pack({"word": word}, {"one": values, "two": np.float32(3)[None]}))
    assert head == {"word": word}
    assert (made["one"].dtype, made["one"].shape) == (values.dtype, values.shape)
    np.testing.assert_array_equal(made["one"], values)
    assert made["two"].tolist() == [3]


@browser
def test_it_computes_and_names_the_provider(tmp_path):
    session = web.load(model(tmp_path / "m.onnx"), BROWSER)
    x = np.array([[1, 2], [3, 4.5], [-1, 0]], np.float32)
    made = session.run({"x": x, "unused": x})
    assert made["y"].tolist() == [[2, 4], [6, 9], [-2, 0]]
    assert made["z"].tolist() == x.tolist()
    assert session.providers == {"WASM": 2}


@browser
@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("INT64", np.array([[2**53 + 1, -1]], np.int64)),
        ("INT32", np.array([[2**30 - 1, -5]], np.int32)),
        ("UINT8", np.array([[100, 3]], np.uint8)),
        ("FLOAT16", np.array([[0.1, -65504 / 2]], np.float16)),
        ("DOUBLE", np.array([[1e-300, 0.1]], np.float64)),
        ("BOOL", np.array([[True, False]])),
    ],
)
def test_types_go_there_and_back(tmp_path, kind, values):
    made = web.load(model(tmp_path / "m.onnx", TensorProto.DataType.Value(kind)), BROWSER).run({"x": values})
    assert made["y"].dtype == values.dtype
    np.testing.assert_array_equal(made["z"], values)
    np.testing.assert_array_equal(made["y"], ~values if kind == "BOOL" else values + values)


@browser
def test_a_number_and_an_empty_batch(tmp_path):
    scalar = web.load(model(tmp_path / "s.onnx", shape=()), BROWSER).run({"x": np.float32(2.5)})
    assert (scalar["y"].shape, float(scalar["y"])) == ((), 5.0)
    assert web.load(model(tmp_path / "m.onnx"), BROWSER).run({"x": np.empty((0, 2), np.float32)})["y"].shape == (0, 2)


@browser
def test_weights_beside_the_file_are_found(tmp_path):
    values = np.arange(2048, dtype=np.float32)
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2048]) for name in ("x", "y")]
    tensor = onnx.numpy_helper.from_array(values, "w")
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", ends[:1], ends[1:], [tensor])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save_model(made, tmp_path / "m.onnx", save_as_external_data=True, location="m.onnx.data", size_threshold=0)
    assert (tmp_path / "m.onnx.data").stat().st_size >= 8192
    out = web.load(tmp_path / "m.onnx", BROWSER).run({"x": np.ones(2048, np.float32)})
    np.testing.assert_array_equal(out["y"], values + 1)


@browser
def test_threads_are_set_and_each_number_has_a_page_of_its_own(tmp_path):
    file = model(tmp_path / "m.onnx")
    one, two = web.load(file, BROWSER, threads=1), web.load(file, BROWSER, threads=2)
    x = np.ones((1, 2), np.float32)
    assert one.run({"x": x})["y"].tolist() == two.run({"x": x})["y"].tolist() == [[2, 2]]
    told = {threads: web._open["wasm", threads].page.facts for threads in (1, 2)}
    assert {threads: facts["threads"] for threads, facts in told.items()} == {1: 1, 2: 2}
    assert all(facts["isolated"] for facts in told.values())


# --- what is stored, and what it computes ---------------------------------------------------------------

RECIPES = {
    "fp32": {"method": "none"},
    "w8a8 of the full range": {"weights": {"bits": 8}, "activations": {"bits": 8}, "calibration": {"overflow_fix": "off"}},
    "w8": {"method": "round-to-nearest", "weights": {"bits": 8}},
    "w4 in groups": {"method": "round-to-nearest", "weights": {"bits": 4, "group": 32}},
    "w3": {"method": "round-to-nearest", "weights": {"bits": 3}},
}


@pytest.fixture(scope="module")
def variant(trained, tmp_path_factory):
    """Make a variant of RECIPES, once."""

    @functools.cache
    def variant(name: str) -> Variant:
        return make(VariantRecipe(name="v", **RECIPES[name]), trained.job, tmp_path_factory.mktemp("variant"))

    return variant


@browser
@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_webassembly_agrees_with_exact_arithmetic(variant, trained, tmp_path, name):
    """Integers too: they are summed in 32 bits, whatever this processor has."""
    file = web.convert(variant(name), BROWSER, tmp_path)["model"]
    inputs = trained.task.inputs(trained.splits.test.take(np.arange(40)))
    session = web.load(file, BROWSER)
    near = compare(web.load(file, BROWSER, exact=True).run(inputs), session.run(inputs))
    assert near.sqnr_db > (35 if "w8a8" in name else 110)
    assert set(session.providers) == {"WASM"}
    if name not in ("fp32", "w8a8 of the full range"):  # expanded on loading, so that no more nodes run than in fp32
        (tmp_path / "fp32").mkdir()
        fp32 = web.load(web.convert(variant("fp32"), BROWSER, tmp_path / "fp32")["model"], BROWSER)
        assert session.providers == fp32.providers


@browser
@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_webgpu_agrees_and_what_falls_to_webassembly_is_counted(variant, trained, tmp_path, name):
    webgpu_or_skip()
    file = web.convert(variant(name), WEBGPU, tmp_path)["model"]
    inputs = trained.task.inputs(trained.splits.test.take(np.arange(4)))
    session = web.load(file, WEBGPU)
    assert compare(web.load(file, WEBGPU, exact=True).run(inputs), session.run(inputs)).sqnr_db > (
        35 if "w8a8" in name else 100
    )
    assert session.providers["WebGPU"] > 5
    assert ("WASM" in session.providers) == ("w8a8" in name)


@pytest.mark.parametrize("target", [BROWSER, WEBGPU], ids=lambda target: target.name)
def test_what_ships_is_the_same_each_time_and_opens_with_the_targets_provider(tmp_path, target):
    source = {"model": model(tmp_path / "v" / "model.onnx")}
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        web.convert(Variant("fp32", "none", Scheme(), tmp_path, source, "graph"), target, tmp_path / folder)
    files = sorted(file.name for file in (tmp_path / "a").iterdir())
    assert files == ["check.html", "model.onnx"]
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    provider = re.search(r'data-provider="(\w+)"', (tmp_path / "a" / "check.html").read_text())
    assert provider[1] == target.options["provider"]


# --- faults ----------------------------------------------------------------------------------------------


@browser
@pytest.mark.parametrize("content", [b"", b"not a graph"])
def test_a_damaged_model_is_bad_input(tmp_path, content):
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(BadInput, match=r"m\.onnx: ONNX Runtime Web cannot load it"):
        web.load(tmp_path / "m.onnx", BROWSER)


@browser
def test_a_wrong_input_is_told_and_the_next_call_works(tmp_path):
    session = web.load(model(tmp_path / "m.onnx"), BROWSER)
    with pytest.raises(BadInput, match=r"m\.onnx: ONNX Runtime Web cannot run it"):
        session.run({"x": np.ones((1, 3), np.float32)})
    with pytest.raises(BadInput, match=r"cannot run it"):
        session.run({"x": np.ones((1, 2), np.float64)})
    assert session.run({"x": np.ones((1, 2), np.float32)})["y"].tolist() == [[2, 2]]


@browser
def test_a_page_without_isolation_is_refused(tmp_path, monkeypatch):
    """It would run on one thread, and say nothing."""
    web.close_browsers()
    monkeypatch.setattr(part, "ISOLATION", {})
    with pytest.raises(Missing, match=r"not isolated \(crossOriginIsolated is false\)"):
        web.load(model(tmp_path / "m.onnx"), BROWSER)
    assert not web._open


@browser
def test_a_page_whose_runtime_does_not_load_says_so(tmp_path, monkeypatch):
    web.close_browsers()
    (tmp_path / "dist").mkdir()
    (tmp_path / "dist" / "ort.wasm.min.mjs").write_text("throw new Error('this is no runtime')")
    monkeypatch.setenv(web.VARIABLE, str(tmp_path / "dist"))
    with pytest.raises(Missing, match="this is no runtime"):
        web.load(model(tmp_path / "m.onnx"), BROWSER)


@pytest.fixture(scope="module", autouse=True)
def _no_browser_stays():
    """Other tests count the processes that we have started."""
    yield
    web.close_browsers()


def processes(profile: Path) -> list[int]:
    """Return the processes that were started with a profile."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if str(profile).encode() in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def wait_until_none(profile: Path) -> list[int]:
    for _ in range(100):
        if not (left := processes(profile)):
            return []
        time.sleep(0.1)
    return left


@browser
def test_chromium_killed_midway_is_told_and_leaves_nothing(tmp_path):
    web.close_browsers()
    session = web.load(model(tmp_path / "m.onnx"), BROWSER)
    ours = web._open["wasm", 0].chromium
    assert processes(ours.profile)
    ours.process.kill()
    assert wait_until_none(ours.profile) == []  # the page may live a moment longer, and answer
    with pytest.raises(Missing, match=r"Chromium ended \(exit status -9\)"):
        session.run({"x": np.ones((1, 2), np.float32)})
    assert wait_until_none(ours.profile) == []
    assert not ours.profile.exists()
    again = web.load(tmp_path / "m.onnx", BROWSER)
    assert again.run({"x": np.ones((1, 2), np.float32)})["y"].tolist() == [[2, 2]]


HOLD = """
import signal, sys, time
from pathlib import Path
from edgekd.backends import web
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background inherits that it is ignored
session = web.load(Path(sys.argv[1]))
print(web._open["wasm", 0].chromium.profile, flush=True)
time.sleep(60)
"""


def holding(folder: Path) -> tuple[subprocess.Popen[str], Path]:
    """Start a process that holds a browser open; return it and the browser's profile."""
    said = folder / "stderr.txt"
    with said.open("w") as errors:
        held = subprocess.Popen(
            [sys.executable, "-c", HOLD, model(folder / "m.onnx")], stdout=subprocess.PIPE, stderr=errors, text=True
        )
    profile = held.stdout.readline().strip()
    assert profile, f"no browser was opened: {said.read_text()}"
    return held, Path(profile)


@browser
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda how: how.name)
def test_when_we_are_killed_no_browser_stays(tmp_path, how):
    held, profile = holding(tmp_path)
    assert len(processes(profile)) > 1
    held.send_signal(how)
    held.wait(timeout=20)
    held.stdout.close()
    assert wait_until_none(profile) == []
    assert not profile.exists() or how != signal.SIGINT
    shutil.rmtree(profile, ignore_errors=True)  # what is left of it when nobody was there to remove it


@browser
def test_profiles_of_the_killed_are_removed_and_those_of_the_living_are_not(tmp_path, monkeypatch, request):
    short = Path(tempfile.mkdtemp(prefix="e"))  # Chromium's socket lies below, and may have 108 characters
    request.addfinalizer(lambda: shutil.rmtree(short, ignore_errors=True))
    monkeypatch.setenv("TMPDIR", str(short))
    monkeypatch.setattr("tempfile.tempdir", None)

    def aged(profile: Path) -> Path:
        os.utime(profile / chromium._HELD, (0, 0))
        return profile

    killed, left = holding(tmp_path)
    killed.kill()
    killed.wait(timeout=20)
    killed.stdout.close()
    assert wait_until_none(left) == []
    assert aged(left).parent == short
    living = chromium.Chromium("about:blank")
    try:
        assert not left.exists()
        aged(living.profile)
        chromium.Chromium("about:blank").close()
        assert living.profile.exists()
    finally:
        living.close()
    assert not living.profile.exists()


def program(file: Path, text: str) -> Path:
    file.write_text(text)
    file.chmod(0o755)
    return file


@browser
def test_a_verdict_depends_on_the_browser_and_a_broken_one_is_found_out(tmp_path, monkeypatch):
    whole = web.executes(BROWSER)
    assert re.search(r"in headless Chrom\w+ \d+\.[\d.]+ on ", whole.why)
    broken = program(
        tmp_path / "chromium", "#!/bin/sh\n[ $1 = --version ] && echo Chromium 1.2.3.4 && exit\necho lost >&2\nexit 7\n"
    )
    found = chromium.program()
    monkeypatch.setenv(chromium.VARIABLE, str(broken))
    assert chromium.version(str(broken)) == "Chromium 1.2.3.4"
    told = web.executes(BROWSER)
    assert told.by is None
    assert told.why == "the page for wasm does not run in Chromium here: Chromium ended (exit status 7): lost"
    monkeypatch.setenv(chromium.VARIABLE, found)
    assert web.executes(BROWSER) == whole
    newer = program(tmp_path / "newer", f'#!/bin/sh\n[ $1 = --version ] && echo Chromium 999.0.1 && exit\nexec {found} "$@"\n')
    monkeypatch.setenv(chromium.VARIABLE, str(newer))
    assert "headless Chromium 999.0.1 on" in web.executes(BROWSER).why


def test_without_chromium_or_the_runtime_it_says_how_to_get_them(tmp_path, monkeypatch):
    web.close_browsers()
    monkeypatch.setenv(chromium.VARIABLE, "chromiun")
    assert web.executes(BROWSER).by is None
    assert (
        web.executes(BROWSER).why
        == "EDGEKD_CHROMIUM is set to `chromiun`, which is no program here: set it to Chromium's, or unset it"
    )
    monkeypatch.delenv(chromium.VARIABLE)
    monkeypatch.setattr(chromium, "NAMES", ())
    assert "apt-get install chromium" in web.executes(BROWSER).why
    monkeypatch.setenv(chromium.VARIABLE, str(program(tmp_path / "chromium", "#!/bin/sh\n")))
    monkeypatch.setenv(web.VARIABLE, str(tmp_path))
    assert f"EDGEKD_ONNXRUNTIME_WEB is set to `{tmp_path}`, where no ort.wasm.min.mjs lies" in web.executes(BROWSER).why
    assert "npm install --ignore-scripts onnxruntime-web@" in web.executes(BROWSER).why
    with pytest.raises(Missing, match="npm install"):
        web.load(model(tmp_path / "m.onnx"), BROWSER)
    assert web.missing() is None  # nothing is needed to convert


# --- check.py, with a browser that somebody opens --------------------------------------------------------


@pytest.fixture
def shipped(tmp_path):
    """Make an artifact: shipped(factor of what is golden) -> Artifact."""

    def shipped(factor: float = 1.0) -> artifacts.Artifact:
        variant = Variant("fp32", "none", Scheme(), tmp_path, {"model": model(tmp_path / "v" / "model.onnx")}, "graph")
        x = np.array([[1, 2], [3, 4.5]], np.float32)
        reference = {"y": 2 * x * np.float32(factor), "z": x}
        golden = {"model": {"x": x}}
        folder = tmp_path / f"a{factor}"
        return artifacts.make(variant, BROWSER, folder, golden=golden, reference=lambda *_: reference, gate=Gate())

    return shipped


def check(folder: Path, opens: bool = True, **environment: str) -> tuple[int, str, str]:
    """Run check.py, and open the address that it says in Chromium; return (exit code, output, errors)."""
    told = {web.VARIABLE: str(web.runtime_folder() or ""), **environment}
    ran = subprocess.Popen(
        [sys.executable, "-I", folder / "check.py", "--json", "--threads", "2", "--seconds", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder.parent,
        env={**os.environ, **told},
    )
    said = ran.stderr.readline()
    visitor = chromium.Chromium(re.search(r"http://127\.0\.0\.1:\d+/\S*", said)[0]) if opens else None
    try:
        output, errors = ran.communicate(timeout=120)
    finally:
        ran.kill()
        if visitor:
            visitor.close()
    return ran.returncode, output, said + errors


@browser
def test_check_runs_in_whatever_browser_opens_its_address(shipped):
    code, output, _ = check(shipped().folder)
    found = json.loads(output)
    assert (code, found["right"], found["problems"]) == (0, True, [])
    assert (found["runtime"], found["emulator"]) == ("onnxruntime-web", None)
    assert "Chrome" in found["system"]
    assert found["browser"]["isolated"]
    assert found["browser"]["threads"] == 2
    graph = found["graphs"]["model"]
    assert graph["providers"] == {"WASM": 2}
    assert graph["warm_count"] == 20
    assert 0 < graph["warm_median_s"] < 1


@browser
def test_check_finds_wrong_outputs_and_damage(shipped):
    code, output, _ = check(shipped(2).folder)
    assert code == 3
    assert json.loads(output)["graphs"]["model"]["relative_error"] == pytest.approx(0.5)
    made = shipped(1.5)
    (made.folder / "model.onnx").write_bytes(b"nothing")
    code, output, _ = check(made.folder, opens=False)  # that is found out before
    assert code == 3
    assert "model.onnx: damaged or replaced (SHA-256 differs)" in json.loads(output)["problems"]


def test_check_without_the_runtime_says_how_to_get_it(shipped, tmp_path):
    code, _, errors = check(shipped().folder, opens=False, **{web.VARIABLE: str(tmp_path / "none")})
    assert code == 4
    assert "npm install --ignore-scripts onnxruntime-web@1.30.0" in errors


def test_the_files_of_the_page_alone_are_served(tmp_path):
    from urllib.error import HTTPError
    from urllib.request import urlopen

    (tmp_path / "dist").mkdir()
    (tmp_path / "dist" / "ort.mjs").write_text("runtime")
    (tmp_path / "secret").write_text("secret")
    page = part.Page("<html>", tmp_path / "dist", 1)
    try:
        base = page.address.rpartition("/")[0]
        with urlopen(f"{base}/ort/ort.mjs") as answer:
            assert answer.read() == b"runtime"
            assert answer.headers["Cross-Origin-Opener-Policy"] == "same-origin"
            assert answer.headers["Cross-Origin-Embedder-Policy"] == "require-corp"
        for path in ("/ort/../secret", "/ort/%2e%2e%2fsecret", "/ort/..", "/ort/", "/secret", "/model/0/secret", "/etc/passwd"):
            with pytest.raises(HTTPError, match="404"):
                urlopen(base + path)
    finally:
        page.close()


@pytest.fixture
def page(tmp_path):
    page = part.Page("<html>", tmp_path, 1)
    page.files["/model/0/m.onnx"] = model(tmp_path / "m.onnx")
    yield page
    page.close()


def asked(page: part.Page, path: str, body: bytes | None = None, **headers: str) -> int:
    """Ask the server for a path of the whole host; return its status."""
    connection = http.client.HTTPConnection(urlsplit(page.address).netloc, timeout=5)
    try:
        connection.request("GET" if body is None else "POST", path, body, headers)
        return connection.getresponse().status
    finally:
        connection.close()


def test_who_finds_the_port_gets_nothing_and_can_send_nothing(page):
    answer = part.pack({"id": 0, "error": "from somebody else"}, {})
    other = "0" * 8 if page.key != "0" * 8 else "1" * 8
    for path in (
        "/",
        "/job",
        "/model/0/m.onnx",
        f"/{other}/",
        f"/{other}/job",
        "/%C3%A4/",
    ):
        assert asked(page, path) == 403, path
    for path in ("/result", f"/{other}/result", f"/{page.key}/job", f"/{page.key}/"):
        assert asked(page, path, answer) == 403, path
    assert page._results.empty()
    assert asked(page, f"/{page.key}") == 302
    assert asked(page, f"/{page.key}/") == asked(page, f"/{page.key}/model/0/m.onnx") == 200
    assert asked(page, f"/{page.key}/result", answer) == 204
    with pytest.raises(RuntimeError, match="from somebody else"):
        page.wait()


def test_an_answer_has_a_length_that_memory_holds(page):
    result = f"/{page.key}/result"
    for length, status in ((str(1 << 40), 413), ("-1", 411), ("many", 411), ("\u00b2".encode().decode("latin1"), 411)):
        assert asked(page, result, b"x", **{"Content-Length": length}) == status
    assert page._results.empty()


FACTS = {"isolated": True, "cores": 8, "threads": 1, "agent": "A browser", "version": "1.30.0", "adapter": None}


@pytest.mark.parametrize(
    "wrong", [{"isolated": "yes"}, {"cores": None}, {"cores": [1]}, {"agent": {}}, {"adapter": "a GPU"}, {"version": 7}]
)
def test_what_a_page_says_of_itself_is_of_the_right_kind(page, wrong):
    page._results.put(part.pack({"id": 0, **FACTS, **wrong}, {}))
    (name,) = wrong
    with pytest.raises(RuntimeError, match=f"what the page says of itself cannot be: `{name}`"):
        page.wait()


def test_what_a_page_says_of_itself_is_kept_and_no_more(page):
    page._results.put(part.pack({"id": 0, **FACTS, "adapter": {"vendor": "v" * 999}, "more": 1, "agent": "A" * 999}, {}))
    assert page.wait() == {**FACTS, "adapter": {"vendor": "v" * 200}, "agent": "A" * 500}


@pytest.mark.parametrize("body", [b"", b"\0", b"\5\0\0\0hello", part.pack({"no": "id"}, {}), b"\2\0\0\0[]"])
def test_an_answer_that_is_none_is_told(page, body):
    page._results.put(body)
    with pytest.raises(RuntimeError, match="the page sent what is no answer"):
        page.wait(patience=2)


SPIN = "data:text/html,<script>const end = Date.now() + 1500; while (Date.now() < end);</script>"


def renderers(leader: psutil.Process) -> list[psutil.Process]:
    found = []
    for one in leader.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # a zombie is none, too
            if "--type=renderer" in one.cmdline():
                found.append(one)
    return found


@browser
def test_a_browser_that_nobody_holds_any_more_ends():
    """Else it would burn a core for as long as we live, in a profile that others may sweep away."""
    started = chromium.Chromium("about:blank")
    profile = started.profile
    while not processes(profile):  # until it is begun
        time.sleep(0.05)
    del started
    gc.collect()
    assert wait_until_none(profile) == []
    assert not profile.exists()


@browser
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells whose processor time it was")
def test_processor_time_of_a_browsers_processes_counts_as_ours(tmp_path):
    """Else a bench would find that other processes used this machine."""
    before = os.times()
    started = chromium.Chromium(SPIN)
    try:
        leader = psutil.Process(started.process.pid)
        end = time.monotonic() + 60
        while time.monotonic() < end:
            if spent := max((one.cpu_times().user for one in renderers(leader)), default=0.0) >= 0.5:
                break
            time.sleep(0.05)
        assert spent
        own = sum(leader.cpu_times()[:2])
        all_of_them = own + sum(sum(one.cpu_times()[:2]) for one in leader.children(recursive=True))
    finally:
        started.close()
    after = os.times()
    counted = after.children_user + after.children_system - before.children_user - before.children_system
    assert all_of_them > own + 0.4
    assert counted > 0.9 * all_of_them
    assert not processes(started.profile)  # and none of them is left, at once


def test_chromium_can_be_imported_where_there_is_no_fcntl():
    """Windows has none."""
    code = "import sys; sys.modules['fcntl'] = None; sys.platform = 'win32'\n"
    code += "from edgekd.backends import chromium; print(chromium.program(), chromium.missing())"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "on Linux and macOS alone" in ran.stdout
