r"""Read this first: a transformer with LoRA on one page of plain `autograd.numpy`.

No trick and no derivation: every line is the equation, and autograd differentiates it, to any order. It is the first
of the three witnesses, so it shares no code with the rest of the package. Parameters come as one flat dict,

    tokens.W (vocab, d)    positions.W (context, d)    norm.gamma, norm.beta (d,)    head.W (vocab, d) unless tied
    blocks.0.attention_norm.gamma …    blocks.0.attention.{query,key,value,output}.{W,b}
    blocks.0.mlp_norm.gamma …          blocks.0.mlp.{up,down}.{W,b}

and a linear map or the token table carries LoRA when the dict also holds its A (rank, d_in) and B (d_out, rank).

Sources: Vaswani et al. 2017 (attention), Radford et al. 2019 (pre-norm blocks), Hu et al. 2021 (LoRA, equation 3).
"""

import math

import autograd.numpy as np

# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False
__all__ = ["attention", "cross_entropy", "gelu", "layer_norm", "linear", "logits", "loss"]


def linear(p, name, x, scaling):
    """W x + b, and beside it the low-rank update s B A x where there is one."""
    y = np.dot(x, p[f"{name}.W"].T)
    if f"{name}.b" in p:
        y = y + p[f"{name}.b"]
    if f"{name}.A" in p:
        y = y + np.dot(x, update(p, name, scaling).T)
    return y


def update(p, name, scaling):
    """ΔW, what a method adds to W: s B A, or its relatives by what else the dict holds."""
    W, A, B = p[f"{name}.W"], p[f"{name}.A"], p[f"{name}.B"]
    if f"{name}.scale_d" in p:  # VeRA: A and B frozen, a factor for each of their rows
        return np.dot(p[f"{name}.scale_b"][:, None] * B, p[f"{name}.scale_d"][:, None] * A)
    if f"{name}.residual" in p:  # PiSSA: B A starts as a part of W, and stands beside the rest of it
        return p[f"{name}.residual"] + scaling[name] * np.dot(B, A) - W
    if f"{name}.m" in p:  # DoRA: every row of W + s B A has a length of its own
        V = W + scaling[name] * np.dot(B, A)
        return p[f"{name}.m"][:, None] * V / np.sqrt(np.sum(V**2, axis=1, keepdims=True)) - W
    return scaling[name] * np.dot(B, A)


def bottleneck(p, name, y):
    """y, and what an adapter that stands behind it adds, where there is one."""
    if f"{name}.adapter.down.b" not in p:
        return y
    x = y
    if f"{name}.adapter.norm.gamma" in p:
        x = layer_norm(y, p[f"{name}.adapter.norm.gamma"], p[f"{name}.adapter.norm.beta"])
    down, up = (whole(p, f"{name}.adapter.{part}") for part in ("down", "up"))
    hidden = gelu(np.dot(x, down.T) + p[f"{name}.adapter.down.b"])
    return y + np.dot(hidden, up.T) + p[f"{name}.adapter.up.b"]


def whole(p, name):
    """W, or the sum of Kronecker products that stands for it."""
    if f"{name}.S" not in p:
        return p[f"{name}.W"]
    return sum(np.kron(A, np.dot(S, T)) for A, S, T in zip(p[f"{name}.A"], p[f"{name}.S"], p[f"{name}.T"], strict=True))


def special_rows(p, name, tokens, h):
    """h, with a learned row wherever a special token stands: one whose id no word has."""
    if f"{name}.special" not in p:
        return h
    words = p["tokens.W"].shape[0]
    place = tokens[..., None] - words == np.arange(len(p[f"{name}.special"]))  # (batch, seq, special), True or False
    return np.where(np.any(place, axis=-1, keepdims=True), np.dot(place, p[f"{name}.special"]), h)


def layer_norm(x, gamma, beta, eps=1e-5):
    """Zero mean, unit variance, then gain and shift."""
    centred = x - np.mean(x, axis=-1, keepdims=True)
    variance = np.mean(centred**2, axis=-1, keepdims=True)
    return gamma * centred / np.sqrt(variance + eps) + beta


def gelu(x):
    """A smooth step times x, in the tanh form."""
    return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


def softmax(x):
    """Positive, and summing to one over the last axis."""
    e = np.exp(x - np.max(x, axis=-1, keepdims=True))
    return e / np.sum(e, axis=-1, keepdims=True)


def attention(q, k, v, heads, visible):
    """Every head compares its queries with its keys and averages its values; visible (batch, 1, queries, keys)."""

    def split(x):
        return np.swapaxes(np.reshape(x, (x.shape[0], x.shape[1], heads, -1)), 1, 2)

    scores = np.matmul(split(q), np.swapaxes(split(k), 2, 3)) / math.sqrt(q.shape[-1] // heads)
    probabilities = softmax(np.where(visible, scores, -1e30))
    probabilities = np.where(visible, probabilities, 0.0)
    return np.reshape(np.swapaxes(np.matmul(probabilities, split(v)), 1, 2), q.shape)


def prefixed(p, name, k, v, visible):
    """Learned keys and values before those of the text, where there are any; every query sees them."""
    if f"{name}.keys" not in p:
        return k, v, visible
    batch, length = k.shape[0], len(p[f"{name}.keys"])
    k, v = (
        np.concatenate([np.stack([p[f"{name}.{part}"]] * batch), x], axis=1) for part, x in (("keys", k), ("values", v))
    )
    return k, v, np.concatenate([np.ones((*visible.shape[:-1], length), bool), visible], axis=-1)


def cross_entropy(x, targets, weights):
    """− Σ w log p(target)."""
    return -np.sum(weights * np.log(np.sum(softmax(x) * (targets[..., None] == np.arange(x.shape[-1])), axis=-1)))


def token_table(p, scaling):
    """The token embedding, with its low-rank update where there is one; a token is a one-hot vector, so W is Eᵀ."""
    table = p["tokens.W"]
    if "tokens.A" in p:
        table = table + scaling["tokens"] * np.dot(p["tokens.B"], p["tokens.A"]).T
    return table


def logits(p, tokens, heads, scaling=None, causal=True, mask=None):
    """tokens (batch, seq) → (batch, seq, vocab); scaling holds s = α/r for each adapted name."""
    batch, seq = tokens.shape
    visible = np.ones((batch, 1, 1, seq), bool) if mask is None else mask[:, None, None, :]
    visible = visible & (np.tril(np.ones((seq, seq), bool)) if causal else np.ones((seq, seq), bool))
    words = np.where(tokens < p["tokens.W"].shape[0], tokens, 0)
    h = special_rows(p, "tokens", tokens, token_table(p, scaling)[words]) + p["positions.W"][:seq]
    layer = 0
    while f"blocks.{layer}.attention.query.W" in p:
        name = f"blocks.{layer}"
        h = special_rows(p, name, tokens, h)
        x = layer_norm(h, p[f"{name}.attention_norm.gamma"], p[f"{name}.attention_norm.beta"])
        q, k, v = (linear(p, f"{name}.attention.{part}", x, scaling) for part in ("query", "key", "value"))
        k, v, seen = prefixed(p, f"{name}.attention", k, v, visible)
        y = linear(p, f"{name}.attention.output", attention(q, k, v, heads, seen), scaling)
        h = h + bottleneck(p, f"{name}.attention", y)
        x = layer_norm(h, p[f"{name}.mlp_norm.gamma"], p[f"{name}.mlp_norm.beta"])
        y = linear(p, f"{name}.mlp.down", gelu(linear(p, f"{name}.mlp.up", x, scaling)), scaling)
        h = bottleneck(p, name, h + bottleneck(p, f"{name}.mlp", y))
        layer += 1
    h = layer_norm(h, p["norm.gamma"], p["norm.beta"])
    return linear(p, "head", h, scaling) if "head.W" in p else np.dot(h, token_table(p, scaling).T)


def loss(p, tokens, targets, weights, heads, scaling=None, causal=True, mask=None):
    """The weighted cross-entropy of the next token, in nats."""
    return cross_entropy(logits(p, tokens, heads, scaling, causal, mask), targets, weights)
