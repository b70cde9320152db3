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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .config import TransformerConfig
from .config import described as described_sizes
from .disk.folders import new_folder
from .disk.marks import Kind
from .disk.reading import check_regular, read_json
from .disk.writing import write_atomically, write_json
from .engine.arrays import Array
from .engine.devices import to_host
from .formats.folders import is_foreign
from .halving import check_kind, in_16_bits
from .installed import base_path
from .lora import adapters
from .method import Method
from .methods import described, method_from
from .model import Transformer, place_of, skeleton
from .optimization import TrainingState
from .parameters import Arrays, parameters, walk, with_parameters
from .wrappers import wrappers

BASE = Path(__file__).parent / "pretrained"  # the base that ships
MODEL = Kind("model", ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"))
HEADER = "lora_np"  # of safetensors' own header: ours as JSON, in one key, because theirs keeps no order among several
DIGEST = "sha256"  # in the header of every file written here, so that one flipped bit is seen
ABOUT = "about"  # in the header of arrays that a JSON file beside describes: what it said when they were written


def save_model(
    folder: str | Path,
    model: Transformer,
    *,
    dtype: npt.DTypeLike = np.float32,
    overwrite: bool = False,
    vocabulary: Mapping[str, bytes] | None = None,
) -> None:
    """Write a plain model, and beside it the files that `vocabularies.files_of` makes of its vocabulary.

    Raises ValueError for a model that `load_model` would not read, an adapted one above all, and FileExistsError for an
    existing folder.

    Every array is stored as it is, W as (d_out, d_in).

    >>> import tempfile
    >>> import numpy as np
    >>> from lora_np import TransformerConfig, initialize, load_model, save_model
    >>> config = TransformerConfig(vocab=11, context=8, d_model=8, layers=2, heads=2)
    >>> model = initialize(config, np.random.default_rng(0))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_model(f"{folder}/model", model)
    ...     again = load_model(f"{folder}/model")
    >>> bool((again.tokens.W == model.tokens.W).all())
    True
    """
    if found := wrappers(model):
        path, wrapper = next(iter(found.items()))
        raise ValueError(f"the model carries a {type(wrapper).__name__} at {path}: merge it, or save its adapter")
    _check_plain(model)
    arrays = _stored_as(parameters(model), np.dtype(dtype))
    config = described_sizes(model.config)
    with new_folder(folder, MODEL, overwrite=overwrite) as new:
        write_arrays(new / "model.safetensors", arrays, {ABOUT: json.dumps(config)})
        write_json(new / "config.json", config)
        for name, content in (vocabulary or {}).items():
            write_atomically(new / name, content)


def _check_plain(model: Transformer) -> None:
    """Raise ValueError, naming the first difference, unless this is what `load_model` makes of the model's config."""
    found = dict(walk(model))
    plain = dict(walk(skeleton(model.config)))
    for path in [*found, *plain]:
        here, there = _described(found.get(path)), _described(plain.get(path))
        if here != there and path:
            raise ValueError(f"{path} is {here}, and would be read as {there}: a model folder holds plain models only")


def _described(node: Any) -> str:
    """A module or an array without what is below it: its kind, its shape, its settings."""
    if node is None or hasattr(node, "shape"):
        return "absent" if node is None else f"an array {node.shape}"
    fields = dataclasses.fields(node) if dataclasses.is_dataclass(node) else ()
    settings = {field.name: getattr(node, field.name) for field in fields}
    plain = {name: value for name, value in settings.items() if isinstance(value, int | float | str)}
    return f"{type(node).__name__} {plain or ''}".strip()


def _stored_as(arrays: Arrays, dtype: np.dtype[Any]) -> Arrays:
    """The arrays on the host as they will stand in a file; raises ValueError where one could not be read again."""
    if dtype.str[1:] not in ("f2", "f4", "f8"):
        raise ValueError(f"dtype must be float16, float32 or float64, got {dtype}")
    with np.errstate(over="ignore"):
        stored = {name: to_host(array).astype(dtype) for name, array in arrays.items()}
    for name, array in stored.items():
        if not np.isfinite(array).all():
            raise ValueError(f"{name} holds a number that is not finite in {dtype}, and would not be read again")
    return stored


def load_model(
    folder: str | Path | None = None, dtype: npt.DTypeLike = np.float32, *, held: str | None = None
) -> Transformer:
    """Read a model folder, by default the base that ships, and compute in `dtype` whatever it is stored in.

    One of other software is read as `lora_np.loading` says; one that an installed package brings, by its name there.
    held  "float16" or "bfloat16": its matrices stay frozen, and are held in that: see `lora_np.halving`.

    W comes as (d_out, d_in), a token table as (vocab, d_model), whatever the file's own layout.

    Raises ValueError for a folder that is not a model, or whose files are truncated or corrupted, FileNotFoundError
    where there is none.

    >>> from lora_np import count, load_model
    >>> base = load_model()
    >>> base.config.layers, base.tokens.W.shape, count(base)
    (4, (256, 192), 1951872)
    """
    check_kind(held)
    folder = BASE if folder is None else base_path(folder)
    if is_foreign(folder):
        from .loading import load_foreign  # and with it all formats

        return load_foreign(folder, dtype, held=held)
    about, path = read_json(folder / "config.json"), folder / "config.json"
    config = _checked(TransformerConfig, about, path)
    arrays, header = read_arrays(folder / "model.safetensors")
    _check_about(about, header, path)
    plain = skeleton(config)
    model = _filled(plain, arrays, folder / "model.safetensors", dtype, parameters(plain))
    return in_16_bits(model, held) if held else model


def load_config(folder: str | Path) -> TransformerConfig:
    """The sizes of the model in a folder or file, ours or of other software; not one number is read."""
    folder = base_path(folder)
    if is_foreign(folder):
        from .loading import open_foreign

        return open_foreign(folder).config
    path = folder / "config.json"
    config: TransformerConfig = _checked(TransformerConfig, read_json(path), path)
    return config


def save_adapter(folder: str | Path, model: Transformer, method: Method, base: Transformer | str) -> None:
    """Write what the method trained of this adapted model into an existing folder; base is its base, or the digest.

    Of LoRA that is A (rank, d_in) and B (d_out, rank) of every adapted map. Raises ValueError for a number that is not
    finite, FileNotFoundError where the folder is missing.

    >>> import tempfile
    >>> from pathlib import Path
    >>> import numpy as np
    >>> from lora_np import LoraConfig, TransformerConfig, adapt, initialize, save_adapter
    >>> config = TransformerConfig(vocab=11, context=8, d_model=8, layers=2, heads=2)
    >>> base = initialize(config, np.random.default_rng(0))
    >>> model = adapt(base, LoraConfig(rank=2, targets="qv"), np.random.default_rng(1))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_adapter(folder, model, LoraConfig(rank=2, targets="qv"), base)
    ...     sorted(path.name for path in Path(folder).iterdir())
    ['adapter.json', 'adapter.safetensors']
    """
    model, method = method.stored(model)
    about = {"base": base if isinstance(base, str) else digest(base), **described(method)}
    write_arrays(Path(folder) / "adapter.safetensors", method.trained(model), {ABOUT: json.dumps(about)})
    write_json(Path(folder) / "adapter.json", about)


def load_adapter(
    folder: str | Path, base: Transformer, *, base_digest: str | None = None
) -> tuple[Transformer, Method]:
    """The base with the adapter of this folder beside it; raises ValueError when it was trained on another base.

    Arrays that are stored in another precision than that of the base are cast to it.

    base_digest   digest(base), for who has it already: of a thousand adapters it is the same

    A is (rank, d_in), B (d_out, rank). Raises ValueError as well for a file that is corrupted, or does not fit the
    method.

    >>> import tempfile
    >>> import numpy as np
    >>> from lora_np import LoraConfig, TransformerConfig, adapt, initialize, load_adapter, save_adapter
    >>> config = TransformerConfig(vocab=11, context=8, d_model=8, layers=2, heads=2)
    >>> base = initialize(config, np.random.default_rng(0))
    >>> model = adapt(base, LoraConfig(rank=2, targets="qv"), np.random.default_rng(1))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_adapter(folder, model, LoraConfig(rank=2, targets="qv"), base)
    ...     again, method = load_adapter(folder, base)
    >>> method.rank, again.blocks[0].attention.query.A.shape
    (2, (2, 8))
    """
    folder = Path(folder)
    about, path = read_json(folder / "adapter.json"), folder / "adapter.json"
    if not isinstance(about.get("base"), str):
        raise ValueError(f"{path}: 'base' must be the digest of a model")
    base_digest = base_digest or digest(base)
    if about["base"] != base_digest:
        raise ValueError(
            f"{folder} was trained on another base, or on this one in another --base-dtype: "
            f"its digest is {about['base'][:12]}, this base's {base_digest[:12]}"
        )
    arrays, header = read_arrays(folder / "adapter.safetensors")
    _check_about(about, header, path)
    try:
        method = method_from(_first_form(about))
        adapted = method.apply(base, None)
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ValueError(f"{path}: {error}") from None
    if "lora" in about and about.get("scaling") != {p: m.scaling for p, m in adapters(adapted).items()}:
        raise ValueError(f"{path}: 'scaling' does not follow from 'lora'")
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
    return digest_of(parameters(model), json.dumps(described_sizes(model.config), sort_keys=True))


def digest_of(arrays: Mapping[str, Array], about: str = "") -> str:
    """SHA-256 of a dict of arrays, and of a text beside it."""
    sha = hashlib.sha256(about.encode())
    for name, array in arrays.items():
        sha.update(f"{name} {array.shape}".encode())
        sha.update(np.ascontiguousarray(to_host(array), dtype="<f4").tobytes())
    return sha.hexdigest()


def write_arrays(path: str | Path, arrays: Mapping[str, Array], header: Mapping[str, str]) -> None:
    """Write a safetensors file whole or not at all, with the digest of its numbers in the header."""
    from safetensors.numpy import save

    contiguous = {name: np.asarray(to_host(array), order="C") for name, array in arrays.items()}
    ours = json.dumps({**header, DIGEST: _digest_of_bytes(contiguous, header)}, sort_keys=True)
    write_atomically(Path(path), save(contiguous, {HEADER: ours}))


def read_arrays(path: str | Path) -> tuple[Arrays, dict[str, str]]:
    """The arrays and the header of a safetensors file; its numbers must be finite, and those that were written."""
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    check_regular(path)
    try:
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118
                if (kind := file.get_slice(name).get_dtype()) not in ("F16", "F32", "F64"):
                    raise ValueError(f"{path}: {name} must hold floating-point numbers, got {kind}")
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            header = _header(file.metadata() or {}, path)
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or corrupted: {error}") from None
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise ValueError(f"{path}: {name} holds a number that is not finite")
    written = header.pop(DIGEST, None)
    # Of other software there is none; earlier versions digested the numbers alone.
    if not (written is None or written == _digest_of_bytes(arrays, header) or written == _digest_of_bytes(arrays, {})):
        raise ValueError(f"{path} is corrupted: its numbers or its header are not those that were written")
    return arrays, header


def _header(metadata: Mapping[str, str], path: Path) -> dict[str, str]:
    """What was written with the arrays; an earlier version, and other software, wrote it as it is."""
    try:
        found = json.loads(metadata[HEADER]) if HEADER in metadata else metadata
        ours = {str(name): str(value) for name, value in found.items() if value is not None}
    except (ValueError, AttributeError, RecursionError):
        ours = {}
    renamed = HEADER not in metadata and any(f'"{DIGEST}"' in text for text in metadata.values())
    if renamed or (HEADER in metadata and DIGEST not in ours):
        raise ValueError(f"{path} is corrupted: in its header the digest that lora_np wrote is not to be found")
    return ours


def _digest_of_bytes(arrays: Arrays, header: Mapping[str, str]) -> str:
    sha = hashlib.sha256(json.dumps(header, sort_keys=True).encode() if header else b"")
    for name in sorted(arrays):
        sha.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
        sha.update(arrays[name].tobytes())
    return sha.hexdigest()


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
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ValueError(f"{path}: {error}") from None


def _check_about(about: Mapping[str, Any], header: Mapping[str, str], path: Path) -> None:
    """Raise ValueError, naming the first difference, when a description is not that of the arrays beside it."""
    if ABOUT not in header:  # of other software, or an earlier version
        return
    then, now = _flat(json.loads(header[ABOUT])), _flat(about)
    for key in sorted(set(then) | set(now)):
        if then.get(key) != now.get(key):
            raise ValueError(
                f"{path} was changed: {key} was {then.get(key)!r} when the arrays beside it were written, "
                f"now it is {now.get(key)!r}"
            )


def _flat(about: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a description by name, "lora dropout" for one of an object inside."""
    objects = {name: value for name, value in about.items() if isinstance(value, dict)}
    inside = {f"{name} {key}": value for name, values in objects.items() for key, value in values.items()}
    return {**{name: value for name, value in about.items() if name not in objects}, **inside}
