r"""From the leaves of PEFT's grammar to what they do to each tensor of the base.

The leaves of one module become a part s·BA where the base has the module, a magnitude, a shift of its bias, rows of its
table. Orphans, ranks that contradict the configuration, shapes that fit nowhere and modules that the base does not have
become findings that stop.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from . import placing
from .disk import shown
from .grammar import HEADS, TABLES, Read, Settings
from .patterns import targeted
from .placing import Base, Target
from .tensors import Tensor
from .updates import Finding, LowRank, Magnitude, Shift, TokenRows, Update

MAX_NESTED = 4  # parameters of one module that are adapted together
WHOLE, BASE = "the file is not whole: save it again", "take the base that it was trained on"


class Assembly:
    """Collects the updates of an adapter, one module after the other."""

    def __init__(self, read: Read, settings: Settings, base: Base | None) -> None:
        self.read, self.settings, self.base = read, settings, base
        self.updates: dict[str, Update] = {}
        self.start: Mapping[str, Mapping[str, Tensor]] = {}  # leaves of the initial adapter, by module

    def stop(self, kind: str, where: str, what: str, todo: str) -> None:
        self.read.note(kind, where, what, todo, stops=True)

    def update(self, name: str, shape: tuple[int, ...], matrix: tuple[int, int]) -> Update:
        return self.updates.get(name) or Update(name, shape, matrix)

    def put(self, update: Update, **changes: Any) -> None:
        self.updates[update.name] = dataclasses.replace(update, **changes)

    def run(self) -> dict[str, Update]:
        """All updates: whole tensors first, since what is adapted on top of them comes after."""
        for name, tensor in self.read.whole.items():
            self.replace(name, tensor)
        nested: dict[str, list[str]] = {}
        for module in self.read.modules:
            plain = ".".join(part for part in module.split(".") if part != "base_layer")
            nested.setdefault(plain, []).append(module)
        for plain, modules in nested.items():
            self.module(plain, sorted(modules, key=len, reverse=True))
        return self.updates

    def replace(self, name: str, tensor: Tensor) -> None:
        """A tensor in the place of the base's; the copy that a file may hold of a tied head is left out."""
        path = name if self.base is None or self.base.path(name) not in self.base.shapes else self.base.path(name)
        shape = tensor.shape if self.base is None else self.base.shapes.get(path)
        if shape is None and name in self.read.copies:
            return self.read.note("copy", name, "it copies a tensor that the base does not store", "none")
        if shape is None:
            what = "the base has no such tensor, so it is added"
            self.read.note("new_tensor", name, what, "none, if it is a new head")
        elif shape != tensor.shape:
            what = f"it replaces a tensor of shape {shape} by one of {tensor.shape}"
            self.read.note("resized", name, what, "none, if tokens were added")
        whole = tensor.shape
        matrix = (whole[0], math.prod(whole[1:])) if len(whole) > 1 else (1, math.prod(whole))
        self.put(Update(path, whole, matrix), replacement=tensor, new=shape is None)

    def module(self, module: str, paths: Sequence[str]) -> None:
        leaves = self.read.modules[paths[-1]]
        for path in paths:
            self.check_pairs(path, self.read.modules[path])
        pairs = [(self.read.modules[p], p) for p in paths if {"A", "B"} <= set(self.read.modules[p])]
        if "tokens" in leaves:
            self.tokens(module, leaves["tokens"])
        if {"EA", "EB"} <= set(leaves):
            self.table(module, leaves)
        if not pairs:
            return
        if len(pairs) > 1 or self.of_parameters(module):
            self.parameters(module, pairs)
        else:
            self.linear(module, *pairs[0])

    def check_pairs(self, path: str, leaves: Mapping[str, Tensor]) -> None:
        for one, other, name in (("A", "B", "lora_"), ("EA", "EB", "lora_embedding_")):
            if (one in leaves) != (other in leaves):
                has, lacks = (one, other) if one in leaves else (other, one)
                what = f"it has {name}{has[-1]} and no {name}{lacks[-1]}"
                self.stop("orphan", path, what, WHOLE)
        if "m" in leaves and not self.settings.dora:
            self.stop("magnitude", path, "it has a magnitude, but use_dora is not set", "set use_dora, or leave it out")
        if "diag" in leaves:
            self.stop("unknown_tensor", path, "it has a diagonal of KaSA, whose base was truncated", "it is not read")

    def of_parameters(self, module: str) -> bool:
        """Is this module a container whose parameters are adapted, rather than a linear map?"""
        if self.base is None:
            return any(name.rpartition(".")[0] and f".{module}".endswith(f".{name.rpartition('.')[0]}")
                       for name in self.settings.parameters)  # fmt: skip
        return self.base.weight(module) is None and bool(placing.stacked(self.base, module))

    def scale(self, module: str, rank: int) -> float:
        """s of a module, whose rank the configuration must know as its tensors do."""
        scale, configured = self.settings.factor(module, rank)
        if configured != rank:
            what = f"its factors have rank {rank}, but the configuration says {configured}"
            self.stop("rank", module, what, "put its rank into rank_pattern; the scale follows from it")
        return scale

    def missing(self, module: str, findings: Sequence[Finding]) -> None:
        self.read.findings.extend(findings)
        if not any(finding.stops for finding in findings):
            self.stop("no_target", module, "the base has no such module", BASE)

    def linear(self, module: str, leaves: Mapping[str, Tensor], path: str) -> None:
        A, B = leaves["A"], leaves["B"]
        if (stack := self.stack(module, A, B)) is not None:
            return self.experts(module, stack, A, B)
        if not (len(A.shape) >= 2 and len(A.shape) == len(B.shape) and math.prod(B.shape[2:]) == 1):
            what = f"its factors have shapes {A.shape} and {B.shape}, and should have (r, d_in) and (d_out, r)"
            return self.stop("shape", module, what, WHOLE)
        if A.shape[0] != B.shape[1]:
            what = f"A has rank {A.shape[0]} and B has rank {B.shape[1]}"
            return self.stop("shape", module, what, WHOLE)
        d_out, d_in = B.shape[0], math.prod(A.shape[1:])
        part = LowRank(A, B, self.scale(module, A.shape[0]))
        self.notice_rank(module, part.rank, d_out, d_in)
        target, findings = self.found(module, d_out, d_in)
        if target is None:
            return self.missing(module, findings)
        self.read.findings.extend(findings)
        for piece in target.pieces:
            self.add(piece.name, dataclasses.replace(part, transposed=target.transposed, at=piece.at), module)
        self.extras(module, leaves, target, part.scale)

    def stack(self, module: str, A: Tensor, B: Tensor) -> Target | None:
        """The target of factors (E, r, d_in) and (E, d_out, r) whose base is one tensor (E, d_out, d_in)."""
        name = None if self.base is None else self.base.weight(module)
        shape = self.base.shapes[name] if self.base is not None and name is not None else ()
        if not (len(shape) == len(A.shape) == len(B.shape) == 3 and shape == (A.shape[0], B.shape[1], A.shape[2])):
            return None
        pieces = tuple(placing.Piece(str(name), e * shape[1], e) for e in range(shape[0]))
        return Target(pieces, shape[1], shape[2], shape[0])

    def notice_rank(self, module: str, rank: int, d_out: int, d_in: int) -> None:
        if rank > min(d_out, d_in):
            what = f"its rank {rank} is above min(d_in, d_out) = {min(d_out, d_in)}"
            self.read.note("rank_above", module, what, "a lower rank would hold the same update")

    def found(self, module: str, d_out: int, d_in: int) -> tuple[Target | None, list[Finding]]:
        if self.base is None:
            return Target((placing.Piece(f"{module}.weight"),), d_out, d_in, 1, self.settings.transposed), []
        target, findings = placing.linear(self.base, module, d_out, d_in, self.settings.transposed)
        if target is None and not findings:
            return self.tied(module, d_out, d_in), []
        return target, findings

    def tied(self, module: str, d_out: int, d_in: int) -> Target | None:
        """The token table, for a head that the base does not store because it is the same matrix."""
        assert self.base is not None
        tables = [
            name for name in self.base.shapes if name.endswith(TABLES) and self.base.shapes[name] == (d_out, d_in)
        ]
        if not module.endswith(HEADS) or len(tables) != 1:
            return None
        self.stop("tied_head", module, f"the head is tied to {tables[0]}: what is merged into one changes both",
                  "say whether the table shall change with it")  # fmt: skip
        return Target((placing.Piece(tables[0]),), d_out, d_in)

    def add(self, name: str, part: LowRank, module: str) -> None:
        width = part.d_out if part.transposed else part.d_in
        whole = (part.height, width) if self.base is None else self.base.shapes[name]
        update = self.update(name, whole, (math.prod(whole) // max(width, 1), width))
        start = self.settings.start
        if start == "given":
            begun = self.start.get(module, {})
            if not {"A", "B"} <= set(begun) or (begun["A"].shape, begun["B"].shape) != (part.A.shape, part.B.shape):
                what = "its start is not in the initial adapter, or has other shapes"
                return self.stop("start", module, what, "give the adapter as it was before training")
            first = dataclasses.replace(part, A=begun["A"], B=begun["B"], scale=-part.scale)
            return self.put(update, parts=(*update.parts, part, first))
        self.put(update, parts=(*update.parts, part), start=start)

    def extras(self, module: str, leaves: Mapping[str, Tensor], target: Target, scale: float) -> None:
        """The magnitude of DoRA and the bias beside B, of a module that is one tensor."""
        (piece, *others), weight = target.pieces, self.updates.get(target.pieces[0].name)
        if weight is None or others:
            return
        if self.settings.dora and "m" not in leaves:
            self.stop("magnitude", module, "use_dora is set, but it has no magnitude", WHOLE)
        if "m" in leaves:
            length = target.d_out
            if math.prod(leaves["m"].shape) != length:
                what = f"its magnitude has shape {leaves['m'].shape} for {length} outputs"
                return self.stop("shape", module, what, WHOLE)
            along = "columns" if target.transposed else "rows"
            self.put(weight, magnitude=Magnitude(leaves["m"], along))  # type: ignore[arg-type]
        if "b" in leaves:
            self.bias(module, piece.name, leaves["b"], scale)

    def bias(self, module: str, weight: str, b: Tensor, scale: float) -> None:
        name = weight.removesuffix("weight") + "bias"
        shape = b.shape if self.base is None else self.base.shapes.get(name)
        if shape != b.shape:
            what = f"lora_B has a bias of shape {b.shape}, " + (
                "but the module has none" if shape is None else f"its module {shape}"
            )
            return self.stop("bias", module, what, "it cannot be merged into this base")
        update = self.update(name, b.shape, (1, math.prod(b.shape)))
        self.put(update, shift=Shift(b, scale))

    def table(self, module: str, leaves: Mapping[str, Tensor]) -> None:
        A, B = leaves["EA"], leaves["EB"]
        if not (len(A.shape) == len(B.shape) == 2 and A.shape[0] == B.shape[1]):
            what = f"its factors have shapes {A.shape} and {B.shape}, and should have (r, vocab) and (d, r)"
            return self.stop("shape", module, what, WHOLE)
        vocab, d = A.shape[1], B.shape[0]
        scale = self.scale(module, A.shape[0])
        if self.base is None:
            target: Target | None = Target((placing.Piece(f"{module}.weight"),), d, vocab, 1, True)
        else:
            target, findings = placing.table(self.base, module, vocab, d)
            if target is None:
                return self.missing(module, findings)
        assert target is not None
        part = LowRank(A, B, scale, True)
        self.add(target.pieces[0].name, part, module)
        self.extras(module, leaves, target, scale)
        if self.settings.tying and self.base is not None:
            for head in (f"{name}.weight" for name in HEADS):
                if self.base.shapes.get(head) == (vocab, d):
                    self.add(head, part, module)

    def tokens(self, module: str, rows: Tensor) -> None:
        """Rows of a table that are replaced; which ones the configuration says, by the end of the module's path."""
        chosen = self.settings.tokens
        if isinstance(chosen, dict):
            chosen = next((v for k, v in chosen.items() if targeted(module, [k])), None)
        name = f"{module}.weight" if self.base is None else self.base.weight(module)
        if name is None:
            return self.missing(module, [])
        shape = (0, 0) if self.base is None else self.base.shapes[name]
        if not (isinstance(chosen, list) and all(type(i) is int and 0 <= i < 1 << 31 for i in chosen)):
            return self.stop("tokens", module, "it has rows of tokens, but the configuration does not say which",
                             "put them into trainable_token_indices")  # fmt: skip
        fits = rows.shape == (len(chosen), shape[-1]) and max(chosen, default=-1) < shape[0]
        if (self.base is not None and not fits) or len(set(chosen)) < len(chosen):
            what = f"{len(chosen)} indices up to {max(chosen, default=-1)} for rows {rows.shape} of a table {shape}"
            return self.stop("tokens", module, what, "take the base and the tokenizer that it was trained with")
        update = self.update(name, shape, (shape[0], math.prod(shape[1:])))
        self.put(update, tokens=TokenRows(np.asarray(chosen, np.int64), rows))

    def parameters(self, module: str, pairs: Sequence[tuple[Mapping[str, Tensor], str]]) -> None:
        """Factors of the parameters of one module, innermost first: experts in one tensor, or in one each."""
        factors = [(leaves["A"], leaves["B"]) for leaves, _ in pairs]
        if self.base is None:
            return self.stop(
                "experts", module, "its factors are of experts, which only the base can divide", "give the base"
            )
        targets = placing.stacked(self.base, module, self.settings.parameters)
        if len(factors) > MAX_NESTED or len(targets) > 2 * MAX_NESTED:
            return self.stop("experts", module, "too many parameters of it are adapted", "they are not read")
        ways = placing.assigned(targets, factors)
        if not ways:
            shapes = "; ".join(f"{A.shape} and {B.shape}" for A, B in factors)
            what = f"factors of shapes {shapes} fit none of its parameters {shown(list(targets), quoted=False)}"
            return self.stop("shape", module, what, BASE)
        if len(ways) > 1:
            what = f"shapes do not tell which factors are whose; taken as {', '.join(ways[0])}, innermost first"
            self.read.note("nesting", module, what, "compare with the model in memory")
        for (name, target), (A, B) in zip(ways[0].items(), factors, strict=True):
            self.experts(f"{module}.{name}", target, A, B)

    def experts(self, name: str, target: Target, A: Tensor, B: Tensor) -> None:
        if target.d_in == target.d_out and target.experts > 1:
            what = "its experts are square, so shapes do not tell how they are stored; taken as (out, in)"
            self.read.note(
                "layout", name, what, "see whether the model transposes them, as older PEFT took them all to do"
            )
        rank = A.shape[1] if len(A.shape) == 3 else A.shape[0] // target.experts
        columns = B.shape[-1] * (target.experts if len(B.shape) == 3 else 1)
        if columns != rank * target.experts:
            what = f"A {A.shape} and B {B.shape} have not the same rank for {target.experts} experts"
            return self.stop("shape", name, what, WHOLE)
        scale = self.scale(name, rank)
        self.notice_rank(name, rank, target.d_out, target.d_in)
        for piece in target.pieces:
            part = LowRank(A, B, scale, target.transposed, piece.at, piece.expert, target.experts, piece.outputs)
            self.add(piece.name, part, name)
