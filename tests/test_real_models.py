r"""Real weights, where a package brings them: SmolLM2 and MiniLM beside transformers, glassllm beside itself.

In float32 both sides sum the same terms in another order. What that comes to was measured on texts of 5 to 60 tokens:
at most 4.3e-6 of the largest logit (SmolLM2), 5.3e-7 of the largest state (MiniLM, on the two texts below), 5e-7 of the
largest logit (glassllm, whose own code computes in float64). `BOUND` is above the largest of these by a margin of 4.6,
and above MiniLM's by one of 38. Everything here skips where
the packages are missing, and what asks the large model is slow.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lora_np.files import load_config, load_model
from lora_np.generation import generate
from lora_np.installed import place_of
from lora_np.vocabularies import begun, tokenizer_of

BOUND = 2e-5
PROMPTS = (
    "The capital of France is", "Water boils at", "Once upon a time", "The three primary colours are",
    "A list of fruits: apple,", "The largest planet of the solar system", "In 1969,", "My favourite book is",
    "To make tea, first", "The opposite of hot is", "Photosynthesis is", "A triangle has", "The president said that",
    "def add(a, b):", "Dear Sir or Madam,", "The recipe needs two eggs,", "It was a dark and stormy night;",
    "The chemical symbol of gold", "If it rains tomorrow,", "Question: what is 2 + 2? Answer:",
)  # fmt: skip


def place(name: str) -> Path:
    found = place_of(name)
    if found is None:
        pytest.skip(f"the package that brings {name} is not installed")
    return found


def needs(*packages: str) -> None:
    for package in packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")


def their_smollm2() -> Any:
    """Read by transformers itself, from the same GGUF file."""
    needs("torch", "transformers", "gguf")
    path = place("smollm2")
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    assert {weights.dtype for weights in model.parameters()} == {torch.float32}
    return model.eval()


def gap(ours: Any, theirs: Any) -> float:
    return float(abs(ours - theirs).max() / abs(theirs).max())


@pytest.mark.filterwarnings("ignore")
def test_the_states_of_minilm_are_those_of_transformers() -> None:
    folder = place("minilm")
    needs("torch", "transformers", "tokenizers")
    import torch
    import transformers

    theirs = transformers.BertModel.from_pretrained(folder).float().eval()
    ours, tokenizer = load_model("minilm"), tokenizer_of("minilm", load_config("minilm"))
    found = []
    for text in ("A tense, clever thriller.", "The stock market fell on Monday, and nobody knew why."):
        ids = begun(tokenizer, text)[None]
        with torch.no_grad():
            states = theirs(torch.from_numpy(ids)).last_hidden_state.numpy()
        found.append(gap(ours.hidden(ids), states))
    print(f"largest gap {max(found):.2e} of the largest state; bound {BOUND:.0e}")
    assert max(found) <= BOUND
    wrong = np.ones_like(ids)
    assert gap(ours.hidden(ids, types=wrong), states) > BOUND  # contrast: tokens of another type


def test_the_logits_of_glassllm_are_its_own() -> None:
    place("glassllm")
    needs("tokenizers")
    import glassllm

    theirs, words = glassllm.load_pretrained("en")
    ours, tokenizer = load_model("glassllm"), tokenizer_of("glassllm", load_config("glassllm"))
    text = "Alice was beginning to get very tired of sitting by her sister on the bank"
    ids = tokenizer.encode(text)
    assert ids.tolist() == words.encode(text)
    assert tokenizer.decode(ids) == text
    logits = np.asarray(theirs(ids[None]).data).reshape(1, len(ids), -1)
    assert gap(ours(ids[None]), logits) <= BOUND


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_logits_and_the_greedy_text_of_smollm2_are_those_of_transformers() -> None:
    """100 tokens of ours after each prompt; theirs, given these, would go on with the same at every place.

    So by induction their greedy text is ours, but where their two best logits are closer than both sides' roundings.
    """
    theirs = their_smollm2()
    import torch

    ours = load_model("smollm2")
    tokenizer = tokenizer_of("smollm2", ours.config)
    gaps, close = [], 0
    for number, prompt in enumerate(PROMPTS):
        ids = begun(tokenizer, prompt)
        written = np.array(list(generate(ours, ids, 100)))
        whole = np.concatenate([ids, written])[None]
        with torch.no_grad():
            logits = theirs(torch.from_numpy(whole)).logits[0].numpy()
        if number % 5 == 0:
            gaps.append(gap(ours(whole)[0], logits))
        for step, token in enumerate(written):
            at = logits[len(ids) - 1 + step]
            if at.argmax() != token:
                assert at.max() - at[token] <= 2 * BOUND * abs(logits).max(), (prompt, step)
                close += 1
    print(f"{len(PROMPTS)} prompts of 100 tokens; {close} too close to call; logits {max(gaps):.2e} apart at most")
    assert max(gaps) <= BOUND
