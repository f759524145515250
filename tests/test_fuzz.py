"""Damaged light checkpoints are refused, or compute the same; 10,000 of them: `benchmarks/fuzz.py`."""

from pathlib import Path

from benchmarks import fuzz


def test_damage_is_refused_or_changes_nothing(tmp_path: Path) -> None:
    found = fuzz.fuzz(fuzz.make_targets(tmp_path), range(300), 0, tmp_path / "damaged")
    total = found.total()
    assert not found.bad
    assert sum(total.values()) == 300
    assert total["refused"] > 100
    assert total["same"] > 20
