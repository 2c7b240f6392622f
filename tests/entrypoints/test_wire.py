import json
from typing import get_args

from domain import events
from entrypoints.wire import WIRE, Envelopes


def test_every_event_has_one_type_on_the_wire_and_no_two_share_it():
    assert set(WIRE) == set(get_args(events.ReplyEvent))
    kinds = [kind for kind, _ in WIRE.values()]
    assert len(kinds) == len(set(kinds))


def test_the_page_on_events_names_every_type():
    from pathlib import Path

    page = (Path(__file__).parents[2] / "docs" / "events.md").read_text(encoding="utf-8")
    for kind, _ in WIRE.values():
        assert f"| `{kind}` |" in page, kind


def test_an_envelope_is_valid_json_and_numbers_its_turn():
    envelopes = Envelopes(gen=2)
    wrapped = [envelopes.wrap(events.TextDelta("你")), envelopes.wrap(events.TextDelta("好"))]
    assert [envelope["seq"] for envelope in wrapped] == [1, 2]
    assert all(envelope["gen"] == 2 and envelope["v"] == 1 for envelope in wrapped)
    assert json.loads(json.dumps(wrapped[0]))["data"] == {"text": "你"}
