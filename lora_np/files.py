r"""Models, adapters and checkpoints on disk: safetensors beside a small JSON, written whole or not at all.

    model folder      model.safetensors    config.json      the sizes of the transformer
    adapter folder    adapter.safetensors  adapter.json     the method, and the digest of the base it belongs to
    checkpoint        one safetensors file: trained arrays, moments, and in its header the step and which run it is of

No file is ever executed. A reader raises an error of one line for a file that is missing, truncated or corrupted, or
that holds numbers which are not finite.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .arrays import Array
from .config import TransformerConfig
from .devices import to_host
from .lora import adapters
from .method import Method
from .methods import described, method_from
from .model import Transformer, place_of, skeleton
from .optimization import TrainingState
from .parameters import Arrays, parameters, with_parameters
from .wrappers import wrappers

BASE = Path(__file__).parent / "pretrained"  # the base that ships
DIGEST = "sha256"  # in the header of every file written here, so that one flipped bit is seen


def save_model(
    folder: str | Path, model: Transformer, *, dtype: npt.DTypeLike = np.float32, overwrite: bool = False
) -> None:
    """Write a plain model; raises ValueError for an adapted one and FileExistsError for an existing folder."""
    if found := wrappers(model):
        path, wrapper = next(iter(found.items()))
        raise ValueError(f"the model carries a {type(wrapper).__name__} at {path}: merge it, or save its adapter")
    arrays = {name: array.astype(dtype) for name, array in parameters(model).items()}
    with new_folder(folder, overwrite=overwrite) as new:
        write_arrays(new / "model.safetensors", arrays, {})
        write_json(new / "config.json", dataclasses.asdict(model.config))


def load_model(folder: str | Path | None = None, dtype: npt.DTypeLike = np.float32) -> Transformer:
    """Read a model folder, by default the base that ships, and compute in `dtype` whatever it is stored in."""
    folder = BASE if folder is None else Path(folder)
    config = _checked(TransformerConfig, read_json(folder / "config.json"), folder / "config.json")
    arrays, _ = read_arrays(folder / "model.safetensors")
    return _filled(skeleton(config), arrays, folder / "model.safetensors", dtype, parameters(skeleton(config)))


def save_adapter(folder: str | Path, model: Transformer, method: Method, base: Transformer | str) -> None:
    """Write what the method trained of this adapted model into an existing folder; base is its base, or the digest."""
    model, method = method.stored(model)
    about = {"base": base if isinstance(base, str) else digest(base), **described(method)}
    write_arrays(Path(folder) / "adapter.safetensors", method.trained(model), {})
    write_json(Path(folder) / "adapter.json", about)


def load_adapter(folder: str | Path, base: Transformer) -> tuple[Transformer, Method]:
    """The base with the adapter of this folder beside it; raises ValueError when it was trained on another base.

    Arrays that are stored in another precision than that of the base are cast to it.
    """
    folder = Path(folder)
    about, path = read_json(folder / "adapter.json"), folder / "adapter.json"
    if not isinstance(about.get("base"), str):
        raise ValueError(f"{path}: 'base' must be the digest of a model")
    if about["base"] != digest(base):
        raise ValueError(
            f"{folder} was trained on another base: its digest is {about['base'][:12]}, this base's {digest(base)[:12]}"
        )
    try:
        method = method_from(_first_form(about))
        adapted = method.apply(base, None)
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path}: {error}") from None
    if "scaling" in about and about["scaling"] != {p: m.scaling for p, m in adapters(adapted).items()}:
        raise ValueError(f"{path}: 'scaling' does not follow from 'lora'")
    arrays, _ = read_arrays(folder / "adapter.safetensors")
    dtype = place_of(base).dtype
    return _filled(adapted, arrays, folder / "adapter.safetensors", dtype, method.trained(adapted)), method


def _first_form(about: Mapping[str, Any]) -> Mapping[str, Any]:
    """The first version knew LoRA alone: {"lora": settings}."""
    return {"method": "lora", "settings": about["lora"]} if "lora" in about else about


def save_checkpoint(path: str | Path, state: TrainingState, run: Mapping[str, Any]) -> None:
    """Write a training state; `run` says which run it is of, and is compared when it is resumed."""
    header = {"step": str(state.step), "run": json.dumps(run, sort_keys=True)}
    write_arrays(Path(path), _stored(state), header)


def load_checkpoint(path: str | Path, run: Mapping[str, Any], fresh: TrainingState | None = None) -> TrainingState:
    """Read a training state; raises ValueError, naming the first difference, when it is of another run.

    fresh  the state before the first step, whose names and shapes it must have.
    """
    arrays, header = read_arrays(Path(path))
    if not {"step", "run"} <= set(header):
        raise ValueError(f"{path} is not a checkpoint: its header names no step and no run")
    try:
        step, then, now = int(header["step"]), dict(json.loads(header["run"])), json.loads(json.dumps(run))
    except (ValueError, TypeError, RecursionError):
        step = -1
    if step < 0:
        raise ValueError(f"{path} is corrupted: its header names no step and no run that can be read")
    for key in sorted(set(then) | set(now)):
        if then.get(key) != now.get(key):
            raise ValueError(f"{path} is of another run: {key} was {then.get(key)!r}, now it is {now.get(key)!r}")
    trained = {n.removeprefix("trained."): a for n, a in arrays.items() if n.startswith("trained.")}
    moments = {n: a for n, a in arrays.items() if not n.startswith("trained.")}
    found = TrainingState(step, trained, moments)
    if fresh is not None:
        _check_fits(_stored(found), _stored(fresh), Path(path))
    return found


def _stored(state: TrainingState) -> Arrays:
    return {**{f"trained.{name}": a for name, a in state.trained.items()}, **state.moments}


def digest(model: Transformer) -> str:
    """SHA-256 of the sizes and of every array's name, shape and float32 bytes."""
    return digest_of(parameters(model), json.dumps(dataclasses.asdict(model.config), sort_keys=True))


def digest_of(arrays: Mapping[str, Array], about: str = "") -> str:
    """SHA-256 of a dict of arrays, and of a text beside it."""
    sha = hashlib.sha256(about.encode())
    for name, array in arrays.items():
        sha.update(f"{name} {array.shape}".encode())
        sha.update(np.ascontiguousarray(to_host(array), dtype="<f4").tobytes())
    return sha.hexdigest()


def write_arrays(path: Path, arrays: Mapping[str, Array], header: Mapping[str, str]) -> None:
    """Write a safetensors file whole or not at all, with the digest of its numbers in the header."""
    from safetensors.numpy import save

    contiguous = {name: np.asarray(to_host(array), order="C") for name, array in arrays.items()}
    write_atomically(path, save(contiguous, {**header, DIGEST: _digest_of_bytes(contiguous)}))


def read_arrays(path: Path) -> tuple[Arrays, dict[str, str]]:
    """The arrays and the header of a safetensors file; its numbers must be finite, and those that were written."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    try:
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118
                if (kind := file.get_slice(name).get_dtype()) not in ("F16", "F32", "F64"):
                    raise ValueError(f"{path}: {name} must hold floating-point numbers, got {kind}")
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            header = dict(file.metadata() or {})
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or corrupted: {error}") from None
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise ValueError(f"{path}: {name} holds a number that is not finite")
    if header.pop(DIGEST, None) not in (None, _digest_of_bytes(arrays)):
        raise ValueError(f"{path} is corrupted: its numbers are not those that were written")
    return arrays, header


def _digest_of_bytes(arrays: Arrays) -> str:
    sha = hashlib.sha256()
    for name in sorted(arrays):
        sha.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
        sha.update(arrays[name].tobytes())
    return sha.hexdigest()


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object whole or not at all."""
    write_atomically(path, (json.dumps(value, indent=2) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(value).__name__}")
    return value


def write_atomically(path: Path, data: bytes) -> None:
    """Write beside, flush to disk, then rename: a reader meets the old file or the new one, never a part."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(beside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from None  # so that the message names the file
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def new_folder(path: str | Path, *, overwrite: bool = False, keep: bool = False) -> Iterator[Path]:
    """A folder that appears at `path` when the block ends well; until then it is `path` + '.partial'.

    After an error the part is removed, unless `keep`: then it stays, to be resumed. Raises FileExistsError when `path`
    exists and may not be overwritten.
    """
    path = Path(path)
    check_free(path, overwrite=overwrite)
    partial = partial_folder(path)
    if not keep:
        shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True, exist_ok=True)
    try:
        yield partial
    except BaseException:
        if not keep or not any(partial.iterdir()):
            shutil.rmtree(partial, ignore_errors=True)
        raise
    if not path.exists():
        partial.rename(path)
        return
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as aside:
        old = path.rename(Path(aside) / path.name)
        try:
            partial.rename(path)
        except BaseException:
            old.rename(path)
            raise


def partial_folder(path: str | Path) -> Path:
    """Where a folder is built before it appears at `path`."""
    return Path(path).with_name(Path(path).name + ".partial")


def check_free(path: str | Path, *, overwrite: bool) -> None:
    """Raise FileExistsError when `path` exists and may not be overwritten."""
    if Path(path).exists() and not overwrite:
        raise FileExistsError(f"{path} exists: choose another --out, or allow --overwrite")


def _filled(
    model: Transformer, arrays: Arrays, path: Path, dtype: npt.DTypeLike, expected: Mapping[str, Array]
) -> Transformer:
    _check_fits(arrays, expected, path)
    return with_parameters(model, {name: array.astype(dtype, copy=False) for name, array in arrays.items()})


def _check_fits(arrays: Arrays, expected: Mapping[str, Array], path: Path) -> None:
    for name in [*expected, *arrays]:
        if name not in arrays or name not in expected:
            raise ValueError(f"{path}: {name} is {'missing' if name in expected else 'not expected'}")
        if arrays[name].shape != expected[name].shape:
            raise ValueError(f"{path}: {name} must have shape {expected[name].shape}, got {arrays[name].shape}")


def _checked(kind: Any, settings: Mapping[str, Any], path: Path) -> Any:
    try:
        return kind(**settings)
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path}: {error}") from None
