r"""The vectors as files that any language reads: `vectors.json`, `vectors.safetensors` and the schema of the first.

    vectors.json         what each vector asks, its tolerances, what it catches, and the digest of the other file
    vectors.safetensors  NAME/in/x     inputs, float32 (each is a small multiple of 1/8, so exact) or int64
                         NAME/out/y    what must come out, float64
                         NAME/size/y   Σ|terms|, float64: |found - out| ≤ tolerance · size, entry by entry

What is read is checked against its digest and against itself, so that a spoiled file never judges anybody.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..cases.layers import vectors
from ..cases.vectors import DTYPES, Vector
from ..disk.folders import new_folder
from ..disk.marks import Kind
from ..disk.reading import read_json, read_regular
from ..engine.arrays import Array
from ..formats.tensors import read_file
from ..formats.writing import CODES, write_tensors
from .mutants import MUTANTS, catches, killed
from .running import Vectors

FOLDER = Path(__file__).parent / "vectors"
INDEX, NUMBERS, SCHEMA = "vectors.json", "vectors.safetensors", "schema.json"
FORMAT = "lora-conformance-1"
KIND = Kind("conformance", (INDEX, NUMBERS, SCHEMA))
JUDGING = "an output holds when |found - out| <= tolerance[dtype] * size for each of its entries; NaN never holds"


def made() -> tuple[Vector, ...]:
    """Every vector, computed now."""
    return tuple(vector.answered() for vector in vectors())


def write_vectors(folder: str | Path, *, overwrite: bool = False) -> tuple[Vector, ...]:
    """Compute every vector and write the three files; the folder appears whole."""
    found = made()
    with new_folder(folder, KIND, overwrite=overwrite) as into:
        arrays = dict(_arrays(found))
        layout = {name: (CODES[array.dtype.name], array.shape) for name, array in arrays.items()}
        write_tensors(into, layout, lambda name: [arrays[name]], metadata={"format": FORMAT}, stem="vectors")
        digest = hashlib.sha256((into / NUMBERS).read_bytes()).hexdigest()
        (into / INDEX).write_text(_index(found, digest), encoding="utf-8")
        (into / SCHEMA).write_text(json.dumps(schema(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return found


def _arrays(found: Iterable[Vector]) -> Iterable[tuple[str, Array]]:
    for vector in found:
        for name, array in vector.inputs.items():
            yield f"{vector.name}/in/{name}", np.asarray(array, np.int64 if array.dtype.kind == "i" else np.float32)
        for name, array in vector.outputs.items():
            yield f"{vector.name}/out/{name}", np.asarray(array, np.float64)
        for name, array in vector.sizes.items():
            yield f"{vector.name}/size/{name}", np.asarray(array, np.float64)


def _index(found: Iterable[Vector], digest: str) -> str:
    found = tuple(found)
    caught = catches(killed(found))
    about = {
        "format": FORMAT, "licence": "MIT", "numbers": NUMBERS, "sha256": digest, "judging": JUDGING,
        "bugs": {name: {"words": mutant.words, "reports": list(mutant.reports)} for name, mutant in MUTANTS.items()},
    }  # fmt: skip
    listed = ",\n".join(json.dumps(_entry(v, caught.get(v.name, ())), ensure_ascii=False) for v in found)
    return json.dumps(about, indent=1, ensure_ascii=False)[:-2] + f',\n "vectors": [\n{listed}\n]\n}}\n'


def _entry(vector: Vector, caught: Iterable[str]) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "name": vector.name, "kind": vector.kind, "words": vector.words, "settings": dict(vector.settings),
        "dtypes": list(vector.dtypes), "inputs": list(vector.inputs),
    }  # fmt: skip
    if vector.refused:
        return {**entry, "wanted": list(vector.wanted), "refused": vector.refused, "source": vector.source}
    outputs = {
        name: {"roundings": vector.roundings[name], "tolerance": vector.tolerances[name]} for name in vector.wanted
    }
    return {**entry, "outputs": outputs, "catches": list(caught)}


def schema() -> dict[str, Any]:
    """The JSON schema of `vectors.json`."""
    text, texts = {"type": "string"}, {"type": "array", "items": {"type": "string"}}
    dtypes = {"type": "array", "items": {"enum": list(DTYPES)}, "minItems": 1}
    number = {"type": "object", "additionalProperties": {"type": "number", "exclusiveMinimum": 0}}
    output = {
        "type": "object", "required": ["roundings", "tolerance"], "additionalProperties": False,
        "properties": {"roundings": {"type": "integer", "minimum": 0}, "tolerance": number},
    }  # fmt: skip
    vector = {
        "type": "object",
        "required": ["name", "kind", "words", "settings", "dtypes", "inputs"],
        "additionalProperties": False,
        "properties": {
            "name": text, "kind": text, "words": text, "settings": {"type": "object"}, "dtypes": dtypes,
            "inputs": texts, "outputs": {"type": "object", "additionalProperties": output}, "catches": texts,
            "wanted": texts, "refused": text, "source": text,
        },
        "oneOf": [
            {"required": ["outputs", "catches"], "not": {"required": ["refused"]}},
            {"required": ["wanted", "refused", "source"], "not": {"required": ["outputs"]}},
        ],
    }  # fmt: skip
    bug = {"type": "object", "required": ["words", "reports"], "properties": {"words": text, "reports": texts}}
    properties = {
        "format": {"const": FORMAT}, "licence": text, "numbers": text, "sha256": text, "judging": text,
        "bugs": {"type": "object", "additionalProperties": bug}, "vectors": {"type": "array", "items": vector},
    }  # fmt: skip
    about = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "LoRA conformance vectors"}
    return {**about, "type": "object", "required": list(properties), "properties": properties}


# -------------------------------------------------------------------------------------------------------------- reading


def read_vectors(folder: str | Path = FOLDER) -> Vectors:
    """The vectors of a folder. Raises OSError or ValueError of one line for files that are not what was written."""
    folder = Path(folder)
    about, path = read_json(folder / INDEX), folder / NUMBERS
    if about.get("format") != FORMAT:
        raise ValueError(f"{folder / INDEX}: format must be {FORMAT}, got {about.get('format')!r}")
    digest = hashlib.sha256(read_regular(path).data).hexdigest()
    if digest != about.get("sha256"):
        raise ValueError(f"{path} is not the file that {INDEX} describes, its digest is another: install it again")
    try:
        arrays = {name: np.asarray(tensor) for name, tensor in read_file(path).items()}
        read = tuple(_read(entry, arrays) for entry in about["vectors"])
        caught = {entry["name"]: tuple(entry.get("catches", ())) for entry in about["vectors"]}
        bugs = {name: (str(bug["words"]), tuple(bug["reports"])) for name, bug in about["bugs"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder / INDEX} is not as its schema says: {type(error).__name__}: {error}") from None
    if len({vector.name for vector in read}) < len(read) or not read:
        raise ValueError(f"{folder / INDEX} must name each vector once, and at least one")
    return Vectors(read, caught, bugs, digest)


def _read(entry: Mapping[str, Any], arrays: Mapping[str, Array]) -> Vector:
    name, outputs = str(entry["name"]), entry.get("outputs", {})
    inputs = {key: arrays[f"{name}/in/{key}"] for key in entry["inputs"]}
    if entry["kind"] != "cast":
        inputs = {key: a if a.dtype.kind == "i" else a.astype(np.float64) for key, a in inputs.items()}
    wanted = tuple(entry["wanted"] if "refused" in entry else outputs)
    vector = Vector(
        name, entry["kind"], entry["words"], dict(entry["settings"]), inputs, wanted, tuple(entry["dtypes"]),
        entry.get("refused"), entry.get("source", ""),
    )  # fmt: skip
    if not set(vector.dtypes) <= set(DTYPES) or not (wanted and vector.dtypes):
        raise ValueError(f"{name} must be asked in {', '.join(DTYPES)}, got {vector.dtypes!r} for {wanted!r}")
    found = {key: arrays[f"{name}/out/{key}"] for key in outputs}
    sizes = {key: arrays[f"{name}/size/{key}"] for key in outputs}
    for key, array in found.items():
        size = sizes[key]
        if array.shape != size.shape or not (
            np.isfinite(array).all() and np.isfinite(size).all() and (size >= 0).all()
        ):
            raise ValueError(f"{name}: {key} and its size must be finite arrays of one shape, the size not below 0")
    allowed = {
        key: {dtype: float(value["tolerance"][dtype]) for dtype in vector.dtypes} for key, value in outputs.items()
    }
    if not all(0.0 < number < 1e3 for each in allowed.values() for number in each.values()):
        raise ValueError(f"{name}: a tolerance must be a number above 0")
    roundings = {key: int(value["roundings"]) for key, value in outputs.items()}
    return replace(vector, outputs=found, sizes=sizes, roundings=roundings, tolerances=allowed)
