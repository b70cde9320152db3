r"""Adapters of other programs: what is read is what their formulas say, written out here by hand; oddities are found.

No other library is asked (test_formats_parity.py asks PEFT itself). Everything is small, float64 and far from zero, so
a wrong scale, orientation, expert or row shows in the first digit; equality is to a few roundings of float64.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import random_shapes
from formats_files import archive_bytes, numbers, refused, write_file, write_peft
from hypothesis import given
from hypothesis import strategies as st
from shared_data import shared_data

from lora_np.engine.arrays import row_blocks
from lora_np.formats import placing
from lora_np.formats.adapters import read_adapter
from lora_np.formats.examining import examined
from lora_np.formats.updates import EXACT, Adapter, LowRank, Order, Update

Arrays = dict[str, np.ndarray]
LAYER = "model.layers.0."
D, F, V, R = 4, 6, 10, 2  # widths of the stream and of the MLP, tokens, rank


def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return numbers(np.random.default_rng([seed, *shape]), *shape, dtype=np.float64)


def llama() -> Arrays:
    """The names of a Llama with one layer, of which one map is square and has a bias."""
    return {
        "model.embed_tokens.weight": draw(V, D),
        f"{LAYER}self_attn.q_proj.weight": draw(D, D, seed=1),
        f"{LAYER}self_attn.q_proj.bias": draw(D, seed=2),
        f"{LAYER}mlp.up_proj.weight": draw(F, D, seed=3),
        f"{LAYER}mlp.up_proj.bias": draw(F, seed=4),
        f"{LAYER}mlp.down_proj.weight": draw(D, F, seed=5),
        "model.norm.weight": draw(D, seed=6),
        "lm_head.weight": draw(V, D, seed=7),
    }


def gpt2() -> Arrays:
    return {
        "transformer.wte.weight": draw(V, D),
        "transformer.h.0.attn.c_attn.weight": draw(D, 3 * D),
        "transformer.h.0.attn.c_attn.bias": draw(3 * D),
        "transformer.h.0.attn.c_proj.weight": draw(D, D, seed=8),
        "transformer.h.0.attn.c_proj.bias": draw(D),
    }


def pair(module: str, d_out: int, d_in: int, rank: int = R) -> Arrays:
    return {
        f"{module}.lora_A.weight": draw(rank, d_in, seed=len(module)),
        f"{module}.lora_B.weight": draw(d_out, rank, seed=len(module) + 1),
    }


def table_pair(module: str) -> Arrays:
    return {f"{module}.lora_embedding_A": draw(R, V, seed=11), f"{module}.lora_embedding_B": draw(D, R, seed=12)}


UP, Q = f"{LAYER}mlp.up_proj", f"{LAYER}self_attn.q_proj"


def expected(adapter: Adapter, base: Mapping[str, Any], name: str) -> np.ndarray:
    """The merged tensor, put together from blocks of two rows."""
    W = base.get(name, np.zeros(0))
    update = adapter.updates[name].prepared(W)
    n, width = update.matrix
    blocks = [update.expected(W, rows) for rows in row_blocks(n, width, 2 * width)]
    return np.concatenate(blocks).reshape(update.shape)


def same(found: np.ndarray, by_hand: np.ndarray) -> None:
    assert found.shape == by_hand.shape
    np.testing.assert_allclose(found, by_hand, rtol=1e-12, atol=1e-12)


def kinds(adapter: Adapter) -> list[str]:
    return [finding.kind for finding in adapter.findings]


def stops(adapter: Adapter) -> list[str]:
    return [finding.kind for finding in adapter.findings if finding.stops]


# rows of an update


def test_a_prepared_update_reads_its_factors_no_more_and_shares_those_that_are_shared(tmp_path: Path) -> None:
    base = experts("fused")
    adapter = read_adapter(write_peft(tmp_path / "a", packed(), target_parameters=TARGETS), base).checked()
    for name, update in adapter.updates.items():
        ready = update.prepared(base[name])
        assert len({id(part.A) for part in ready.parts}) == 1
        before = update.change(slice(0, update.matrix[0]))
        (tmp_path / "a" / "adapter_model.safetensors").rename(tmp_path / "aside")
        assert (ready.change(slice(0, update.matrix[0])) == before).all()
        (tmp_path / "aside").rename(tmp_path / "a" / "adapter_model.safetensors")


@random_shapes
@given(st.data())
def test_rows_of_an_update_are_those_of_the_whole(data: st.DataObject) -> None:
    d_out, d_in, rank = (data.draw(st.integers(1, 6)) for _ in range(3))
    turned = data.draw(st.booleans())
    experts = data.draw(st.integers(1, 3))
    A, B = draw(experts * rank, d_in), draw(d_out, experts * rank, seed=1)
    height, width = (d_in, d_out) if turned else (d_out, d_in)
    parts = tuple(LowRank(A, B, 1.5, turned, e * height, e, experts) for e in range(experts))
    update = Update("x", (experts, height, width), (experts * height, width), parts)
    whole = update.change(slice(0, update.matrix[0]))
    for e in range(experts):
        delta = 1.5 * B[:, e::experts] @ A[e * rank : (e + 1) * rank]
        same(whole[e * height : (e + 1) * height], delta.T if turned else delta)
    start, stop = sorted(data.draw(st.integers(0, experts * height)) for _ in range(2))
    same(update.change(slice(start, stop)), whole[start:stop])
    same(update.sizes(slice(start, stop)), sum_of_sizes(parts, update)[start:stop])


def sum_of_sizes(parts: tuple[LowRank, ...], update: Update) -> np.ndarray:
    total = np.zeros(update.matrix)
    for part in parts:
        left, right = (abs(side) for side in part.sides(0, part.height))
        total[part.at : part.at + part.height] += abs(part.scale) * left @ right
    return total


@pytest.mark.parametrize("order", [EXACT, Order("float32"), Order("float32", "float16"), Order("float32", None, True)])
def test_an_order_of_roundings_is_carried_out_as_it_says(order: Order) -> None:
    part = LowRank(numbers(rng(), 3, 5), numbers(rng(), 4, 3), 0.3)
    left, right = part.B.astype(order.product), part.A.astype(order.product)
    s = left.dtype.type(0.3)
    by_hand = (s * left) @ right if order.scale_first else (left @ right) * s
    found = part.rows(0, 4, order)
    assert (found == (by_hand if order.cast is None else by_hand.astype(order.cast))).all()
    assert found.dtype == (order.cast or order.product)


def test_a_factor_in_16_bits_is_multiplied_in_32_by_peft(tmp_path: Path) -> None:
    half = {name: a.astype(np.float16) for name, a in pair(UP, F, D).items()}
    assert read_adapter(write_peft(tmp_path / "h", half), llama()).order == Order("float32", "float16")
    assert read_adapter(write_peft(tmp_path / "d", pair(UP, F, D)), llama()).order == Order("float64", "float64")


def test_a_signalling_nan_of_a_16_bit_base_is_a_nan_and_no_warning(tmp_path: Path) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    W = np.array([[0x7F81, 0x3F80, 0, 0]] * F, np.uint16).view(ml_dtypes.bfloat16)
    update = read_adapter(write_peft(tmp_path / "a", pair(UP, F, D)), llama()).updates[f"{UP}.weight"]
    found = update.expected(W, slice(0, F))  # warnings are errors here
    assert np.isnan(found[:, 0]).all()
    assert np.isfinite(found[:, 1:]).all()


# PEFT: the scale


SCALES: dict[str, tuple[dict[str, Any], float]] = {
    "alpha over r": ({}, 3 / 2),
    "rslora": ({"use_rslora": True}, 3 / 2**0.5),
    "alpha pattern": ({"alpha_pattern": {"up_proj": 7}}, 7 / 2),
    "alpha pattern of another": ({"alpha_pattern": {"down_proj": 7}}, 3 / 2),
    "the first pattern wins": ({"alpha_pattern": {"mlp.up_proj": 5, "up_proj": 7}}, 5 / 2),
    "a pattern matches at the end": ({"alpha_pattern": {"layers": 7, "proj": 9}}, 3 / 2),
    "a pattern is an expression": ({"alpha_pattern": {r"layers\.\d+\.mlp\..*_proj": 8}}, 8 / 2),
    "rank pattern": ({"r": 16, "rank_pattern": {"up_proj": 2}}, 3 / 2),
    "rank pattern and rslora": ({"r": 16, "rank_pattern": {"up_proj": 2}, "use_rslora": True}, 3 / 2**0.5),
}


@pytest.mark.parametrize(("config", "scale"), SCALES.values(), ids=SCALES)
def test_the_scale_follows_from_the_configuration(tmp_path: Path, config: dict[str, Any], scale: float) -> None:
    base, arrays = llama(), pair(UP, F, D)
    adapter = read_adapter(write_peft(tmp_path / "a", arrays, **config), base).checked()
    delta = arrays[f"{UP}.lora_B.weight"] @ arrays[f"{UP}.lora_A.weight"]
    same(expected(adapter, base, f"{UP}.weight"), base[f"{UP}.weight"] + scale * delta)
    assert list(adapter.updates) == [f"{UP}.weight"]


# PEFT: orientation


@pytest.mark.parametrize("declared", [True, False])
def test_the_layer_decides_the_orientation_whatever_the_file_says(tmp_path: Path, declared: bool) -> None:
    for k, (base, module, d_out, d_in, turned) in enumerate(
        [(llama(), UP, F, D, False), (llama(), Q, D, D, False), (gpt2(), "transformer.h.0.attn.c_attn", 3 * D, D, True),
         (gpt2(), "transformer.h.0.attn.c_proj", D, D, True)]
    ):  # fmt: skip
        arrays = pair(module, d_out, d_in)
        adapter = read_adapter(write_peft(tmp_path / str(k), arrays, fan_in_fan_out=declared), base).checked()
        delta = 1.5 * arrays[f"{module}.lora_B.weight"] @ arrays[f"{module}.lora_A.weight"]
        same(expected(adapter, base, f"{module}.weight"), base[f"{module}.weight"] + (delta.T if turned else delta))
        assert "layout" not in kinds(adapter)


def test_a_square_matrix_that_nothing_tells_about_is_taken_as_declared_and_said_so(tmp_path: Path) -> None:
    base = {"a.weight": draw(D, D)}
    for declared in (True, False):
        folder = write_peft(tmp_path / str(declared), pair("a", D, D), fan_in_fan_out=declared)
        adapter = read_adapter(folder, base)
        assert kinds(adapter) == ["layout"]
        assert adapter.checked().updates["a.weight"].parts[0].transposed is declared
        for family, turned in (("gpt2", True), ("llama", False)):
            known = read_adapter(folder, base, {"model_type": family})
            assert known.updates["a.weight"].parts[0].transposed is turned
            assert not known.findings


# PEFT: everything that is not a plain product


def test_an_embedding_is_adapted_by_the_transpose(tmp_path: Path) -> None:
    base, arrays = llama(), table_pair("model.embed_tokens")
    adapter = read_adapter(write_peft(tmp_path / "a", arrays), base).checked()
    A, B = arrays.values()
    same(expected(adapter, base, "model.embed_tokens.weight"), base["model.embed_tokens.weight"] + 1.5 * (B @ A).T)


def test_dora_scales_each_output_by_its_magnitude_over_its_norm(tmp_path: Path) -> None:
    base, arrays = llama(), pair(UP, F, D) | pair(Q, D, D) | table_pair("model.embed_tokens")
    m = {UP: abs(draw(F)), Q: abs(draw(D)), "model.embed_tokens": abs(draw(D, seed=1))}
    arrays |= {f"{UP}.lora_magnitude_vector": m[UP], f"{Q}.lora_magnitude_vector.weight": m[Q]}
    arrays["model.embed_tokens.lora_magnitude_vector"] = m["model.embed_tokens"]
    adapter = read_adapter(write_peft(tmp_path / "a", arrays, use_dora=True), base).checked()
    for module in (UP, Q):
        V_ = base[f"{module}.weight"] + 1.5 * arrays[f"{module}.lora_B.weight"] @ arrays[f"{module}.lora_A.weight"]
        same(expected(adapter, base, f"{module}.weight"), m[module][:, None] * V_ / np.linalg.norm(V_, axis=1)[:, None])
    A, B = (arrays[f"model.embed_tokens.lora_embedding_{x}"] for x in "AB")
    V_ = base["model.embed_tokens.weight"] + 1.5 * (B @ A).T
    by_hand = m["model.embed_tokens"] * V_ / np.linalg.norm(V_, axis=0)
    same(expected(adapter, base, "model.embed_tokens.weight"), by_hand)
    unprepared = adapter.updates["model.embed_tokens.weight"]
    refused(lambda: unprepared.expected(base["model.embed_tokens.weight"], slice(0, 2)), "prepare")


def test_dora_of_a_transposed_map_has_a_norm_for_each_column(tmp_path: Path) -> None:
    base, module = gpt2(), "transformer.h.0.attn.c_attn"
    m = abs(draw(3 * D, seed=3))
    arrays = pair(module, 3 * D, D) | {f"{module}.lora_magnitude_vector": m}
    adapter = read_adapter(write_peft(tmp_path / "a", arrays, use_dora=True), base).checked()
    V_ = base[f"{module}.weight"] + 1.5 * (arrays[f"{module}.lora_B.weight"] @ arrays[f"{module}.lora_A.weight"]).T
    same(expected(adapter, base, f"{module}.weight"), m * V_ / np.linalg.norm(V_, axis=0))


def test_a_bias_beside_b_is_added_with_the_same_scale(tmp_path: Path) -> None:
    base, b = llama(), draw(F, seed=9)
    arrays = pair(UP, F, D) | {f"{UP}.lora_B.bias": b}
    adapter = read_adapter(write_peft(tmp_path / "a", arrays, lora_bias=True), base).checked()
    same(expected(adapter, base, f"{UP}.bias"), base[f"{UP}.bias"] + 1.5 * b)
    del base[f"{UP}.bias"]
    assert "bias" in stops(read_adapter(tmp_path / "a", base))


def test_trained_biases_and_saved_modules_replace_those_of_the_base(tmp_path: Path) -> None:
    base = llama()
    new = {
        f"{Q}.base_layer.bias": draw(D, seed=21),
        f"{UP}.bias": draw(F, seed=22),
        "lm_head.weight": draw(V, D, seed=23),
    }
    new |= {"model.embed_tokens.modules_to_save.default.weight": draw(V, D, seed=24)}
    adapter = read_adapter(write_peft(tmp_path / "a", pair(Q, D, D) | new, bias="all"), base).checked()
    same(expected(adapter, base, f"{Q}.bias"), new[f"{Q}.base_layer.bias"])
    same(expected(adapter, base, f"{UP}.bias"), new[f"{UP}.bias"])
    same(expected(adapter, base, "lm_head.weight"), new["lm_head.weight"])
    same(expected(adapter, base, "model.embed_tokens.weight"), new["model.embed_tokens.modules_to_save.default.weight"])


def test_an_adapted_module_that_was_also_saved_is_replaced_first(tmp_path: Path) -> None:
    base, saved = llama(), draw(V, D, seed=31)
    arrays = table_pair("model.embed_tokens") | {"model.embed_tokens.base_layer.weight": saved}
    adapter = read_adapter(write_peft(tmp_path / "a", arrays), base).checked()
    A, B = (arrays[f"model.embed_tokens.lora_embedding_{x}"] for x in "AB")
    same(expected(adapter, base, "model.embed_tokens.weight"), saved + 1.5 * (B @ A).T)


@pytest.mark.parametrize(
    "indices", [[7, 2, 9], {"embed_tokens": [7, 2, 9]}, {"x": [0], "model.embed_tokens": [7, 2, 9]}]
)
def test_trained_tokens_replace_their_rows_in_the_order_of_the_configuration(tmp_path: Path, indices: Any) -> None:
    base, rows = llama(), draw(3, D, seed=41)
    arrays = {"model.embed_tokens.token_adapter.trainable_tokens_delta": rows}
    adapter = read_adapter(write_peft(tmp_path / "a", arrays, trainable_token_indices=indices), base).checked()
    by_hand = base["model.embed_tokens.weight"].copy()
    by_hand[[7, 2, 9]] = rows
    same(expected(adapter, base, "model.embed_tokens.weight"), by_hand)


@pytest.mark.parametrize(
    "indices", [[7, 2], [7, 2, 10], [7, 2, 2], {"lm_head": [7, 2, 9]}, None, ["7", 2, 9], [-1, 2, 3]]
)
def test_tokens_that_the_configuration_does_not_place_stop(tmp_path: Path, indices: Any) -> None:
    arrays = {"model.embed_tokens.token_adapter.trainable_tokens_delta": draw(3, D)}
    adapter = read_adapter(write_peft(tmp_path / "a", arrays, trainable_token_indices=indices), llama())
    assert stops(adapter) == ["tokens"]
    refused(adapter.checked, "embed_tokens")


def test_a_convolution_is_adapted_as_the_matrix_of_its_outputs(tmp_path: Path) -> None:
    base = {"c.weight": draw(5, 3, 2, 2), "c.bias": draw(5)}
    arrays = {"c.lora_A.weight": draw(R, 3, 2, 2, seed=1), "c.lora_B.weight": draw(5, R, 1, 1, seed=2)}
    adapter = read_adapter(write_peft(tmp_path / "a", arrays), base).checked()
    delta = np.einsum("or,rikl->oikl", arrays["c.lora_B.weight"][:, :, 0, 0], arrays["c.lora_A.weight"])
    same(expected(adapter, base, "c.weight"), base["c.weight"] + 1.5 * delta)


def test_a_multi_head_attention_is_adapted_in_its_fused_and_its_output_map(tmp_path: Path) -> None:
    base = {"att.in_proj_weight": draw(3 * D, D), "att.in_proj_bias": draw(3 * D), "att.out_proj.weight": draw(D, D)}
    arrays = pair("att", 3 * D, D) | pair("att.base_layer.out_proj", D, D)
    adapter = read_adapter(write_peft(tmp_path / "a", arrays), base).checked()
    assert sorted(adapter.updates) == ["att.in_proj_weight", "att.out_proj.weight"]


# PEFT: experts

E_ = 3


def experts(kind: str) -> Arrays:
    """One layer of three experts: "fused" as one tensor a projection, "each" one tensor an expert, "turned" fused
    and stored (in, out)."""
    gate_up, down = draw(E_, 2 * F, D), draw(E_, D, F, seed=1)
    if kind == "fused":
        return {f"{LAYER}mlp.experts.gate_up_proj": gate_up, f"{LAYER}mlp.experts.down_proj": down}
    if kind == "turned":
        return {f"{LAYER}mlp.experts.gate_up_proj": gate_up.swapaxes(1, 2).copy(),
                f"{LAYER}mlp.experts.down_proj": down.swapaxes(1, 2).copy()}  # fmt: skip
    own = {}
    for e in range(E_):
        names = ("w1", "w3", "w2") if kind == "mixtral" else ("gate_proj", "up_proj", "down_proj")
        at = f"{LAYER}{'block_sparse_moe' if kind == 'mixtral' else 'mlp'}.experts.{e}."
        for name, W in zip(names, (gate_up[e, :F], gate_up[e, F:], down[e]), strict=True):
            own[f"{at}{name}.weight"] = W.copy()
    return own


def packed() -> Arrays:
    """As PEFT stores parameters of one module: gate_up_proj innermost, A expert by expert, B with experts fastest."""
    module = f"{LAYER}mlp.experts"
    return {
        f"{module}.base_layer.lora_A.weight": draw(E_ * R, D, seed=2),
        f"{module}.base_layer.lora_B.weight": draw(2 * F, E_ * R, seed=3),
        f"{module}.lora_A.weight": draw(E_ * R, F, seed=4),
        f"{module}.lora_B.weight": draw(D, E_ * R, seed=5),
    }


def unpacked(arrays: Arrays, level: str, e: int, slowest: bool = False) -> np.ndarray:
    A = arrays[f"{LAYER}mlp.experts.{level}lora_A.weight"].reshape(E_, R, -1)[e]
    B = arrays[f"{LAYER}mlp.experts.{level}lora_B.weight"]
    return 1.5 * (B[:, e * R : (e + 1) * R] if slowest else B.reshape(len(B), R, E_)[:, :, e]) @ A


TARGETS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


@pytest.mark.parametrize("kind", ["fused", "turned", "mixtral", "qwen"])
def test_experts_are_unpacked_onto_a_base_of_either_kind(tmp_path: Path, kind: str) -> None:
    base, arrays = experts(kind), packed()
    folder = write_peft(tmp_path / "a", arrays, target_parameters=TARGETS)
    adapter = read_adapter(folder, base).checked()
    assert set(adapter.updates) == set(base)
    for e in range(E_):
        gate_up, down = unpacked(arrays, "base_layer.", e), unpacked(arrays, "", e)
        if kind in ("fused", "turned"):
            for name, delta in (("gate_up_proj", gate_up), ("down_proj", down)):
                W = base[f"{LAYER}mlp.experts.{name}"]
                found = expected(adapter, base, f"{LAYER}mlp.experts.{name}")
                same(found[e], W[e] + (delta.T if kind == "turned" else delta))
            continue
        names = [name for name in base if f".experts.{e}." in name]
        for name, delta in zip(names, (gate_up[:F], gate_up[F:], down), strict=True):
            same(expected(adapter, base, name), base[name] + delta)


def test_reading_b_with_the_expert_slowest_is_another_update(tmp_path: Path) -> None:
    arrays = packed()  # a planted fault: what three engines did
    right, wrong = (unpacked(arrays, "", 1, slowest) for slowest in (False, True))
    assert abs(right - wrong).max() > 0.5


@pytest.mark.parametrize("kind", ["fused", "mixtral"])
def test_an_adapter_of_single_experts_is_placed_on_a_base_of_either_kind(tmp_path: Path, kind: str) -> None:
    base, arrays = experts(kind), {}
    for name, (d_out, d_in) in {"w1": (F, D), "w3": (F, D), "w2": (D, F)}.items():
        for e in (0, 2):
            arrays |= pair(f"{LAYER}block_sparse_moe.experts.{e}.{name}", d_out, d_in)
    adapter = read_adapter(write_peft(tmp_path / "a", arrays), base).checked()

    def delta(e: int, name: str) -> np.ndarray:
        module = f"{LAYER}block_sparse_moe.experts.{e}.{name}"
        return 1.5 * arrays[f"{module}.lora_B.weight"] @ arrays[f"{module}.lora_A.weight"]

    if kind == "fused":
        W = base[f"{LAYER}mlp.experts.gate_up_proj"]
        found = expected(adapter, base, f"{LAYER}mlp.experts.gate_up_proj")
        same(found[1], W[1])
        same(found[2], W[2] + np.concatenate([delta(2, "w1"), delta(2, "w3")]))
    else:
        name = f"{LAYER}block_sparse_moe.experts.2.w3.weight"
        same(expected(adapter, base, name), base[name] + delta(2, "w3"))
        assert not any(".experts.1." in name for name in adapter.updates)


def test_experts_that_no_shape_can_tell_apart_are_said_to_be(tmp_path: Path) -> None:
    base = {f"{LAYER}mlp.experts.down_proj": draw(E_, D, D)}
    arrays = {
        f"{LAYER}mlp.experts.lora_A.weight": draw(E_ * R, D),
        f"{LAYER}mlp.experts.lora_B.weight": draw(D, E_ * R),
    }
    adapter = read_adapter(write_peft(tmp_path / "a", arrays, target_parameters=["experts.down_proj"]), base)
    assert kinds(adapter) == ["layout"]
    adapter.checked()


def test_stacked_factors_of_experts_are_read_one_expert_after_the_other(tmp_path: Path) -> None:
    base = {"experts.w.weight": draw(E_, F, D)}
    arrays = {"experts.w.lora_A.weight": draw(E_, R, D, seed=1), "experts.w.lora_B.weight": draw(E_, F, R, seed=2)}
    adapter = read_adapter(write_peft(tmp_path / "a", arrays), base).checked()
    by_hand = base["experts.w.weight"] + 1.5 * arrays["experts.w.lora_B.weight"] @ arrays["experts.w.lora_A.weight"]
    same(expected(adapter, base, "experts.w.weight"), by_hand)


# PEFT: a base that was changed before training


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_a_start_out_of_the_base_is_taken_from_it_first(tmp_path: Path, start: str) -> None:
    base, arrays = llama(), pair(UP, F, D)
    adapter = read_adapter(write_peft(tmp_path / "a", arrays, init_lora_weights=start), base).checked()
    W = base[f"{UP}.weight"]
    if start == "pissa":
        U, S, Vt = np.linalg.svd(W, full_matrices=False)
        begun = U[:, :R] * S[:R] @ Vt[:R]
    else:
        Q_, R_ = np.linalg.qr(W)
        begun = 1.5 * Q_[:, :R] @ R_[:R]
    delta = 1.5 * arrays[f"{UP}.lora_B.weight"] @ arrays[f"{UP}.lora_A.weight"]
    same(expected(adapter, base, f"{UP}.weight"), W - begun + delta)
    refused(lambda: adapter.updates[f"{UP}.weight"].expected(W, slice(0, 1)), "prepare")


def test_an_untrained_adapter_that_began_with_the_base_changes_nothing(tmp_path: Path) -> None:
    base = llama()
    U, S, Vt = np.linalg.svd(base[f"{UP}.weight"], full_matrices=False)
    arrays = {
        f"{UP}.lora_A.weight": np.sqrt(S[:R, None] / 1.5) * Vt[:R],
        f"{UP}.lora_B.weight": U[:, :R] * np.sqrt(S[:R] / 1.5),
    }
    adapter = read_adapter(write_peft(tmp_path / "a", arrays, init_lora_weights="pissa"), base).checked()
    same(expected(adapter, base, f"{UP}.weight"), base[f"{UP}.weight"])


def test_a_random_start_is_refused_by_name_unless_it_is_given(tmp_path: Path) -> None:
    base, before, after = llama(), pair(UP, F, D), pair(UP, F, D)
    after[f"{UP}.lora_A.weight"] = after[f"{UP}.lora_A.weight"] + 1.0
    write_peft(tmp_path / "before", before)
    folder = write_peft(tmp_path / "after", after, init_lora_weights="pissa_niter_4")
    refused(lambda: read_adapter(folder, base), "pissa_niter_4", "initial adapter")
    adapter = read_adapter(folder, base, start=tmp_path / "before").checked()
    B = after[f"{UP}.lora_B.weight"]
    delta = 1.5 * B @ np.ones((R, D))
    same(expected(adapter, base, f"{UP}.weight"), base[f"{UP}.weight"] + delta)
    write_peft(tmp_path / "other", pair(Q, D, D))
    assert stops(read_adapter(folder, base, start=tmp_path / "other")) == ["start"]


# PEFT: refused by name


REFUSED: dict[str, dict[str, Any]] = {
    "LOHA": {"peft_type": "LOHA"},
    "VERA": {"peft_type": "VERA"},
    "'no such'": {"peft_type": "no such"},
    "layer_replication": {"layer_replication": [[0, 2], [1, 3]]},
    "alora_invocation_tokens": {"alora_invocation_tokens": [1, 2]},
    "use_qalora": {"use_qalora": True},
    "arrow_config": {"arrow_config": {"top_k": 2}},
    "kasa_config": {"kasa_config": {"beta": 1}},
    "use_bdlora": {"use_bdlora": {"nblocks": 2}},
    "loftq": {"init_lora_weights": "loftq"},
    "corda": {"init_lora_weights": "corda"},
    "lora_ga": {"init_lora_weights": "lora_ga"},
    "'something new'": {"init_lora_weights": "something new"},
    "a rank": {"r": 0},
    "r cannot be": {"r": "8"},
    "use_rslora cannot": {"use_rslora": "yes"},
    "lora_alpha cannot": {"lora_alpha": "16"},
    "lora_alpha must": {"lora_alpha": float("inf")},
    "rank_pattern cannot": {"rank_pattern": [1]},
    "a rank must": {"rank_pattern": {"q": True}},
    "lora_alpha must be": {"alpha_pattern": {"q": "x"}},
    "target_parameters": {"target_parameters": [1]},
    "repeats what is repeated": {"alpha_pattern": {"(a+)+x": 1}},
    "no regular expression": {"alpha_pattern": {"(": 1}},
}


@pytest.mark.parametrize(("word", "config"), REFUSED.items(), ids=REFUSED)
def test_what_cannot_be_read_exactly_is_refused_by_name(tmp_path: Path, word: str, config: dict[str, Any]) -> None:
    refused(lambda: read_adapter(write_peft(tmp_path / "a", pair(UP, F, D), **config), llama()), word)


@pytest.mark.parametrize("start", [True, False, None, "gaussian", "eva", "orthogonal", "mica", "PiSSA", "OLoRA"])
def test_starts_that_leave_the_base_or_follow_from_it_are_read(tmp_path: Path, start: Any) -> None:
    read_adapter(write_peft(tmp_path / "a", pair(UP, F, D), init_lora_weights=start), llama()).checked()


SLOW = ["(a+)+$", "(a|a)*$", "((a*)b)*", "(?:a{2,})+", ".*.*.*.*.*.*x", "(a*){3}", r"([^x]+)*y", "(?:(?:a|b)c)+"]
FINE = [r"layers\.\d+\.", r".*\.(?:q|v)_proj", r"(?:.*_attention\.)?q", r"[(*+]{1}", r"\(a\+\)\+", "(?:ab)+", "a|b"]


@pytest.mark.parametrize("pattern", SLOW)
def test_a_pattern_that_could_take_for_ever_is_refused(tmp_path: Path, pattern: str) -> None:
    refused(
        lambda: read_adapter(write_peft(tmp_path / "a", pair(UP, F, D), rank_pattern={pattern: 3}), llama()), "pattern"
    )


@pytest.mark.parametrize("pattern", FINE)
def test_a_pattern_that_ends_is_tried(tmp_path: Path, pattern: str) -> None:
    read_adapter(write_peft(tmp_path / "a", pair(UP, F, D), alpha_pattern={pattern: 3}), llama()).checked()


# PEFT: findings


def test_an_adapter_in_order_has_no_findings(tmp_path: Path) -> None:
    folder = write_peft(tmp_path / "a", pair(UP, F, D) | pair(Q, D, D), target_modules=["up_proj", "q_proj"])
    assert read_adapter(folder, llama()).findings == ()


PLAIN_FAULTS: dict[str, tuple[str, str, dict[str, Any]]] = {  # -> kind, prefix, configuration
    "prefix doubled": ("doubled_prefix", "base_model.model.base_model.model.", {}),
    "prefix missing": ("missing_prefix", "", {}),
    "a wrapper's name": ("wrapper", "base_model.model._orig_mod.", {}),
    "module of a parallel model": ("wrapper", "base_model.model.module.", {}),
    "a part too many": ("prefix", "base_model.model.model.", {}),
    "a target without tensors": ("untrained", "base_model.model.", {"target_modules": ["up_proj", "down_proj"]}),
    "a target by expression": ("untrained", "base_model.model.", {"target_modules": r".*mlp\.\w*_proj"}),
    "a target's expression": ("pattern", "base_model.model.", {"target_modules": r"(.*)*"}),
    "a target that the base does not have": (
        "unknown_target",
        "base_model.model.",
        {"target_modules": ["up_proj", "c"]},
    ),
    "alpha missing": ("alpha_missing", "base_model.model.", {"lora_alpha": None, "alpha_pattern": {"up_proj": 3}}),
    "a setting unknown": ("unknown_setting", "base_model.model.", {"new_setting": 3}),
}


@pytest.mark.parametrize(("kind", "prefix", "config"), PLAIN_FAULTS.values(), ids=PLAIN_FAULTS)
def test_an_oddity_that_leaves_the_update_clear_is_a_finding(
    tmp_path: Path, kind: str, prefix: str, config: dict[str, Any]
) -> None:
    base, arrays = llama(), pair(UP, F, D)
    adapter = read_adapter(write_peft(tmp_path / "a", arrays, prefix, **config), base).checked()
    assert kinds(adapter) == [kind]
    delta = 1.5 * arrays[f"{UP}.lora_B.weight"] @ arrays[f"{UP}.lora_A.weight"]
    same(expected(adapter, base, f"{UP}.weight"), base[f"{UP}.weight"] + delta)
    assert all(len(str(finding)) < 300 and "\n" not in str(finding) for finding in adapter.findings)


def test_numbers_that_are_zero_or_not_finite_are_found_when_they_are_looked_at(tmp_path: Path) -> None:
    arrays = pair(UP, F, D) | pair(Q, D, D) | {"lm_head.weight": draw(V, D)} | packed()
    base = llama() | experts("fused")
    config = {"target_parameters": TARGETS}
    assert examined(read_adapter(write_peft(tmp_path / "a", arrays, **config), base)) == []
    arrays[f"{UP}.lora_B.weight"] = np.zeros((F, R))
    arrays[f"{Q}.lora_A.weight"][1, 2] = np.nan
    arrays["lm_head.weight"][3, 3] = np.inf
    arrays[f"{LAYER}mlp.experts.lora_B.weight"][:] = 0.0
    found = examined(read_adapter(write_peft(tmp_path / "b", arrays, **config), base))
    told = sorted((finding.kind, finding.where, finding.stops) for finding in found)
    assert told == [
        ("not_finite", "lm_head.weight", True),
        ("not_finite", f"{Q}.weight", True),
        ("zero", f"{LAYER}mlp.experts.down_proj", False),
        ("zero", f"{UP}.weight", False),
    ]


def test_targets_outside_the_layers_that_are_transformed_are_not_missed(tmp_path: Path) -> None:
    base = llama() | {UP.replace("0", "1") + ".weight": draw(F, D)}
    config = {"target_modules": ["up_proj"], "layers_to_transform": [0]}
    assert not read_adapter(write_peft(tmp_path / "a", pair(UP, F, D), **config), base).findings
    assert kinds(read_adapter(write_peft(tmp_path / "b", pair(UP, F, D), target_modules=["up_proj"]), base)) == [
        "untrained"
    ]


def test_an_adapter_name_left_in_the_keys_is_a_finding(tmp_path: Path) -> None:
    arrays = {name.replace(".weight", ".default.weight"): a for name, a in pair(UP, F, D).items()}
    adapter = read_adapter(write_peft(tmp_path / "a", arrays), llama()).checked()
    assert kinds(adapter) == ["adapter_name"]
    assert list(adapter.updates) == [f"{UP}.weight"]


def test_a_base_that_was_stored_without_its_head_lacks_a_prefix_and_that_is_usual(tmp_path: Path) -> None:
    base = {name.removeprefix("transformer."): array for name, array in gpt2().items()}
    adapter = read_adapter(write_peft(tmp_path / "a", pair("transformer.h.0.attn.c_attn", 3 * D, D)), base).checked()
    assert list(adapter.updates) == ["h.0.attn.c_attn.weight"]
    assert not adapter.findings


def test_an_adapter_without_a_prefix_of_its_base_is_a_finding(tmp_path: Path) -> None:
    adapter = read_adapter(write_peft(tmp_path / "a", pair(UP.removeprefix("model."), F, D)), llama()).checked()
    assert list(adapter.updates) == [f"{UP}.weight"]
    assert kinds(adapter) == ["prefix"]


def test_a_new_head_keeps_its_name_where_the_base_has_another_prefix(tmp_path: Path) -> None:
    base = {name.removeprefix("transformer."): array for name, array in gpt2().items()}
    arrays = pair("transformer.h.0.attn.c_attn", 3 * D, D) | {"score.weight": draw(2, D)}
    adapter = read_adapter(write_peft(tmp_path / "a", arrays), base).checked()
    assert sorted(adapter.updates) == ["h.0.attn.c_attn.weight", "score.weight"]
    longer = {f"model.{name}": array for name, array in llama().items()}
    adapter = read_adapter(write_peft(tmp_path / "b", pair(UP, F, D) | {"score.weight": draw(2, D)}), longer).checked()
    assert sorted(adapter.updates) == [f"model.{UP}.weight", "score.weight"]


@pytest.mark.parametrize("leaf", placing.QUANTISED)
def test_a_quantised_base_stops(tmp_path: Path, leaf: str) -> None:
    adapter = read_adapter(write_peft(tmp_path / "a", pair(UP, F, D)), llama() | {f"{UP}{leaf}": draw(3)})
    assert stops(adapter) == ["quantised"]


def without(arrays: Arrays, name: str) -> Arrays:
    return {key: array for key, array in arrays.items() if key != name}


STOPPING: dict[str, tuple[str, Arrays, dict[str, Any]]] = {
    "A alone": ("orphan", without(pair(UP, F, D), f"{UP}.lora_B.weight"), {}),
    "B alone": ("orphan", without(pair(UP, F, D), f"{UP}.lora_A.weight"), {}),
    "an embedding's A alone": ("orphan", {"model.embed_tokens.lora_embedding_A": draw(R, V)}, {}),
    "ranks differ": ("shape", {f"{UP}.lora_A.weight": draw(2, D), f"{UP}.lora_B.weight": draw(F, 3)}, {}),
    "the rank is another": ("rank", pair(UP, F, D, 3), {}),
    "the rank pattern is another": ("rank", pair(UP, F, D), {"rank_pattern": {"up_proj": 4}}),
    "A and B swapped": ("shape", {f"{UP}.lora_A.weight": draw(F, R), f"{UP}.lora_B.weight": draw(R, D)}, {}),
    "another width": ("shape", pair(UP, F + 1, D), {}),
    "another width in": ("shape", pair(UP, F, D + 1), {}),
    "another vocabulary": ("shape", {"model.embed_tokens.lora_embedding_A": draw(R, V + 1),
                                     "model.embed_tokens.lora_embedding_B": draw(D, R)}, {}),
    "no such module": ("no_target", pair(f"{LAYER}mlp.other", F, D), {}),
    "a bias that fits nowhere": ("bias", pair(UP, F, D) | {f"{UP}.lora_B.bias": draw(F + 1)}, {"lora_bias": True}),
    "a magnitude without DoRA": ("magnitude", pair(UP, F, D) | {f"{UP}.lora_magnitude_vector": draw(F)}, {}),
    "DoRA without a magnitude": ("magnitude", pair(UP, F, D), {"use_dora": True}),
    "a magnitude too short": ("shape", pair(UP, F, D) | {f"{UP}.lora_magnitude_vector": draw(5)}, {"use_dora": True}),
    "a name of no grammar": ("unknown_tensor", pair(UP, F, D) | {f"{UP}.lora_C.weight": draw(2)}, {}),
    "KaSA's diagonal": ("unknown_tensor", pair(UP, F, D) | {f"{UP}.lora_diag": draw(R)}, {}),
    "a vector as a factor": ("shape", {f"{UP}.lora_A.weight": draw(D), f"{UP}.lora_B.weight": draw(F)}, {}),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "arrays", "config"), STOPPING.values(), ids=STOPPING)
def test_a_fault_that_leaves_the_update_unclear_stops(
    tmp_path: Path, kind: str, arrays: Arrays, config: dict[str, Any]
) -> None:
    adapter = read_adapter(write_peft(tmp_path / "a", arrays, **config), llama())
    assert kind in stops(adapter)
    refused(adapter.checked)
    adapter.updates and refused(lambda: adapter.checked("something else"))


def test_a_shape_that_does_not_fit_names_both(tmp_path: Path) -> None:
    adapter = read_adapter(write_peft(tmp_path / "a", pair(UP, F + 1, D)), llama())
    refused(adapter.checked, UP, str((F + 1, D)), str((F, D)), "trained on")


def test_a_head_that_the_base_ties_needs_a_word(tmp_path: Path) -> None:
    base = without(llama(), "lm_head.weight")
    arrays = pair("lm_head", V, D)
    adapter = read_adapter(write_peft(tmp_path / "a", arrays), base)
    refused(adapter.checked, "lm_head", "tied")
    adapter.checked("tied_head")
    delta = 1.5 * arrays["lm_head.lora_B.weight"] @ arrays["lm_head.lora_A.weight"]
    same(expected(adapter, base, "model.embed_tokens.weight"), base["model.embed_tokens.weight"] + delta)
    read_adapter(tmp_path / "a", llama()).checked()  # a head of its own needs none


def test_a_head_that_is_to_stay_tied_takes_the_factors_of_the_table(tmp_path: Path) -> None:
    arrays = table_pair("model.embed_tokens")
    adapter = read_adapter(write_peft(tmp_path / "a", arrays, ensure_weight_tying=True), llama()).checked()
    A, B = arrays.values()
    same(adapter.updates["lm_head.weight"].change(slice(0, V)), 1.5 * (B @ A).T)
    assert "lm_head.weight" not in read_adapter(write_peft(tmp_path / "b", arrays), llama()).updates


def test_a_new_head_and_a_resized_table_are_findings(tmp_path: Path) -> None:
    arrays = pair(UP, F, D) | {"score.weight": draw(3, D), "model.embed_tokens.weight": draw(V + 2, D)}
    adapter = read_adapter(write_peft(tmp_path / "a", arrays), llama()).checked()
    assert sorted(kinds(adapter)) == ["new_tensor", "resized"]
    assert adapter.updates["score.weight"].new
    same(expected(adapter, llama(), "model.embed_tokens.weight"), arrays["model.embed_tokens.weight"])


def test_a_rank_above_the_widths_is_a_finding(tmp_path: Path) -> None:
    adapter = read_adapter(write_peft(tmp_path / "a", pair(UP, F, D, 5), r=5), llama()).checked()
    assert kinds(adapter) == ["rank_above"]


def test_two_keys_for_one_factor_are_refused(tmp_path: Path) -> None:
    arrays = pair(UP, F, D)
    arrays[f"{UP}.lora_A.default.weight"] = arrays[f"{UP}.lora_A.weight"]
    refused(lambda: read_adapter(write_peft(tmp_path / "a", arrays), llama()), "lora_A")


def test_an_adapter_without_tensors_changes_nothing_and_says_so(tmp_path: Path) -> None:
    adapter = read_adapter(write_peft(tmp_path / "a", {}), llama())
    refused(adapter.checked, "changes no tensor")


def test_without_a_base_the_description_is_believed(tmp_path: Path) -> None:
    arrays = pair(UP, F, D) | table_pair("model.embed_tokens")
    adapter = read_adapter(write_peft(tmp_path / "a", arrays, fan_in_fan_out=True)).checked()
    assert adapter.updates[f"{UP}.weight"].shape == (D, F)
    assert adapter.updates["model.embed_tokens.weight"].shape == (V, D)
    assert adapter.updates[f"{UP}.weight"].parts[0].scale == 1.5


def test_an_adapter_in_a_bin_file_is_read_as_well(tmp_path: Path) -> None:
    arrays = {f"base_model.model.{name}": a for name, a in pair(UP, F, D).items()}
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 3}))
    (tmp_path / "adapter_model.bin").write_bytes(archive_bytes(arrays))
    assert list(read_adapter(tmp_path, llama()).checked().updates) == [f"{UP}.weight"]


# mlx-lm


def write_mlx(folder: Path, arrays: Arrays, **config: Any) -> Path:
    write_file(folder / "adapters.safetensors", arrays)
    about = {"fine_tune_type": "lora", "num_layers": 1, "lora_parameters": {"rank": R, "scale": 20.0}, **config}
    (folder / "adapter_config.json").write_text(json.dumps(about))
    return folder


def test_mlx_multiplies_by_its_raw_scale_before_the_product(tmp_path: Path) -> None:
    base, table = llama(), "model.embed_tokens"
    arrays = {f"{UP}.lora_a": draw(D, R), f"{UP}.lora_b": draw(R, F, seed=1)}
    arrays |= {f"{table}.lora_a": draw(V, R, seed=2), f"{table}.lora_b": draw(R, D, seed=3)}
    adapter = read_adapter(write_mlx(tmp_path / "a", arrays), base).checked()
    assert adapter.format == "mlx"
    assert adapter.order == Order("float64", scale_first=True)
    same(
        expected(adapter, base, f"{UP}.weight"),
        base[f"{UP}.weight"] + 20 * (arrays[f"{UP}.lora_a"] @ arrays[f"{UP}.lora_b"]).T,
    )
    by_hand = (
        base["model.embed_tokens.weight"]
        + 20 * arrays["model.embed_tokens.lora_a"] @ arrays["model.embed_tokens.lora_b"]
    )
    same(expected(adapter, base, "model.embed_tokens.weight"), by_hand)


def test_mlx_dora_and_experts_are_read(tmp_path: Path) -> None:
    base = llama() | {f"{LAYER}mlp.switch_mlp.up_proj.weight": draw(E_, F, D, seed=8)}
    m = abs(draw(F, seed=5))
    dora = {f"{UP}.lora_a": draw(D, R), f"{UP}.lora_b": draw(R, F, seed=1), f"{UP}.m": m}
    adapter = read_adapter(write_mlx(tmp_path / "a", dora, fine_tune_type="dora"), base).checked()
    V_ = base[f"{UP}.weight"] + 20 * (dora[f"{UP}.lora_a"] @ dora[f"{UP}.lora_b"]).T
    same(expected(adapter, base, f"{UP}.weight"), m[:, None] * V_ / np.linalg.norm(V_, axis=1)[:, None])
    module = f"{LAYER}mlp.switch_mlp.up_proj"
    own = {f"{module}.lora_a": draw(E_, R, D), f"{module}.lora_b": draw(E_, F, R, seed=1)}
    adapter = read_adapter(write_mlx(tmp_path / "b", own), base).checked()
    by_hand = base[f"{module}.weight"] + 20 * own[f"{module}.lora_b"] @ own[f"{module}.lora_a"]
    same(expected(adapter, base, f"{module}.weight"), by_hand)


NO_SCALE: list[dict[str, Any]] = [
    {"fine_tune_type": "full"},
    {"lora_parameters": {"rank": 2}},
    {"lora_parameters": 3},
    {"lora_parameters": {"scale": "20"}},
    {"lora_parameters": {"scale": float("nan")}},
]


@pytest.mark.parametrize("config", NO_SCALE, ids=str)
def test_an_mlx_description_that_gives_no_scale_is_refused(tmp_path: Path, config: dict[str, Any]) -> None:
    arrays = {f"{UP}.lora_a": draw(D, R), f"{UP}.lora_b": draw(R, F)}
    refused(lambda: read_adapter(write_mlx(tmp_path / "a", arrays, **config), llama()), "adapter_config.json")


def test_a_name_that_mlx_does_not_write_stops(tmp_path: Path) -> None:
    arrays = {f"{UP}.lora_a": draw(D, R), f"{UP}.lora_b": draw(R, F), f"{UP}.weight": draw(F, D)}
    assert stops(read_adapter(write_mlx(tmp_path / "a", arrays), llama())) == ["unknown_tensor"]


# loralib


def write_loralib(path: Path, arrays: Arrays) -> Path:
    path.write_bytes(archive_bytes(arrays))
    return path


def test_loralib_needs_to_be_told_its_alpha(tmp_path: Path) -> None:
    base, arrays = llama(), {f"{UP}.lora_A": draw(R, D), f"{UP}.lora_B": draw(F, R, seed=1), f"{UP}.bias": draw(F)}
    path = write_loralib(tmp_path / "a.pt", arrays)
    refused(lambda: read_adapter(path, base), "alpha")
    adapter = read_adapter(path, base, alpha=8).checked()
    same(
        expected(adapter, base, f"{UP}.weight"),
        base[f"{UP}.weight"] + 4 * arrays[f"{UP}.lora_B"] @ arrays[f"{UP}.lora_A"],
    )
    same(expected(adapter, base, f"{UP}.bias"), arrays[f"{UP}.bias"])
    assert list(read_adapter(tmp_path, base, alpha=8).updates) == list(adapter.updates)  # the one file of a folder


@pytest.mark.parametrize("enabled", [(True, True, True), (True, False, True), (False, True, False)])
@pytest.mark.parametrize("turned", [True, False])
def test_loralib_adapts_the_enabled_maps_of_a_fused_one(
    tmp_path: Path, enabled: tuple[bool, ...], turned: bool
) -> None:
    groups, name = sum(enabled), "transformer.h.0.attn.c_attn"
    W = draw(3 * D, D)
    base = {f"{name}.weight": W.T.copy() if turned else W, f"{name}.bias": draw(3 * D)}
    arrays = {f"{name}.lora_A": draw(groups * R, D, seed=1), f"{name}.lora_B": draw(groups * D, R, seed=2)}
    by_hand, k = W.copy(), 0
    for block, on in enumerate(enabled):
        if on:
            A, B = arrays[f"{name}.lora_A"][k * R : (k + 1) * R], arrays[f"{name}.lora_B"][k * D : (k + 1) * D]
            by_hand[block * D : (block + 1) * D] += 4 * B @ A
            k += 1
    adapter = read_adapter(write_loralib(tmp_path / "a.pt", arrays), base, alpha=8, enabled=enabled).checked()
    same(expected(adapter, base, f"{name}.weight"), by_hand.T if turned else by_hand)


def test_a_fused_map_of_which_some_are_adapted_stops_until_it_is_said_which(tmp_path: Path) -> None:
    name = "transformer.h.0.attn.c_attn"
    arrays = {f"{name}.lora_A": draw(2 * R, D), f"{name}.lora_B": draw(2 * D, R)}
    path = write_loralib(tmp_path / "a.pt", arrays)
    assert "fused" in stops(read_adapter(path, gpt2(), alpha=8))
    assert "fused" in stops(read_adapter(path, gpt2(), alpha=8, enabled=(True, True, True)))
    assert not stops(read_adapter(path, gpt2(), alpha=8, enabled=(True, False, True)))


def test_the_shared_checkpoint_is_an_adapter_of_loralib() -> None:
    path = shared_data("roberta-lora-mnli") / "roberta_base_lora_mnli.bin"
    head = {"classifier.dense": (768, 768), "classifier.out_proj": (3, 768)}
    shapes = {
        f"{name}.{leaf}": shape[: 2 if leaf == "weight" else 1]
        for name, shape in head.items()
        for leaf in ("weight", "bias")
    }
    for layer in range(12):
        for kind in ("query", "key", "value"):
            shapes[f"roberta.encoder.layer.{layer}.attention.self.{kind}.weight"] = (768, 768)

    class Shape:
        def __init__(self, shape: tuple[int, ...]) -> None:
            self.shape = shape

    base = {name: Shape(shape) for name, shape in shapes.items()}
    adapter = read_adapter(path, base, {"model_type": "roberta"}, alpha=16).checked()
    assert not adapter.findings
    assert len(adapter.updates) == 24 + 4
    update = adapter.updates["roberta.encoder.layer.0.attention.self.query.weight"].change(slice(0, 768))
    assert round(float(np.linalg.norm(update)), 6) == 9.627213


# others


FOREIGN = {
    "kohya": "lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight",
    "kohya's text encoder": "lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha",
    "diffusers": "unet.down_blocks.0.attn1.processor.to_q_lora.down.weight",
    "diffusers' new": "unet.down_blocks.0.attentions.0.to_q.lora_A.weight",
    "diffusers' text encoder": "text_encoder.encoder.layers.0.self_attn.k_proj.lora_linear_layer.down.weight",
}


@pytest.mark.parametrize(("kind", "name"), FOREIGN.items(), ids=FOREIGN)
def test_adapters_of_image_models_are_recognised_and_refused(tmp_path: Path, kind: str, name: str) -> None:
    path = write_file(tmp_path / "pytorch_lora_weights.safetensors", {name: draw(2, 2)})
    refused(lambda: read_adapter(path, llama()), kind.split("'")[0])
    refused(lambda: read_adapter(tmp_path, llama()), kind.split("'")[0])


def test_a_folder_that_holds_no_adapter_is_refused(tmp_path: Path) -> None:
    refused(lambda: read_adapter(tmp_path, llama()), "no adapter_config.json")
    (tmp_path / "adapter_config.json").write_text("{}")
    refused(lambda: read_adapter(tmp_path, llama()), "peft_type")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    refused(lambda: read_adapter(tmp_path, llama()), "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text("[" * 5000)
    refused(lambda: read_adapter(tmp_path, llama()), "JSON")
    (tmp_path / "adapter.json").write_text("{}")
    refused(lambda: read_adapter(tmp_path, llama()), "load_adapter")


def test_an_adapter_without_its_description_is_refused(tmp_path: Path) -> None:
    path = write_peft(tmp_path / "a", pair(UP, F, D)) / "adapter_model.safetensors"
    refused(lambda: read_adapter(path, llama(), alpha=3), "adapter_config.json")
    path = write_file(tmp_path / "x.safetensors", {"a.weight": draw(2, 2)})
    refused(lambda: read_adapter(path, llama(), alpha=3), "no adapter")


def test_the_votes_of_biases_tell_how_a_base_stores_its_maps() -> None:
    def told(arrays: Arrays) -> bool | None:
        return placing.Base({name: a.shape for name, a in arrays.items()}).transposes

    assert told(gpt2()) is True
    assert told(llama()) is False
    assert told({"a.weight": draw(D, D), "a.bias": draw(D)}) is None
    assert told(gpt2() | llama()) is None  # a mixture tells nothing
    assert told({"a.weight": draw(D, F)}) is None
