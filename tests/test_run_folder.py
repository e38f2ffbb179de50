"""A stage is either not there or whole; a run folder belongs to one recipe and one process."""

from __future__ import annotations

import json
import multiprocessing
import os
from pathlib import Path

import pytest

from edgekd import run_folder
from edgekd.errors import BadInput

RECIPE = {"task": "image-classification", "data": {"source": "digits"}, "teacher": None, "student": {"model": "py:a.py:f"}}


def fill(text: str):
    def into(folder: Path) -> None:
        (folder / "model.bin").write_text(text)
        (folder / "sub").mkdir(exist_ok=True)
        (folder / "sub" / "more.bin").write_text(text * 2)

    return into


def test_a_finished_stage_is_found_by_its_fingerprint_only(tmp_path):
    made = run_folder.make(tmp_path, "distill", "student", "a" * 64, fill("one"))
    assert not made.cached
    found = run_folder.finished(tmp_path, "student", "a" * 64)
    assert found is not None
    assert found.cached
    assert found.seconds == made.seconds
    assert run_folder.finished(tmp_path, "student", "b" * 64) is None
    assert run_folder.finished(tmp_path, "variants/int8", "a" * 64) is None


@pytest.mark.parametrize("damage", ["truncate", "edit", "remove"])
def test_a_damaged_stage_is_not_finished(tmp_path, damage):
    run_folder.make(tmp_path, "distill", "student", "a" * 64, fill("one"))
    file = tmp_path / "student" / "sub" / "more.bin"
    if damage == "truncate":
        file.write_text("one")
    elif damage == "edit":
        file.write_text("twotwo")
    else:
        file.unlink()
    assert run_folder.finished(tmp_path, "student", "a" * 64) is None


def test_a_failing_stage_leaves_the_earlier_one_and_what_it_had(tmp_path):
    run_folder.make(tmp_path, "distill", "student", "a" * 64, fill("one"))

    def fail(folder: Path) -> None:
        (folder / "checkpoint").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_folder.make(tmp_path, "distill", "student", "b" * 64, fail)
    assert (tmp_path / "student" / "model.bin").read_text() == "one"
    seen = []
    run_folder.make(tmp_path, "distill", "student", "b" * 64, lambda f: seen.append((f / "checkpoint").read_text()))
    assert seen == ["half"]


def test_what_another_fingerprint_left_is_not_resumed(tmp_path):
    def fail(folder: Path) -> None:
        (folder / "checkpoint").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_folder.make(tmp_path, "distill", "student", "b" * 64, fail)
    seen: list[bool] = []
    run_folder.make(tmp_path, "distill", "student", "c" * 64, lambda f: seen.append((f / "checkpoint").exists()))
    assert seen == [False]
    assert not list((tmp_path / ".partial").iterdir())


def test_a_stage_made_again_replaces_the_old_one_whole(tmp_path):
    run_folder.make(tmp_path, "x", "x", "a" * 64, fill("one"))
    run_folder.make(tmp_path, "x", "x", "b" * 64, lambda f: (f / "other").write_text("two") and None)
    assert sorted(p.name for p in (tmp_path / "x").iterdir()) == [run_folder.RECORD, "other"]


def test_fingerprints_do_not_depend_on_the_order_of_keys():
    assert run_folder.fingerprint({"a": 1, "b": 2}) == run_folder.fingerprint({"b": 2, "a": 1})
    assert run_folder.fingerprint("a", "b") != run_folder.fingerprint("ab")
    assert run_folder.fingerprint(1) != run_folder.fingerprint("1")


def test_the_fingerprint_of_code_counts_every_file_that_ships(tmp_path, monkeypatch):
    for name in ("web.py", "web_page.html", "mil/rules.json", "__pycache__/web.pyc"):
        (tmp_path / "backends" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "backends" / name).write_text("one")
    monkeypatch.setattr(run_folder, "__file__", str(tmp_path / "run_folder.py"))

    def changed(name: str) -> bool:
        before = run_folder.code_fingerprint(["backends"])
        (tmp_path / "backends" / name).write_text("two")
        return run_folder.code_fingerprint(["backends"]) != before

    assert changed("web.py")
    assert changed("web_page.html")
    assert changed("mil/rules.json")
    assert not changed("__pycache__/web.pyc")


def test_what_a_stage_was_made_from_is_told_without_its_files(tmp_path):
    run_folder.make(tmp_path, "distill", "student", "a" * 64, fill("one"))
    (tmp_path / "student" / "model.bin").unlink()
    assert run_folder.made_from(tmp_path, "student", "a" * 64)
    assert not run_folder.made_from(tmp_path, "student", "b" * 64)
    assert not run_folder.made_from(tmp_path, "variants/int8", "a" * 64)


def test_a_folder_of_another_recipe_is_refused_and_untouched(tmp_path):
    run = tmp_path / "run"
    run_folder.claim(run, RECIPE, "compress")
    run_folder.write_manifest(run, {"schema": 1, "recipe": RECIPE})
    run_folder.claim(run, {**RECIPE, "student": {"model": "py:typo.py:f"}}, "compress")  # nothing finished: nothing to lose
    run_folder.make(run, "distill", "student", "a" * 64, fill("one"))
    before = (run / "manifest.json").read_bytes()
    run_folder.claim(run, RECIPE, "compress")
    with pytest.raises(BadInput, match=r"verb 'compress' there, 'train' here"):
        run_folder.claim(run, RECIPE, "train")
    with pytest.raises(BadInput, match=r"made by another recipe.*student 'py:a.py:f' there, 'py:b.py:g' here"):
        run_folder.claim(run, {**RECIPE, "student": {"model": "py:b.py:g"}}, "compress")
    assert (run / "manifest.json").read_bytes() == before


@pytest.mark.parametrize(
    ("here", "accepted"),
    [
        ({"student": {"model": "py:{new}/a.py:f"}}, True),
        ({"data": {"source": "{new}/pictures"}}, True),
        ({"student": {"model": "py:{new}/a.py:g"}}, False),
        ({"student": {"model": "py:{new}/b.py:f"}}, False),
        ({"student": {"model": "hf:{new}/a.py"}}, False),
        ({"student": {"model": "py:{kept}/a.py:f"}}, False),  # the old one is still where it was: this is another
    ],
)
def test_a_moved_project_is_the_same_recipe(tmp_path, here, accepted):
    old, new, kept = (tmp_path / name for name in ("old", "new", "kept"))
    for folder in (new, kept):
        folder.mkdir()
    there = old if "kept" not in str(here) else new
    (new / "a.py").touch()
    made = {**RECIPE, "data": {"source": f"{old}/pictures"}, "student": {"model": f"py:{there}/a.py:f"}}
    run = tmp_path / "run"
    run_folder.claim(run, made, "compress")
    run_folder.write_manifest(run, {"schema": 1, "recipe": made})
    run_folder.make(run, "distill", "student", "a" * 64, fill("one"))
    now = json.loads(json.dumps({**made, **here}).replace("{new}", str(new)).replace("{kept}", str(kept)))
    if accepted:
        run_folder.claim(run, now, "compress")
    else:
        with pytest.raises(BadInput, match="made by another recipe"):
            run_folder.claim(run, now, "compress")


def test_a_folder_with_other_things_in_it_is_refused(tmp_path):
    (tmp_path / "holiday.jpg").write_text("x")
    with pytest.raises(BadInput, match="not empty and not a run folder"):
        run_folder.claim(tmp_path, RECIPE, "compress")
    with pytest.raises(BadInput, match="is a file"):
        run_folder.claim(tmp_path / "holiday.jpg", RECIPE, "compress")


@pytest.mark.parametrize(
    ("content", "says"),
    [(None, "not a run folder"), ("{", "damaged"), ("[]", "damaged"), (json.dumps({"schema": 9}), "schema 9 is not known")],
)
def test_a_manifest_that_cannot_be_read_is_told(tmp_path, content, says):
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(BadInput, match=says):
        run_folder.read_manifest(tmp_path)


def _hold(path: Path, held, done) -> None:
    with run_folder.locked(path):
        held.set()
        done.wait(20)


def test_two_processes_do_not_share_a_run(tmp_path):
    context = multiprocessing.get_context("spawn")
    held, done = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(tmp_path, held, done))
    other.start()
    try:
        assert held.wait(20)
        with pytest.raises(BadInput, match="another edgekd is working"), run_folder.locked(tmp_path):
            pass
    finally:
        done.set()
        other.join()
    with run_folder.locked(tmp_path):
        pass


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    file = tmp_path / "manifest.json"
    run_folder.write_text(file, "old")
    monkeypatch.setattr(run_folder.os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        run_folder.write_text(file, "new")
    assert file.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["manifest.json"]


def test_a_project_that_may_no_longer_be_read_has_moved(tmp_path, monkeypatch):
    """As when a run that root made is used by somebody else: looking below /root is refused."""
    real = os.stat

    def stat(path, *more, **options):
        if "closed" in str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *more, **options)

    monkeypatch.setattr(os, "stat", stat)
    assert run_folder._same(f"py:{tmp_path}/closed/net.py:f", f"py:{tmp_path}/net.py:f")
    assert not run_folder._same(f"py:{tmp_path}/closed/net.py:f", f"py:{tmp_path}/net.py:g")
