"""Wheel and sdist, installed without a checkout."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT, own_lines
from PIL import Image

from petseg import __version__
from petseg.config import presets

pytestmark = pytest.mark.slow
PRETRAINED = ROOT / "petseg" / "pretrained" / "pets.safetensors"
# In the new environment: where petseg is, and what each preset says of its classes.
PARSE = """
import json, petseg
from petseg.config import Config, command_line, presets
configs = {name: command_line.parse(["petseg-train", f"--preset={name}"], Config) for name in presets.names()}
files = [config.data.classes_file for config in configs.values() if config.data.classes]
print(json.dumps({"file": petseg.__file__, "presets": list(configs), "classes": [file.is_file() for file in files]}))
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The wheel and the sdist that it was built from, out of a copy without what builds left in the checkout."""
    source = tmp_path_factory.mktemp("source")
    unwanted = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("petseg", "tests", "docs"):
        shutil.copytree(ROOT / name, source / name, ignore=unwanted)
    for file in ROOT.iterdir():
        if file.is_file() and not file.name.startswith("."):
            shutil.copy(file, source)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(source / "dist")]
    result = subprocess.run(command, cwd=source, capture_output=True, text=True, env=without_checkout())
    assert result.returncode == 0, result.stdout + result.stderr
    (wheel,), (sdist,) = (source / "dist").glob("*.whl"), (source / "dist").glob("*.tar.gz")
    return wheel, sdist


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """The programs' folder of a new environment with the wheel in it, and with this one's packages, but for petseg."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    pip = [str(python), "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--ignore-installed", str(built[0])]
    where_pip_is = str(Path(importlib.util.find_spec("pip").origin).parents[1])
    subprocess.run(pip, check=True, env={**without_checkout(), "PYTHONPATH": where_pip_is})
    (site_packages,) = folder.glob("lib/python*/site-packages")
    # Python does not read the .pth files of folders that a .pth file names, so an editable petseg is not found there.
    others = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (site_packages / "others.pth").write_text("\n".join(others))
    return folder / "bin"


def without_checkout():
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def run(folder, *command):
    return subprocess.run(
        list(map(str, command)), cwd=folder, env=without_checkout(), capture_output=True, text=True, timeout=120
    )


def test_wheel_and_sdist_are_complete(built):
    wheel, sdist = built
    assert [file.name.split("-")[1].removesuffix(".tar.gz") for file in built] == [__version__] * 2
    packaged = zipfile.ZipFile(wheel).namelist()
    files = [file.relative_to(ROOT) for file in (ROOT / "petseg").rglob("*") if file.is_file()]
    of_packages = [str(file) for file in files if "__pycache__" not in file.parts]
    assert {file for file in of_packages if not file.endswith("README.md")} <= set(packaged)
    assert not [name for name in packaged if not name.startswith(("petseg/", f"petseg-{__version__}.dist-info/"))]
    with tarfile.open(sdist) as archive:
        contents = {name.partition("/")[2] for name in archive.getnames()}
    assert {*of_packages, "train.py", "eval.py", "README.md", "LICENSE", "tests/conftest.py"} <= contents


def test_an_installed_petseg_works_from_an_empty_folder(installed, tmp_path):
    parsed = run(tmp_path, installed / "python", "-c", PARSE)
    assert parsed.returncode == 0, parsed.stderr
    found = json.loads(parsed.stdout)
    assert Path(found["file"]).is_relative_to(installed.parent)
    assert found["presets"] == list(presets.names())
    assert found["classes"] == [True]
    for program in ("petseg-train", "petseg-eval"):
        shown = run(tmp_path, installed / program, "--help")
        assert (shown.returncode, shown.stderr) == (0, "")
        assert f"usage: {program} [" in shown.stdout
    wrong = run(tmp_path, installed / "petseg-train", "--preset=quickstart", "--batch_size=0")
    assert wrong.returncode == 2
    assert own_lines(wrong.stderr) == ["petseg-train: error: --batch_size=0: must be a whole number of at least 1"]
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not PRETRAINED.exists(), reason="no model is packaged")
def test_an_installed_petseg_predicts_with_its_own_model(installed, tmp_path):
    shutil.copy(ROOT / "docs" / "pictures" / "quickstart.jpg", tmp_path / "photo.jpg")
    command = [installed / "petseg-eval", "--pretrained", "--predict=photo.jpg", "--output_dir=masks"]
    result = run(tmp_path, *command)
    assert result.returncode == 0, result.stderr
    sizes = {Image.open(file).size for file in (tmp_path / "masks").rglob("*.png")}
    assert Image.open(tmp_path / "photo.jpg").size in sizes
