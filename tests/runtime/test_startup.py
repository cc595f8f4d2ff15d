import subprocess
import sys

import pytest
from conftest import ROOT


def test_keras_loads_without_scikit_learn_which_can_still_be_imported():
    pytest.importorskip("sklearn")
    script = """
import sys
from petseg.runtime import startup
startup.load_tensorflow()
assert "keras" in sys.modules and not [name for name in sys.modules if name.split(".")[0] == "sklearn"]
import sklearn.metrics
assert sklearn.metrics.accuracy_score([0, 1], [0, 1]) == 1
startup.load_tensorflow()
assert sys.modules["sklearn"] is sklearn
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
