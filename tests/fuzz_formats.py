r"""Mutated files for every reader: each must be read, or refused with one line; nothing else may happen.

    python tests/fuzz_formats.py 100000 [--seed 0]      counts by reader; the first failure is kept as a file and raised

A mutant is a good file of which bits, bytes, numbers, stretches or, where there is JSON, single values were changed; it
is the same for the same (seed, number). What is read is also used: tensors and rows of updates are computed. While a
mutant is read, at most `MEMORY` bytes may be allocated, and `SECONDS` may pass.
"""

from __future__ import annotations

import argparse
import collections
import importlib.util
import json
import random
import resource
import signal
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from formats_files import archive_bytes, gguf_bytes, legacy_bytes, safetensors_bytes

from lora_np.formats.adapters import read_adapter
from lora_np.formats.archive import open_archive
from lora_np.formats.disk import read_json
from lora_np.formats.gguf import open_gguf
from lora_np.formats.huggingface import open_model, open_weights, sizes
from lora_np.formats.names import entries, theirs
from lora_np.formats.tensors import open_tensors
from lora_np.formats.updates import Adapter
from lora_np.vocabularies import tokenizer_of

MEMORY, SECONDS, USED = 1 << 30, 20, 1 << 20  # a tensor or update of at most USED numbers is computed
EDGES = [0, 1, 2, 7, 8, 127, 128, 255, 256, 65535, 65536, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 53,
         (1 << 62), (1 << 63) - 1, 1 << 63, (1 << 64) - 1]  # fmt: skip
VALUES: list[Any] = [None, True, False, 0, 1, -1, 2.5, 1e308, float("nan"), 1 << 40, 1 << 63, 1 << 200, "", "x", "F32",
                     "BF16", "F8_E4M3", "I64", "BOOL", "../x", "a\nb", "\ud800", "\u2028", "lora_A", "(a+)+", "(", ".*",
                     [], [0], [-1, 2], {}, {"a": 1}, [[[[]]]], "pissa", "olora", "model.safetensors"]  # fmt: skip


def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {"a.weight": rng.standard_normal((4, 3)).astype(np.float32), "a.bias": np.ones(4, np.float16),
            "t": np.asfortranarray(rng.standard_normal((2, 5))), "n": np.arange(3), "s": np.array(1.0)}  # fmt: skip


def stored(named: dict[str, np.ndarray]) -> bytes:
    from safetensors.numpy import save

    return bytes(save({name: np.ascontiguousarray(array) for name, array in named.items()}, {"format": "pt"}))


def base() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    shapes = {
        "m.l.0.q.weight": (4, 4), "m.l.0.q.bias": (4,), "m.l.0.up.weight": (6, 4), "m.embed.weight": (9, 4),
        "m.l.0.mlp.experts.gate_up_proj": (2, 6, 4), "m.l.0.mlp.experts.down_proj": (2, 4, 3),
        "lm_head.weight": (9, 4), "c.weight": (3, 2, 2, 2),
    }  # fmt: skip
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def adapter(dora: bool) -> dict[str, np.ndarray]:
    shapes: dict[str, tuple[int, ...]] = {"m.l.0.q.lora_A.weight": (2, 4), "m.l.0.q.lora_B.weight": (4, 2)}
    shapes |= {"m.embed.lora_embedding_A": (2, 9), "m.embed.lora_embedding_B": (4, 2)}
    if dora:
        shapes |= {"m.l.0.q.lora_magnitude_vector": (4,), "m.embed.lora_magnitude_vector": (4,)}
    else:
        experts = "m.l.0.mlp.experts."
        shapes |= {f"{experts}base_layer.lora_A.weight": (4, 4), f"{experts}base_layer.lora_B.weight": (6, 4)}
        shapes |= {f"{experts}lora_A.weight": (4, 3), f"{experts}lora_B.weight": (4, 4), "lm_head.weight": (9, 4)}
        shapes |= {"m.l.0.q.lora_B.bias": (4,), "m.embed.token_adapter.trainable_tokens_delta": (2, 4)}
        shapes |= {"c.lora_A.weight": (2, 2, 2, 2), "c.lora_B.weight": (3, 2, 1, 1)}
    rng = np.random.default_rng(2)
    return {f"base_model.model.{name}": rng.standard_normal(s).astype(np.float32) for name, s in shapes.items()}


PEFT = {
    "peft_type": "LORA", "r": 2, "lora_alpha": 3, "use_rslora": False, "rank_pattern": {"q": 2}, "bias": "none",
    "alpha_pattern": {"q": 5}, "fan_in_fan_out": False, "lora_bias": True, "use_dora": False, "exclude_modules": None,
    "init_lora_weights": True, "target_modules": ["q", "up"], "layers_to_transform": [0], "layers_pattern": None,
    "target_parameters": ["experts.gate_up_proj", "experts.down_proj"], "modules_to_save": ["lm_head"],
    "trainable_token_indices": {"embed": [1, 4]}, "ensure_weight_tying": False, "layer_replication": None,
}  # fmt: skip
MLX = {"fine_tune_type": "lora", "num_layers": 1, "lora_parameters": {"rank": 2, "scale": 20.0, "dropout": 0.0}}
GPT2 = {
    "model_type": "gpt2",
    "vocab_size": 5,
    "n_positions": 4,
    "n_embd": 2,
    "n_layer": 1,
    "n_head": 1,
    "n_inner": None,
}
BERT = {
    "model_type": "bert", "vocab_size": 5, "hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 6, "max_position_embeddings": 8, "layer_norm_eps": 1e-12, "hidden_act": "gelu",
}  # fmt: skip
GGML = {"model": "gpt2", "tokens": ["<|end|>", *"lower", "\u0120", "lo"], "merges": ["l o"], "eos_token_id": 0,
        "token_type": [3, 1, 1, 1, 1, 1, 1, 1]}  # fmt: skip
LLAMA = {"model_type": "llama", "vocab_size": 5, "hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 2,
         "num_key_value_heads": 1, "intermediate_size": 6, "max_position_embeddings": 8, "rms_norm_eps": 1e-6,
         "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}  # fmt: skip


def use_tensors(tensors: Any) -> None:
    for tensor in tensors.values():
        if tensor.size <= USED:
            np.asarray(tensor)
            if tensor.shape:
                tensor[0:1]


def used(found: Adapter) -> Adapter:
    held = base()
    for finding in found.findings:
        assert "\n" not in str(finding), str(finding)
    try:
        found.checked()
    except ValueError as error:
        line(error)
        return found
    for name, update in found.updates.items():
        if max(update.matrix[0] * update.matrix[1], update.matrix[0]) > USED:
            continue
        W = held.get(name, np.zeros(update.shape, np.float32))
        with np.errstate(all="ignore"):
            whole = update.prepared(W).expected(W, slice(0, update.matrix[0]))
        assert whole.shape == update.matrix, (name, whole.shape, update.matrix)
    return found


def line(error: BaseException) -> None:
    text = str(error)
    assert text, "an error without a word"
    assert "\n" not in text, f"more than one line: {text!r}"
    assert len(text) < 2000, f"{len(text)} characters"
    text.encode()


# A reader: the good files by name, which of them are mutated, and how they are read in their folder.
Reader = tuple[dict[str, bytes], list[str], Callable[[Path], Any]]


def readers() -> dict[str, Reader]:
    def text(value: Any) -> bytes:
        return json.dumps(value).encode()

    whole = stored(arrays())
    halves = [dict(list(arrays().items())[k::2]) for k in range(2)]
    shards = {f"model-{k}.safetensors": stored(half) for k, half in enumerate(halves)}
    index = {
        "metadata": {"total_size": 99},
        "weight_map": {name: f"model-{k}.safetensors" for k in range(2) for name in halves[k]},
    }
    mlx = {"m.l.0.q.lora_a": np.ones((4, 2), np.float32), "m.l.0.q.lora_b": np.ones((2, 4), np.float32),
           "m.embed.lora_a": np.ones((9, 2), np.float32), "m.embed.lora_b": np.ones((2, 4), np.float32)}  # fmt: skip
    loralib = {"m.l.0.q.lora_A": np.ones((2, 4), np.float32), "m.l.0.q.lora_B": np.ones((4, 2), np.float32),
               "lm_head.weight": np.ones((9, 4), np.float32)}  # fmt: skip
    gguf = {
        "m.l.0.up.weight.lora_a": np.ones((2, 4), np.float32),
        "m.l.0.up.weight.lora_b": np.ones((6, 2), np.float32),
    }
    about = {"general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": 6.0, "list": ["x"] * 70}
    model = theirs({entry.ours: np.ones((2,) if entry.ours.endswith(("b", "a")) else (2, 2), np.float32)
                    for entry in entries("gpt2", 1) if not entry.optional}, "gpt2", 1)  # fmt: skip

    def peft(folder: Path) -> Adapter:
        read_adapter(folder)
        return used(read_adapter(folder, base()))

    def spelled_by(tokenizer: Any) -> None:
        try:
            ids = tokenizer.encode("low lower é")
        except ValueError as error:  # a text may spell the end of texts
            return line(error)
        tokenizer.decode(ids)
        return None

    def described(folder: Path) -> None:
        sizes(read_json(folder / "config.json"))

    table: dict[str, Reader] = {
        "safetensors": ({"f": whole}, ["f"], lambda folder: use_tensors(open_tensors(folder / "f"))),
        "index": ({**shards, "model.safetensors.index.json": text(index)},
                  ["model.safetensors.index.json", *shards], lambda folder: use_tensors(open_tensors(folder))),
        "archive": ({"f": archive_bytes(arrays())}, ["f"], lambda folder: use_tensors(open_archive(folder / "f"))),
        "legacy": ({"f": legacy_bytes({"state_dict": arrays(), "epoch": 3})}, ["f"],
                   lambda folder: use_tensors(open_archive(folder / "f"))),
        "gguf": ({"f": gguf_bytes({"a": np.ones((4, 3), np.float32), "b": np.ones(8, np.float16)}, about)}, ["f"],
                 lambda folder: use_tensors(open_gguf(folder / "f")[0])),
        "peft": ({"adapter_config.json": text(PEFT), "adapter_model.safetensors": stored(adapter(False))},
                 ["adapter_config.json", "adapter_model.safetensors"], peft),
        "dora": ({"adapter_config.json": text(PEFT | {"use_dora": True, "lora_bias": False}),
                  "adapter_model.safetensors": stored(adapter(True))},
                 ["adapter_config.json", "adapter_model.safetensors"], peft),
        "mlx": ({"adapter_config.json": text(MLX), "adapters.safetensors": stored(mlx)},
                ["adapter_config.json", "adapters.safetensors"], peft),
        "loralib": ({"f.pt": archive_bytes(loralib)}, ["f.pt"],
                    lambda folder: used(read_adapter(folder / "f.pt", base(), alpha=4))),
        "gguf adapter": ({"f.gguf": gguf_bytes(gguf, about)}, ["f.gguf"],
                         lambda folder: used(read_adapter(folder / "f.gguf", base()))),
        "gpt2": ({"config.json": text(GPT2), "model.safetensors": stored(model)}, ["config.json", "model.safetensors"],
                 lambda folder: use_tensors(open_model(folder)[0])),
        "llama sizes": ({"config.json": text(LLAMA)}, ["config.json"], described),
        "mixtral sizes": ({"config.json": text(LLAMA | {"model_type": "mixtral", "num_local_experts": 4})},
                          ["config.json"], described),
        "bert sizes": ({"config.json": text(BERT)}, ["config.json"], described),
        "bin index": ({"a.bin": archive_bytes(halves[0]), "b.bin": archive_bytes(halves[1]),
                       "pytorch_model.bin.index.json": text({"weight_map": {
                           name: file for file, half in zip(("a.bin", "b.bin"), halves, strict=True) for name in half
                       }})},
                      ["pytorch_model.bin.index.json", "a.bin", "b.bin"],
                      lambda folder: use_tensors(open_weights(folder))),
    }  # fmt: skip
    if not lacks("tokenizers"):
        about = {"config.json": text({"model_type": "gpt2", "eos_token_id": 0}), "tokenizer.json": vocabulary()}
        about["tokenizer_config.json"] = text({"eos_token": {"content": "<|end|>"}, "sep_token": None})
        table["tokenizer"] = about, list(about), lambda folder: spelled_by(tokenizer_of(folder))
        words = {f"tokenizer.ggml.{name}": value for name, value in GGML.items()}
        table["gguf tokenizer"] = ({"f.gguf": gguf_bytes({}, words)}, ["f.gguf"],
                                   lambda folder: spelled_by(tokenizer_of(folder / "f.gguf")))  # fmt: skip
    return {name: reader for name, reader in table.items() if not (lacks("gguf") and "gguf" in name)}


def vocabulary() -> bytes:
    """A tokenizer.json of byte pairs with one joined pair and an end."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {word: number for number, word in enumerate(["<|end|>", *letters, "lo"])}
    found = Tokenizer(models.BPE(words, [("l", "o")]))
    found.pre_tokenizer, found.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    found.add_special_tokens(["<|end|>"])
    return str(found.to_str()).encode()


def lacks(package: str) -> bool:
    return importlib.util.find_spec(package) is None


# mutation


def mutated(data: bytes, rng: random.Random) -> bytes:
    """One to four changes; of JSON, and of the header of a safetensors file, mostly of single values."""
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        structured = rng.random() < 0.6
        if structured and data[:1] == b"{":
            data = spelled(data, rng)
        elif structured and len(data) > 9 and data[8:9] == b"{":
            length = min(struct.unpack("<Q", data[:8])[0], len(data) - 8)
            head = spelled(data[8 : 8 + length], rng)
            data = safetensors_bytes(head, data[8 + length :])
        else:
            data = shaken(data, rng)
    return data


def shaken(data: bytes, rng: random.Random) -> bytes:
    """Bits, bytes, numbers or stretches of a file changed, more often near its ends, where headers are."""
    if not data:
        return rng.randbytes(rng.randrange(40))
    raw, size = bytearray(data), len(data)
    at = rng.choice([rng.randrange(size), min(rng.randrange(64), size - 1), max(0, size - 1 - rng.randrange(64))])
    match rng.randrange(7):
        case 0:
            raw[at] ^= 1 << rng.randrange(8)
        case 1:
            raw[at] = rng.randrange(256)
        case 2:
            form = rng.choice(["<H", "<I", "<Q"])
            value = struct.pack(form, rng.choice(EDGES) % (1 << 8 * struct.calcsize(form)))
            raw[at : at + len(value)] = value
        case 3:
            del raw[at : at + rng.randrange(1, 40)]
        case 4:
            raw[at:at] = rng.randbytes(rng.randrange(1, 20))
        case 5:
            start = rng.randrange(size)
            raw[at:at] = raw[start : start + rng.randrange(1, 60)]
        case _:
            del raw[at:]
    return bytes(raw)


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from places(value[key])


def spelled(text: bytes, rng: random.Random) -> bytes:
    """JSON of which a value or a name was replaced, left out, added or put in twice; of no JSON, bytes shaken."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return shaken(text, rng)
    found = list(places(value))
    if not found:
        return shaken(text, rng)
    held, key = rng.choice(found)
    other, theirs = rng.choice(found)
    match rng.randrange(6):
        case 0:
            held[key] = rng.choice(VALUES)
        case 1:
            held[key] = rng.choice(EDGES)
        case 2:
            held[key] = json.loads(json.dumps(other[theirs]))
        case 3:
            del held[key]
        case 4 if isinstance(held, dict):
            name = str(rng.choice([rng.choice(VALUES), theirs, f"{key}.x", f"base_model.model.{key}", str(key)[:-3]]))
            held[name] = held.pop(key)
        case _:
            if isinstance(held, dict):
                held[str(theirs)] = rng.choice(VALUES)
            elif isinstance(held[key], int):
                held[key] += rng.choice([-1, 1])
    return json.dumps(value).encode()


# Without ml_dtypes, a mutant that is of its types is refused by the name of the extra.
REFUSALS: tuple[type[BaseException], ...] = (ValueError, OSError) + ((ImportError,) if lacks("ml_dtypes") else ())


def fuzz(count: int, seed: int = 0, keep: Path | None = None) -> dict[str, collections.Counter[str]]:
    """`count` mutants, the readers in turn: how many of each were read, how many refused; all else is raised."""
    outcomes: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    table = readers()
    with tempfile.TemporaryDirectory() as scratch:
        for name, (files, _, read) in table.items():
            folder = Path(scratch) / name
            folder.mkdir()
            for file, data in files.items():
                (folder / file).write_bytes(data)
            good = read(folder)  # they are read, so that no mutant is refused for another reason
            assert not isinstance(good, Adapter) or good.checked().updates
        for number in range(count):
            name = list(table)[number % len(table)]
            files, targets, read = table[name]
            rng = random.Random(f"{seed} {number}")
            target = rng.choice(targets)
            data = mutated(files[target], rng)
            path = Path(scratch) / name / target
            path.write_bytes(data)
            signal.alarm(SECONDS)
            try:
                read(path.parent)
                outcomes[name]["read"] += 1
            except REFUSALS as error:
                line(error)
                outcomes[name]["refused"] += 1
            except BaseException:
                (keep or Path(scratch)).joinpath(f"{name}-{number}").write_bytes(data)
                print(f"{name}, mutant {number} of seed {seed}: {target}", file=sys.stderr)
                raise
            finally:
                signal.alarm(0)
                path.write_bytes(files[target])
    return outcomes


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("count", type=int)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--keep", type=Path)
    given = arguments.parse_args()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    resource.setrlimit(resource.RLIMIT_AS, (4 * MEMORY, 4 * MEMORY))
    outcomes = fuzz(given.count, given.seed, given.keep)
    for name, counts in outcomes.items():
        print(f"{name:14} {counts['read']:7} read {counts['refused']:8} refused")
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"{sum(map(sum, (c.values() for c in outcomes.values())))} mutants; peak memory grew by {peak:.0f} MB")


if __name__ == "__main__":
    main()
