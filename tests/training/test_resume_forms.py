"""A run of any form of PEFT goes on from a checkpoint, before or after its cut, to the same weights."""

import pytest
from scripts.support_table import YES, resume
from tests.support.forms import FORM_ROWS
from tests.support.zoo import BY_NAME


@pytest.mark.parametrize("form", [form for form in FORM_ROWS if form != "lora"])
@pytest.mark.parametrize("name", ["bert", "llama", "t5"])
def test_every_form_resumes_bit_by_bit(name: str, form: str) -> None:
    assert resume(BY_NAME[name], form) == YES
