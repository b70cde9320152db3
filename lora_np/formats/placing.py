r"""Where the factors of an adapter belong: names and shapes of the base decide, so no table of architectures is needed.

    module "m", A (r, d_in), B (d_out, r)      base tensor m.weight, m or m.in_proj_weight
    (d_out, d_in) = its shape                  a linear map, or a convolution when more axes follow
    (d_in, d_out) = its shape                  stored transposed: GPT-2's Conv1D
    both                                       square: what else the base shows decides, see `transposes`

Experts stand in one tensor (E, out, in) or in one tensor each; an adapter of either kind is placed on a base of the
other. Fused gate and up projections are the first and the second half of the outputs.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from .disk import shown
from .updates import Finding

Shape = tuple[int, ...]
# Families of transformers whose linear maps are Conv1D, stored (d_in, d_out).
CONV1D = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer", "ctrl", "clvp"})
MAX_WAYS = 8  # prefixes of the adapter's paths that are tried
PREFIXES = ("model.", "transformer.", "bert.", "roberta.", "distilbert.", "language_model.", "model.language_model.")
LEAVES = (".weight", "", ".in_proj_weight")  # under which a module holds its weight; "" is a bare parameter
QUANTISED = (".qweight", ".weight.absmax", ".weight.quant_map", ".SCB", ".weight_scale", ".weight_scale_inv", ".scales")
FUSED = {"gate_up_proj": (("gate_proj", "up_proj"), ("w1", "w3")), "down_proj": (("down_proj",), ("w2",))}
EXPERT = re.compile(r"(.+\.experts)\.(\d{1,6})\.(gate_proj|up_proj|down_proj|w1|w2|w3)")
MOE = (".mlp.", ".block_sparse_moe.")  # what transformers calls the layer of experts, in memory and in older files


@dataclass(frozen=True)
class Piece:
    """A part of one base tensor: rows `at` and on of it belong to `expert`, and to the rows `outputs` of its B."""

    name: str
    at: int = 0
    expert: int = 0
    outputs: tuple[int, int] | None = None


@dataclass(frozen=True)
class Target:
    """What one pair of factors adapts: `experts` matrices (d_out, d_in), stored transposed or not, and their pieces."""

    pieces: tuple[Piece, ...]
    d_out: int
    d_in: int
    experts: int = 1
    transposed: bool = False


@dataclass(frozen=True)
class Base:
    """Names and shapes of the base, and how the adapter's module paths are turned into its names.

    old, new    the prefix that a path loses, and the one that it gets in its place; a path that the base knows as it
                stands keeps it
    """

    shapes: Mapping[str, Shape]
    model_type: str | None = None
    old: str = ""
    new: str = ""

    def path(self, module: str) -> str:
        """The module as the base calls it."""
        if not module.startswith(self.old) or any(module + leaf in self.shapes for leaf in LEAVES):
            return module
        return self.new + module.removeprefix(self.old)

    def spellings(self, path: str) -> tuple[str, ...]:
        """The path itself, and as it stands in files of another version of transformers."""
        ends = f"{path}."
        return (path, *(ends.replace(a, b)[:-1] for a, b in (MOE, MOE[::-1]) if a in ends))

    def weight(self, module: str) -> str | None:
        """The base tensor that holds the weight of a module, or None."""
        paths = self.spellings(self.path(module))
        names = (path + leaf for path in paths for leaf in LEAVES)
        return next((name for name in names if len(self.shapes.get(name, ())) >= 2), None)

    @cached_property
    def children(self) -> Mapping[str, tuple[str, ...]]:
        """{path: names of the tensors directly below it}."""
        below: dict[str, list[str]] = {}
        for name in self.shapes:
            below.setdefault(name.rpartition(".")[0], []).append(name)
        return {path: tuple(names) for path, names in below.items()}

    @cached_property
    def transposes(self) -> bool | None:
        """Does this base store its linear maps (d_in, d_out)? None where nothing tells.

        What tells is the family of the model, or else matrices that are not square and stand beside their bias, whose
        length is d_out.
        """
        if self.model_type is not None:
            return self.model_type in CONV1D
        votes = set()
        for name, shape in self.shapes.items():
            bias = self.shapes.get(name.removesuffix("weight") + "bias") if name.endswith(".weight") else None
            if len(shape) == 2 and shape[0] != shape[1] and bias is not None and len(bias) == 1:
                votes.add({shape[0]: False, shape[1]: True}.get(bias[0]))
        return votes.pop() if len(votes) == 1 else None


def fitted(base: Base, modules: Sequence[str]) -> tuple[Base, list[Finding]]:
    """The base with the one way of changing a prefix that finds most of these modules, and what it took."""
    firsts = {".".join(module.split(".")[:n]) + "." for module in modules for n in (1, 2) if module.count(".") >= n}
    olds = ("", *sorted(firsts, key=len)[:MAX_WAYS])
    ways = [(old, new) for new in ("", *PREFIXES) for old in olds if old != new or not old]

    def score(way: tuple[str, str]) -> int:
        tried = Base(base.shapes, base.model_type, *way)
        return sum(_known(tried, module) for module in modules)

    best = max(ways, key=score)  # the first of equals, so nothing is changed without need
    if best == ("", "") or not score(best):
        return base, []
    found = Base(base.shapes, base.model_type, *best)
    if best[0] in PREFIXES and not best[1] and not any(name.startswith(best[0]) for name in base.shapes):
        return found, []  # a model without its head is stored without this prefix, as GPT-2's is
    changed = next(module for module in modules if found.path(module) != module)
    what = f"the base calls it {shown(found.path(changed), quoted=False)}"
    todo = "see that the adapter and the base were saved from the same class of model"
    return found, [Finding("prefix", shown(changed, quoted=False), what, todo)]


def _known(base: Base, module: str) -> bool:
    path = base.path(module)
    if base.weight(module) is not None or f"{path}.bias" in base.shapes:
        return True
    return bool(stacked(base, module)) or _one_expert(base, path) is not None


def linear(base: Base, module: str, d_out: int, d_in: int, declared: bool) -> tuple[Target | None, list[Finding]]:
    """The target of a plain pair of factors; None, and why, where the base has none or its shape does not fit.

    declared    what the adapter's own description says of the orientation; believed only where nothing else tells
    """
    name, path = base.weight(module), base.path(module)
    for leaf in QUANTISED:
        if path + leaf in base.shapes:
            what = f"the base holds {path}{leaf}: its weight is quantised, so W is not what is stored"
            return None, [Finding("quantised", module, what, "give the base as it was before", True)]
    if name is None:
        part = _one_expert(base, path)
        return (part, []) if part is not None and (part.d_out, part.d_in) == (d_out, d_in) else (None, [])
    shape = base.shapes[name]
    rows, width = shape[0], _product(shape[1:])
    plain, turned = (d_out, d_in) == (rows, width), (d_in, d_out) == (rows, width) and len(shape) == 2
    if not (plain or turned):
        what = f"its factors make ({d_out}, {d_in}), but the base has {name} of shape {shape}"
        return None, [Finding("shape", module, what, "take the base that this adapter was trained on", True)]
    findings = []
    if plain and turned:
        turned = declared if base.transposes is None else base.transposes
        if base.transposes is None:
            what = f"it is square, so its shape does not tell whether it is stored transposed; taken as {_how(turned)}"
            findings.append(Finding("layout", module, what, "give the config.json of the base beside its weights"))
    return Target((Piece(name),), d_out, d_in, 1, turned), findings


def table(base: Base, module: str, vocab: int, d: int) -> tuple[Target | None, list[Finding]]:
    """The target of the factors of an embedding, whose tensor is (vocab, d)."""
    name = base.weight(module)
    if name is None:
        return None, []
    if base.shapes[name] != (vocab, d):
        what = f"its factors make a table of {(vocab, d)}, but the base has {name} of shape {base.shapes[name]}"
        return None, [Finding("shape", module, what, "take the base that this adapter was trained on", True)]
    return Target((Piece(name),), d, vocab, 1, True), []


def stacked(base: Base, module: str, wanted: Iterable[str] = ()) -> dict[str, Target]:
    """{parameter: target} of the tensors of experts below a module, whether they stand in one tensor or in one each.

    wanted    the parameters that are adapted, as ends of names; all when empty
    """
    found = {}
    for path in base.spellings(base.path(module)):
        for name in base.children.get(path, ()):
            if len(base.shapes[name]) == 3:
                n, rows, width = base.shapes[name]
                pieces = tuple(Piece(name, e * rows, e) for e in range(n))
                found[name.rpartition(".")[2]] = Target(pieces, rows, width, n)
        for parameter, spellings in FUSED.items():
            for names in spellings:
                if (target := _one_each(base, path, names)) is not None:
                    found.setdefault(parameter, target)
    ends = tuple(f".{name}" for name in wanted)
    return {p: target for p, target in found.items() if not ends or f".{module}.{p}".endswith(ends)}


def _one_each(base: Base, path: str, names: tuple[str, ...]) -> Target | None:
    """Experts 0, 1, ... of a container, each with these matrices, which an adapter sees one below the other."""
    count = 0
    while f"{path}.{count}.{names[0]}.weight" in base.shapes:
        count += 1
    shape = base.shapes.get(f"{path}.0.{names[0]}.weight", ())
    tensors = [[f"{path}.{e}.{name}.weight" for name in names] for e in range(count)]
    if not count or len(shape) != 2 or any(base.shapes.get(name) != shape for name in itertools.chain(*tensors)):
        return None
    rows, width = shape
    parts = [(k * rows, (k + 1) * rows) for k in range(len(names))]
    pieces = [Piece(name, 0, e, part) for e, own in enumerate(tensors) for name, part in zip(own, parts, strict=True)]
    return Target(tuple(pieces), rows * len(names), width, count)


def _one_expert(base: Base, path: str) -> Target | None:
    """The rows of one expert's own matrix where the base holds all experts in one tensor."""
    match = EXPERT.fullmatch(path)
    if match is None:
        return None
    container, number, own = match[1], int(match[2]), match[3]
    for (parameter, spellings), at in itertools.product(FUSED.items(), base.spellings(container)):
        position = next((names.index(own) for names in spellings if own in names), None)
        shape = base.shapes.get(f"{at}.{parameter}", ())
        if position is None or len(shape) != 3 or number >= shape[0]:
            continue
        rows = shape[1] // len(spellings[0])
        return Target((Piece(f"{at}.{parameter}", number * shape[1] + position * rows),), rows, shape[2])
    return None


def assigned(targets: Mapping[str, Target], factors: Sequence[tuple[Any, Any]]) -> list[dict[str, Any]]:
    """All ways to give each pair of factors (A, B), innermost first, a parameter of its own whose shape it fits.

    The usual one comes first: modules declare gate_up_proj before down_proj, and what is declared first is innermost.
    """
    usual = sorted(targets, key=lambda name: (name.startswith("down"), name))
    ways = []
    for names in itertools.permutations(usual, len(factors)):
        fits = [_fit(targets[name], A, B) for name, (A, B) in zip(names, factors, strict=True)]
        if all(fit is not None for fit in fits):
            ways.append(dict(zip(names, fits, strict=True)))
    return ways


def _fit(target: Target, A: Any, B: Any) -> Target | None:
    """The target as these factors see it: (out, in) where that fits, else (in, out), the reading of older PEFT."""
    stack = len(A.shape) == 3
    experts = A.shape[0] == target.experts if stack else A.shape[0] % target.experts == 0
    d_out, d_in = (B.shape[1] if len(B.shape) == 3 else B.shape[0]), A.shape[-1]
    if not experts:
        return None
    if (d_out, d_in) == (target.d_out, target.d_in):
        return target
    if (d_in, d_out) == (target.d_out, target.d_in) and all(piece.outputs is None for piece in target.pieces):
        return Target(target.pieces, d_out, d_in, target.experts, True)
    return None


def _how(turned: bool) -> str:
    return "(d_in, d_out)" if turned else "(d_out, d_in)"


def _product(shape: Shape) -> int:
    product = 1
    for n in shape:
        product *= n
    return product
