r"""Read this first: a transformer with LoRA in a few pages of plain `autograd.numpy`.

No trick and no derivation: every line is the equation, and autograd differentiates it, to any order. It is the first
of the three witnesses, so it shares no code with the rest of the package. Parameters come as one flat dict,

    tokens.W (vocab, d)    positions.W (context, d)    norm.gamma, norm.beta (d,)    head.W (vocab, d) unless tied
    blocks.0.attention_norm.gamma …    blocks.0.attention.{query,key,value,output}.{W,b}
    blocks.0.mlp_norm.gamma …          blocks.0.mlp.{up,down}.{W,b}

and a linear map or the token table carries LoRA when the dict also holds its A (rank, d_in) and B (d_out, rank).
What else a model is, is said by what is there and what is not:

    no beta            RMS norm                     mlp.gate.W      SwiGLU in place of GELU
    no positions.W     rotary positions             key.W           of fewer rows than query.W: shared keys and values
    types.W            types of tokens              first_norm      a norm of the embeddings; no norm.gamma, no last one
    head.output.W      a head of classes, (batch, 1, classes), behind a map with tanh, head.pooler, where there is one

and so are the methods beside LoRA. Next to A and B of a map:

    m (d_out,)         DoRA                         scale_d (rank,), scale_b (d_out,)    VeRA
    residual           PiSSA: W less the part of it that B A starts as

and next to a part of the model:

    tokens.special, blocks.0.special (tokens, d)    learned rows in the place of special tokens: prefix tuning
    attention.{keys,values} (length, d)             learned keys and values before those of the text
    {attention,mlp}.adapter.{down,up}.{W,b}         a bottleneck behind it, or behind the block: blocks.0.adapter;
    adapter.norm.{gamma,beta}                       with a norm before it; in place of W its Kronecker factors
    adapter.{down,up}.{A,S,T}                       A (n, n, n), S (n, ., rank), T (n, rank, .): Compacter

Not seen in it are `post`, the norms stand after the sums, `exact`, GELU is the exact one, what a head `reads`, and
`rope`, how the angles of rotary positions shrink: (factor, low, high, context).

Sources: Vaswani et al. 2017 (attention, norms after the sums), Radford et al. 2019 (pre-norm blocks), Hu et al. 2021
(LoRA, equation 3), Zhang and Sennrich 2019 (RMS norm), Su et al. 2021 (rotary positions), Shazeer 2020 (SwiGLU),
Ainslie et al. 2023 (shared keys), Hendrycks and Gimpel 2016 (GELU), Devlin et al. 2019 (types, pooler).
"""

import math

import autograd.numpy as np
from autograd.extend import defvjp, primitive

# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False
__all__ = ["attention", "cross_entropy", "gelu", "layer_norm", "linear", "logits", "loss", "rms_norm", "rotary", "silu"]


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


def rms_norm(x, gamma, eps=1e-5):
    """Unit mean square, then gain."""
    return gamma * x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + eps)


def norm(p, name, x, eps):
    """The norm of that name: without a shift it is an RMS norm."""
    gamma, beta = p[f"{name}.gamma"], p.get(f"{name}.beta")
    return rms_norm(x, gamma, eps) if beta is None else layer_norm(x, gamma, beta, eps)


def gelu(x):
    """A smooth step times x, in the tanh form."""
    return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


def gelu_exact(x):
    """The same with the step that tanh is close to, the distribution of a normal number."""
    return x * normal_distribution(x)


@primitive
def normal_distribution(x):
    """Φ(x) = (1 + erf(x/√2)) / 2."""
    return np.reshape(np.array([0.5 * math.erfc(-number / math.sqrt(2.0)) for number in np.ravel(x)]), np.shape(x))


defvjp(normal_distribution, lambda _, x: lambda g: g * np.exp(-(x**2) / 2.0) / math.sqrt(2.0 * math.pi))


def silu(x):
    """A smooth step times x, the step being 1/(1 + e⁻ˣ)."""
    return x / (1.0 + np.exp(-x))


def softmax(x):
    """Positive, and summing to one over the last axis."""
    e = np.exp(x - np.max(x, axis=-1, keepdims=True))
    return e / np.sum(e, axis=-1, keepdims=True)


def rotary(x, heads, theta, rope=(1.0, 1.0, 4.0, 0)):
    """Turns the pairs of each head (one of its first half, one of its second) by angles that grow with the position."""
    batch, seq, width = x.shape
    half = width // heads // 2
    factor, low, high, context = rope
    omega = theta ** (-np.arange(half) / half)
    kept = (np.clip(context * omega / (2.0 * math.pi), low, high) - low) / (high - low)  # by turns in a first context
    angles = np.arange(seq)[:, None, None] * (kept + (1.0 - kept) / factor) * omega
    x = np.reshape(x, (batch, seq, heads, 2, half))
    one, two = x[:, :, :, 0], x[:, :, :, 1]
    turned = (one * np.cos(angles) - two * np.sin(angles), two * np.cos(angles) + one * np.sin(angles))
    return np.reshape(np.stack(turned, axis=3), (batch, seq, width))


def attention(q, k, v, heads, visible):
    """Every head compares its queries with its keys and averages its values; visible (batch, 1, queries, keys)."""
    d_head = q.shape[-1] // heads

    def split(x):
        parts = np.swapaxes(np.reshape(x, (x.shape[0], x.shape[1], -1, d_head)), 1, 2)
        return np.repeat(parts, heads // parts.shape[1], axis=1)

    scores = np.matmul(split(q), np.swapaxes(split(k), 2, 3)) / math.sqrt(d_head)
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


def attended(p, name, x, heads, scaling, visible, theta, rope):
    """Attention between its four maps, queries and keys turned where positions are rotary."""
    q, k, v = (linear(p, f"{name}.{part}", x, scaling) for part in ("query", "key", "value"))
    if "positions.W" not in p:
        q, k = rotary(q, heads, theta, rope), rotary(k, heads * k.shape[-1] // q.shape[-1], theta, rope)
    k, v, visible = prefixed(p, name, k, v, visible)
    return linear(p, f"{name}.output", attention(q, k, v, heads, visible), scaling)


def mlp(p, name, x, scaling, exact):
    """Two maps with GELU between them, or three with SwiGLU."""
    h = linear(p, f"{name}.up", x, scaling)
    gated = f"{name}.gate.W" in p
    h = silu(linear(p, f"{name}.gate", x, scaling)) * h if gated else gelu_exact(h) if exact else gelu(h)
    return linear(p, f"{name}.down", h, scaling)


def embedded(p, tokens, scaling, types, eps):
    """What the first block reads: tokens, and beside them positions, types and a norm where there are any."""
    words = np.where(tokens < p["tokens.W"].shape[0], tokens, 0)
    h = special_rows(p, "tokens", tokens, token_table(p, scaling)[words])
    h = h + p["positions.W"][: tokens.shape[1]] if "positions.W" in p else h
    h = h + p["types.W"][np.zeros_like(tokens) if types is None else types] if "types.W" in p else h
    return norm(p, "first_norm", h, eps) if "first_norm.gamma" in p else h


def classified(p, h, mask, reads, scaling):
    """The logits of one state of each sequence: the first or the last of what is real, or their mean."""
    part = {"first": slice(0, 1), "last": slice(-1, None), "mean": slice(None)}[reads]
    real = [np.arange(h.shape[1]) if mask is None else np.flatnonzero(mask[row]) for row in range(len(h))]
    x = np.stack([np.mean(h[row, at[part]], axis=0, keepdims=True) for row, at in enumerate(real)])
    return linear(
        p, "head.output", np.tanh(linear(p, "head.pooler", x, scaling)) if "head.pooler.W" in p else x, scaling
    )


def logits(
    p, tokens, heads, scaling=None, causal=True, mask=None, theta=1e4, eps=1e-5, post=False, exact=False, types=None,
    reads="first", rope=(1.0, 1.0, 4.0, 0)):  # fmt: skip
    """tokens (batch, seq) → (batch, seq, vocab); scaling holds s = α/r for each adapted name."""
    batch, seq = tokens.shape
    visible = np.ones((batch, 1, 1, seq), bool) if mask is None else mask[:, None, None, :]
    visible = visible & (np.tril(np.ones((seq, seq), bool)) if causal else np.ones((seq, seq), bool))
    h = embedded(p, tokens, scaling, types, eps)
    layer = 0
    while f"blocks.{layer}.attention.query.W" in p:
        name = f"blocks.{layer}"
        h = special_rows(p, name, tokens, h)
        x = h if post else norm(p, f"{name}.attention_norm", h, eps)
        y = attended(p, f"{name}.attention", x, heads, scaling, visible, theta, rope)
        h = h + bottleneck(p, f"{name}.attention", y)
        h = norm(p, f"{name}.attention_norm", h, eps) if post else h
        x = h if post else norm(p, f"{name}.mlp_norm", h, eps)
        h = h + bottleneck(p, f"{name}.mlp", mlp(p, f"{name}.mlp", x, scaling, exact))
        h = norm(p, f"{name}.mlp_norm", h, eps) if post else h
        h = bottleneck(p, name, h)
        layer += 1
    h = norm(p, "norm", h, eps) if "norm.gamma" in p else h
    if "head.output.W" in p:
        return classified(p, h, mask, reads, scaling)
    return linear(p, "head", h, scaling) if "head.W" in p else np.dot(h, token_table(p, scaling).T)


def loss(p, tokens, targets, weights, heads, scaling=None, causal=True, **settings):
    """The weighted cross-entropy of the next token, in nats; the settings are those of `logits`."""
    return cross_entropy(logits(p, tokens, heads, scaling, causal, **settings), targets, weights)
