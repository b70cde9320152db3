"""A file is read once and to a stated size; what is no file, or has no end, is refused in one line and at once."""

from __future__ import annotations

import hashlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import model

from lora_np.adaptation import DataConfig, Interrupted, adapt_to_file
from lora_np.disk import reading
from lora_np.disk.reading import Contents, check_regular, read_json, read_once, read_regular
from lora_np.files import load_adapter, load_model, save_model
from lora_np.methods.lora import LoraConfig
from lora_np.tasks import read_examples
from lora_np.training import TrainingConfig

PAIRS = "".join(f"question {i % 12}\tanswer {i % 3}\n" for i in range(24)).encode()
LARGE = PAIRS * 4000  # more than a pipe holds

pytestmark = pytest.mark.skipif(os.name != "posix", reason="pipes and devices as POSIX knows them")


@pytest.fixture
def pipe(tmp_path: Path) -> Iterator[Callable[[bytes], Path]]:
    """A named pipe into which a thread writes."""
    threads: list[threading.Thread] = []

    def feed(data: bytes) -> Path:
        path = tmp_path / f"pipe{len(threads)}.tsv"
        os.mkfifo(path)
        threads.append(threading.Thread(target=path.write_bytes, args=(data,)))
        threads[-1].start()
        return path

    yield feed
    for thread in threads:
        thread.join(10)


def test_what_is_read_is_what_is_digested(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(PAIRS)
    contents = read_once(tmp_path / "a")
    (tmp_path / "a").write_bytes(b"changed meanwhile")
    assert contents.data == PAIRS
    assert contents.digest == hashlib.sha256(PAIRS).hexdigest()


def test_a_pipe_is_read_to_its_end(pipe: Callable[[bytes], Path]) -> None:
    assert read_once(pipe(LARGE)).data == LARGE


def test_a_pipe_of_a_shell_is_read_to_its_end() -> None:
    read, write = os.pipe()
    with open(read, "rb"), open(write, "wb") as file:
        file.write(PAIRS)
        file.close()
        assert read_once(Path(f"/dev/fd/{read}")).data == PAIRS


def test_a_pipe_without_a_writer_is_refused_and_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "WAIT", 0.01)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="pipe that nothing was written into"):
        read_once(tmp_path / "pipe")


def standing(path: Path, what: str) -> Path:
    match what:
        case "a directory":
            path.mkdir()
        case "a pipe":
            os.mkfifo(path)
        case "a socket":
            with closing(socket.socket(socket.AF_UNIX)) as listener:
                listener.bind(os.fspath(path))
        case "a character device":
            path.symlink_to("/dev/zero")
    return path


@pytest.mark.parametrize("what", ["a directory", "a pipe", "a socket", "a character device"])
def test_what_is_no_regular_file_is_refused_by_what_it_is(
    tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    path = standing(Path("x"), what)
    monkeypatch.setattr(reading.os, "open", lambda *_: pytest.fail("it was opened"))
    for read in (read_regular, read_json, check_regular, *([] if what == "a pipe" else [read_once])):
        with pytest.raises((ValueError, IsADirectoryError), match=f"^x is {what}"):
            read(path)


def test_what_became_another_kind_of_file_after_it_was_looked_at_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(PAIRS)
    opened = os.open
    monkeypatch.setattr(reading.os, "open", lambda path, flags: opened("/dev/zero", flags))
    with pytest.raises(ValueError, match="a character device"):
        read_once(tmp_path / "a")


def test_no_more_is_read_than_was_stated(tmp_path: Path, pipe: Callable[[bytes], Path]) -> None:
    (tmp_path / "a").write_bytes(PAIRS)
    assert read_once(tmp_path / "a", most=len(PAIRS)).data == PAIRS
    for path in (tmp_path / "a", pipe(PAIRS)):
        with pytest.raises(ValueError, match=r"holds more than [\d,]+ bytes"):
            read_once(path, most=len(PAIRS) - 1)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for read in (read_once, read_json, check_regular):
        with pytest.raises(FileNotFoundError, match=r"none is missing: no such file"):
            read(tmp_path / "none")


def test_a_model_folder_of_pipes_is_refused(tmp_path: Path) -> None:
    save_model(tmp_path / "m", model(0, np.float32))
    for name in ("model.safetensors", "config.json"):
        (tmp_path / "m" / name).unlink()
        os.mkfifo(tmp_path / "m" / name)
        with pytest.raises(ValueError, match=rf"{name} is a pipe: it must be a regular file"):
            load_model(tmp_path / "m")


# a run on a pipe


def run(file: Path, out: Path, **rest: Any) -> Any:
    base = model(0, np.float32, vocab=256, context=48)
    training, data = TrainingConfig(steps=4), DataConfig(format="tsv", batch_size=4)
    adapt_to_file(file, out, base, LoraConfig(rank=2), training, data, checkpoint_every=2, **rest)
    return load_adapter(out, base)


def stop(records: Iterator[Any], total: int, done: int) -> Iterator[Any]:
    yield next(records)
    raise KeyboardInterrupt


def test_a_run_on_a_pipe_is_that_on_the_file_and_resumes_only_with_the_same_data(
    tmp_path: Path, pipe: Callable[[bytes], Path]
) -> None:
    (tmp_path / "pairs.tsv").write_bytes(PAIRS)
    run(tmp_path / "pairs.tsv", tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(pipe(PAIRS), tmp_path / "out", watch=stop)
    with pytest.raises(ValueError, match="another run: file was"):
        run(pipe(PAIRS.replace(b"answer 1", b"answer 9")), tmp_path / "out", resume=True)
    run(pipe(PAIRS), tmp_path / "out", resume=True)
    whole, out = ((tmp_path / name / "adapter.safetensors").read_bytes() for name in ("whole", "out"))
    assert whole == out


def test_a_run_reads_its_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, opened, real = tmp_path / "pairs.tsv", list[str](), os.open

    def recorded(path: Any, *rest: Any, **more: Any) -> int:
        opened.append(str(path))
        return real(path, *rest, **more)

    file.write_bytes(PAIRS)
    monkeypatch.setattr(os, "open", recorded)
    run(file, tmp_path / "out")
    assert opened.count(str(file)) == 1


def test_examples_can_be_read_from_what_was_read(tmp_path: Path) -> None:
    (tmp_path / "pairs.tsv").write_bytes(PAIRS)
    assert read_examples(Contents(tmp_path / "pairs.tsv", PAIRS)) == read_examples(tmp_path / "pairs.tsv")
