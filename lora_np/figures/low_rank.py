"""Pictures of tutorial 01: how the singular values of an update fall, beside those of a random matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from . import _figure, _legend, _look


def spectra(singular_values: Mapping[str, Sequence[float]]) -> Any:
    r"""Left: the singular values, as parts of the matrix's norm. Right: the energy that the first r of them hold.

    singular_values  {label: σ, largest first}; the matrices should have one shape
    Raises ValueError when there is none, or a matrix is zero.
    """
    if not singular_values or not all(np.any(np.asarray(sigma)) for sigma in singular_values.values()):
        raise ValueError("a picture of spectra needs at least one matrix, none of them zero")
    with _figure(7.2, 3.7) as figure:
        sizes, energy = figure.subplots(1, 2)
        for i, (label, values) in enumerate(singular_values.items()):
            sigma = np.asarray(values, np.float64) / np.linalg.norm(values)
            index = np.arange(1, len(sigma) + 1)
            marked = [2**k - 1 for k in range(len(sigma).bit_length())]
            sizes.plot(index, sigma, label=label, markevery=marked, **_look(i))
            energy.plot(index, np.cumsum(sigma**2), markevery=marked, **_look(i))
        ticks = [2**k for k in range(len(sigma).bit_length())]
        for axes in (sizes, energy):
            axes.set_xscale("log", base=2)
            axes.set_xticks(ticks, [str(tick) for tick in ticks])
            axes.minorticks_off()
        sizes.set_ylim(bottom=0.0)
        energy.set_ylim(0.0, 1.04)
        sizes.set(xlabel="index i of the singular value (log scale)", ylabel="σᵢ / ‖ΔW‖ (no unit)")
        energy.set(xlabel="rank r that is kept (log scale)", ylabel="energy kept (share of ‖ΔW‖²)")
        _legend(figure, columns=2)
    return figure
