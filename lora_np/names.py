r"""Names of the parts of a model: dotted paths, patterns that choose among them, and presets.

A path is the names of the fields that lead to a part: `blocks.0.attention.query.W`. A pattern is a shell-style glob
(`*`, `?`, `[…]`, and * also crosses dots) that must match a whole path or a tail of one that starts at a dot:
`query.W`, `attention.*`, `blocks.0.*`, `*.A`.

What stands around another part calls it `base`. A pattern need not know of that: `attention.query` also matches
`attention.base.query`.

Where a pattern matches nothing, the error says what is meant. It knows the words of others: `q_proj` of PEFT and Llama
is `attention.query` here, `h.2.attn.c_attn` of GPT-2 is query, key and value of `blocks.2`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

ATTENTION = ("attention.query", "attention.key", "attention.value", "attention.output")
MLP = ("mlp.up", "mlp.down")
GATED = ("mlp.gate", *MLP)  # the gate where there is one
PRESETS = {
    "qv": ("attention.query", "attention.value"),
    "qkvo": ATTENTION,
    "attention+mlp": ATTENTION + GATED,
    "all-linear": (*ATTENTION, *GATED, "head"),  # the head where it is a matrix of its own
}

# What a part is called elsewhere, by the end of its name, and here: all of these, or the first that is there of a|b.
_ELSEWHERE = """
attention.query                                   q_proj q_lin attn_q W_Q wq to_q self.query
attention.key                                     k_proj k_lin attn_k W_K wk to_k self.key
attention.value                                   v_proj v_lin attn_v W_V wv to_v self.value
attention.output                                  o_proj out_proj out_lin attn_output W_O wo attn.c_proj
attention.output                                  attention.output.dense attention.dense
attention.query attention.key attention.value     c_attn attn_qkv qkv_proj query_key_value qkv Wqkv in_proj
attention.output mlp.down                         c_proj
attention.output mlp.up mlp.down                  dense
mlp.gate                                          gate_proj ffn_gate w1 W1
mlp.up                                            up_proj ffn_up w3 W3 c_fc fc1 fc_in lin1 intermediate.dense
mlp.down                                          down_proj ffn_down w2 W2 fc2 fc_out lin2 mlp.c_proj output.dense
mlp.up                                            dense_h_to_4h
mlp.down                                          dense_4h_to_h
mlp.gate mlp.up                                   gate_up_proj
tokens                                            wte embed_tokens word_embeddings token_embd embed_in E
positions                                         wpe position_embeddings embed_positions
types                                             token_type_embeddings
head|tokens                                       lm_head embed_out
head.output                                       classifier score classifier.out_proj
head.pooler                                       pooler.dense classifier.dense
attention_norm                                    ln_1 input_layernorm attn_norm norm1 attention.output.LayerNorm
mlp_norm                                          ln_2 post_attention_layernorm ffn_norm norm2 output.LayerNorm
norm                                              ln_f output_norm norm_f final_layernorm
first_norm                                        embeddings.LayerNorm
attention                                         self_attn attn self_attention attention.self
mlp                                               feed_forward ffn
"""
_MEANT = {
    word: line[:50].split() for line in _ELSEWHERE.strip().splitlines() for word in line[50:].split()
}  # word elsewhere -> words here
_BLOCKS = ("blocks", "layers", "layer", "h", "blk", "block")  # what stands before the number of a block
_AROUND = ("base_model", "model", "transformer", "bert", "roberta", "module")  # what stands before a name
_LEAVES = {  # the last words of an array: weight may be a matrix or the gains of a norm
    "weight": ("W", "gamma"), "bias": ("b", "beta"), "base_layer": (), "default": (),
    "lora_A": ("A",), "lora_B": ("B",), "lora_a": ("A",), "lora_b": ("B",), "lora_magnitude_vector": ("m",),
}  # fmt: skip


def plain(path: str) -> str:
    """The path without what stands around: `blocks.0.attention.query.base.W` is `blocks.0.attention.query.W`."""
    return ".".join(name for name in path.split(".") if name != "base")


def matches(path: str, pattern: str) -> bool:
    """Does the pattern match the path, as it is or plain, or a tail of it that starts at a dot?"""
    return any(fnmatchcase(form, pattern) or fnmatchcase(form, f"*.{pattern}") for form in {path, plain(path)})


def matching(paths: Iterable[str], patterns: Iterable[str], also: Iterable[str] = ()) -> list[str]:
    """The paths that at least one pattern matches, in their order.

    Raises ValueError, with the nearest real names, for an idle pattern; `also` holds further names it might have meant.
    """
    paths = list(paths)
    chosen: set[str] = set()
    for pattern in patterns:
        hits = [path for path in paths if matches(path, pattern)]
        if not hits:
            near = nearest(pattern, paths, also)
            raise ValueError(f"{pattern!r} matches none of the {len(paths)} names; {near}")
        chosen.update(hits)
    return [path for path in paths if path in chosen]


def targeted(paths: Iterable[str], targets: str | Iterable[str]) -> list[str]:
    """The paths that a preset, a pattern or several of either choose, in their order.

    Raises ValueError when there is no target, or one that chooses nothing; of a preset only the whole must choose.
    """
    paths, names = list(paths), (targets,) if isinstance(targets, str) else tuple(targets)
    if not names:
        raise ValueError("targets must name at least one module or preset")
    patterns: list[str] = []
    for name in names:
        able = [p for p in PRESETS.get(name, ()) if any(matches(path, p) for path in paths)]
        patterns += able or [name]
    return matching(paths, patterns, PRESETS)


def nearest(pattern: str, paths: Iterable[str], also: Iterable[str] = ()) -> str:
    """What the pattern is here if it is a name from elsewhere; else the real names closest to it, from their tails."""
    paths = list(paths)
    here = called_here(pattern)
    known = [shown for form in here if (shown := _there(form, paths))]
    if known:
        return f"here it is {', '.join(dict.fromkeys(known))}"
    lacking = "" if here == [pattern] else f"here it would be {here[0].partition('|')[0]}, which is not there; "
    depth = pattern.count(".") + 1
    tails = dict.fromkeys(".".join(plain(path).split(".")[-depth:]) for path in paths)
    if not tails:
        return f"{lacking}there are none"
    near = difflib.get_close_matches(pattern, [*tails, *also], n=3, cutoff=0.3) or list(tails)[:3]
    return f"{lacking}the nearest are {', '.join(near)}"


def called_here(name: str) -> list[str]:
    """What a name of another program is called here, prefixes left out; itself where no word of it is known.

    Of a|b it is the first that the model has.

    >>> called_here("model.layers.2.self_attn.q_proj")
    ['blocks.2.attention.query']
    """
    parts = [part for part in name.split(".") if part not in _AROUND] or [name]
    leaves: tuple[str, ...] = ()
    while len(parts) > 1 and parts[-1] in _LEAVES:
        leaves = _LEAVES[parts.pop()] or leaves
    numbered = [i for i, part in enumerate(parts[:-1]) if part in _BLOCKS and _is_number(parts[i + 1])]
    block = f"blocks.{parts[numbered[-1] + 1]}" if numbered else ""
    rest = parts[numbered[-1] + 2 :] if numbered else parts
    words = _translated(rest)
    if words == [".".join(rest)] and not leaves and (not numbered or parts[numbered[-1]] == "blocks"):
        return [name]
    ways = [[".".join(filter(None, (block, one, leaf))) for leaf in (*leaves, "") for one in word.split("|")]
            for word in words]  # fmt: skip
    return ["|".join(several) for several in ways]


def _translated(rest: list[str]) -> list[str]:
    """The end of a name in our words, by as much of it as is known."""
    for length in range(min(3, len(rest)), 0, -1):
        end = ".".join(rest[-length:])
        meant = [word for known, words in _MEANT.items() if fnmatchcase(known, end) for word in words]
        if meant and end.strip("*?."):
            return list(dict.fromkeys(meant))
    words = [_MEANT[part][0] if part in _MEANT else part for part in rest]
    return [".".join(words)]


def _is_number(part: str) -> bool:
    return part.isdecimal() or any(sign in part for sign in "*?[")


def _there(form: str, paths: list[str]) -> str:
    """The first of a|b that matches a path, or the parts of what does; '' where none does."""
    able = (way for one in form.split("|") for way in (one, f"{one}.*"))
    return next((way for way in able if any(matches(path, way) for path in paths)), "")


def nearest_first(name: str, valid: Iterable[str]) -> str:
    """All valid names, the one most like `name` first."""
    return ", ".join(sorted(valid, key=lambda other: -difflib.SequenceMatcher(None, name, other).ratio()))


def per_path(paths: Iterable[str], special: Mapping[str, Any], default: Any) -> dict[str, Any]:
    """A value for each path: that of the last pattern in `special` that matches it, else the default.

    Raises ValueError for a pattern that matches none.
    """
    paths = list(paths)
    matching(paths, special)
    return {path: ([default] + [value for p, value in special.items() if matches(path, p)])[-1] for path in paths}
