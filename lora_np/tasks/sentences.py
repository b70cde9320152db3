r"""Meaning → sentence, three times: E2E, WebNLG and DART in miniature.

    e2e      name : Old Mill | type : pub | food : Thai        a place, of which some facts are left out
    webnlg   Ada_Lind : birthPlace : Turin | …                 triples about a person, and where that place is
    dart     Delft Lions : WINS : 12 | …                       a row of a table as triples

A meaning has K sentences, drawn uniformly, that begin differently: log2 K bits in the first letters (T3), and nothing
afterwards, because the rest follows from the meaning.

The forms are those of E2E (Novikova et al. 2017), WebNLG (Gardent et al. 2017) and DART (Nan et al. 2021) as the code
of the paper writes them into one line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from .metrics import any_match, bleu, slot_accuracy
from .problems import Problem, Task, chosen

# fmt: off
NAMES = ("Old Mill", "Blue Hen", "Green Man", "Red Barn", "Lucky Cat", "Golden Pear", "Stone Cellar", "River View")
KINDS = ("pub", "restaurant", "coffee shop", "tea room")
FOODS = ("Thai", "French", "Greek", "Polish", "Welsh", "Persian")
PRICES = ("cheap", "pricey", "fair")
AREAS = ("harbour", "old town", "city centre", "park")

FIRST = ("Ada", "Boris", "Clara", "Dmitri", "Emil", "Frida", "Georg", "Hanna")
LAST = ("Lind", "Moreau", "Novak", "Okafor", "Petrov", "Quist")
JOBS = ("painter", "baker", "pilot", "lawyer", "dancer", "surgeon")
TOWNS = {"Turin": "Italy", "Verona": "Italy", "Bergen": "Norway", "Oslo": "Norway", "Lyon": "France",
         "Nantes": "France", "Kyoto": "Japan", "Nara": "Japan"}

PLACES = ("Delft", "Riga", "Quito", "Perth", "Lima", "York")
ANIMALS = ("Lions", "Bears", "Hawks", "Foxes", "Wolves")
COACHES = ("Ann Reed", "Bo Carlsen", "Cy Young", "Di Marsh", "Ed Stone")
# fmt: on


def draw_e2e(rng: np.random.Generator) -> Problem:
    facts = {"name": _one(rng, NAMES), "type": _one(rng, KINDS)}
    more = {"food": FOODS, "price": PRICES, "area": AREAS, "family friendly": ("yes", "no")}
    facts |= {name: _one(rng, values) for name, values in more.items() if rng.random() < 0.6}
    return chosen(" | ".join(f"{name} : {value}" for name, value in facts.items()), _of_a_place(facts), rng)


def _of_a_place(facts: Mapping[str, str]) -> list[str]:
    name, kind = facts["name"], facts["type"]
    what = f"{facts['price']} {kind}" if "price" in facts else kind
    food = f" with {facts['food']} food" if "food" in facts else ""
    area = f" in the {facts['area']}" if "area" in facts else ""
    family = {"yes": " Children are welcome.", "no": " It is not for children."}.get(
        facts.get("family friendly", ""), ""
    )
    return [
        f"{name} is a {what}{area}{food}.{family}",
        f"There is a {what}{food}{area}, {name}.{family}",
        f"You can visit {name}, a {what}{food}{area}.{family}",
        f"A {what}{area} is {name}{food}.{family}",
    ]


def draw_webnlg(rng: np.random.Generator) -> Problem:
    name, town = f"{_one(rng, FIRST)} {_one(rng, LAST)}", _one(rng, tuple(TOWNS))
    which = int(rng.integers(1, 8))  # each of three facts is there or not, and at least one of them is
    job = _one(rng, JOBS) if which & 1 else ""
    year = str(rng.integers(1850, 1950)) if which & 2 else ""
    born = town if which & 4 else ""
    subject = name.replace(" ", "_")
    pairs = [(subject, "occupation", job), (subject, "birthPlace", born), (subject, "birthYear", year)]
    pairs += [(town, "country", TOWNS[town])] if born and rng.random() < 0.5 else []
    prompt = " | ".join(f"{s} : {p} : {o}" for s, p, o in pairs if o)
    country = f" {town} is in {TOWNS[town]}." if len(pairs) > 3 else ""
    return chosen(prompt, [text + country for text in _of_a_person(name, job, born, year)], rng)


def _of_a_person(name: str, job: str, town: str, year: str) -> list[str]:
    birth = (f" in {town}" if town else "") + (f" in {year}" if year else "")
    if not birth:
        return [f"{name} was a {job}.", f"The {job} was {name}."]
    if not job:
        return [f"{name} was born{birth}.", f"Born{birth}: {name}."]
    return [f"{name}, a {job}, was born{birth}.", f"The {job} {name} was born{birth}."]


def draw_dart(rng: np.random.Generator) -> Problem:
    team = f"{_one(rng, PLACES)} {_one(rng, ANIMALS)}"
    wins, losses, coach = int(rng.integers(1, 40)), int(rng.integers(1, 40)), _one(rng, COACHES)
    form = int(rng.integers(3))
    said = [("WINS", wins), ("LOSSES", losses)], [("COACH", coach), ("WINS", wins)], [("COACH", coach)]
    prompt = " | ".join(f"{team} : {column} : {value}" for column, value in said[form])
    ways = (
        [f"{team} won {wins} and lost {losses}.", f"With {wins} wins, {team} had {losses} losses."],
        [f"{team} won {wins} under {coach}.", f"Coach {coach} led {team} to {wins} wins."],
        [f"{team} are coached by {coach}.", f"Coach {coach} leads {team}."],
    )
    return chosen(prompt, ways[form], rng)


def _one(rng: np.random.Generator, choices: Sequence[str]) -> str:
    return choices[int(rng.integers(len(choices)))]


METRICS = {"one of the right texts": any_match, "slot accuracy": slot_accuracy, "BLEU": bleu}
E2E = Task("e2e", "facts of a place → a description (E2E in miniature)", draw_e2e, METRICS)
WEBNLG = Task("webnlg", "triples about a person → a sentence (WebNLG in miniature)", draw_webnlg, METRICS)
DART = Task("dart", "triples of a table → a sentence (DART in miniature)", draw_dart, METRICS)
