"""A few of the benchmark's kills: nothing half written opens, and nothing that was there before is lost."""

from benchmarks import kill


def test_a_killed_process_loses_nothing() -> None:
    result = kill.run(8, seed=1)
    found = result["actions"]
    assert {name: one["killed"] for name, one in found.items()} == dict.fromkeys(kill.ACTIONS, 2)
    assert [one["half_written"] + one["lost"] for one in found.values()] == [[]] * 4
    assert result["half_written_that_load"] == result["earlier_ones_lost"] == 0
