r"""Bytes: of an adapter file, of what training holds, and of a whole step."""

from __future__ import annotations

from .shapes import ITEM_SIZE, nearest_first


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
