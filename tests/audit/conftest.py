"""What every test of the audit gets."""

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="package", autouse=True)
def _quick_collections() -> Iterator[None]:
    """A Trainer collects garbage when it begins, which takes longer than the tiny trainings here do."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
