"""What a text says of the slots of its meaning: each rule beside a text that says a slot, and one that does not."""

from __future__ import annotations

import pytest

from lora_np.tasks.realising import realised, slots_in

SAID = [
    ("name", "The Eagle", "The Eagle is by the river .", "The Punter is by the river ."),
    ("near", "Café Sicilia", "It is near Cafe Sicilia .", "It is near Café Brazil ."),
    ("Type", "coffee shop", "A coffee shop called Cocum .", "A pub called Cocum ."),
    ("food", "English", "It serves british food .", "It serves Chinese food ."),
    ("area", "riverside", "It lies in the river side area .", "It lies in the city centre ."),
    ("area", "city centre", "In the centre of the city .", "On the river ."),
    ("price", "cheap", "It is inexpensive .", "It is expensive ."),
    ("price", "high", "It is expensive .", "It is inexpensive ."),
    ("price", "high", "It is pricey .", "It is not pricey ."),
    ("price", "less than £ 20", "It costs under £20 .", "It costs £20-25 ."),
    ("price", "£ 20 - 25", "Between 20 and 25 pounds: £20-£25 .", "More than £ 30 ."),
    ("price", "more than £ 30", "Prices over £30 .", "Prices under £20 ."),
    ("customer rating", "5 out of 5", "Rated five out of five .", "Rated 1 out of 5 stars ."),
    ("customer rating", "1 out of 5", "A one star place .", "A place of 5 out of 5 ."),
    ("colour", "deep red", "Its walls are deep red .", "Its walls are red ."),
]


@pytest.mark.parametrize(("slot", "value", "said", "unsaid"), SAID)
def test_a_value_is_said_by_the_words_of_its_rule_and_by_no_other(
    slot: str, value: str, said: str, unsaid: str
) -> None:
    assert realised(slot, value, said)
    assert not realised(slot, value, unsaid)
    assert not realised(slot, value, "")


SHARED = [
    ("It has a high price range and a low customer rating .", "high", "low"),
    ("The price range is high and customer rating is average", "high", "average"),
    ("Highly priced , it is poorly rated .", "high", "low"),
    ("With high ratings and low prices , it is a find .", "cheap", "high"),
    ("Average prices , low customer rating .", "moderate", "low"),
]


@pytest.mark.parametrize(("text", "price", "rating"), SHARED)
def test_a_word_that_two_slots_use_belongs_to_the_one_whose_word_stands_nearest(
    text: str, price: str, rating: str
) -> None:
    found = {
        slot: [value for value in values if realised(slot, value, text)]
        for slot, values in (("price", ("cheap", "moderate", "high")), ("customer rating", ("low", "average", "high")))
    }
    assert found == {"price": [price], "customer rating": [rating]}


def test_a_shared_word_that_nothing_places_says_neither() -> None:
    assert not realised("price", "high", "It stands on a high hill .")
    assert not realised("customer rating", "high", "It stands on a high hill .")


FAMILIES = [
    ("It is family - friendly .", "yes"), ("Kids are welcome .", "yes"), ("It welcomes all ages .", "yes"),
    ("It is not expensive , and children are welcome .", "yes"), ("It is not a family - friendly place .", "no"),
    ("It isn't kid friendly .", "no"), ("Children are not allowed .", "no"), ("An adults only venue .", "no"),
    ("It is non family friendly .", "no"), ("No families .", "no"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "value"), FAMILIES)
def test_families_are_welcome_unless_a_negation_stands_beside_them(text: str, value: str) -> None:
    assert [realised("family friendly", asked, text) for asked in ("yes", "no")] == [value == "yes", value == "no"]


def test_a_text_without_families_says_neither_that_they_are_welcome_nor_that_they_are_not() -> None:
    assert not any(realised("family friendly", value, "It is not cheap .") for value in ("yes", "no"))


def test_the_slots_of_a_meaning_stand_in_its_order() -> None:
    assert slots_in("name : Cotto | price : £ 20 - 25 | nothing") == [("name", "Cotto"), ("price", "£ 20 - 25")]
