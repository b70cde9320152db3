"""A new folder appears whole; what lora_np did not write is never touched, and what it wrote only when asked."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from builders import model

from lora_np.adaptation import ADAPTER, CHECKPOINT
from lora_np.cli.measuring import BENCH
from lora_np.disk import folders, renaming, writing
from lora_np.disk.folders import check_free, new_folder, partial_folder
from lora_np.disk.marks import EARLIER, MARK, Kind
from lora_np.disk.renaming import exchange, rename_new
from lora_np.disk.writing import write_atomically, write_json, write_new
from lora_np.files import MODEL, digest, load_model, save_model
from lora_np.paper.study import STUDY

ANY = Kind("thing", ("a", "b", "sub/*.json"))
LONG = Kind("run", ("a", "b"), resumes="a")
SMALL = model(0, "float32"), model(1, "float32")


def listing(folder: Path) -> dict[str, bytes]:
    """Every path below the folder but the marks: files with their bytes, links with where they lead."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            found[str(path.relative_to(folder))] = b"-> " + os.fsencode(os.readlink(path))
        elif path.name != MARK:
            found[str(path.relative_to(folder))] = path.read_bytes() if path.is_file() else b"/"
    return found


def write(path: Path, kind: Kind = ANY, meanwhile: Callable[[], Any] = lambda: None, **rest: Any) -> None:
    """A new folder with a file `a`, and what happens meanwhile."""
    with new_folder(path, kind, **rest) as folder:
        (folder / "a").write_bytes(b"1")
        meanwhile()


def interrupt() -> None:
    raise KeyboardInterrupt


def stopped(path: Path, kind: Kind = LONG, **rest: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        write(path, kind, interrupt, **rest)


# a file is whole or not at all


@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    write_json(tmp_path / "a.json", {"a": 1})
    before = listing(tmp_path)
    monkeypatch.setattr(os, fails, full)
    with pytest.raises(OSError, match="No space left") as found:
        write_json(tmp_path / "a.json", {"a": 2})
    assert found.value.filename == str(tmp_path / "a.json")
    assert listing(tmp_path) == before


def test_until_the_rename_a_reader_meets_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, met = tmp_path / "a", []
    path.write_bytes(b"old")
    rename = os.replace

    def looking(source: Path, target: Path) -> None:
        met.append(path.read_bytes())
        rename(source, target)
        met.append(path.read_bytes())

    monkeypatch.setattr(os, "replace", looking)
    write_atomically(path, b"new")
    assert met == [b"old", b"new"]
    assert listing(tmp_path) == {"a": b"new"}


def test_a_new_file_replaces_nothing_that_is_there(tmp_path: Path) -> None:
    write_new(tmp_path / "a", b"first")
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("a", "link"):
        with pytest.raises(FileExistsError):
            write_new(tmp_path / name, b"second")
    assert listing(tmp_path) == {"a": b"first", "link": b"-> nowhere"}


def test_a_name_that_is_taken_beside_a_file_is_not_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "precious").write_bytes(b"1")
    (tmp_path / ".a.00").symlink_to("precious")
    monkeypatch.setattr(writing.secrets, "token_hex", lambda _: "00")
    with pytest.raises(FileExistsError):
        write_atomically(tmp_path / "a", b"2")
    assert (tmp_path / "precious").read_bytes() == b"1"


# renames that never replace


@pytest.fixture(params=["as the system does it", "without such a call"])
def _system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "without such a call":
        monkeypatch.setattr(renaming, "_system_call", lambda: None)


@pytest.mark.usefixtures("_system")
@pytest.mark.parametrize("stands", ["empty folder", "folder", "file", "link", "dangling link"])
@pytest.mark.parametrize("source", ["folder", "file"])
def test_a_rename_to_a_new_name_replaces_nothing(tmp_path: Path, source: str, stands: str) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    made: dict[str, Callable[[Path], Any]] = {
        "empty folder": lambda path: path.mkdir(),
        "folder": lambda path: (path.mkdir(), (path / "f").touch()),
        "file": lambda path: path.touch(),
        "link": lambda path: path.symlink_to(tmp_path),
        "dangling link": lambda path: path.symlink_to("nowhere"),
    }
    made[source](ours)
    rename_new(ours, tmp_path / "free")
    assert not ours.exists()
    made[source](ours)
    made[stands](theirs)
    before = os.lstat(theirs)
    with pytest.raises(FileExistsError):
        rename_new(ours, theirs)
    assert os.path.samestat(before, os.lstat(theirs))
    assert ours.exists()


def test_two_folders_trade_their_names_in_one_step_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    traded = exchange(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b" / ("a" if traded else "b")).exists()
    assert traded or sys.platform not in renaming.FLAGS
    monkeypatch.setattr(renaming, "_system_call", lambda: None)
    assert not exchange(tmp_path / "a", tmp_path / "b")


@pytest.mark.skipif(sys.platform != "linux", reason="the numbers are those of Linux")
def test_a_file_system_without_such_a_rename_is_told_from_a_name_that_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answers(number: int) -> Callable[[bytes, bytes, int], int]:
        return lambda *_: renaming.ctypes.set_errno(number) or -1

    (tmp_path / "a").mkdir()
    monkeypatch.setattr(renaming, "_system_call", lambda: answers(errno.EEXIST))
    with pytest.raises(FileExistsError):
        rename_new(tmp_path / "a", tmp_path / "b")
    monkeypatch.setattr(renaming, "_system_call", lambda: answers(errno.EINVAL))
    rename_new(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").is_dir()


# a folder appears when it is complete


def test_a_new_folder_appears_when_its_block_ends_well(tmp_path: Path) -> None:
    out = tmp_path / "far" / "out"
    with new_folder(out, ANY) as folder:
        (folder / "a").write_bytes(b"1")
        assert folder == partial_folder(out)
        assert not out.exists()
    assert listing(tmp_path) == {"far": b"/", "far/out": b"/", "far/out/a": b"1"}
    assert json.loads((out / MARK).read_text())["kind"]["files"] == ["a"]


@pytest.mark.parametrize("kind", [ANY, LONG], ids=lambda kind: kind.name)
def test_after_an_error_a_new_folder_is_gone_unless_it_can_be_resumed(tmp_path: Path, kind: Kind) -> None:
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "far" / "out", kind):
        raise KeyboardInterrupt
    assert listing(tmp_path) == {}
    stopped(tmp_path / "out", kind)
    assert listing(tmp_path) == ({"out.partial": b"/", "out.partial/a": b"1"} if kind.resumes else {})


def test_what_an_unfinished_folder_holds_is_taken_over_when_it_is_resumed_and_discarded_when_asked(
    tmp_path: Path,
) -> None:
    stopped(tmp_path / "out")
    with pytest.raises(FileExistsError, match=r"unfinished run: continue it with --resume, or discard .* --overwrite"):
        write(tmp_path / "out", LONG)
    (partial_folder(tmp_path / "out") / ".b.0aF1".lower()).write_bytes(b"half")  # killed while it wrote b
    stopped(tmp_path / "out", resume=True)
    assert listing(partial_folder(tmp_path / "out")) == {"a": b"1"}
    with new_folder(tmp_path / "out", LONG, overwrite=True) as folder:
        assert listing(folder) == {}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_unfinished_folder_of_a_version_without_marks_can_be_resumed(tmp_path: Path) -> None:
    partial = partial_folder(tmp_path / "out")
    partial.mkdir()
    (partial / "a").write_bytes(b"1")
    with pytest.raises(FileExistsError, match="no mark"):
        check_free(tmp_path / "out", LONG, overwrite=True)
    with new_folder(tmp_path / "out", LONG, resume=True) as folder:
        assert listing(folder) == {"a": b"1"}


def test_an_unfinished_run_is_never_cleared_by_another_command(tmp_path: Path) -> None:
    stopped(tmp_path / "out")
    before = listing(tmp_path)
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match="unfinished run: continue or remove that one"):
            save_model(tmp_path / "out", SMALL[0], overwrite=overwrite)
        with pytest.raises(FileNotFoundError, match="nothing to resume"):
            check_free(tmp_path / "out", ADAPTER, overwrite=overwrite, resume=True)
    assert listing(tmp_path) == before


def test_what_a_killed_process_left_that_cannot_be_resumed_is_in_nobodys_way(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from lora_np.files import MODEL, new_folder\n"
        "with new_folder(Path(sys.argv[1]), MODEL) as folder:\n    (folder / 'config.json').touch(); os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path / "m")], check=False).returncode == 9
    assert set(listing(tmp_path)) == {"m.partial", "m.partial/config.json"}
    save_model(tmp_path / "m", SMALL[0])
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_two_at_once_never_write_one_folder(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    with new_folder(tmp_path / "out", ANY) as folder:
        (folder / "a").write_bytes(b"1")
        found: list[BaseException] = []

        def other() -> None:
            try:
                write(tmp_path / "out")
            except OSError as error:
                found.append(error)

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert "another process" in str(found[0])
        assert (folder / "a").exists()
    assert listing(tmp_path / "out") == {"a": b"1"}


# what is not ours


def folder_with(path: Path, **contents: str) -> None:
    path.mkdir()
    for name, text in contents.items():
        (path / name.replace("_", ".")).write_text(text)


def states(folder: Path) -> dict[Path, tuple[int, ...]]:
    """What everything below a folder is: kind, identity, size, times of change; not when it was last looked at."""
    found = {path: os.lstat(path) for path in folder.rglob("*")}
    return {path: (f.st_mode, f.st_ino, f.st_size, f.st_mtime_ns, f.st_ctime_ns) for path, f in found.items()}


STANDING: dict[str, tuple[Callable[[Path], Any], str]] = {
    "an empty folder": (lambda path: path.mkdir(), "is empty"),
    "somebody's folder": (lambda path: folder_with(path, notes_txt="mine"), "holds notes.txt"),
    "a folder of names like ours": (lambda path: folder_with(path, config_json="{}", model_safetensors=""), "no mark"),
    "another program's model": (
        lambda path: folder_with(path, config_json='{"model_type": "gpt2"}', model_safetensors=""),
        "no mark",
    ),
    "a file": (lambda path: path.write_text("mine"), "a regular file"),
    "a link to a folder": (lambda path: path.symlink_to(path.parent / "elsewhere"), "a symbolic link"),
    "a dangling link": (lambda path: path.symlink_to("nowhere"), "a symbolic link"),
    "a link to itself": (lambda path: path.symlink_to(path.name), "a symbolic link"),
    "a pipe": (lambda path: os.mkfifo(path), "a pipe"),
}


@pytest.mark.parametrize("where", ["out", "out.partial"])
@pytest.mark.parametrize("name", STANDING)
def test_what_is_not_ours_is_named_and_stays_as_it_was(tmp_path: Path, name: str, where: str) -> None:
    if where == "out.partial" and name == "an empty folder":
        pytest.skip("there is nothing in it to lose: it is used")
    stands, words = STANDING[name]
    save_model(tmp_path / "elsewhere", SMALL[0])
    stands(tmp_path / where)
    before = states(tmp_path)
    for kind in (MODEL, ADAPTER, STUDY, BENCH):
        for rest in ({}, {"overwrite": True}):
            with pytest.raises(FileExistsError) as found:
                write(tmp_path / "out", kind, **rest)
            assert words in str(found.value)
            assert str(tmp_path / where) in str(found.value)
        with pytest.raises(OSError, match=r"exists|nothing to resume"):
            write(tmp_path / "out", kind, resume=True)
    assert states(tmp_path) == before


@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize("foreign", ["notes.txt", "sub", "b"])
def test_a_file_of_the_users_in_a_folder_of_ours_keeps_it_from_being_replaced(
    tmp_path: Path, foreign: str, partial: bool
) -> None:
    if partial:
        stopped(tmp_path / "out")
    else:
        write(tmp_path / "out", LONG)
    place = tmp_path / ("out.partial" if partial else "out") / foreign
    if foreign == "b":
        (tmp_path / "mine").write_text("mine")
        place.symlink_to(tmp_path / "mine")  # a name that we write, and a link that we do not
    else:
        place.mkdir() if foreign == "sub" else place.write_text("mine")
    before = listing(tmp_path)
    for rest in ({"overwrite": True}, {"resume": True, "overwrite": True}):
        with pytest.raises(OSError, match=rf"holds {foreign}, which lora_np did not write|nothing to resume"):
            write(tmp_path / "out", LONG, **rest)
    assert listing(tmp_path) == before


def test_what_came_into_a_folder_while_it_was_built_is_not_delivered_and_not_removed(tmp_path: Path) -> None:
    for kind in (ANY, LONG):
        with pytest.raises(FileExistsError, match=r"notes.txt, which lora_np did not write"):
            write(tmp_path / "out", kind, lambda: (tmp_path / "out.partial" / "notes.txt").write_text("mine"))
        assert not (tmp_path / "out").exists()
        assert (tmp_path / "out.partial" / "notes.txt").read_text() == "mine"
        (tmp_path / "out.partial" / "notes.txt").unlink()
        if kind is LONG:
            write(tmp_path / "out", kind, resume=True)
        else:
            (tmp_path / "out.partial").rmdir()


@pytest.mark.usefixtures("_system")
@pytest.mark.parametrize("overwrite", [False, True])
def test_what_comes_to_stand_there_during_the_run_stays_and_the_work_as_well(tmp_path: Path, overwrite: bool) -> None:
    with pytest.raises(FileExistsError, match=r"exists|came into being meanwhile"):
        write(tmp_path / "out", ANY, lambda: folder_with(tmp_path / "out", notes_txt="mine"), overwrite=overwrite)
    assert listing(tmp_path) == {
        "out": b"/",
        "out/notes.txt": b"mine",
        "out.partial": b"/",
        "out.partial/a": b"1",
    }


@pytest.mark.parametrize("bad", ["", ".", "..", "/", "sub/.."])
def test_a_path_that_names_no_new_folder_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    with pytest.raises(FileExistsError, match="no name for a new folder"):
        write(Path(bad), overwrite=True)
    assert listing(tmp_path) == {"sub": b"/"}


def test_a_folder_that_holds_an_input_is_never_replaced(tmp_path: Path) -> None:
    write(tmp_path / "out", Kind("thing", ("a", "sub/b.json")))
    (tmp_path / "link").symlink_to(tmp_path / "out" / "a")
    (tmp_path / "round").symlink_to(tmp_path)
    check_free(tmp_path / "out", ANY, overwrite=True, inputs=(tmp_path / "other", None))
    for given in ("out", "out/a", "link", "round/out", "out/../out/a", "out.partial/x"):
        if given.startswith("out.partial"):
            (tmp_path / "out.partial").mkdir()
            (tmp_path / "out.partial" / "x").touch()
        with pytest.raises(FileExistsError, match="which is read here"):
            check_free(tmp_path / "out", ANY, overwrite=True, inputs=(tmp_path / given,))


# what is ours


@pytest.mark.usefixtures("_system")
def test_an_existing_folder_is_refused_and_replaced_when_asked(tmp_path: Path) -> None:
    first, second = SMALL
    save_model(tmp_path / "m", first)
    before = listing(tmp_path)
    with pytest.raises(FileExistsError, match="exists: choose another --out, or allow --overwrite"):
        save_model(tmp_path / "m", second)
    assert listing(tmp_path) == before
    save_model(tmp_path / "m", second, overwrite=True)
    assert digest(load_model(tmp_path / "m")) == digest(second) != digest(first)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


@pytest.mark.usefixtures("_system")
def test_a_new_folder_that_cannot_take_its_place_leaves_the_old_one_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(tmp_path / "out", SMALL[0])
    before = listing(tmp_path / "out")
    rename = folders.rename_new

    def fails_for_the_new(source: Path, target: Path) -> None:
        if source == partial_folder(tmp_path / "out"):
            raise OSError("cannot rename")
        rename(source, target)

    monkeypatch.setattr(folders, "exchange", lambda *_: False)
    monkeypatch.setattr(folders, "rename_new", fails_for_the_new)
    with pytest.raises(OSError, match="cannot rename"):
        save_model(tmp_path / "out", SMALL[1], overwrite=True)
    assert listing(tmp_path / "out") == before
    assert {path.name for path in tmp_path.iterdir()} == {"out", "out.partial"}


@pytest.mark.skipif(sys.platform not in renaming.FLAGS, reason="needs a system that can exchange two names")
def test_a_folder_that_comes_between_the_last_look_and_the_exchange_is_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(one: Path, other: Path) -> bool:
        if not (tmp_path / "old").exists():
            other.rename(tmp_path / "old")
            folder_with(other, notes_txt="mine")
        return exchange(one, other)

    write(tmp_path / "out")
    monkeypatch.setattr(folders, "exchange", late)
    with pytest.raises(FileExistsError, match="was changed meanwhile and stays"):
        write(tmp_path / "out", overwrite=True)
    assert listing(tmp_path / "out") == {"notes.txt": b"mine"}
    assert listing(tmp_path / "out.partial") == {"a": b"1"}


def test_replacing_a_folder_that_fails_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lora_np import files

    save_model(tmp_path / "m", SMALL[0])
    before = listing(tmp_path)

    def fails(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(files, "write_json", fails)  # the second file of the two
    for name, overwrite in (("m", True), ("another", False)):
        with pytest.raises(OSError, match="disk full"):
            save_model(tmp_path / name, SMALL[1], overwrite=overwrite)
    assert listing(tmp_path) == before


@pytest.mark.parametrize("name", EARLIER)
def test_a_folder_of_an_earlier_version_may_be_replaced_when_it_holds_nothing_else(tmp_path: Path, name: str) -> None:
    keys, files = EARLIER[name]
    folder = tmp_path / "out"
    for pattern in files:
        path = folder / pattern.replace("*", "x")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(dict.fromkeys(keys, 1)) if pattern == name else "")
    with pytest.raises(FileExistsError, match="allow --overwrite"):
        check_free(folder, ANY)
    check_free(folder, ANY, overwrite=True)
    (folder / "notes.txt").touch()
    with pytest.raises(FileExistsError, match=r"holds notes\.txt"):
        check_free(folder, ANY, overwrite=True)
    (folder / "notes.txt").unlink()
    write(folder, overwrite=True)
    assert listing(tmp_path) == {"out": b"/", "out/a": b"1"}


def test_every_kind_names_what_it_writes_and_resumes_from_one_of_them() -> None:
    assert CHECKPOINT in ADAPTER.files
    assert all(kind.resumes is None or kind.resumes in kind.files for kind in (ADAPTER, MODEL, STUDY, BENCH))
    assert len({kind.name for kind in (ADAPTER, MODEL, STUDY, BENCH)}) == 4


# a place that cannot be written


def test_a_parent_that_is_no_folder_is_found_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "gone").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    for parent in ("file", "gone", "loop"):
        with pytest.raises(OSError, match=parent):
            check_free(tmp_path / parent / "out", ANY)
    with pytest.raises(OSError, match="name too long"):
        check_free(tmp_path / ("x" * 250), ANY)


def test_a_place_that_may_not_be_written_is_found_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # as access(2) says, also to root, of a read-only file system
    with pytest.raises(PermissionError, match="denied"):
        check_free(tmp_path / "far" / "out", ANY)
