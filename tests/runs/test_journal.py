"""The run's record survives crashes, and readers see complete events once."""

from __future__ import annotations

import json
import math

from raymi.runs.journal import Journal, JournalReader


def test_events_are_read_in_order_and_once(tmp_path):
    journal, reader = Journal(tmp_path / "j"), JournalReader(tmp_path / "j")
    journal.write("a", value=1)
    journal.write("b", nested={"x": [1, 2.5, None, "text"]})
    first = reader.new_events()
    journal.write("c")
    second = reader.new_events()
    assert [event["kind"] for event in first] == ["a", "b"]
    assert first[1]["nested"] == {"x": [1, 2.5, None, "text"]}
    assert first[0]["time"] <= first[1]["time"]
    assert [event["kind"] for event in second] == ["c"]
    assert reader.new_events() == []


def test_a_reader_can_start_at_the_end_of_another_one(tmp_path):
    journal, reader = Journal(tmp_path / "j"), JournalReader(tmp_path / "j")
    journal.write("a")
    reader.new_events()
    journal.write("b")
    assert [e["kind"] for e in JournalReader(tmp_path / "j", reader.offset).new_events()] == ["b"]


def test_a_line_counts_once_it_ends(tmp_path):
    path = tmp_path / "j"
    reader = JournalReader(path)
    assert reader.new_events() == []
    path.write_bytes(b'{"kind": "a"}\n{"kind": "b"')
    assert [e["kind"] for e in reader.new_events()] == ["a"]
    with path.open("ab") as file:
        file.write(b', "x": 1}\n')
    assert reader.new_events() == [{"kind": "b", "x": 1}]


def test_a_broken_last_line_is_ended_and_skipped(tmp_path):
    path = tmp_path / "j"
    path.write_bytes(b'{"kind": "a"}\n{"kind": "b", "val')
    journal = Journal(path)
    journal.write("c")
    assert [e["kind"] for e in JournalReader(path).new_events()] == ["a", "c"]


def test_a_complete_last_line_stays_unchanged(tmp_path):
    path = tmp_path / "j"
    path.write_bytes(b'{"kind": "a"}\n')
    Journal(path).close()
    assert path.read_bytes() == b'{"kind": "a"}\n'


def test_lines_that_are_no_events_are_skipped(tmp_path):
    path = tmp_path / "j"
    path.write_bytes(b'7\n["kind"]\n{"no": "kind"}\n\xff\xfe\n{"kind": "a"}\n')
    assert JournalReader(path).new_events() == [{"kind": "a"}]


def test_numbers_that_json_lacks_become_text_that_float_parses(tmp_path):
    path = tmp_path / "j"
    Journal(path).write("a", m={"nan": math.nan}, inf=math.inf, listed=[-math.inf, (math.nan, 1)])
    (line,) = path.read_text().splitlines()
    event = json.loads(line, parse_constant=lambda name: pytest_fail(name))
    assert math.isnan(float(event["m"]["nan"]))
    assert float(event["inf"]) == math.inf
    assert float(event["listed"][0]) == -math.inf
    assert event["listed"][1][1] == 1


def pytest_fail(name):
    raise AssertionError(f"{name} is not JSON")


def test_only_the_first_rank_writes(tmp_path):
    journal = Journal(tmp_path / "folder" / "j", enabled=False)
    journal.write("a")
    journal.close()
    assert not (tmp_path / "folder").exists()
