r"""Bytes: of an adapter file, of what training holds, and of a whole step."""

from __future__ import annotations

from collections.abc import Iterable

from ..config import TransformerConfig, bias_count, maps, parameter_count
from ..names import ATTENTION, GATED, nearest_first, targeted
from .counts import lora_count

ITEM_SIZE = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}  # bytes


def adapter_bytes(count: int, dtype: str) -> int:
    r"""The size of the adapter's numbers in a file: count × item size, in bytes; the header comes on top.

    >>> adapter_bytes(lora_count(SHAPES["gpt3"], rank=4, targets="qv"), "float16")
    37748736

    Source: Hu et al., section 4.2: a checkpoint of "roughly" 35 MB against 350 GB. This is 36 MiB.
    """
    if dtype not in ITEM_SIZE:
        raise ValueError(f"dtype must be one of {nearest_first(dtype, ITEM_SIZE)}; got {dtype!r}")
    return count * ITEM_SIZE[dtype]


def optimizer_bytes(count: int, item_size: int = 4) -> int:
    """The bytes of Adam's state for `count` trained parameters: two moments each (Kingma & Ba 2015)."""
    return 2 * count * item_size


def gradient_bytes(count: int, item_size: int = 4) -> int:
    """The bytes of the gradient of `count` trained parameters; a frozen one has none."""
    return count * item_size


def training_state_bytes(frozen: int, trained: int, item_size: int = 4) -> int:
    r"""The bytes that training with Adam holds, activations apart.

    $$item \cdot (frozen + \underbrace{4}_{value,\ gradient,\ two\ moments} \cdot trained) \tag{C4}$$

    Full fine-tuning is (0, N), LoRA is (N, Θ): with Θ ≪ N a quarter of the bytes remains.

    Source: Hu et al., section 4.2, which reports 1.2 TB → 350 GB for GPT-3 and "up to 2/3" saved. C4 saves
    up to 3/4; counting only the value and the two moments, and no gradient, saves up to 2/3.
    """
    return item_size * (frozen + trained) + gradient_bytes(trained, item_size) + optimizer_bytes(trained, item_size)


def saved_numbers(
    config: TransformerConfig, rank: int | None, targets: str | Iterable[str] = "qv", layer: int = 0
) -> int:
    r"""How many numbers one block keeps for backward, per token; `rank` None: every parameter is trained.

    $$\underbrace{2(d+1)}_{norms} + \underbrace{4d + heads}_{attention} + \underbrace{f}_{\mathrm{GELU}'}
      \;[\,+\,d\;x\ of\ q,k,v\,]\;[\,+\,d\;x\ of\ up\,]\;[\,+\,f\;x\ of\ down\,]\;[\,+\,r\ per\ target\,]
      \tag{C10}$$

    A map keeps its input x only where it is trained; q, k and v share theirs, and that of the output map is kept by
    attention anyway. Scores and logits are made in blocks and not kept. Counted from `lora_np.operations`.

    Where queries and keys are of other widths q and k, 2q + 2k in place of 4d; a gate keeps both of its arguments, 2f
    in place of f.
    """
    d, f, block = config.d_model, config.d_hidden, f"blocks.{layer}."
    hidden = 2 * f if config.kind.mlp == "swiglu" else f
    able = maps(config)
    chosen = able if rank is None else targeted(able, targets)
    trained = {path.removeprefix(block) for path in chosen if path.startswith(block)}
    inputs = d * bool(trained & set(ATTENTION[:3])) + d * bool(trained & set(GATED[:2])) + f * ("mlp.down" in trained)
    attention = 2 * config.d_queries + 2 * config.d_keys + config.heads
    return 2 * (d + 1) + attention + hidden + inputs + (rank or 0) * len(trained)


def step_bytes(
    config: TransformerConfig,
    batch: int,
    length: int,
    rank: int | None = None,
    targets: str | Iterable[str] = "qv",
    *,
    pieces: int = 1,
    at_once: int = 1,
    recomputed: bool = False,
    item_size: int = 4,
    trained: int | None = None,
    held: int | None = None,
) -> int:
    r"""The largest number of bytes that arrays hold during a training step with AdamW.

    The batch is cut into `pieces`, of which `at_once` are worked on together, each of n tokens. With Θ trained
    parameters (N when `rank` is None) and C10's k numbers saved per token in a block, the larger of

    $$N + 3\Theta + pieces\cdot\Theta
        + at\ once\cdot n\,\big(\sum_{blocks} k + \underbrace{2f + 3d}_{inside\ one\ MLP} + \underbrace{2d}_{head}\big)
        \qquad gradients \tag{C11}$$
    $$N + 6\Theta + \Theta \qquad update:\ the\ old\ and\ the\ new\ \theta, m, v,\ and\ the\ gradient \tag{C12}$$

    `recomputed`: only the input of each block is kept, and backward makes the rest of one block at a time: Σk becomes
    Ld + k. Blocks of scores and logits, a few MiB, are left out; so are the libraries.

    trained   Θ of another method, where it is not that of LoRA at this rank
    held      the bytes of the base, N numbers of `item_size` where it is not held otherwise: see `held_bytes`
    """
    total = parameter_count(config)
    if trained is None:
        trained = total if rank is None else lora_count(config, rank, targets)
    base = item_size * total if held is None else held
    saved = [saved_numbers(config, rank, targets, layer) for layer in range(config.layers)]
    tokens = -(-batch // pieces) * length
    kept = config.layers * config.d_model + max(saved) if recomputed else sum(saved)
    activations = tokens * (kept + 2 * config.d_hidden + 5 * config.d_model)
    gradients = (3 + pieces) * trained + at_once * activations
    return base + item_size * max(gradients, 7 * trained)


def held_bytes(config: TransformerConfig, item_size: int = 4) -> int:
    r"""The bytes of a frozen model whose matrices and tables are held in 16 bits, its vectors and classifier as ever.

    $$2\,M + item \cdot (N - M), \qquad M = L\,(2dq + 2dk + m\,df) + (V\,[\,+\,n\,]\,+ T)\,d\;[\,+\,Vd\,] \tag{C11b}$$

    While it computes, one map at a time is widened beside it in each thread, at most max(d·f, 2²² numbers of the head)
    numbers of `item_size`.
    """
    vectors = bias_count(config) + (2 * config.layers + 1) * config.d_model
    classifier = config.d_model * (config.d_model + config.classes) if config.classes else 0
    matrices = parameter_count(config) - vectors - classifier
    return 2 * matrices + item_size * (vectors + classifier)
