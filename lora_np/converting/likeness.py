r"""Two adapters beside each other, map by map: how large each ΔW is, and how alike the two are.

    ΔW = s·BA, ΔW' = s'·B'A' (d_out, d_in)      U, U' and V, V': orthonormal columns of their column and row spaces

Of each map: both norms; the cosine of the two updates, beside its spread by chance; and, of column space and row space,
the principal angles and their mean squared cosine φ, beside φ of two random subspaces of those sizes (`similarity`,
`principal_angles` and `correlation` of `lora_np.paper`). All of it comes from QRs of the factors: nothing of size
d_out × d_in is made, and no number of a base is needed but where an adapter changed its base before training.

Source: Hu et al. 2021, arXiv:2106.09685, section 7.2.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..disk.reading import read_json
from ..engine.arrays import Array
from ..files import read_arrays
from ..formats.adapters import read_adapter
from ..formats.examining import examined
from ..formats.factors import pair_of
from ..formats.folders import is_foreign
from ..formats.huggingface import open_weights
from ..formats.tensors import Tensors
from ..formats.updates import Adapter, LowRank, Update, in_type
from ..methods import method_from
from ..methods.lora import SCALINGS, LoraConfig
from ..methods.variants import DoRA, VeRA
from ..names import called_here, per_path
from ..paper.subspaces import Thin, principal_angles, similarity, update_directions
from ..paper.updates import correlation
from .changing import read_leaves

Pair = tuple[Array, Array]  # s·B (d_out, r) and A (r, d_in), in float64


@dataclass(frozen=True)
class Maps:
    """The ΔW of an adapter by the name of its map, each as (s·B, A); `left` says what else it changes.

    bases   the digest of the model it was made for, where its folder holds one
    """

    path: Path
    format: str
    pairs: Mapping[str, Pair]
    left: tuple[str, ...] = ()
    base: str = ""


@dataclass(frozen=True)
class Side:
    """Column spaces, or row spaces, of two updates.

    dims    of both                phi, chance, spread    by `similarity`, of both whole
    angles  in degrees, the smallest first
    """

    dims: tuple[int, int]
    d: int
    phi: float
    chance: float
    spread: float
    angles: tuple[float, ...]


@dataclass(frozen=True)
class Alike:
    """One map of both adapters; None where an update is zero, and has no direction.

    spread    the standard deviation of `cosine` by chance, where its mean is 0
    spectra   singular values of both updates, those that are above rounding
    """

    name: str
    shape: tuple[int, int]
    norms: tuple[float, float]
    spectra: tuple[tuple[float, ...], tuple[float, ...]]
    spread: float
    cosine: float | None = None
    columns: Side | None = None
    rows: Side | None = None


@dataclass(frozen=True)
class Likeness:
    """Two adapters: the maps of both, those of one alone, and the cosine of all common updates as one long vector."""

    maps: tuple[Alike, ...]
    only: tuple[tuple[str, ...], tuple[str, ...]]
    norms: tuple[float, float]
    cosine: float | None


def alike(first: Maps, second: Maps) -> Likeness:
    """Compare every map that both adapt; raises ValueError where there is none, or one has two shapes."""
    names = paired(first, second)
    found = tuple(one_map(name, first.pairs[name], second.pairs[other]) for name, other in names.items())
    taken = set(names.values())
    only = tuple(n for n in first.pairs if n not in names), tuple(n for n in second.pairs if n not in taken)
    norms = math.hypot(*(one.norms[0] for one in found)), math.hypot(*(one.norms[1] for one in found))
    inner = math.fsum(one.cosine * one.norms[0] * one.norms[1] for one in found if one.cosine is not None)
    return Likeness(found, only, norms, inner / (norms[0] * norms[1]) if all(norms) else None)


def paired(first: Maps, second: Maps) -> dict[str, str]:
    """{name in the first: name in the second} of the maps of both, by their names, or by what these mean here."""
    if common := {name: name for name in first.pairs if name in second.pairs}:
        return common
    ours, theirs = ({"+".join(called_here(name)): name for name in maps.pairs} for maps in (first, second))
    common = {ours[key]: theirs[key] for key in ours if key in theirs}
    if not common or len(ours) < len(first.pairs) or len(theirs) < len(second.pairs):
        one, other = (next(iter(maps.pairs)) for maps in (first, second))
        raise ValueError(
            f"no map is adapted by both: {first.path} adapts {one}, {second.path} {other}, and so on; "
            "where they are of one model, name it with --base"
        )
    return common


def one_map(name: str, first: Pair, second: Pair) -> Alike:
    (B, A), (D, C) = first, second
    shape, other = (B.shape[0], A.shape[1]), (D.shape[0], C.shape[1])
    if shape != other:
        raise ValueError(
            f"{name} is {shape[0]}×{shape[1]} in one adapter and {other[0]}×{other[1]} in the other: they are of "
            "different models"
        )
    one, two = _directions(name, B, A), _directions(name, D, C)
    norms = tuple(0.0 if thin is None else float(np.linalg.norm(thin.sigma)) for thin in (one, two))
    spectra = tuple(() if thin is None else tuple(map(float, thin.sigma)) for thin in (one, two))
    about = (name, shape, norms, spectra, 1.0 / math.sqrt(math.prod(shape)))
    if one is None or two is None:
        return Alike(*about)  # type: ignore[arg-type]
    cosine = float(correlation({"first": first, "second": second}).cosine[0, 1])
    return Alike(*about, cosine, _side(one.left, two.left), _side(one.right, two.right))  # type: ignore[arg-type]


def _directions(name: str, B: Array, A: Array) -> Thin | None:
    """The singular vectors and values of BA; None where it is zero."""
    if not (np.isfinite(A).all() and np.isfinite(B).all()):
        raise ValueError(f"{name} holds a number that is not finite: the adapter is broken")
    try:
        return update_directions(B, A)
    except ValueError:  # there is no direction in what is zero
        return None


def _side(first: Array, second: Array) -> Side:
    found, angles = similarity(first, second), np.degrees(principal_angles(first, second))
    phi, chance, spread = (float(of[-1, -1]) for of in (found.values, found.chance, found.spread))
    return Side((first.shape[1], second.shape[1]), found.d, phi, chance, spread, tuple(map(float, angles)))


# ------------------------------------------------------------------------------------------------ what an adapter holds


def read_maps(path: str | Path, base: str | Path | None = None, alpha: float | None = None) -> Maps:
    """The ΔW of every map that an adapter of any program changes, ours by our names where no base is named.

    Raises ValueError or OSError in one line for what is none, or whose ΔW is no product of two factors.
    """
    path, base = Path(path), None if base is None else Path(base)
    if (path / "adapter.json").exists():
        return _own(path) if base is None else _by_their_names(path, base, "lora_np")
    known = base is not None and is_foreign(base) and not _is_gguf(path)
    tensors, about = _weights(base) if known and base is not None else (None, None)
    adapter = read_adapter(path, tensors, about, alpha=alpha)
    if adapter.format == "gguf" and base is not None:
        return _by_their_names(path, base, "gguf")
    adapter.checked("tied_head")
    for finding in examined(adapter):
        if finding.stops:
            raise ValueError(f"{path}: {finding}")
    return maps_in(path, adapter, tensors)


def maps_in(path: Path, adapter: Adapter, base: Mapping[str, Any] | None) -> Maps:
    """The same of an adapter that was read; `base` is asked only where it was changed before training."""
    pairs: dict[str, Pair] = {}
    left = []
    for name, update in adapter.updates.items():
        module = name.removesuffix(".weight")
        if any(part.experts > 1 for part in update.parts):
            left.append(f"{module} holds experts, which are not taken apart")
            continue
        if update.magnitude is not None:
            left.append(f"{module} has magnitudes (DoRA): s·BA alone is compared")
        if not update.parts:
            left.append(f"{module} is replaced, not added to")
            continue
        pairs |= _placed(module, _begun(update, base).parts)
    if not pairs:
        raise ValueError(f"{path} adds no low-rank update to any map")
    return Maps(path, adapter.format, pairs, tuple(left))


def _begun(update: Update, base: Mapping[str, Any] | None) -> Update:
    """With what was taken from the base before training, of which ΔW is the rest."""
    if update.start is None:
        return update
    if base is None:
        raise ValueError(
            f"{update.name} starts from its base ({update.start}), so ΔW is not s·BA alone: name the base, --base DIR"
        )
    return update.prepared(base[update.name])


def _placed(module: str, parts: Sequence[LowRank]) -> dict[str, Pair]:
    """Parts at the same rows are one sum, [s₁B₁ s₂B₂][A₁; A₂]; those at others are maps of their own."""
    by_rows: dict[tuple[int, int], list[LowRank]] = {}
    for part in parts:
        by_rows.setdefault((part.at, part.height), []).append(part)
    found = {}
    for (at, height), several in by_rows.items():
        name = module if len(by_rows) == 1 else f"{module}[{at}:{at + height}]"
        found[name] = _summed((part.b(), part.a(), part.scale) for part in several)
    return found


def _summed(parts: Iterable[tuple[Any, Any, float]]) -> Pair:
    wide = [(s * in_type(np.asarray(B), np.float64), in_type(np.asarray(A), np.float64)) for B, A, s in parts]
    return np.concatenate([B for B, _ in wide], axis=1), np.concatenate([A for _, A in wide])


def _own(folder: Path) -> Maps:
    """One of ours by what its folder holds: no base is asked for its sizes."""
    about = read_json(folder / "adapter.json")
    try:
        method = method_from({"method": "lora", "settings": about["lora"]} if "lora" in about else about)
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{folder / 'adapter.json'}: {error}") from None
    beside = getattr(method, "method", method)  # of a classifier, what stands beside its head
    if not isinstance(beside, LoraConfig) or isinstance(beside, VeRA):
        raise ValueError(f"{folder} was trained by {about.get('method')}: its ΔW is no product of two trained factors")
    arrays, _ = read_arrays(folder / "adapter.safetensors")
    paths = [name.removesuffix(".A") for name in arrays if name.endswith(".A") and f"{name[:-1]}B" in arrays]
    if not paths:
        raise ValueError(f"{folder} holds no A and B")
    ranks, alphas = per_path(paths, beside.ranks, beside.rank), per_path(paths, beside.alphas, beside.alpha)
    scales = {path: SCALINGS[beside.scaling](ranks[path], alphas[path]) for path in paths}
    pairs = {path: _checked(folder, path, arrays, ranks[path], scales[path]) for path in paths}
    more = len(arrays) - 2 * len(paths)
    left = [f"{more} arrays beside A and B are not compared"] if more else []
    if isinstance(beside, DoRA):
        left = ["the lengths of rows (DoRA) are left out: s·BA alone is compared"]
    return Maps(folder, "lora_np", pairs, tuple(left), str(about.get("base", "")))


def _checked(folder: Path, path: str, arrays: Mapping[str, Array], rank: int, scale: float) -> Pair:
    A, B = arrays[f"{path}.A"], arrays[f"{path}.B"]
    if A.ndim != 2 or B.ndim != 2 or not len(A) == B.shape[1] == rank:
        raise ValueError(f"{folder}: {path} has A {A.shape} and B {B.shape}, and adapter.json says rank {rank}")
    return _summed([(B, A, scale)])


def _by_their_names(path: Path, base: Path, kind: str) -> Maps:
    """Under the names of transformers, as the base tells them: ours, and those of llama.cpp in its order of rows."""
    _, leaves = read_leaves(path, base, None, None, to="peft")
    pairs = {}
    for module, parts in leaves.modules.items():
        if (pair := pair_of(parts)) is not None:
            A, B = pair
            pairs[module] = _summed([(B, A, leaves.scales[module])])
    return Maps(path, kind, pairs)


def _is_gguf(path: Path) -> bool:
    return path.suffix == ".gguf" or (path.is_dir() and any(path.glob("*.gguf")) and not any(path.glob("*.json")))


def _weights(base: Path) -> tuple[Tensors, Mapping[str, Any] | None]:
    config = base / "config.json"
    return open_weights(base), read_json(config) if base.is_dir() and config.exists() else None
