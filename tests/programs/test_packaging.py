"""Requirements of package indexes."""

import configparser

from conftest import ROOT


def test_no_requirement_is_a_direct_url():
    """PyPI refuses a package that names one, also in an extra."""
    setup = configparser.ConfigParser(interpolation=None)
    setup.read(ROOT / "setup.cfg")
    extras = setup["options.extras_require"]
    named = "\n".join([setup["options"]["install_requires"], *extras.values()])
    assert len(extras) > 3
    assert "@" not in named
    assert "://" not in named
