"""The laws of serving many adapters: every answer is the one it would be alone, whoever is served beside it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import adapted, hashes, model, moved
from serving_world import CONTEXT, WORDS, adapters_of, alone, bank_of, base_of, requests_of, write_adapter

from lora_np.cli.main import code_of
from lora_np.files import load_adapter, load_model, save_adapter, save_model
from lora_np.formats.names import theirs
from lora_np.methods import adapt
from lora_np.methods.tuning import BitFit
from lora_np.methods.variants import DoRA
from lora_np.model import Transformer
from lora_np.parameters import parameters
from lora_np.serving.adapter import Adapter, Factors, adapter_of, applied, method_of
from lora_np.serving.bank import AdapterBank
from lora_np.serving.batching import Batch, serve
from lora_np.serving.memory import PromptMemory
from lora_np.serving.requests import Answer, Request, Writing
from lora_np.serving.slots import Rows
from lora_np.serving.switching import lost_by_subtracting, switched
from lora_np.wrappers import merge


def served(base: Transformer, requests: list[Request], bank: Any = None, **settings: Any) -> dict[int, Answer]:
    return {answer.number: answer for answer in serve(base, requests, bank, **settings)}


@cache
def texts_alone() -> list[tuple[int, ...]]:
    bank = bank_of(base_of())
    return [alone(bank.base, bank, request) for request in requests_of(30)]


# ------------------------------------------------------------------------------------ answers and neighbours


@pytest.mark.parametrize("most", [1, 3, 40])
def test_every_answer_is_the_one_that_generate_gives_alone(most: int) -> None:
    base = base_of()
    answers = served(base, requests_of(30), bank_of(base), most=most)
    assert len(answers) == 30
    for number, (request, text) in enumerate(zip(requests_of(30), texts_alone(), strict=True)):
        assert answers[number].tokens == text, request
    assert {answer.ended for answer in answers.values()} == {"end", "length", "context"}


def test_the_comparison_sees_an_answer_of_another_adapter() -> None:
    base = base_of()
    bank = bank_of(base)
    texts = {name: alone(base, bank, Request((1, 2), name, 15)) for name in (None, *bank.names)}
    assert len(set(texts.values())) == len(texts)


@pytest.mark.parametrize("changes", [{"architecture": "llama", "d_model": 16}, {"tied": True}])
def test_batched_generation_of_one_model_is_generation_of_one_sequence(changes: dict[str, Any]) -> None:
    """With nothing beside it, adapted, and merged."""
    base = model(2, context=CONTEXT, **{"tied": False, **changes})
    adapter = adapter_of(moved(adapted(base)), "one")
    requests = [request for request in requests_of(12, names=0) if request.adapter is None]
    for node in (base, applied(base, adapter), merge(applied(base, adapter))):
        answers = served(node, requests, most=7)
        for number, request in enumerate(requests):
            assert answers[number].tokens == alone(node, AdapterBank(node), request)


def test_what_is_drawn_does_not_depend_on_the_neighbours() -> None:
    base = base_of()
    bank, others = bank_of(base), requests_of(12, seed=5)
    mine = Request((1, 2, 3), "a1", 12, 1.3, seed=7)
    first = served(base, [mine], bank)[0].tokens
    assert served(base, [*others, mine], bank, most=5)[12].tokens == first
    assert served(base, [mine, *reversed(others)], bank)[0].tokens == first
    assert served(base, [Request((1, 2, 3), "a1", 12, 1.3, seed=8)], bank)[0].tokens != first  # contrast


def test_requests_join_and_leave_between_tokens() -> None:
    """Never more than `most` at once, and the next one comes as soon as there is room, not when all are done."""
    base, taken = base_of(), []

    def coming() -> Iterator[Request]:
        for i in range(6):
            taken.append(i)
            yield Request((i + 1,), None, 12 if i == 0 else 2)

    order = []
    for answer in serve(base, coming(), most=2):
        order.append(answer.number)
        assert len(taken) - len(order) <= 2 + 1
    assert order[-1] == 0  # the long one ends last: five others came and went beside it
    assert sorted(order) == list(range(6))


def test_stops_are_looked_for_in_what_is_written_and_are_no_part_of_it() -> None:
    base = base_of()
    whole = served(base, [Request((3, 1), None, 15)])[0].tokens
    stop = whole[4:6]
    first = next(i for i in range(len(whole)) if whole[i : i + 2] == stop)
    found = served(base, [Request((3, 1), None, 15, stop=(stop,))])[0]
    assert (found.tokens, found.ended) == (whole[:first], "stop")
    never = served(base, [Request((3, 1), None, 15, stop=((WORDS, WORDS),))])[0]
    assert (never.tokens, never.ended) == (whole, "length")


@pytest.mark.parametrize("length", [1, CONTEXT - 1, CONTEXT])
def test_a_full_context_ends_an_answer_as_it_ends_generation(length: int) -> None:
    answer = served(base_of(), [Request((1,) * length, None, 99)])[0]
    assert (len(answer.tokens), answer.ended) == (CONTEXT + 1 - length, "context")


def test_prompts_of_unequal_lengths_are_never_padded_to_more_than_twice_their_tokens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read: list[tuple[int, ...]] = []
    right = Transformer.hidden

    def seen(node: Any, tokens: Any, *rest: Any, **settings: Any) -> Any:
        read.append(tokens.shape)
        return right(node, tokens, *rest, **settings)

    monkeypatch.setattr(Transformer, "hidden", seen)
    lengths = [1, 1, 1, 19, 18, 2]
    served(base_of(), [Request((1,) * n, None, 1) for n in lengths])
    assert sum(batch for batch, _ in read) == len(lengths)
    assert sum(batch * seq for batch, seq in read) <= 2 * sum(lengths)


# ---------------------------------------------------------------------------------------------- rows and prompts


def test_hidden_numbers_of_another_sequence_move_nothing() -> None:
    """Whatever lies in a row behind its own end."""
    base = base_of()
    batch = Batch(base, 2)
    for answer in served(base, [Request((1, 2), None, 3), Request((5,) * 9, None, 3)]).values():
        assert answer.tokens == alone(base, AdapterBank(base), answer.request)
    assert batch.room == 2


def test_a_row_that_is_left_is_taken_by_the_last_one() -> None:
    rows = Rows(1, 3, 8)
    base = model(1, layers=1)
    for value in (1, 2, 3):
        caches = base.caches(4)
        caches[0].extend(*(np.full((1, 4, 2), float(value)) for _ in "kv"))
        rows.join(caches, 0, value, 4)
    rows.leave(0)
    assert rows.lengths.tolist() == [3, 2]
    (slots,) = rows.caches()
    assert slots.keys[0, :3].tolist() == [[3.0, 3.0]] * 3
    assert slots.length.tolist() == [[3], [2]]
    mask = rows.mask()
    assert mask is not None
    assert mask.tolist() == [[True] * 4, [True] * 3 + [False]]
    rows.leave(1)
    assert rows.mask() is None


def test_a_prompt_is_read_once_for_each_adapter_and_not_for_each_name() -> None:
    base = base_of()
    bank = bank_of(base)
    bank.add(bank["a1"].renamed("the same"))
    memory = PromptMemory(1 << 20)
    batch = Batch(base, 8, memory, bank.digest)
    for number, name in enumerate(("a1", "a2", "a1", "the same", "a2")):
        request = Request((4, 5, 6), name, 6)
        batch.join([(Writing(number, request), bank[name])])
    assert memory.found == 3
    done: list[Answer] = []
    while batch.members:
        done += batch.step()
    for answer in done:
        assert answer.tokens == alone(base, bank, answer.request)


def test_remembered_prompts_take_no_more_bytes_than_they_may() -> None:
    base = base_of()
    one = PromptMemory(1 << 30)
    requests = [Request((i % WORDS, 1, 2), None, 2) for i in range(WORDS)]
    answers = served(base, requests, prompt_bytes=0)
    for most in (0, 1, 2_000, 1 << 20):
        assert {n: a.tokens for n, a in served(base, requests * 2, prompt_bytes=most).items() if n < WORDS} == {
            n: a.tokens for n, a in answers.items()
        }
    caches = base.caches()
    base(np.array([[1, 2, 3]]), caches=caches)
    one.put(("", "", (1, 2, 3)), caches, 0, np.zeros(WORDS))
    small = PromptMemory(2 * one.bytes)
    for i in range(5):
        small.put(("", "", (i, 2, 3)), caches, 0, np.zeros(WORDS))
        assert small.bytes <= small.most_bytes
    assert small.get(("", "", (0, 2, 3))) is None
    assert small.get(("", "", (4, 2, 3))) is not None


# ------------------------------------------------------------------------------------------------------ the bank


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    base = base_of(np.float32)
    for adapter in adapters_of(base):
        write_adapter(tmp_path / "adapters" / adapter.name, adapter, base)
    return tmp_path / "adapters"


def test_an_adapter_out_of_its_folder_is_the_one_that_was_saved(folder: Path) -> None:
    base = base_of(np.float32)
    bank = AdapterBank(base, folder)
    assert sorted(bank.names) == [f"a{i}" for i in range(5)]
    assert not bank.reads  # nothing was asked for yet
    for adapter in adapters_of(base):
        assert bank[adapter.name].digest == adapter.digest
    assert len({bank[name].digest for name in bank.names}) == 5
    node, _ = load_adapter(folder / "a2", base)
    assert adapter_of(node, "any name").digest == bank["a2"].digest


def test_a_digest_says_what_an_adapter_does_and_not_what_it_is_called() -> None:
    one = adapters_of(base_of())[0]
    assert one.digest == one.renamed("other").digest
    path, factors = next(iter(one.factors.items()))
    for changed in (factors._replace(scaling=2.0), factors._replace(A=factors.A + 1e-3)):
        assert Adapter("x", {**one.factors, path: changed}).digest != one.digest


def test_no_more_bytes_are_kept_than_allowed_and_the_longest_unused_goes_first(folder: Path) -> None:
    base = base_of(np.float32)
    whole = AdapterBank(base, folder)
    sizes = {name: whole[name].nbytes for name in whole.names}
    bank = AdapterBank(base, folder, most_bytes=max(sizes.values()) + min(sizes.values()))
    for name in ("a0", "a1", "a0", "a4", "a2", "a1", "a0", "a3", "a4"):
        assert bank[name].digest == whole[name].digest
        assert bank.kept_bytes <= bank.most_bytes
    reads = bank.reads
    assert reads > 5
    assert bank["a4"].name == "a4"
    assert bank.reads == reads  # kept
    answers = served(base, requests_of(30), bank, most=4)
    for number, request in enumerate(requests_of(30)):
        assert answers[number].tokens == alone(base, whole, request)


def test_one_adapter_that_is_larger_than_all_may_be_is_skipped(folder: Path) -> None:
    bank = AdapterBank(base_of(np.float32), folder, most_bytes=100)
    with pytest.raises(ValueError, match=r"more than the 100 that are allowed"):
        bank["a2"]
    assert "a2" in bank.skipped


def spoil(folder: Path) -> dict[str, str]:
    """Folders that cannot be used beside five that can, and a word of why."""
    other = base_of(np.float32, heads=1)
    write_adapter(folder / "foreign", adapters_of(other)[0], other)
    for name in ("cut", "flipped", "ranks", "nonsense", "half"):
        shutil.copytree(folder / "a0", folder / name)
    arrays = folder / "cut" / "adapter.safetensors"
    arrays.write_bytes(arrays.read_bytes()[:-10])
    data = bytearray((folder / "flipped" / "adapter.safetensors").read_bytes())
    data[-5] ^= 4
    (folder / "flipped" / "adapter.safetensors").write_bytes(data)
    (folder / "nonsense" / "adapter.json").write_text("{not json")
    (folder / "half" / "adapter.safetensors").unlink()
    about = json.loads((folder / "ranks" / "adapter.json").read_text())
    about["settings"]["rank"] = 2
    (folder / "ranks" / "adapter.json").write_text(json.dumps(about))
    (folder / "empty").mkdir()
    (folder / "a0 link").symlink_to(folder.parent)
    (folder / "notes.txt").write_text("a plain file is passed by")
    (folder / ".hidden").mkdir()
    return {
        "foreign": "trained on another base",
        "cut": "truncated or corrupted",
        "flipped": "is corrupted",
        "ranks": "was changed",
        "nonsense": "is not JSON",
        "half": "is missing",
        "empty": "is no adapter folder",
        "a0 link": "leads out of",
        ".hidden": "leading dot",
    }


def test_a_folder_that_cannot_be_used_is_named_and_hurts_no_other(folder: Path) -> None:
    base, bad = base_of(np.float32), spoil(folder)
    bank = AdapterBank(base, folder)
    requests = [Request((1, 2), name, 5) for name in (*bad, *(f"a{i}" for i in range(5)))]
    answers = served(base, requests, bank)
    for number, (name, why) in enumerate(bad.items()):
        assert why in (answers[number].error or ""), name
        assert not answers[number].tokens
    for number in range(len(bad), len(requests)):
        assert answers[number].error is None
        assert answers[number].tokens == alone(base, bank, requests[number])
    assert set(bank.skipped) == set(bad)
    assert all(why in bank.skipped[name] for name, why in bad.items())


def test_two_folders_of_one_name_are_both_refused(folder: Path) -> None:
    for name in ("Caf\u00e9", "Cafe\u0301"):
        shutil.copytree(folder / "a0", folder / name)
    bank = AdapterBank(base_of(np.float32), folder)
    assert list(bank.skipped) == ["Caf\u00e9"]
    assert "two folders have this one name" in bank.skipped["Caf\u00e9"]
    with pytest.raises(ValueError, match="there is an adapter 'a1' already"):
        bank.add(adapters_of(base_of(np.float32))[1])


@pytest.mark.parametrize("name", ["../a0", "a0/", "/etc", "..", ".", "", "a\\b", "C:a", "a\x00b", "a\nb", ".a"])
def test_a_name_with_a_path_in_it_is_refused(name: str, folder: Path) -> None:
    bank = AdapterBank(base_of(np.float32), folder)
    for use in (
        lambda: bank[name],
        lambda: bank.check([name]),
        lambda: bank.add(adapters_of(bank.base)[0].renamed(name)),
    ):
        with pytest.raises(ValueError, match="without a path or a leading dot"):
            use()


def test_unknown_names_raise_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    base = base_of()
    monkeypatch.setattr(Transformer, "hidden", lambda *_, **__: pytest.fail("work was done"))
    with pytest.raises(ValueError, match=r"there is no adapter 'a9': one of a"):
        next(serve(base, [Request((1,), "a1"), Request((1,), "a9")], bank_of(base)))
    with pytest.raises(ValueError, match="no bank was given"):
        next(serve(base, [Request((1,), "a1")]))
    with pytest.raises(ValueError, match="the bank is empty"):
        next(serve(base, [Request((1,), "a1")], AdapterBank(base)))
    with pytest.raises(ValueError, match=f"the context holds {CONTEXT} tokens, got a prompt of {CONTEXT + 1}"):
        next(serve(base, [Request((1,) * (CONTEXT + 1))]))
    with pytest.raises(ValueError, match=r"token ids must lie in 0\.\.10, got 11"):
        next(serve(base, [Request((1, 11))]))


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"prompt": ()}, "the prompt is empty"),
        ({"most": 0}, "most must be a whole number of at least 1, got 0"),
        ({"most": True}, "most must be"),
        ({"seed": -1}, "seed must be a whole number of at least 0, got -1"),
        ({"temperature": float("nan")}, "temperature must be a number"),
        ({"temperature": -0.1}, "temperature must be a number"),
        ({"stop": ((),)}, "a stop must hold at least one token"),
    ],
)
def test_a_request_that_asks_for_nothing_sensible_is_refused(settings: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Request(**{"prompt": (1,), **settings})


def test_what_cannot_be_chosen_for_each_sequence_is_refused_by_name(tmp_path: Path) -> None:
    base, rng = base_of(np.float32), np.random.default_rng(0)
    for name, method, why in (
        ("dora", DoRA(rank=2), "DoraLinear|Dora"),
        ("bitfit", BitFit(), "trained .*: only A and B"),
    ):
        node = adapt(base, method, rng)
        (tmp_path / name).mkdir()
        save_adapter(tmp_path / name, node, method, base)
        with pytest.raises(ValueError, match=f"adapter {name!r}.*({why})"):
            AdapterBank(base, tmp_path)[name]
    with pytest.raises(ValueError, match="must be causal"):
        Batch(model(1, causal=False))
    with pytest.raises(ValueError, match="at least 1 sequence"):
        Batch(base, 0)
    with pytest.raises(ValueError, match="most_bytes must be at least 1"):
        AdapterBank(base, most_bytes=0)


def test_an_adapter_of_peft_is_served_beside_a_base_of_transformers(tmp_path: Path) -> None:
    """Fused query, key and value of GPT-2, as PEFT writes them."""
    from safetensors.numpy import save_file

    base = model(3, np.float32, context=CONTEXT)
    c = base.config
    (tmp_path / "base").mkdir()
    save_file(theirs(parameters(base), "gpt2", c.layers), tmp_path / "base" / "model.safetensors")
    about = {"model_type": "gpt2", "vocab_size": c.vocab, "n_positions": c.context, "n_embd": c.d_model}
    about |= {"n_layer": c.layers, "n_head": c.heads, "activation_function": "gelu_new"}
    (tmp_path / "base" / "config.json").write_text(json.dumps(about))
    rng, stem = np.random.default_rng(0), "base_model.model.transformer.h.1.attn.c_attn"
    A = rng.standard_normal((2, c.d_model)).astype("f4")
    B = rng.standard_normal((3 * c.d_model, 2)).astype("f4")
    (tmp_path / "adapters" / "one").mkdir(parents=True)
    save_file({f"{stem}.lora_A.weight": A, f"{stem}.lora_B.weight": B},
              tmp_path / "adapters" / "one" / "adapter_model.safetensors")  # fmt: skip
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 3, "target_modules": ["c_attn"], "fan_in_fan_out": True}
    (tmp_path / "adapters" / "one" / "adapter_config.json").write_text(json.dumps(settings))
    node = load_model(tmp_path / "base")
    bank = AdapterBank(node, tmp_path / "adapters", source=tmp_path / "base")
    assert not bank.skipped
    factors = bank["one"].factors
    names = ("query", "key", "value")
    assert list(factors) == [f"blocks.1.attention.{name}" for name in names]
    for i, name in enumerate(names):
        own = factors[f"blocks.1.attention.{name}"]
        assert np.array_equal(own.A, A)
        assert np.array_equal(own.B, B[i * c.d_model : (i + 1) * c.d_model])
        assert own.scaling == 1.5
    elsewhere = AdapterBank(base, tmp_path / "adapters")
    assert "names the maps of a base of transformers" in elsewhere.skipped["one"]


# ------------------------------------------------------------------------------------------------------ switching


def test_switching_merged_weights_restores_the_base_to_the_bit_and_states_its_price() -> None:
    base = base_of(np.float32)
    before = hashes(parameters(base))
    for adapter in adapters_of(base):
        found = switched(base, adapter)
        mine = parameters(found.model)
        assert any(not np.array_equal(mine[path], array) for path, array in parameters(base).items())
        copies = [path for path, array in mine.items() if not np.shares_memory(array, parameters(base)[path])]
        assert found.nbytes == sum(mine[path].nbytes for path in copies)
        assert len(copies) == len(adapter.factors)
        assert found.seconds > 0
        assert hashes(parameters(base)) == before
    changed, count = lost_by_subtracting(base, adapters_of(base)[2])
    assert 0.1 * count < changed <= count  # what the paper describes would not have


# ------------------------------------------------------------------------------------------------- the command


def ask(*arguments: Any, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[Any], str]:
    code = code_of(["generate", *map(str, arguments)])
    said = capsys.readouterr()
    return code, [json.loads(line) for line in said.out.splitlines()], said.err


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """A base of bytes with five adapters beside it."""
    base = model(4, np.float32, vocab=256, context=64)
    save_model(tmp_path / "base", base)
    for i, rank in enumerate((1, 2, 3, 2, 1)):
        node = moved(adapted(base, i, rank=rank), i)
        write_adapter(tmp_path / "adapters" / f"a{i}", adapter_of(node, f"a{i}"), base)
    return tmp_path


def test_the_command_answers_in_order_one_line_each(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = ["a0\tHello", "", "-\tHello", json.dumps({"adapter": "a1", "prompt": "Hello", "tokens": 3, "raw": True})]
    lines += [json.dumps({"prompt": "x", "temperature": 0.9, "seed": 5, "tokens": 20}), "a4\ta prompt\twith a tab"]
    (world / "requests").write_text("\n".join(lines) + "\n")
    common = ("--base", world / "base", "--adapters", world / "adapters", "--prompts", world / "requests")
    code, answers, errors = ask(*common, "--tokens", 8, "--at-once", 2, capsys=capsys)
    assert code == 0
    assert [answer["request"] for answer in answers] == [1, 3, 4, 5, 6]
    assert [answer["adapter"] for answer in answers] == ["a0", None, "a1", None, "a4"]
    assert all(answer["ended"] in ("length", "end") for answer in answers)
    assert answers[2]["tokens"] <= 3
    assert "answer 5/5" in errors
    for line, adapter in ((0, ("--adapter", world / "adapters" / "a0")), (1, ())):
        code_of(list(map(str, ("generate", "--base", world / "base", *adapter, "--prompt", "Hello", "--tokens", 8))))
        assert capsys.readouterr().out == answers[line]["text"] + "\n"
    assert ask(*common, "--tokens", 8, capsys=capsys)[1] == answers


def test_the_command_names_skips_and_serves_and_says_one(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cut = world / "adapters" / "a3" / "adapter.safetensors"
    cut.write_bytes(cut.read_bytes()[:-7])
    (world / "requests").write_text("a3\tHello\na1\tHello\n")
    common = ("--base", world / "base", "--adapters", world / "adapters", "--prompts", world / "requests")
    code, answers, errors = ask(*common, "--tokens", 4, capsys=capsys)
    assert code == 1
    assert "truncated or corrupted" in answers[0]["error"]
    assert answers[1]["tokens"] == 4
    assert "skipped a3: " in errors


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("nope\tHi", "there is no adapter 'nope': one of a"),
        ("../a0\tHi", "without a path"),
        ("a0 Hi", "a tab and a prompt"),
        ("a0\t", "the prompt is empty"),
        ("a0\t" + "x" * 80, "the context holds 64 tokens, got a prompt of 82: shorten it"),
        ('{"prompt": "x"', "no JSON that can be read"),
        ('{"prompt": "x", "prompt": "y"}', "stands in it twice"),
        ('{"adapter": "a0"}', "it has no prompt"),
        ('{"prompt": "x", "adaptor": "a0"}', "the nearest is adapter"),
        ('{"prompt": 3}', "prompt must be text, got 3"),
        ('{"prompt": "x", "tokens": true}', "tokens must be a whole number, got true"),
        ('{"prompt": "x", "tokens": 0}', "tokens must be at least 1, got 0"),
        ('{"prompt": "x", "temperature": NaN}', "temperature must be a number of at least 0"),
        ('{"prompt": "x", "seed": -1}', "seed must be"),
        ('{"prompt": "x", "stop": [""]}', "none of them empty"),
        ('{"prompt": "x", "stop": [3]}', "none of them empty"),
        ('{"prompt": "\\u0000"}', "NUL character"),
    ],
)
def test_a_bad_line_is_named_by_its_number_before_any_work(
    line: str, why: str, world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (world / "requests").write_text(f"a0\tHi\n\n{line}\n")
    common = ("--base", world / "base", "--adapters", world / "adapters", "--prompts", world / "requests")
    code, answers, errors = ask(*common, capsys=capsys)
    assert (code, answers) == (2, [])
    assert f"{world / 'requests'} line 3: " in errors
    assert why in errors
    assert len(errors.splitlines()) == 1


def test_a_file_that_holds_no_requests_is_refused(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ("--base", world / "base", "--adapters", world / "adapters", "--prompts", world / "requests")
    for data, why in ((b"\n \n", "holds no request"), (b"a0\tHi\na1\t\xff\n", "line 2 is not UTF-8")):
        (world / "requests").write_bytes(data)
        code, answers, errors = ask(*common, capsys=capsys)
        assert (code, answers) == (2, [])
        assert why in errors
    (world / "requests").unlink()
    assert ask(*common, capsys=capsys)[0] == 2
    (world / "requests").write_text("a0\tHi\n")
    for wrong in (("--prompt", "x"), ("--adapter", world / "adapters" / "a0"), ("--device", "gpu")):
        assert ask(*common, *wrong, capsys=capsys)[0] == 2
    assert ask("--adapters", world / "adapters", "--prompt", "x", capsys=capsys)[0] == 2
    assert ask(*common[:2], "--adapters", world / "none", *common[4:], capsys=capsys)[0] == 2


# --------------------------------------------------------------------------------------------- out of its model


def test_an_adapter_survives_being_saved_with_its_own_ranks_and_scales(tmp_path: Path) -> None:
    base = base_of(np.float32)
    d_out, d_in = base.blocks[0].attention.query.W.shape
    rng = np.random.default_rng(0)
    paths = {"blocks.0.attention.query": (1, 1.0), "blocks.1.attention.value": (3, 0.5)}
    factors = {
        path: Factors(rng.standard_normal((r, d_in)).astype("f4"), rng.standard_normal((d_out, r)).astype("f4"), s)
        for path, (r, s) in paths.items()
    }
    adapter = Adapter("own", factors)
    write_adapter(tmp_path / "own", adapter, base)
    assert AdapterBank(base, tmp_path)["own"].digest == adapter.digest
    assert method_of(adapter).numbers(base.config) == sum(f.A.size + f.B.size for f in factors.values())
