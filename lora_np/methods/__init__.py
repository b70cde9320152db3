r"""The methods that the paper compares, and others that came after it: each is settings that can be applied.

One row of `METHODS` is all that a new method needs: gradient checks, costs, files and the command line read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

import numpy as np

from ..engine.halves import is_half
from ..method import Method
from ..names import nearest_first
from ..wrappers import wrappers
from .bottleneck import AdapterH, AdapterL, AdapterP, Compacter
from .classify import Classify, HeadOnly
from .lora import LoraConfig
from .prefix import LoraPrefixEmbedding, LoraPrefixLayer, PrefixEmbedding, PrefixKeysValues, PrefixLayer
from .tuning import BitFit, Full, Top
from .variants import DoRA, LoraFA, LoraPlus, PiSSA, VeRA

METHODS: dict[str, type[Method]] = {
    "lora": LoraConfig,
    "full": Full,
    "top": Top,
    "bitfit": BitFit,
    "prefix-embedding": PrefixEmbedding,
    "prefix-layer": PrefixLayer,
    "prefix-kv": PrefixKeysValues,
    "lora+prefix-embedding": LoraPrefixEmbedding,
    "lora+prefix-layer": LoraPrefixLayer,
    "adapter-h": AdapterH,
    "adapter-l": AdapterL,
    "adapter-p": AdapterP,
    "compacter": Compacter,
    "dora": DoRA,
    "vera": VeRA,
    "pissa": PiSSA,
    "lora+": LoraPlus,
    "lora-fa": LoraFA,
}
"""Every method by its name: the class of its settings. An instance is what `adapt` applies to a model.

>>> from lora_np import METHODS
>>> METHODS["dora"](rank=2, targets="qkvo").rank
2
>>> sorted(name for name in METHODS if name.startswith("adapter"))
['adapter-h', 'adapter-l', 'adapter-p']
"""


def adapt(model: Any, method: Method, rng: np.random.Generator | None) -> Any:
    """The model as this method starts on it, `model` untouched; without rng its shapes.

    Raises ValueError for one that is adapted already.

    The shapes are the method's: LoRA puts A (rank, d_in) and B (d_out, rank) beside W (d_out, d_in).

    >>> import numpy as np
    >>> from lora_np import LoraConfig, TransformerConfig, adapt, count, initialize
    >>> config = TransformerConfig(vocab=11, context=8, d_model=8, layers=2, heads=2)
    >>> base = initialize(config, np.random.default_rng(0))
    >>> model = adapt(base, LoraConfig(rank=2, targets="qv"), np.random.default_rng(1))
    >>> tokens = np.array([[1, 2, 3]])
    >>> bool((model(tokens) == base(tokens)).all())  # B = 0: nothing has changed yet
    True
    >>> count(model, "*.A", "*.B")  # two maps a block, of 2 (8 + 8) numbers each
    128
    """
    if found := wrappers(model):
        path, wrapper = next(iter(found.items()))
        raise ValueError(
            f"the model carries a {type(wrapper).__name__} already, at {path or 'its root'}: merge it first, or adapt "
            "the base"
        )
    adapted = method.apply(model, rng)
    if frozen := [path for path, array in method.trained(adapted).items() if is_half(array)]:
        raise ValueError(
            f"{frozen[0]} is held in 16 bits and stays as it is, but {name_of(method)} trains it: "
            "hold the base in float32"
        )
    return adapted


# Beside a head of classes there may be nothing.
BESIDE_HEAD: dict[str, type[Method]] = {**METHODS, "head": HeadOnly}


def name_of(method: Method) -> str:
    """What `METHODS` calls it, or what stands beside its head of classes."""
    beside = method.method if isinstance(method, Classify) else method
    return next(name for name, kind in BESIDE_HEAD.items() if kind is type(beside))


def method_named(name: str, settings: Mapping[str, Any], methods: Mapping[str, type[Method]] = METHODS) -> Method:
    """The method with these settings; raises ValueError, with the nearest names, for an unknown one of either."""
    if name not in methods:
        raise ValueError(f"method must be one of {nearest_first(name, methods)}; got {name!r}")
    known = [field.name for field in fields(methods[name])]  # type: ignore[arg-type]
    for setting in settings:
        if setting not in known:
            able = f"one of {nearest_first(setting, known)}" if known else "left out: it has none"
            raise ValueError(f"a setting of {name} must be {able}; got {setting!r}")
    return methods[name](**settings)


def described(method: Method) -> dict[str, Any]:
    """A method as JSON can hold it; `method_from` reads it back."""
    if isinstance(method, Classify):
        return {**described(method.method), "classes": {"labels": list(method.labels), "reads": method.reads}}
    settings: dict[str, Any] = asdict(method)  # type: ignore[call-overload]
    plain = {name: value.item() if isinstance(value, np.generic) else value for name, value in settings.items()}
    return {"method": name_of(method), "settings": plain}


def method_from(about: Mapping[str, Any]) -> Method:
    """The method that `described` wrote; raises ValueError or TypeError for anything else."""
    name, settings = about.get("method"), about.get("settings")
    if not (isinstance(name, str) and isinstance(settings, dict)):
        raise ValueError("'method' must be a name and 'settings' an object")
    plain = {key: tuple(v) if isinstance(v, list) else v for key, v in settings.items()}
    if "classes" not in about:
        return method_named(name, plain)
    head = about["classes"]
    labels = head.get("labels") if isinstance(head, dict) and set(head) == {"labels", "reads"} else None
    if not (isinstance(labels, list) and all(isinstance(label, str) for label in labels)):
        raise ValueError("'classes' must hold 'labels', a list of texts, and 'reads'")
    return Classify(method_named(name, plain, BESIDE_HEAD), tuple(labels), head["reads"])
