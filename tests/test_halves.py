r"""Frozen matrices in 16 bits: every bit pattern reads as the number it is, and a model computes as its rounded twin.

The second source of a number of 16 bits is NumPy's own float16, and for bfloat16 `ml_dtypes`, where it is installed,
beside the plain reading of sign, exponent and fraction that the cases use.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from builders import model, random_batch, tokens_of

from lora_np.costs.memory import held_bytes
from lora_np.engine import halves
from lora_np.engine.differentiation import value_and_grad
from lora_np.engine.halves import HALVES, HalfArray, half, is_half, widened
from lora_np.files import load_model, save_model
from lora_np.halving import in_16_bits, rounded
from lora_np.methods import adapt
from lora_np.methods.lora import LoraConfig
from lora_np.methods.tuning import BitFit, Full
from lora_np.model import language_model_loss
from lora_np.operations import linear
from lora_np.parameters import parameters, with_parameters
from lora_np.rounding import gamma, unit_roundoff

EVERY = np.arange(1 << 16, dtype=np.uint16)
every_kind = pytest.mark.parametrize("kind", HALVES)
SHAPES: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "llama": {"architecture": "llama", "heads": 4, "kv_heads": 2, "d_ff": 6, "tied": False},
    "llama, tied": {"architecture": "llama", "heads": 4, "kv_heads": 1, "d_ff": 6},
    "bert": {"architecture": "bert", "causal": False, "types": 2, "classes": 3},
}
every_shape = pytest.mark.parametrize("name", SHAPES)


def same_bits(one: Any, other: Any) -> bool:
    return bool(np.array_equal(one.view(np.uint32), other.view(np.uint32)))


def test_every_float16_reads_as_the_number_it_is() -> None:
    theirs = EVERY.view(np.float16)
    finite = np.isfinite(theirs)
    assert finite.sum() == 2 * 31 * 1024  # subnormal ones and both zeros among them
    assert same_bits(widened(EVERY[finite], "float16"), theirs[finite].astype(np.float32))


def test_every_bfloat16_reads_as_the_number_it_is_and_is_rounded_as_ml_dtypes_rounds() -> None:
    bfloat16 = pytest.importorskip("ml_dtypes", reason="the extra 'checkpoints' is not installed").bfloat16
    theirs = EVERY.view(bfloat16).astype(np.float32)
    finite = np.isfinite(theirs)
    assert same_bits(widened(EVERY, "bfloat16")[finite], theirs[finite])
    rng = np.random.default_rng(0)
    numbers = (rng.standard_normal((400, 50)) * np.exp(rng.normal(0.0, 9.0, (400, 50)))).astype(np.float32)
    ties = (theirs[finite][:5000].view(np.uint32) | 0x8000).view(np.float32)[None]  # half-way between two of them
    for some in (numbers, ties):
        assert np.array_equal(half(some, "bfloat16").bits, some.astype(bfloat16).view(np.uint16))


@every_kind
def test_rounding_is_to_the_nearest_and_what_was_rounded_stays(kind: str) -> None:
    numbers = np.random.default_rng(1).standard_normal((30, 40)).astype(np.float32)
    held = half(numbers, kind)
    u = 2.0**-11 if kind == "float16" else 2.0**-8
    gap = abs(np.asarray(held) - numbers)
    assert 0.1 * u < (gap / abs(numbers)).max() <= u * (1 + 1e-6)  # contrast: something was rounded
    assert np.array_equal(half(np.asarray(held), kind).bits, held.bits)
    assert (held.nbytes, held.dtype, held.shape) == (2 * numbers.size, np.float32, numbers.shape)


def test_a_number_that_the_type_does_not_hold_is_refused_by_name() -> None:
    node = with_parameters(model(dtype=np.float32), {"tokens.W": np.full((11, 8), 7e4, np.float32)})
    with pytest.raises(ValueError, match=r"tokens\.W: it holds 70000, which float16 does not"):
        in_16_bits(node, "float16")
    assert np.asarray(in_16_bits(node, "bfloat16").tokens.W)[0, 0] == 70144
    with pytest.raises(ValueError, match="float32 or in bfloat16, float16"):
        in_16_bits(node, "bfloat")
    with pytest.raises(ValueError, match="holds nan"):
        half(np.array([[np.nan]], np.float32), "bfloat16")


@every_kind
@every_shape
def test_a_held_model_gives_the_bits_of_its_rounded_twin(name: str, kind: str) -> None:
    """Logits, loss and gradients: the matrices of these models are one block each, so the products are the same."""
    node = model(dtype=np.float32, **{"d_model": 8, **SHAPES[name]})
    held = in_16_bits(node, kind)
    twin = rounded(held)
    assert sum(is_half(array) for array in parameters(held).values()) > 8
    assert not any(map(is_half, parameters(twin).values()))
    tokens = tokens_of(node)
    assert np.array_equal(held(tokens), twin(tokens))
    assert abs(held(tokens) - node(tokens)).max() > 1e-5  # contrast: rounding shows
    method, rng = LoraConfig(rank=1, alpha=3.0, targets="attention+mlp"), np.random.default_rng(4)
    adapted = [adapt(one, method, np.random.default_rng(0)) for one in (held, twin)]
    point = {n: rng.standard_normal(a.shape).astype(np.float32) for n, a in method.trained(adapted[0]).items()}
    batch = random_batch(node)
    if node.config.classes:
        batch = type(batch)(batch.tokens, batch.targets[:, :1] % 3, np.full((3, 1), 1 / 3, np.float32))
    found = [value_and_grad(lambda p, m=m: language_model_loss(with_parameters(m, p), batch))(point) for m in adapted]
    assert found[0][0] == found[1][0]
    assert all(np.array_equal(found[0][1][n], found[1][1][n]) for n in point)
    assert any(gradient.any() for gradient in found[0][1].values())


@every_kind
def test_a_matrix_of_several_blocks_is_that_of_one_within_its_rounding(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    r"""Two sums of n terms in two orders differ by at most 2γ_n Σ|terms|: (D4), (D5)."""
    rng = np.random.default_rng(2)
    W, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((37, 24), 37))
    x, dy = (rng.standard_normal((5, n)).astype(np.float32) for n in (24, 37))
    held = half(W, kind)
    monkeypatch.setattr(halves, "AT_ONCE", 24 * 10)
    assert [k.stop - k.start for k in held.blocks()] == [10, 10, 10, 7]
    wide, u = np.asarray(held), unit_roundoff(np.float32)
    for ours, exact, terms, n in (
        (linear(x, held, b), x.astype(float) @ wide.T + b, abs(x) @ abs(wide.T) + abs(b), 25),
        (linear.backward((None, held, x.shape), dy, ("x",))[0], dy.astype(float) @ wide, abs(dy) @ abs(wide), 37),
    ):
        assert ours.dtype == np.float32
        assert (abs(ours - exact) <= gamma(n, u) * terms).all()


def test_what_is_held_can_be_read_in_all_ways_and_not_be_trained(tmp_path: Any) -> None:
    node = in_16_bits(model(dtype=np.float32), "bfloat16")
    W = node.tokens.W
    assert isinstance(W, HalfArray)
    for part in (slice(2, 5), np.array([[1, 1], [3, 0]]), 4):
        assert np.array_equal(W[part], np.asarray(W)[part])
    for method in (Full(), BitFit()):
        if isinstance(method, Full):
            with pytest.raises(ValueError, match="stays as it is, but full trains it"):
                adapt(node, method, np.random.default_rng(0))
        else:
            adapt(node, method, np.random.default_rng(0))
    save_model(tmp_path / "m", node)
    read = load_model(tmp_path / "m", held="bfloat16")
    assert all(np.array_equal(np.asarray(a), np.asarray(parameters(read)[n])) for n, a in parameters(node).items())


@every_shape
def test_the_bytes_of_a_held_model_are_those_predicted(name: str) -> None:
    node = in_16_bits(model(dtype=np.float32, **{"d_model": 8, **SHAPES[name]}), "float16")
    assert held_bytes(node.config) == sum(array.nbytes for array in parameters(node).values())
