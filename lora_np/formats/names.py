r"""Our names for the arrays of a transformer and theirs: a table a family, read in both directions.

    ours                          theirs                        rows   transposed
    blocks.{i}.attention.query.W  h.{i}.attn.c_attn.weight      0/3    T

`rows` is `k/n`, part k of n equal parts of the outputs that are fused in one tensor, or `k:`, all rows from k on; `T`
says that the tensor is stored (d_in, d_out); `?` that it may be absent. {i} counts blocks and {e} experts. Nothing else
in this package knows how a family lays out its arrays.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..engine.arrays import Array
from .disk import only, shown
from .tensors import Tensor, Tensors

GPT2 = r"""
tokens.W                          wte.weight
positions.W                       wpe.weight
blocks.{i}.attention_norm.gamma   h.{i}.ln_1.weight
blocks.{i}.attention_norm.beta    h.{i}.ln_1.bias
blocks.{i}.attention.query.W      h.{i}.attn.c_attn.weight   0/3 T
blocks.{i}.attention.query.b      h.{i}.attn.c_attn.bias     0/3
blocks.{i}.attention.key.W        h.{i}.attn.c_attn.weight   1/3 T
blocks.{i}.attention.key.b        h.{i}.attn.c_attn.bias     1/3
blocks.{i}.attention.value.W      h.{i}.attn.c_attn.weight   2/3 T
blocks.{i}.attention.value.b      h.{i}.attn.c_attn.bias     2/3
blocks.{i}.attention.output.W     h.{i}.attn.c_proj.weight   T
blocks.{i}.attention.output.b     h.{i}.attn.c_proj.bias
blocks.{i}.mlp_norm.gamma         h.{i}.ln_2.weight
blocks.{i}.mlp_norm.beta          h.{i}.ln_2.bias
blocks.{i}.mlp.up.W               h.{i}.mlp.c_fc.weight      T
blocks.{i}.mlp.up.b               h.{i}.mlp.c_fc.bias
blocks.{i}.mlp.down.W             h.{i}.mlp.c_proj.weight    T
blocks.{i}.mlp.down.b             h.{i}.mlp.c_proj.bias
norm.gamma                        ln_f.weight
norm.beta                         ln_f.bias
head.W                            /lm_head.weight            ?
"""

_LLAMA_ATTENTION = r"""
tokens.W                          embed_tokens.weight
blocks.{i}.attention_norm.gamma   layers.{i}.input_layernorm.weight
blocks.{i}.attention.query.W      layers.{i}.self_attn.q_proj.weight
blocks.{i}.attention.query.b      layers.{i}.self_attn.q_proj.bias   ?
blocks.{i}.attention.key.W        layers.{i}.self_attn.k_proj.weight
blocks.{i}.attention.key.b        layers.{i}.self_attn.k_proj.bias   ?
blocks.{i}.attention.value.W      layers.{i}.self_attn.v_proj.weight
blocks.{i}.attention.value.b      layers.{i}.self_attn.v_proj.bias   ?
blocks.{i}.attention.output.W     layers.{i}.self_attn.o_proj.weight
blocks.{i}.attention.output.b     layers.{i}.self_attn.o_proj.bias   ?
blocks.{i}.mlp_norm.gamma         layers.{i}.post_attention_layernorm.weight
norm.gamma                        norm.weight
head.W                            /lm_head.weight   ?
"""

LLAMA = (
    _LLAMA_ATTENTION
    + r"""
blocks.{i}.mlp.gate.W             layers.{i}.mlp.gate_proj.weight
blocks.{i}.mlp.gate.b             layers.{i}.mlp.gate_proj.bias   ?
blocks.{i}.mlp.up.W               layers.{i}.mlp.up_proj.weight
blocks.{i}.mlp.up.b               layers.{i}.mlp.up_proj.bias     ?
blocks.{i}.mlp.down.W             layers.{i}.mlp.down_proj.weight
blocks.{i}.mlp.down.b             layers.{i}.mlp.down_proj.bias   ?
"""
)

MIXTRAL = (
    _LLAMA_ATTENTION
    + r"""
blocks.{i}.mlp.router.W             layers.{i}.block_sparse_moe.gate.weight
blocks.{i}.mlp.experts.{e}.gate.W   layers.{i}.block_sparse_moe.experts.{e}.w1.weight
blocks.{i}.mlp.experts.{e}.up.W     layers.{i}.block_sparse_moe.experts.{e}.w3.weight
blocks.{i}.mlp.experts.{e}.down.W   layers.{i}.block_sparse_moe.experts.{e}.w2.weight
"""
)

BERT = r"""
tokens.W                          embeddings.word_embeddings.weight
positions.W                       embeddings.position_embeddings.weight
types.W                           embeddings.token_type_embeddings.weight
first_norm.gamma                  embeddings.LayerNorm.weight
first_norm.beta                   embeddings.LayerNorm.bias
blocks.{i}.attention.query.W      encoder.layer.{i}.attention.self.query.weight
blocks.{i}.attention.query.b      encoder.layer.{i}.attention.self.query.bias
blocks.{i}.attention.key.W        encoder.layer.{i}.attention.self.key.weight
blocks.{i}.attention.key.b        encoder.layer.{i}.attention.self.key.bias
blocks.{i}.attention.value.W      encoder.layer.{i}.attention.self.value.weight
blocks.{i}.attention.value.b      encoder.layer.{i}.attention.self.value.bias
blocks.{i}.attention.output.W     encoder.layer.{i}.attention.output.dense.weight
blocks.{i}.attention.output.b     encoder.layer.{i}.attention.output.dense.bias
blocks.{i}.attention_norm.gamma   encoder.layer.{i}.attention.output.LayerNorm.weight
blocks.{i}.attention_norm.beta    encoder.layer.{i}.attention.output.LayerNorm.bias
blocks.{i}.mlp.up.W               encoder.layer.{i}.intermediate.dense.weight
blocks.{i}.mlp.up.b               encoder.layer.{i}.intermediate.dense.bias
blocks.{i}.mlp.down.W             encoder.layer.{i}.output.dense.weight
blocks.{i}.mlp.down.b             encoder.layer.{i}.output.dense.bias
blocks.{i}.mlp_norm.gamma         encoder.layer.{i}.output.LayerNorm.weight
blocks.{i}.mlp_norm.beta          encoder.layer.{i}.output.LayerNorm.bias
"""

_BERT_HEAD = r"""
head.pooler.W                     pooler.dense.weight   ?
head.pooler.b                     pooler.dense.bias     ?
head.output.W                     /classifier.weight    ?
head.output.b                     /classifier.bias      ?
masked.dense.W                    /cls.predictions.transform.dense.weight       ?
masked.dense.b                    /cls.predictions.transform.dense.bias         ?
masked.norm.gamma                 /cls.predictions.transform.LayerNorm.weight   ?
masked.norm.beta                  /cls.predictions.transform.LayerNorm.bias     ?
masked.W                          /cls.predictions.decoder.weight               ?
masked.b                          /cls.predictions.bias                         ?
"""

_ROBERTA_HEAD = r"""
pooler.W                          pooler.dense.weight     ?
pooler.b                          pooler.dense.bias       ?
head.pooler.W                     /classifier.dense.weight      ?
head.pooler.b                     /classifier.dense.bias        ?
head.output.W                     /classifier.out_proj.weight   ?
head.output.b                     /classifier.out_proj.bias     ?
masked.dense.W                    /lm_head.dense.weight         ?
masked.dense.b                    /lm_head.dense.bias           ?
masked.norm.gamma                 /lm_head.layer_norm.weight    ?
masked.norm.beta                  /lm_head.layer_norm.bias      ?
masked.W                          /lm_head.decoder.weight       ?
masked.b                          /lm_head.bias                 ?
"""

# llama.cpp's names for a Llama.
LLAMA_GGUF = r"""
tokens.W                          token_embd.weight
blocks.{i}.attention_norm.gamma   blk.{i}.attn_norm.weight
blocks.{i}.attention.query.W      blk.{i}.attn_q.weight
blocks.{i}.attention.key.W        blk.{i}.attn_k.weight
blocks.{i}.attention.value.W      blk.{i}.attn_v.weight
blocks.{i}.attention.output.W     blk.{i}.attn_output.weight
blocks.{i}.mlp_norm.gamma         blk.{i}.ffn_norm.weight
blocks.{i}.mlp.gate.W             blk.{i}.ffn_gate.weight
blocks.{i}.mlp.up.W               blk.{i}.ffn_up.weight
blocks.{i}.mlp.down.W             blk.{i}.ffn_down.weight
norm.gamma                        output_norm.weight
head.W                            output.weight   ?
"""

# glassllm's names for a Llama.
LLAMA_NPZ = r"""
tokens.W                          E
blocks.{i}.attention_norm.gamma   blocks.{i}.norm1.gamma
blocks.{i}.attention.query.W      blocks.{i}.attn.W_Q   T
blocks.{i}.attention.key.W        blocks.{i}.attn.W_K   T
blocks.{i}.attention.value.W      blocks.{i}.attn.W_V   T
blocks.{i}.attention.output.W     blocks.{i}.attn.W_O   T
blocks.{i}.mlp_norm.gamma         blocks.{i}.norm2.gamma
blocks.{i}.mlp.gate.W             blocks.{i}.ffn.W1     T
blocks.{i}.mlp.up.W               blocks.{i}.ffn.W3     T
blocks.{i}.mlp.down.W             blocks.{i}.ffn.W2     T
norm.gamma                        norm_f.gamma
"""

# RoBERTa numbers its positions from 2 (Liu et al. 2019 as released): the first two rows of its table are not used.
ROBERTA = BERT.replace("position_embeddings.weight", "position_embeddings.weight   2:") + _ROBERTA_HEAD

# model_type -> table, and the prefix that the file of a model with a head puts before names without a "/".
FAMILIES = {
    "gpt2": (GPT2, "transformer."),
    "llama": (LLAMA, "model."), "mistral": (LLAMA, "model."), "qwen2": (LLAMA, "model."),
    "mixtral": (MIXTRAL, "model."),
    "bert": (BERT + _BERT_HEAD, "bert."), "roberta": (ROBERTA, "roberta."),
    "llama of llama.cpp": (LLAMA_GGUF, ""), "llama of glassllm": (LLAMA_NPZ, ""),
}  # fmt: skip
# What files of these families also hold, and no array of the model is.
BUFFERS = re.compile(r".*(?:\.attn\.(?:masked_)?bias|\.rotary_emb\.inv_freq|embeddings\.position_ids|decoder\.bias)")
_ROWS = re.compile(r"(\d+)/(\d+)|(\d+):")


@dataclass(frozen=True)
class Entry:
    """One row of a table, with its numbers filled in."""

    ours: str
    theirs: str
    rows: str = ""
    transposed: bool = False
    optional: bool = False

    def range(self, count: int) -> tuple[int, int]:
        """Which of `count` outputs of their tensor are ours."""
        match = _ROWS.fullmatch(self.rows)
        if match is None:
            return 0, count
        if match[3]:
            return int(match[3]), count
        part, parts = int(match[1]), int(match[2])
        if count % parts:
            raise ValueError(f"{self.theirs} has {count} outputs, which are not {parts} equal parts")
        return count // parts * part, count // parts * (part + 1)


def entries(model_type: str, layers: int, experts: int = 0, *, prefixed: bool = True) -> Iterator[Entry]:
    """The table of a family for so many blocks and experts; raises ValueError for a family that has none."""
    if model_type not in FAMILIES:
        raise ValueError(
            f"model_type must be one of {only(FAMILIES)}, got {shown(model_type)}: its names are not known"
        )
    table, prefix = FAMILIES[model_type]
    for line in table.strip().splitlines():
        if not line:
            continue
        ours, theirs, *marks = line.split()
        theirs = theirs[1:] if theirs.startswith("/") else (prefix if prefixed else "") + theirs
        rows = next((mark for mark in marks if _ROWS.fullmatch(mark)), "")
        for i in range(layers if "{i}" in ours else 1):
            for e in range(experts if "{e}" in ours else 1):
                mine, name = (text.replace("{i}", str(i)).replace("{e}", str(e)) for text in (ours, theirs))
                yield Entry(mine, name, rows, "T" in marks, "?" in marks)


@dataclass(frozen=True)
class Part(Tensor):
    """Some outputs of a tensor on disk, in our orientation; read when they are used."""

    tensor: Tensor
    entry: Entry

    @property
    def _outputs(self) -> tuple[int, int]:
        return self.entry.range(self.tensor.shape[-1 if self.entry.transposed else 0])

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        start, stop = self._outputs
        rest = self.tensor.shape[:-1] if self.entry.transposed else self.tensor.shape[1:]
        return (stop - start, *rest)

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.tensor.dtype

    def numbers(self, start: int, stop: int) -> Array:
        first, last = self._outputs
        if self.entry.transposed:
            return np.asarray(self.tensor)[:, first:last].T.reshape(-1)[start:stop]
        width = math.prod(self.tensor.shape[1:])
        return self.tensor.numbers(first * width + start, first * width + stop)


def ours(tensors: Mapping[str, Tensor], model_type: str, layers: int, experts: int = 0) -> Tensors:
    """The checkpoint of a family under our names; raises ValueError for a tensor too few, too many or misshapen."""
    plain = any(entry.theirs in tensors for entry in entries(model_type, 1, min(experts, 1), prefixed=False)
                if not entry.optional)  # fmt: skip
    found: dict[str, Tensor] = {}
    used = set()
    for entry in entries(model_type, layers, experts, prefixed=not plain):
        if entry.theirs not in tensors:
            if not entry.optional:
                raise ValueError(
                    f"the checkpoint lacks {shown(entry.theirs)}, which is {entry.ours} of a {model_type} model"
                )
            continue
        tensor = tensors[entry.theirs]
        wanted = 2 if entry.ours.endswith(".W") else 1
        if len(tensor.shape) != wanted:
            raise ValueError(f"{shown(entry.theirs)} must have {wanted} axes, got shape {tensor.shape}")
        used.add(entry.theirs)
        found[entry.ours] = Part(tensor, entry) if entry.rows or entry.transposed else tensor
    left = [name for name in tensors if name not in used and not BUFFERS.fullmatch(name)]
    if left:
        raise ValueError(f"the checkpoint holds {shown(left[0])}, which no {model_type} model of {layers} blocks has")
    return Tensors(found)


def theirs(arrays: Mapping[str, Any], model_type: str, layers: int, experts: int = 0) -> dict[str, Array]:
    """Our arrays under the names of a family, fused and transposed as it stores them; the inverse of `ours`."""
    known, pieces, turned = set(), dict[str, dict[int, Array]](), set()
    for entry in entries(model_type, layers, experts):
        known.add(entry.ours)
        if entry.ours not in arrays:
            if not entry.optional:
                raise ValueError(f"the model lacks {entry.ours}, which a {model_type} model has")
            continue
        match, array = _ROWS.fullmatch(entry.rows), np.asarray(arrays[entry.ours])
        if match and match[3]:  # the rows that are not used come before ours
            array = np.concatenate([np.zeros((int(match[3]), *array.shape[1:]), array.dtype), array])
        pieces.setdefault(entry.theirs, {})[int(match[1] or 0) if match else 0] = array
        if entry.transposed:
            turned.add(entry.theirs)
    if extra := set(arrays) - known:
        raise ValueError(f"the model holds {min(extra)}, which a {model_type} model does not have")
    whole = {name: np.concatenate([parts[k] for k in sorted(parts)]) for name, parts in pieces.items()}
    return {name: np.ascontiguousarray(array.T) if name in turned else array for name, array in whole.items()}
