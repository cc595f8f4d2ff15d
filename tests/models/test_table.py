"""The table of networks, and suggestions for names that do not exist."""

import re

import pytest
from conftest import ROOT

from petseg.config import ModelConfig
from petseg.config.options import near_names
from petseg.errors import ConfigError
from petseg.models import __main__ as table


@pytest.mark.slow
def test_a_row_has_weights_operations_and_speeds(capsys):
    table.main(table.TableConfig(encoders="tiny", decoders="lighter,light", seconds=0.01, batch_size=2))
    heading, _, *rows = (re.split(r" *\| *", line.strip("| ")) for line in capsys.readouterr().out.splitlines())
    assert tuple(heading) == table.TITLES
    assert [row[:5] for row in rows] == [
        ["tiny", "lighter", "201,636", "26,072", "0.10"],
        ["tiny", "light", "356,644", "26,072", "0.19"],
    ]
    assert all(float(number) > 0 for row in rows for number in row[5:])
    assert 8 < float(rows[0][5]) < float(rows[1][5])
    readme = (ROOT / "petseg/models/README.md").read_text()  # which counts two for a multiplication and an addition
    assert "| 26,072 | 201,636 | 0.20 |" in readme


def test_zero_seconds_measure_nothing(capsys):
    table.main(table.TableConfig(encoders="tiny", decoders="lighter", image_size="32,64", seconds=0.0))
    assert capsys.readouterr().out.endswith("| - | - |\n")


@pytest.mark.parametrize(
    ("given", "near"),
    [
        ("resnet50", "; did you mean ResNet50?"),
        ("mobilenetV2", "; did you mean mobilenet_v2?"),
        ("resnet_101", "; did you mean ResNet101?"),
        ("hub:", ""),
        ("mobilnet_v3_smal", "; did you mean mobilenet_v3_small or"),
        ("nonsense", ""),
    ],
)
def test_near_names(given, near):
    with pytest.raises(ConfigError, match=rf"^--encoder={given}: must be one of .*{re.escape(near)}"):
        ModelConfig(encoder=given)
    with pytest.raises(ConfigError, match=rf"^--encoders={given}: must be one of .*{re.escape(near)}"):
        table.TableConfig(encoders=f"tiny,{given}")


def test_no_name_is_near_an_empty_text():
    assert near_names("", ("a", "b")) == near_names("-", ("a", "b")) == ""
