r"""How many parameters a model has, and how many of them LoRA trains."""

from __future__ import annotations

from collections.abc import Iterable

from .shapes import Shape, check_rank, maps, target_modules


def parameter_count(shape: Shape) -> int:
    r"""The number N of parameters of the model.

    $$N = L\,(\underbrace{4d^2 + 4d}_{attention} + \underbrace{2df + f + d}_{MLP}
        + \underbrace{4d}_{two\ norms})
        + \underbrace{(V + n)\,d}_{embeddings} + \underbrace{2d}_{last\ norm}
        \;[\,+\,Vd\ if\ untied\,] \tag{C1}$$

    With f = 4d and a tied head this is L(12d² + 13d) + (V + n)d + 2d, where n is the context.

    >>> parameter_count(SHAPES["gpt2-medium"])
    354823168

    Source: counted from the architecture. Hu et al., Table 3, prints 354.92M for GPT-2 medium (0.097M more
    than its arrays hold) and 774.03M for GPT-2 large (exact); Table 4's 175,255.8M for GPT-3 fits neither a
    tied nor an untied head.
    """
    d, f = shape.d_model, shape.d_ff
    block = (4 * d * d + 4 * d) + (2 * d * f + f + d) + 4 * d
    head = 0 if shape.tied else shape.vocab * d
    return shape.layers * block + (shape.vocab + shape.context) * d + 2 * d + head


def bias_count(shape: Shape) -> int:
    r"""The number of biases, which is what BitFit trains.

    $$L\,(\underbrace{4d}_{q,k,v,o} + \underbrace{f + d}_{MLP} + \underbrace{2d}_{two\ norms}) + d \tag{C2}$$

    Source: Zaken et al. 2021, arXiv:2106.10199. Hu et al., Table 4, prints 14.2M for GPT-3; C2 gives 12.99M.
    """
    d = shape.d_model
    return shape.layers * (4 * d + shape.d_ff + d + 2 * d) + d


def lora_count(shape: Shape, rank: int, targets: str | Iterable[str]) -> int:
    r"""The number Θ of parameters that LoRA trains.

    $$|\Theta| = \sum_{targets} copies \cdot r\,(d_{in} + d_{out}) \tag{C3}$$

    A is (r, d_in) and B is (d_out, r); a block's matrix has L copies, the token embedding (V to d) and an
    untied head have one. A square attention matrix costs 2·r·d.

    >>> lora_count(SHAPES["gpt3"], rank=4, targets="qv")
    18874368

    Raises ValueError for an unknown target and for a rank outside 1..min(d_in, d_out).

    Source: Hu et al., section 5.1, |Θ| = 2 × L̂_LoRA × d_model × r. For GPT-2 medium with r = 4 on q and v
    this gives 393,216, where Table 3 prints 0.35M.
    """
    known = maps(shape)
    count = 0
    for target in target_modules(shape, targets):
        d_in, d_out, copies = known[target]
        check_rank(rank, d_in, d_out, target)
        count += copies * rank * (d_in + d_out)
    return count
