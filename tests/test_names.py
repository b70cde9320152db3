"""What others call the parts of a model: every name of their checkpoints leads to ours."""

from __future__ import annotations

import re

import numpy as np
import pytest
from builders import model

from lora_np.config import ARCHITECTURES, TransformerConfig, maps, named_shape
from lora_np.formats.names import FAMILIES, entries
from lora_np.methods import adapt
from lora_np.methods.lora import LoraConfig
from lora_np.model import skeleton
from lora_np.names import called_here, matches, matching, nearest
from lora_np.parameters import parameters

NOT_OURS = re.compile(r"masked\.|pooler\.W|pooler\.b|.*router|.*experts")  # parts that no model here has


@pytest.mark.parametrize("family", FAMILIES)
def test_every_name_of_a_checkpoint_leads_to_the_array_it_is(family: str) -> None:
    for entry in entries(family, 2, 0):
        if NOT_OURS.match(entry.ours) or not re.search(r"\.(weight|bias)$", entry.theirs):
            continue
        if family == "llama of llama.cpp" and entry.theirs in ("output.weight",):  # "output" is a name of ours as well
            continue
        if matches(entry.ours, entry.theirs):
            continue  # the same words: nothing to translate
        forms = called_here(entry.theirs)
        assert any(matches(entry.ours, way) for form in forms for way in form.split("|")), (entry, forms)


LLAMA = {**dict.fromkeys(maps(named_shape("gpt2"))), "blocks.0.mlp.gate": None, "blocks.1.mlp.gate": None}

SAID = {
    "q_proj": "here it is attention.query",
    "model.layers.2.self_attn.q_proj": "here it is blocks.2.attention.query",
    "c_attn": "here it is attention.query, attention.key, attention.value",
    "h.3.attn.c_proj": "here it is blocks.3.attention.output",
    "c_proj": "here it is attention.output, mlp.down",
    "transformer.h.*.mlp.c_proj": "here it is blocks.*.mlp.down",
    "layers.2": "here it is blocks.2.*",
    "blocks.2": "here it is blocks.2.*",
    "model.layers.1.mlp": "here it is blocks.1.mlp.*",
    "self_attn": "here it is attention.*",
    "attn.query": "here it is attention.query",
    "wte": "here it is tokens",
    "lm_head": "here it is tokens",  # tied
    "gate_proj": "here it is mlp.gate",
    "*v_proj": "here it is attention.value, attention.query, attention.key",
    "[gud]*_proj": "here it is mlp.gate, mlp.up, mlp.down",
    "layers.99.self_attn.q_proj": "here it would be blocks.99.attention.query, which is not there; the nearest are ",
    "wpe": "here it would be positions, which is not there; the nearest are ",
    "quary": "the nearest are query",
}


@pytest.mark.parametrize("pattern", SAID)
def test_a_name_from_elsewhere_is_answered_with_ours(pattern: str) -> None:
    assert nearest(pattern, LLAMA).startswith(SAID[pattern])
    with pytest.raises(ValueError, match=re.escape(SAID[pattern])):
        matching(LLAMA, [pattern])


@pytest.mark.parametrize("pattern", [name for name, said in SAID.items() if said.startswith("here it is ")])
def test_what_is_said_can_be_taken_as_it_stands(pattern: str) -> None:
    told = SAID[pattern].removeprefix("here it is ").split(", ")
    assert matching(LLAMA, told)


def test_a_head_of_its_own_is_named_and_a_gate_that_is_lacking_is_not() -> None:
    untied = [*maps(named_shape("gpt2")), "head"]
    assert nearest("lm_head", untied) == "here it is head"
    assert nearest("gate_proj", untied).startswith("here it would be mlp.gate, which is not there; the nearest are ")


def test_arrays_are_named_with_their_leaves() -> None:
    adapted = parameters(adapt(model(), LoraConfig(rank=2), np.random.default_rng(0)))
    for pattern, said in {
        "q_proj.lora_A.default.weight": "attention.query.A",
        "base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight": "blocks.1.attention.value.B",
        "h.0.attn.c_attn.weight": "blocks.0.attention.query.W, blocks.0.attention.key.W, blocks.0.attention.value.W",
        "ln_1.weight": "attention_norm.gamma",
        "ln_f.bias": "norm.beta",
    }.items():
        assert nearest(pattern, adapted) == f"here it is {said}"


def test_the_words_are_answered_wherever_a_pattern_is_refused() -> None:
    base = skeleton(named_shape("base"))
    settings = (
        lambda: adapt(base, LoraConfig(targets="q_proj"), None),
        lambda: adapt(base, LoraConfig(targets="qv", ranks={"q_proj": 2}), None),
        lambda: LoraConfig(targets="q_proj").numbers(base.config),
        lambda: parameters(base, "q_proj"),
    )
    for refused in settings:
        with pytest.raises(ValueError, match=r"'q_proj' matches none of .*; here it is attention\.query"):
            refused()


def test_no_architecture_has_a_part_whose_own_name_is_a_word_from_elsewhere() -> None:
    """Else a pattern that is right would be answered with another."""
    for name in ARCHITECTURES:
        sizes = {"vocab": 8, "context": 8, "d_model": 8, "layers": 1, "heads": 2}
        for path in parameters(skeleton(TransformerConfig(**sizes, architecture=name))):
            assert called_here(path) == [path]
