"""The Markdown files: relative links and anchors resolve, pictures are used, and the top README stays short."""

import re
from collections import Counter

import pytest
from conftest import ROOT

FILES = sorted(
    path
    for folder in ("*.md", "docs/**/*.md", "petseg/**/*.md", "tests/**/*.md", "examples/**/*.md")
    for path in ROOT.glob(folder)
)
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(<?([^)\s>]+)>?\)")


def prose(path):
    return FENCED.sub("", path.read_text())


def targets(path):
    """Relative links of a Markdown file, without code."""
    text = re.sub(r"`[^`\n]*`", "", prose(path))
    return [link for link in LINK.findall(text) if not re.match(r"[a-z]+:", link)]


def anchors(path):
    """Anchors of the headings of a Markdown file, as GitHub makes them."""
    found = Counter()
    for heading in re.findall(r"^#{1,6} +(.+?) *#* *$", prose(path), re.MULTILINE):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("\\", "").lower()
        slug = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        yield f"{slug}-{found[slug]}" if found[slug] else slug
        found[slug] += 1


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_relative_links_and_anchors_resolve(path):
    for link in targets(path):
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        assert target.exists(), f"{link}: no such file"
        assert not anchor or anchor in anchors(target), f"{link}: no such heading"


def test_every_image_is_shown_by_a_markdown_file():
    used = {(path.parent / link).resolve() for path in FILES for link in targets(path)}
    pictures = {path for path in (ROOT / "docs" / "pictures").iterdir() if path.suffix != ".py"}
    assert pictures <= used, f"unused: {sorted(path.name for path in pictures - used)}"


def test_the_top_readme_has_at_most_150_lines():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
