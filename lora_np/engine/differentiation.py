r"""The one door to autograd: a forward/backward pair becomes an operation, and a loss becomes its gradient.

autograd applies the chain rule; the pairs in `lora_np.operations` supply its links. What is not differentiated
is never boxed, so a frozen array costs no gradient: its name is simply not in `wanted`.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from autograd.core import VJPNode, add_outgrads
from autograd.extend import Box, defvjp_argnums, primitive
from autograd.tracer import new_box
from autograd.util import toposort

from .arrays import Array, array_module, is_box

Arrays = dict[str, Array]

SECOND_ORDER = "operations are differentiable once; for second derivatives use lora_np.textbook"

# Boxes of one trace carry one number; a higher number is unwrapped first. This one lies below every number that
# autograd hands out (0, 1, …) and above the one it starts its search with (−1): so `autograd.grad` may be used inside a
# loss. It is a constant because autograd's own counter is shared by all threads.
TRACE = -0.5
NO_TRACE = -1
_thread = threading.local()


def operation(forward: Callable[..., Any], backward: Callable[..., Any]) -> Callable[..., Any]:
    r"""Make a pair of plain functions an operation that autograd differentiates.

    forward(*arguments, wanted)    -> (y, saved)   saves only what the gradients named in `wanted` need
    backward(saved, dy, wanted)    -> one gradient for each name in `wanted`, in order; nothing else is computed

    `wanted` holds the names of the arguments that are being differentiated (empty when nothing is). The result is
    called with positional arguments only: autograd would give a boxed keyword argument a gradient of zero,
    silently. Raises TypeError when a second derivative is asked for.

    y and the gradients are arrays (...); dy has the shape of y, a gradient that of its argument.

    The pair is a whole link of the chain, so its node in autograd's graph is written here, as `autograd.primitive`
    would write it after looking at every argument three times: at small sizes that took as long as the operation.

    >>> import numpy as np
    >>> from lora_np import operation, value_and_grad
    >>> def cube_forward(x, /, *, wanted):
    ...     return x**3, x if wanted else None
    >>> def cube_backward(x, dy, wanted):
    ...     return [3 * x**2 * dy]
    >>> cube = operation(cube_forward, cube_backward)
    >>> value, gradient = value_and_grad(lambda arrays: cube(arrays["x"]).sum())({"x": np.array([1.0, 2.0])})
    >>> float(value), gradient["x"]
    (9.0, array([ 3., 12.]))
    """
    names = [name for name in inspect.signature(forward).parameters if name != "wanted"]
    boxes = Box.types

    @functools.wraps(forward)
    def call(*arguments: Any) -> Any:
        trace: float = NO_TRACE
        for value in arguments:
            if type(value) in boxes and value._trace > trace:
                trace = value._trace
        if trace == NO_TRACE:  # evaluation passes autograd by and keeps nothing alive
            return forward(*arguments, wanted=())[0]
        values, wanted, parents = list(arguments), [], []
        for i, value in enumerate(arguments):
            if type(value) in boxes:
                if value._trace != trace or type(value._value) in boxes:
                    raise TypeError(SECOND_ORDER)
                values[i] = value._value
                wanted.append(names[i])
                parents.append(value._node)
        y, saved = forward(*values, wanted=tuple(wanted))
        return new_box(y, trace, _link(backward, saved, tuple(wanted), parents))

    del call.__wrapped__  # `forward` takes `wanted`, the operation does not
    call.forward, call.backward = forward, backward  # type: ignore[attr-defined]
    return call


def _link(backward: Callable[..., Any], saved: Any, wanted: tuple[str, ...], parents: list[Any]) -> VJPNode:
    """The node of a result: whose gradients `backward` makes of its own. Raises TypeError in forward mode."""
    if type(parents[0]) is not VJPNode:
        raise TypeError("operations have no derivatives in forward mode; use lora_np.textbook")

    def vjp(dy: Any) -> Any:
        if is_box(dy):
            raise TypeError(SECOND_ORDER)
        return backward(saved, dy, wanted)

    node = VJPNode.new_root()
    node.parents, node.vjp = parents, vjp
    return node


def value_and_grad(loss: Callable[..., Any]) -> Callable[..., tuple[Any, Arrays]]:
    r"""`(trained, *rest) -> (loss, {name: ∂loss/∂trained[name]})` for a flat dict of arrays.

    The same numbers as `autograd.value_and_grad`, by the same operations, with two differences: each activation
    is released as soon as backward has used it, and any number of threads may call it at once.

    Raises ValueError when the loss is not one number or depends on none of the arrays, TypeError when a second
    derivative is asked for, that is: when one such function is evaluated inside another.

    Every gradient has the shape (...) of its array.

    >>> import numpy as np
    >>> from lora_np import value_and_grad
    >>> from lora_np.operations import linear
    >>> x, W = np.array([[1.0, 2.0]]), np.array([[3.0, 4.0], [5.0, 6.0]])
    >>> value, gradient = value_and_grad(lambda arrays: linear(x, arrays["W"], None).sum())({"W": W})
    >>> float(value), gradient["W"].shape
    (28.0, (2, 2))
    >>> gradient["W"]  # (D2): G^T x with G = 1
    array([[1., 2.],
           [1., 2.]])
    """

    def evaluated(trained: Arrays, *rest: Any) -> tuple[Any, Arrays]:
        leaves = {name: VJPNode.new_root() for name in trained}
        with _only_one_trace(trained):
            end = loss({name: new_box(value, TRACE, leaves[name]) for name, value in trained.items()}, *rest)
        if not is_box(end):
            raise ValueError("the loss depends on none of the arrays it is differentiated by")
        if end._trace != TRACE:
            raise TypeError(SECOND_ORDER)
        if end._value.shape:
            raise ValueError(f"the loss must be one number, got an array of shape {end._value.shape}")
        gradients = _backward_pass(end, array_module(end._value).ones_like(end._value), set(leaves.values()))
        return end._value, {name: _at(leaf, gradients, trained[name]) for name, leaf in leaves.items()}

    return evaluated


def recomputed(function: Callable[[Arrays, Array], Array], arrays: Arrays, x: Array) -> Array:
    """function(arrays, x), of which nothing but the inputs is kept for backward, where it is evaluated once more.

    `function` must not hold boxed arrays other than those it is given, and must do the same both times: the gradients
    are then those of function(arrays, x) itself, bit for bit.
    """
    return _recomputed(function, tuple(arrays), x, *arrays.values())


def _evaluated(function: Callable[[Arrays, Array], Array], names: tuple[str, ...], x: Array, *values: Array) -> Array:
    return function(dict(zip(names, values, strict=True)), x)


def _recomputed_vjp(argnums: Sequence[int], y: Any, arguments: Sequence[Any], _: Any) -> Callable[[Any], Any]:
    if any(map(is_box, arguments)):
        raise TypeError(SECOND_ORDER)

    def vjp(dy: Any) -> Any:
        if is_box(dy):
            raise TypeError(SECOND_ORDER)
        leaves = {i: VJPNode.new_root() for i in argnums}
        inputs = [new_box(a, TRACE, leaves[i]) if i in leaves else a for i, a in enumerate(arguments)]
        with _only_one_trace({}):
            end = _evaluated(*inputs)
        gradients = _backward_pass(end, dy, set(leaves.values()))
        return [_at(leaves[i], gradients, arguments[i]) for i in argnums]

    return vjp


_recomputed = primitive(_evaluated)
defvjp_argnums(_recomputed, _recomputed_vjp)


@contextmanager
def _only_one_trace(trained: Arrays) -> Iterator[None]:
    """Raise TypeError where this thread is tracing already: both traces would carry one number."""
    if getattr(_thread, "tracing", False) or any(map(is_box, trained.values())):
        raise TypeError(SECOND_ORDER)
    _thread.tracing = True
    try:
        yield
    finally:
        _thread.tracing = False


def _backward_pass(end: Any, dy: Array, leaves: set[Any]) -> dict[Any, Array]:
    """The chain rule from `end`, where the gradient is dy, to the leaves; memory is let go once it has been passed."""
    cotangents = {end._node: (dy, False)}
    for node in list(toposort(end._node)):
        if node in leaves:
            continue
        cotangent, _ = cotangents.pop(node)
        for parent, gradient in zip(node.parents, node.vjp(cotangent), strict=True):
            cotangents[parent] = added(cotangents.get(parent), gradient)
        node.vjp, node.parents = None, ()
    return {node: cotangent for node, (cotangent, _) in cotangents.items()}


def added(before: tuple[Array, bool] | None, gradient: Array) -> tuple[Array, bool]:
    """The sum of gradients that meet at a node, and whether it is an array of its own, which may be added to.

    As autograd's `add_outgrads`, which asks for the vector space of every array first.
    """
    if type(gradient) is not np.ndarray:  # a number, a foreign array, or a sparse gradient of autograd's
        return add_outgrads(before, gradient)
    if before is None:
        return gradient, False
    total, is_own = before
    return np.add(total, gradient, out=total if is_own else None), True


def _at(leaf: Any, gradients: dict[Any, Array], array: Array) -> Array:
    """The gradient at a leaf; zero where no path led to it."""
    return gradients[leaf] if leaf in gradients else array_module(array).zeros_like(array)
