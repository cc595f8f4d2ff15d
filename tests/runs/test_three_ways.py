"""The page that compares one idea in `model.fit`, in a hand-written loop and in petseg: its code runs and agrees."""

import re
import sys

import keras
import numpy as np
import pytest
from conftest import ROOT


@pytest.mark.slow
def test_the_first_losses_of_the_three_versions_agree(fit_without_xla, tmp_path, monkeypatch):
    page = (ROOT / "docs" / "one_idea_three_ways.md").read_text()
    shared, *versions = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "mine.py").write_text(shared)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    found = []
    for version in versions:
        names = {}
        try:
            exec(compile(version, "version", "exec"), names)
        finally:
            keras.config.set_dtype_policy("float32")
            sys.modules.pop("mine", None)
        found.append(names["losses"])
    assert [len(losses) for losses in found] == [3, 3, 3]
    for losses in found:
        np.testing.assert_allclose(losses, found[0], rtol=5e-3)
        assert losses[2] < losses[0]
