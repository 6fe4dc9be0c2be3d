"""The card beside an output says what it was made from, and is there only when the output is whole."""

from __future__ import annotations

import re

import pytest

from omni_platform.artifacts import Card, CardError, code_version, differences, find_card, read_card, write_card


def test_a_card_is_read_back_as_written(tmp_path):
    card = Card(
        name="anchors", inputs={"m.jsonl": "ab"}, config={"fps": 2.0}, config_fingerprint="cd", counts={"rows": 3}
    )
    write_card(tmp_path, card)
    assert read_card(tmp_path) == card
    assert card.created_at.endswith("+00:00") and card.schema_version >= 1


def test_no_card_means_not_complete(tmp_path):
    assert find_card(tmp_path / "nowhere") is None
    with pytest.raises(CardError, match=r"has no card\.json"):
        read_card(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"name": "x", "colour": "red"}'])
def test_a_card_of_another_kind_is_refused(tmp_path, text):
    (tmp_path / "card.json").write_text(text)
    with pytest.raises(CardError, match=r"card\.json is not a card"):
        read_card(tmp_path)


def test_every_field_that_differs_is_named():
    card = Card(name="anchors", config_fingerprint="a", encoder_fingerprint="b")
    assert differences(card, name="anchors", config_fingerprint="a") == []
    assert differences(card, name="film", encoder_fingerprint="c", config_fingerprint="a") == [
        "name is 'anchors', expected 'film'",
        "encoder_fingerprint is 'b', expected 'c'",
    ]


def test_the_code_version_names_the_package_and_the_commit_of_a_checkout():
    assert re.fullmatch(r"\d+\.\d+\.\d+(\+g[0-9a-f]{7,40}(\.dirty)?)?", code_version())
