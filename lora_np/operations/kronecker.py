r"""A matrix as a sum of n Kronecker products, each with a low-rank second factor (Mahabadi et al. 2021, COMPACTER).

    A (n, n, n)    S (n, d_out/n, rank)    T (n, rank, d_in/n)    W (d_out, d_in)

$$W = \sum_m A_m \otimes (S_m T_m),\qquad W_{(i,a),(j,b)} = \sum_m A_{mij}\,C_{mab},\quad C_m = S_m T_m \tag{K1}$$

**Derivation.** (K1) is linear in A and in C. With $D_{ij,ab} = \partial L/\partial W_{(i,a),(j,b)}$,

$$\partial L/\partial A_{mij} = \sum_{ab} D_{ij,ab}\,C_{mab} \tag{K2}\qquad
  \partial L/\partial C_{mab} = \sum_{ij} A_{mij}\,D_{ij,ab} \tag{K3}$$
$$\partial L/\partial S_m = (\partial L/\partial C_m)\,T_m^T \tag{K4}\qquad
  \partial L/\partial T_m = S_m^T\,(\partial L/\partial C_m) \tag{K5}$$

Source: Mahabadi et al. 2021, arXiv:2106.04647, equations 4 and 7.
"""

from __future__ import annotations

from typing import Any

from ..engine.arrays import Array
from ..engine.differentiation import operation

Wanted = tuple[str, ...]


def kronecker_forward(A: Array, S: Array, T: Array, /, *, wanted: Wanted) -> tuple[Array, Any]:
    """(K1)."""
    C = S @ T
    n, a, b = C.shape
    blocks = A.reshape(n, -1).T @ C.reshape(n, -1)  # (ij, ab)
    W = blocks.reshape(n, n, a, b).transpose(0, 2, 1, 3).reshape(n * a, n * b)
    return W, (A, S, T, C)


def kronecker_backward(saved: Any, dW: Array, wanted: Wanted) -> list[Array]:
    """(K2) to (K5)."""
    A, S, T, C = saved
    n, a, b = C.shape
    D = dW.reshape(n, a, n, b).transpose(0, 2, 1, 3).reshape(n * n, a * b)
    dC = (A.reshape(n, -1) @ D).reshape(n, a, b)  # (K3)
    gradient = {
        "A": lambda: (D @ C.reshape(n, -1).T).T.reshape(n, n, n),  # (K2)
        "S": lambda: dC @ T.swapaxes(-1, -2),  # (K4)
        "T": lambda: S.swapaxes(-1, -2) @ dC,  # (K5)
    }
    return [gradient[name]() for name in wanted]


kronecker = operation(kronecker_forward, kronecker_backward)
