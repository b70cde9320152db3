r"""Adapters carried from every format to every other: ΔW stays, and what a format cannot hold is refused by name.

ΔW is formed here from the files that were written, by the formula of the program that reads them, written out by hand;
nothing of the conversion's own proof is used.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from foreign_world import GATE, UP, Q, said_by, world
from formats_files import archive_bytes, refused, write_file, write_peft

from lora_np.converting import FORMATS, convert
from lora_np.converting.proving import compared
from lora_np.files import load_adapter, load_model, save_adapter, save_model
from lora_np.formats.factors import Leaves
from lora_np.formats.names import theirs
from lora_np.formats.saving import NOT_HELD, alpha_for
from lora_np.formats.tensors import dtype_of, open_tensors
from lora_np.lora import adapters, delta
from lora_np.methods import LoraConfig
from lora_np.methods.variants import DoRA
from lora_np.model import initialize
from lora_np.parameters import parameters, with_parameters

HEADS, KV, D, F, V, LAYERS = 4, 2, 16, 24, 20, 2
LLAMA = {
    "model_type": "llama", "vocab_size": V, "max_position_embeddings": 32, "hidden_size": D, "intermediate_size": F,
    "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": KV, "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False, "hidden_act": "silu", "rope_theta": 1e4,
}  # fmt: skip
SHAPES = {"self_attn.q_proj": (D, D), "self_attn.k_proj": (D // 2, D), "self_attn.v_proj": (D // 2, D),
          "mlp.up_proj": (F, D), "mlp.down_proj": (D, F)}  # fmt: skip
MODULES = {f"model.layers.{i}.{name}": shape for i in range(LAYERS) for name, shape in SHAPES.items()}
Updates = dict[str, np.ndarray]


def draw(*shape: int, seed: int = 0, dtype: Any = np.float32) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def base_of(root: Path) -> Path:
    """A Llama of two layers as a folder of transformers."""
    if not (root / "base").exists():
        arrays = {f"{m}.weight": draw(*shape, seed=3) for m, shape in MODULES.items()}
        for i in range(LAYERS):
            place = f"model.layers.{i}"
            arrays |= {f"{place}.self_attn.o_proj.weight": draw(D, D), f"{place}.mlp.gate_proj.weight": draw(F, D)}
            arrays |= {f"{place}.{norm}.weight": np.ones(D, np.float32)
                       for norm in ("input_layernorm", "post_attention_layernorm")}  # fmt: skip
        arrays |= {"model.embed_tokens.weight": draw(V, D), "lm_head.weight": draw(V, D, seed=1)}
        write_file(root / "base" / "model.safetensors", {**arrays, "model.norm.weight": np.ones(D, np.float32)})
        (root / "base" / "config.json").write_text(json.dumps(LLAMA))
    return root / "base"


def peft(root: Path, dtype: str = "float32", table: bool = True, **config: Any) -> tuple[Path, Updates]:
    """An adapter of PEFT on that base, and its ΔW in float64."""
    kind, about = dtype_of(dtype), {"r": 3, "lora_alpha": 6, **config}
    leaves: Updates = {}
    updates: Updates = {}
    for k, (module, (d_out, d_in)) in enumerate(MODULES.items()):
        r = about.get("rank_pattern", {}).get(module, about["r"])
        alpha = about.get("alpha_pattern", {}).get(module, about["lora_alpha"])
        A, B = draw(r, d_in, seed=k, dtype=kind), draw(d_out, r, seed=k + 50, dtype=kind)
        leaves |= {f"{module}.lora_A.weight": A, f"{module}.lora_B.weight": B}
        s = alpha / (math.sqrt(r) if about.get("use_rslora") else r)
        updates[module] = s * (B.astype(np.float64) @ A.astype(np.float64))
    if table:
        A, B = draw(3, V, seed=90, dtype=kind), draw(D, 3, seed=91, dtype=kind)
        leaves |= {"model.embed_tokens.lora_embedding_A": A, "model.embed_tokens.lora_embedding_B": B}
        s = about["lora_alpha"] / (math.sqrt(3) if about.get("use_rslora") else 3)
        updates["model.embed_tokens"] = s * (B.astype(np.float64) @ A.astype(np.float64)).T
    (root / "peft").mkdir()
    return write_peft(root / "peft", leaves, **about), updates


# ------------------------------------------------------------------------------- ΔW as the other programs compute it


def of_peft(folder: Path, updates: Updates) -> Updates:
    """PEFT's rule: the first pattern that is the path, else the general value."""
    config, found = json.loads((folder / "adapter_config.json").read_text()), {}
    tensors = {name: wide(t) for name, t in open_tensors(folder / "adapter_model.safetensors").items()}
    for module in updates:
        name = f"base_model.model.{module}"
        r = config["rank_pattern"].get(module, config["r"]) if "rank_pattern" in config else config["r"]
        alpha = (config.get("alpha_pattern") or {}).get(module, config["lora_alpha"])
        s = alpha / (math.sqrt(r) if config.get("use_rslora") else r)
        if f"{name}.lora_A.weight" in tensors:
            assert tensors[f"{name}.lora_A.weight"].shape[0] == r
            found[module] = s * (tensors[f"{name}.lora_B.weight"] @ tensors[f"{name}.lora_A.weight"])
        else:
            found[module] = s * (tensors[f"{name}.lora_embedding_B"] @ tensors[f"{name}.lora_embedding_A"]).T
    return found


def wide(tensor: Any) -> np.ndarray:
    return np.asarray(tensor).astype(np.float64)


def of_mlx(folder: Path, updates: Updates) -> Updates:
    """LoRALinear: (scale·lora_b.T) @ lora_a.T; LoRAEmbedding: (scale·lora_a) @ lora_b. All ranks are the one that is
    named: `load_adapters` refuses any other shape."""
    config = json.loads((folder / "adapter_config.json").read_text())
    about, tensors = config["lora_parameters"], open_tensors(folder / "adapters.safetensors")
    assert sorted(about["keys"]) == sorted(name.removesuffix(".lora_a") for name in tensors if name.endswith("lora_a"))
    assert config["num_layers"] == LAYERS
    found = {}
    for module in updates:
        a, b = (wide(tensors[f"{module}.lora_{x}"]) for x in "ab")
        assert a.shape[1] == b.shape[0] == about["rank"]
        found[module] = about["scale"] * (a @ b if "embed" in module else b.T @ a.T)
    return found


def permuted(weights: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp does with the rows of Llama's queries and keys."""
    return weights.reshape(heads, 2, len(weights) // heads // 2, -1).swapaxes(1, 2).reshape(weights.shape)


SHORT = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
         "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}  # fmt: skip


def of_gguf(folder: Path, updates: Updates) -> Updates:
    """s = alpha/r; read by the gguf package itself, and its rows put back to transformers' order."""
    gguf = pytest.importorskip("gguf")
    (path,) = folder.glob("*.gguf")
    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    wanted = {"general.type": "adapter", "adapter.type": "lora", "general.architecture": "llama"}
    assert wanted.items() <= fields.items()
    tensors = {}
    for t in reader.tensors:
        short = t.tensor_type.name == "BF16"
        tensors[t.name] = wide(t.data.view(dtype_of("bfloat16")) if short else t.data)
    found = {}
    for module, update in updates.items():
        if "embed" in module:
            a, b = (tensors[f"token_embd.weight.lora_{x}"] for x in "ab")
            found[module] = fields["adapter.lora.alpha"] / a.shape[1] * (a @ b.T)
            continue
        _, _, layer, name = module.split(".", 3)
        a, b = (tensors[f"blk.{layer}.{SHORT[name]}.weight.lora_{x}"] for x in "ab")
        heads = {"self_attn.q_proj": HEADS, "self_attn.k_proj": KV}.get(name)
        rows = np.arange(len(update)) if heads is None else permuted(np.arange(len(update))[:, None], heads)[:, 0]
        found[module] = np.zeros(update.shape)
        found[module][rows] = fields["adapter.lora.alpha"] / len(a) * (b @ a)
    return found


OURS = {"self_attn.q_proj": "attention.query", "self_attn.k_proj": "attention.key", "mlp.down_proj": "mlp.down",
        "self_attn.v_proj": "attention.value", "mlp.up_proj": "mlp.up"}  # fmt: skip


def of_ours(folder: Path, updates: Updates) -> Updates:
    """What the library itself puts beside the base when it loads the folder."""
    model, _ = load_adapter(folder, load_model(folder.parent / "base", np.float64))
    found = adapters(model)

    def name(module: str) -> str:
        _, _, layer, rest = module.split(".", 3)
        return f"blocks.{layer}.{OURS[rest]}"

    return {module: delta(found["tokens" if "embed" in module else name(module)]) for module in updates}


DELTAS: dict[str, Callable[[Path, Updates], Updates]] = {
    "peft": of_peft, "mlx": of_mlx, "gguf": of_gguf, "lora_np": of_ours
}  # fmt: skip


def check(folder: Path, to: str, updates: Updates, bound: float = 1e-14) -> None:
    found = DELTAS[to](folder, updates)
    assert set(found) == set(updates)
    for module, update in updates.items():
        assert abs(update).max() > 0.1  # contrast: there is something to lose
        assert abs(found[module] - update).max() <= bound * abs(update).max(), module


# --------------------------------------------------------------------------------------------------------- all pairs


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("first", FORMATS)
def test_an_adapter_goes_from_each_format_to_each_other_and_stays_equal_to_the_bit(
    tmp_path: Path, first: str, dtype: str
) -> None:
    pytest.importorskip("gguf")
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    base = base_of(tmp_path)
    source, updates = peft(tmp_path, dtype)
    start = convert(source, first, tmp_path / "first", base=base)
    assert start.to_the_bit
    check(tmp_path / "first", first, updates)
    for to in FORMATS:
        done = convert(tmp_path / "first", to, tmp_path / f"to {to}", base=base)
        assert (done.source, done.to, len(done.modules)) == (first, to, len(updates))
        assert done.to_the_bit
        check(tmp_path / f"to {to}", to, updates)


MIXED = {
    "rank_pattern": {"model.layers.0.self_attn.q_proj": 5, "model.layers.1.mlp.up_proj": 2},
    "alpha_pattern": {"model.layers.0.self_attn.q_proj": 7, "model.layers.1.self_attn.k_proj": 12},
}


@pytest.mark.parametrize("to", FORMATS)
def test_ranks_and_scales_of_single_modules_become_one_scale_where_a_format_has_but_one(
    tmp_path: Path, to: str
) -> None:
    """6/3, 7/5, 6/2 and 12/3: a power of two goes into B to the bit, 0.7 and 1.5 with one rounding of float32."""
    pytest.importorskip("gguf")
    source, updates = peft(tmp_path, **MIXED)
    done = convert(source, to, tmp_path / "out", base=base_of(tmp_path))
    single = to in ("mlx", "gguf")
    assert {one.module for one in done.modules if not one.to_the_bit} == (
        {"model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj"} if single else set()
    )
    assert len({one.scale[1] for one in done.modules}) == (1 if single else 4)
    check(tmp_path / "out", to, updates, 3 * 2.0**-24 if single else 1e-14)
    back = convert(tmp_path / "out", "peft", tmp_path / "back", base=tmp_path / "base")
    assert back.to_the_bit


@pytest.mark.parametrize("to", FORMATS)
def test_the_scale_of_rslora_is_carried_as_it_is(tmp_path: Path, to: str) -> None:
    """alpha/√r: in GGUF alpha is float32, so s is rounded once to that; nowhere else."""
    pytest.importorskip("gguf")
    source, updates = peft(tmp_path, use_rslora=True)
    done = convert(source, to, tmp_path / "out", base=base_of(tmp_path))
    assert done.to_the_bit == (to != "gguf")
    check(tmp_path / "out", to, updates, 2.0**-24 if to == "gguf" else 1e-14)


def test_an_alpha_is_found_that_gives_the_scale_to_the_bit_where_there_is_one() -> None:
    rng = np.random.default_rng(0)
    for rank in range(1, 65):
        for alpha in (1, 8, 16, 0.1, float(rng.uniform(0.1, 64))):
            for rslora in (False, True):
                divisor = math.sqrt(rank) if rslora else rank
                assert alpha_for(alpha / divisor, rank, rslora=rslora) / divisor == alpha / divisor


def test_dora_is_carried_with_its_magnitudes_and_refused_where_there_are_none(tmp_path: Path) -> None:
    base = base_of(tmp_path)
    source, updates = peft(tmp_path, table=False, use_dora=True)
    lengths = {f"{m}.lora_magnitude_vector": draw(shape[0], seed=7) ** 2 + 1 for m, shape in MODULES.items()}
    tensors = {n.removeprefix("base_model.model."): np.asarray(t)
               for n, t in open_tensors(source / "adapter_model.safetensors").items()}  # fmt: skip
    (source / "adapter_model.safetensors").unlink()
    write_peft(source, {**tensors, **lengths}, r=3, lora_alpha=6, use_dora=True)
    for to in ("peft", "mlx", "lora_np"):
        assert convert(source, to, tmp_path / f"to {to}", base=base).more == len(MODULES)
    check(tmp_path / "to mlx", "mlx", updates)
    m = open_tensors(tmp_path / "to mlx" / "adapters.safetensors")["model.layers.1.mlp.up_proj.m"]
    assert (np.asarray(m) == lengths["model.layers.1.mlp.up_proj.lora_magnitude_vector"]).all()
    assert json.loads((tmp_path / "to mlx" / "adapter_config.json").read_text())["fine_tune_type"] == "dora"
    model, method = load_adapter(tmp_path / "to lora_np", load_model(base))
    assert isinstance(method, DoRA)
    again = convert(tmp_path / "to lora_np", "peft", tmp_path / "back", base=base)
    assert again.to_the_bit
    refused(lambda: convert(source, "gguf", tmp_path / "no", base=base), "magnitude", "gguf")
    assert not (tmp_path / "no").exists()


def loralib(root: Path, whole: bool = False) -> Path:
    tensors: dict[str, np.ndarray] = {}
    for i in range(LAYERS):
        place = f"model.layers.{i}.self_attn.q_proj"
        tensors |= {f"{place}.lora_A": draw(2, D, seed=i), f"{place}.lora_B": draw(D, 2, seed=i + 9)}
    if whole:
        tensors["model.norm.weight"] = draw(D)
        tensors["model.layers.0.self_attn.q_proj.bias"] = draw(D)
    (root / "loralib.bin").write_bytes(archive_bytes(tensors))
    return root / "loralib.bin"


@pytest.mark.parametrize("to", FORMATS)
def test_an_adapter_of_loralib_is_carried_with_the_alpha_that_is_said(tmp_path: Path, to: str) -> None:
    pytest.importorskip("gguf")
    path, base = loralib(tmp_path), base_of(tmp_path)
    names = [f"model.layers.{i}.self_attn.q_proj" for i in range(LAYERS)]
    updates = {n: 2.5 * (draw(D, 2, seed=i + 9).astype(np.float64) @ draw(2, D, seed=i)) for i, n in enumerate(names)}
    assert convert(path, to, tmp_path / "out", base=base, alpha=5.0).to_the_bit
    check(tmp_path / "out", to, updates)
    refused(lambda: convert(path, to, tmp_path / "no", base=base), "alpha")


def test_tensors_that_are_replaced_whole_become_what_peft_has_for_them(tmp_path: Path) -> None:
    path = loralib(tmp_path, whole=True)
    done = convert(path, "peft", tmp_path / "out", alpha=5.0)
    assert done.more == 2
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["modules_to_save"], config["bias"]) == (["model.norm"], "all")
    names = set(open_tensors(tmp_path / "out" / "adapter_model.safetensors"))
    assert "base_model.model.model.norm.weight" in names
    assert "base_model.model.model.layers.0.self_attn.q_proj.base_layer.bias" in names
    for to in ("mlx", "gguf", "lora_np"):
        line = refused(lambda to=to: convert(path, to, tmp_path / "no", base=base_of(tmp_path), alpha=5.0))
        assert "model.norm" in line or "q_proj.bias" in line


# --------------------------------------------------------------------------------------------------- our own folders


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "bert"])
@pytest.mark.parametrize("kind", [LoraConfig, DoRA])
def test_an_adapter_of_ours_becomes_one_of_the_same_model_in_transformers(
    tmp_path: Path, architecture: str, kind: type[LoraConfig]
) -> None:
    """Of GPT-2 the query, key and value are fused: their factors stand beside each other, block by block."""
    from builders import model

    base = model(architecture=architecture, context=8, **({"types": 2} if architecture == "bert" else {}))
    save_model(tmp_path / "base", base)
    fused = ("attention.query", "attention.value") if kind is LoraConfig else "attention+mlp"
    method = kind(
        rank=2, alpha=6.0, targets=fused, alphas={"blocks.1.attention.query": 3.0} if kind is LoraConfig else {}
    )
    adapted = method.apply(base, np.random.default_rng(0))
    moved = {n: a + draw(*a.shape, seed=len(n)) for n, a in method.trained(adapted).items()}
    adapted = with_parameters(adapted, moved)
    (tmp_path / "adapter").mkdir()
    save_adapter(tmp_path / "adapter", adapted, method, base)
    done = convert(tmp_path / "adapter", "peft", tmp_path / "peft", base=tmp_path / "base")
    assert done.to_the_bit
    arrays = {name: np.zeros(a.shape) for name, a in parameters(base).items()}
    arrays |= {f"{path}.W": module.scaling * (module.B.astype(float) @ module.A)
               for path, module in [(n.removesuffix(".A"), node_at(adapted, n.removesuffix(".A"))) for n in moved
                                    if n.endswith(".A")]}  # fmt: skip
    by_hand = theirs(arrays, {"bert": "bert"}.get(architecture, architecture), base.config.layers)
    modules = [one.module for one in done.modules]
    found = of_peft(tmp_path / "peft", dict.fromkeys(modules, np.zeros(0)))
    for module in modules:
        expected = by_hand[f"{module}.weight"]
        update = found[module].T if architecture == "gpt2" else found[module]
        assert abs(expected).max() > 0.1
        assert abs(update - expected).max() <= 1e-13
    back = convert(tmp_path / "peft", "lora_np", tmp_path / "back", base=tmp_path / "base")
    assert back.to_the_bit
    again, _ = load_adapter(tmp_path / "back", load_model(tmp_path / "base"))
    x = np.array([[1, 2, 3]])
    first, _ = load_adapter(tmp_path / "adapter", load_model(tmp_path / "base"))
    assert abs(again(x) - first(x)).max() <= 1e-4 * abs(first(x)).max()
    assert abs(first(x) - base(x)).max() > 0.01  # contrast


def node_at(model: Any, path: str) -> Any:
    from lora_np.wrappers import wrappers

    return wrappers(model)[path]


def test_methods_that_are_no_product_of_two_factors_are_refused_by_name(tmp_path: Path) -> None:
    from lora_np.methods import METHODS

    base = initialize(load_model().config, np.random.default_rng(0))
    for name, settings in {"vera": {}, "bitfit": {}, "adapter-h": {}, "lora": {"bias": "all"}}.items():
        method = METHODS[name](**settings)
        (tmp_path / name).mkdir()
        save_adapter(tmp_path / name, method.apply(base, np.random.default_rng(0)), method, base)
        refused(lambda name=name: convert(tmp_path / name, "peft", tmp_path / "no"), name if name != "lora" else "bias")


# ---------------------------------------------------------------------------------------- what is refused, and proved


REFUSED: dict[str, tuple[dict[str, Any], dict[str, np.ndarray], str]] = {
    "bias beside B": ({"lora_bias": True}, {f"{Q}.lora_B.bias": draw(64)}, "bias beside"),
    "modules_to_save": ({"modules_to_save": ["norm"]}, {"model.norm.weight": draw(64)}, "model.norm.weight"),
    "tokens": (
        {"trainable_token_indices": [1]},
        {"model.embed.token_adapter.trainable_tokens_delta": draw(1, 8)},
        "toke",
    ),
    "pissa": ({"init_lora_weights": "pissa"}, {}, "pissa"),
    "tying": ({"ensure_weight_tying": True}, {}, "ensure_weight_tying"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_a_format_cannot_hold_is_refused_by_name_and_peft_holds_it(tmp_path: Path, what: str) -> None:
    config, leaves, word = REFUSED[what]
    pair = {f"{Q}.lora_A.weight": draw(2, 64), f"{Q}.lora_B.weight": draw(64, 2)}
    (tmp_path / "adapter").mkdir()
    write_peft(tmp_path / "adapter", {**pair, **leaves}, **config)
    for to in ("mlx", "gguf", "lora_np"):
        refused(lambda to=to: convert(tmp_path / "adapter", to, tmp_path / "out"), word)
    done = convert(tmp_path / "adapter", "peft", tmp_path / "out")
    assert (done.to_the_bit, done.more) == (True, len(leaves))
    kept = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config.items() <= kept.items()


def test_a_table_with_a_magnitude_is_refused_where_it_would_mean_another_length(tmp_path: Path) -> None:
    leaves = {"model.embed_tokens.lora_embedding_A": draw(2, 20), "model.embed_tokens.lora_embedding_B": draw(8, 2)}
    m = {"model.embed_tokens.lora_magnitude_vector": draw(8)}
    (tmp_path / "adapter").mkdir()
    write_peft(tmp_path / "adapter", {**leaves, **m}, use_dora=True)
    for to in ("mlx", "lora_np"):
        refused(lambda to=to: convert(tmp_path / "adapter", to, tmp_path / "out"), "embed_tokens", "table")


def test_every_reason_is_planted() -> None:
    words = {reason for reasons in NOT_HELD.values() for reason in reasons}
    assert words == {"b", "tokens", "whole", "table m", "m"}


def test_factors_of_experts_and_convolutions_are_refused_by_name(tmp_path: Path) -> None:
    leaves = {"conv.lora_A.weight": draw(2, 3, 3, 3), "conv.lora_B.weight": draw(4, 2, 1, 1)}
    write_peft((tmp_path / "adapter").mkdir() or tmp_path / "adapter", leaves)
    refused(lambda: convert(tmp_path / "adapter", "mlx", tmp_path / "out"), "conv", "not converted")
    assert convert(tmp_path / "adapter", "peft", tmp_path / "out").to_the_bit


def test_names_that_peft_would_leave_out_are_written_as_peft_has_them(tmp_path: Path) -> None:
    pair = {f"{Q}.lora_A.default.weight": draw(2, 64), f"{Q}.lora_B.default.weight": draw(64, 2)}
    (tmp_path / "adapter").mkdir()
    write_peft(tmp_path / "adapter", pair, prefix="base_model.model.base_model.model.")
    convert(tmp_path / "adapter", "peft", tmp_path / "out")
    assert set(open_tensors(tmp_path / "out" / "adapter_model.safetensors")) == {
        f"base_model.model.{Q}.lora_{x}.weight" for x in "AB"
    }


def leaves_with(A: np.ndarray, B: np.ndarray, scale: float = 2.0) -> Leaves:
    return Leaves({"m": {"A": A, "B": B}}, {"m": scale})


FAULTS: dict[str, Callable[[np.ndarray, np.ndarray], Leaves]] = {
    "scale": lambda A, B: leaves_with(A, B, 2.0 * (1 + 1e-5)),
    "one entry of A": lambda A, B: leaves_with(np.where(np.arange(A.size).reshape(A.shape) == 5, A * 1.0001, A), B),
    "one entry of B": lambda A, B: leaves_with(A, np.where(np.arange(B.size).reshape(B.shape) == 5, B * 1.0001, B)),
    "rank lost": lambda A, B: leaves_with(A[:2], B[:, :2]),
    "rows turned": lambda A, B: leaves_with(A, permuted(B, 2)),
    "sign": lambda A, B: leaves_with(A, -B),
    "float16": lambda A, B: leaves_with(A, (B * 1.001).astype(np.float16)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_proof_sees_a_planted_fault(fault: str) -> None:
    A, B = draw(3, 8), draw(12, 3)
    (right,) = compared(leaves_with(A, B), leaves_with(A, B))
    assert right.to_the_bit
    (wrong,) = compared(leaves_with(A, B), FAULTS[fault](A, B))
    assert not wrong.to_the_bit
    assert wrong.holds == (fault == "float16")  # u of float16 is 0.0005: four of them allow 0.1 %, and say so


def test_the_bound_of_a_rounded_conversion_holds_and_is_nearly_reached() -> None:
    """One rounding of A, one of B and one of s come to 3u; (K1) allows 4u."""
    worst = 0.0
    for seed in range(20):
        A, B = draw(1, 60, seed=seed, dtype=np.float64), draw(60, 1, seed=seed + 99, dtype=np.float64)
        short = leaves_with(A.astype(np.float16), B.astype(np.float16))
        (one,) = compared(leaves_with(A, B), short)
        assert one.holds
        worst = max(worst, one.gap / one.bound)
    assert 0.4 < worst <= 1.0


def test_a_table_and_a_sentence_say_what_was_proved(tmp_path: Path) -> None:
    world(tmp_path, modules=(Q, GATE, UP), alpha_pattern={"q_proj": 5})
    code, said = said_by("convert", tmp_path / "adapter", "--to", "mlx", "--out", tmp_path / "out")
    assert code == 0
    assert "SAME: ΔW of 2 modules is equal to the bit, of 1 within its bound" in said
    code, said = said_by("convert", tmp_path / "adapter", "--to", "mlx", "--out", tmp_path / "again", "--json")
    assert (code, json.loads(said)["to_the_bit"]) == (0, False)


def test_bad_input_is_one_line_and_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world(tmp_path, modules=(Q,))
    (tmp_path / "there").mkdir()
    (tmp_path / "empty").mkdir()
    before = {path.name for path in tmp_path.iterdir()}
    for arguments, word in [
        (("adapter", "--to", "pefd", "--out", "x"), "peft"),
        (("adapter", "--to", "mlx", "--out", "there"), "exists"),
        (("adapter", "--to", "mlx", "--out", "adapter/inside/.."), "no name"),
        (("adapter", "--to", "gguf", "--out", "x"), "--base"),
        (("adapter", "--to", "lora_np", "--out", "x"), "no map of a gpt2 model"),
        (("empty", "--to", "mlx", "--out", "x"), "name an adapter"),
        (("nowhere", "--to", "mlx", "--out", "x"), "nowhere"),
        (("base", "--to", "mlx", "--out", "x"), "adapter"),
        (("adapter", "--to", "mlx", "--out", "x", "--base", "empty"), "empty"),
    ]:
        places = [str(tmp_path / a) if a in before or a in ("x", "nowhere") or "/" in a else a for a in arguments]
        code, _ = said_by("convert", *places)
        said = capsys.readouterr().err
        assert (code, said.count("\n")) == (2, 1), (arguments, said)
        assert word in said, (arguments, said)
        assert {path.name for path in tmp_path.iterdir()} == before


def test_an_adapter_with_a_number_that_is_not_finite_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    w = world(tmp_path, modules=(Q,))
    A, B = (factor.copy() for factor in w.factors[Q])
    A[0, 0] = np.nan
    (tmp_path / "bad").mkdir()
    write_peft(tmp_path / "bad", {f"{Q}.lora_A.weight": A, f"{Q}.lora_B.weight": B}, r=4)
    write_file(tmp_path / "merged" / "model.safetensors", w.plain())
    for command in (
        ("convert", tmp_path / "bad", "--to", "mlx", "--out", tmp_path / "out"),
        ("merge", tmp_path / "bad", "--base", tmp_path / "base", "--out", tmp_path / "out"),
        ("verify", tmp_path / "bad", tmp_path / "merged", "--base", tmp_path / "base", "--html", tmp_path / "x.html"),
    ):
        assert said_by(*command)[0] == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert "not finite" in said
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "x.html").exists()


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    world(tmp_path, modules=(Q,))
    before = {path.name for path in tmp_path.iterdir()}
    monkeypatch.setattr("os.fsync", full)
    assert said_by("convert", tmp_path / "adapter", "--to", "mlx", "--out", tmp_path / "a" / "b")[0] == 2
    assert {path.name for path in tmp_path.iterdir()} == before


def test_the_released_adapter_of_the_paper_is_carried_to_peft_to_the_bit(tmp_path: Path) -> None:
    from shared_data import shared_data

    path = shared_data("roberta-lora-mnli/roberta_base_lora_mnli.bin")
    done = convert(path, "peft", tmp_path / "out", alpha=16.0)
    assert (done.to_the_bit, len(done.modules), done.more) == (True, 24, 4)
    assert {one.scale for one in done.modules} == {(2.0, 2.0)}
    update = of_peft(tmp_path / "out", {"roberta.encoder.layer.0.attention.self.query": np.zeros(0)})
    assert np.linalg.norm(next(iter(update.values()))) == pytest.approx(9.627213, abs=5e-7)
