r"""Does a text say a slot of its meaning? By rules that are written down here, for the slots of E2E.

    name : Cotto | Type : coffee shop | price : cheap | family friendly : no

A text is read in lower case and without accents, as words; hyphens and apostrophes part them, £ is a word. Then

    name, near …          the value's own words stand in the text, one after the other, a leading "the" aside
    food, area, Type     the value, or a word of OWN
    price, rating        a word of OWN; or one of SHARED (high, low, average), which belongs to price or to rating,
                         whichever HEADS stand nearest to it: first in its clause, else in its sentence
    family friendly      yes: families or children are mentioned, and never with a negation beside them; no: they are
                         mentioned with one, or adults are

A rule errs both ways. So it is shown beside what it says of texts that people wrote: of the values that they were asked
to say, and of other values of the same slots (`lora_np.paper.text_tasks`).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence

# Of a slot and a value: what says it, wherever it stands. Patterns of whole words.
OWN: dict[str, dict[str, str]] = {
    "area": {
        "riverside": r"riverside|river side|rivers?|waterfront",
        "city centre": r"(city|town) cent(re|er)|cent(re|er) of (the )?(city|town|cambridge)|downtown|city",
    },
    "food": {"english": r"english|british"},
    "type": {"coffee shop": r"coffee ?(shops?|house|place|bar)|coffee"},
    "price": {
        "cheap": r"cheap(ly|er|est)?|inexpensive(ly)?|affordabl[ey]|low cost",
        "moderate": r"moderate(ly)?|reasonabl[ey]|mid priced?|mid range|medium",
        "high": r"expensive|pricey|costly|high end|upscale",
        "less than £ 20": r"(less|lower|cheaper) than (£ )?20|(under|below) (£ )?20|(£ )?20 or (less|under|below)",
        "£ 20 25": r"(£ )?20 (pounds )?((to|and|through|or) )?(£ )?25",
        "more than £ 30": r"((more|higher|greater) than|over|above) (£ )?30|(£ )?30 (or|and) (more|over|above|up)",
    },
    "customer rating": {
        **{
            f"{n} out of 5": rf"({n}|{word}) (stars? )?(out )?of (5|five)|(?<!of )({n}|{word}) star(s|red)?|{n} 5"
            for n, word in ((1, "one"), (3, "three"), (5, "five"))
        },
    },
}
# Words that say a value of one slot or of the other, and the words by which that is told.
SHARED: dict[str, dict[str, str]] = {
    "price": {"cheap": r"low(er|ly)?", "moderate": r"average|mid|fair(ly)?", "high": r"high(er|ly)?"},
    "customer rating": {
        "low": r"low(er|ly)?|poor(ly)?|bad(ly)?",
        "average": r"average|moderate(ly)?|decent|ok|okay|mediocre",
        "high": r"high(er|ly)?|good|great|excellent|well|top",
    },
}
HEADS = {
    "price": r"pric(e|es|ed|ey|ing)|costs?",
    "customer rating": r"rat(e|es|ed|ing|ings)|customers?|reviews?|reviewed|recommended|scores?",
}
CLAUSES = {",", "and", "but", "with", "while", "although", "though", "yet", "however"}  # a clause ends before these
SENTENCES = {".", "!", "?", ";"}
MENTIONED = r"famil(y|ies)|kids?|child|children|all ages"
ADULTS = r"adults?|grown ups?"
NEGATED = {"not", "no", "non", "nor", "never", "t", "nt", "without", "isnt", "unfriendly", "unsuitable", "avoid"}
BEFORE, AFTER = 6, 3  # words around a mention in which a negation counts


def realised(slot: str, value: str, text: str) -> bool:
    """Does the text say that this slot has this value? A slot without a rule is said by its value's own words."""
    name, wanted, words = " ".join(words_of(slot)), " ".join(words_of(value)), words_of(text)
    if name == "family friendly":
        said = list(_mentions(words))
        return any(negated for negated in said) if wanted == "no" else bool(said) and not any(said)
    own = OWN.get(name, {}).get(wanted)
    shared = SHARED.get(name, {}).get(wanted)
    if own is None and shared is None:
        own = re.escape(wanted.removeprefix("the "))
    spoken = " ".join(word for word in words if word not in SENTENCES | {","})
    if own is not None and re.search(rf"(?<!not )(?<!\w)({own})(?!\w)", spoken):
        return True
    return shared is not None and any(_is_of(name, i, words) for i, w in enumerate(words) if re.fullmatch(shared, w))


def words_of(text: str) -> list[str]:
    """Words in lower case without accents, £, and the marks at which sentences and clauses end."""
    plain = unicodedata.normalize("NFKD", text.casefold())
    return re.findall(r"[a-z0-9]+|[£.!?;,]", "".join(c for c in plain if not unicodedata.combining(c)))


def slots_in(meaning: str) -> list[tuple[str, str]]:
    """The slots of a meaning and their values, in its order; parts that are no `name : value` are no slots."""
    parts = (part.split(" : ", 1) for part in meaning.split(" | "))
    return [(pair[0].strip(), pair[1].strip()) for pair in parts if len(pair) == 2]


def _is_of(slot: str, at: int, words: Sequence[str]) -> bool:
    """Does the shared word at this place belong to the slot? Where nothing tells, it belongs to none."""
    for ends in (SENTENCES | CLAUSES, SENTENCES):
        start, stop = _around(at, words, ends)
        heads = {
            head: min((abs(i - at) + 0.5 * (i < at) for i in range(start, stop) if re.fullmatch(pattern, words[i])),
                      default=float("inf"))
            for head, pattern in HEADS.items()
        }  # fmt: skip
        nearest = min(heads, key=lambda head: heads[head])
        if heads[nearest] < float("inf"):
            return nearest == slot
    return False


def _around(at: int, words: Sequence[str], ends: set[str]) -> tuple[int, int]:
    """The stretch around a place that no mark or word of `ends` parts."""
    start, stop = at, at + 1
    while start > 0 and words[start - 1] not in ends:
        start -= 1
    while stop < len(words) and words[stop] not in ends:
        stop += 1
    return start, stop


def _mentions(words: Sequence[str]) -> Iterator[bool]:
    """Of every mention of families or children, is it negated? One of adults is."""
    for i, word in enumerate(words):
        if re.fullmatch(ADULTS, word):
            yield True
        elif re.fullmatch(MENTIONED, word) or words[i : i + 2] == ["all", "ages"]:
            start, stop = _around(i, words, SENTENCES | {"but", ","})
            after = words[i + 1 : min(stop, i + 1 + AFTER)]
            parted = next((k for k, w in enumerate(after) if w == "and"), len(after))
            yield bool(NEGATED & {*words[max(start, i - BEFORE) : i], *after[:parted]})
