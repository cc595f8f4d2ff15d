"""Literal text in figures, with fallback fonts for characters that the default font lacks."""

import functools
import logging

import numpy as np
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text
from matplotlib.ticker import LogFormatter, ScalarFormatter

from petseg.files import printable

logger = logging.getLogger(__name__)
BOXES = "Last Resort"  # matplotlib's font of placeholder boxes, which claims to have every character
NAMED_CHARACTERS = 12  # at most, in the warning


def prepare(figure: Figure) -> None:
    """Makes texts with arbitrary file and class names safe to draw.

    Switches off mathtext, replaces undrawable characters, and adds fonts for characters that the default font lacks;
    warns once about characters that no installed font has.
    """
    texts, numbers = figure.findobj(Text), _numbers(figure)
    for text in texts:
        text.set_usetex(False)
        text.set_parse_math(text in numbers)
        if text.get_text() != (drawn := printable(text.get_text(), keep="\n")):
            text.set_text(drawn)
    characters = frozenset(character for text in texts for character in text.get_text() if character != "\n")
    fonts = _fonts.covering(characters)
    for text in texts if fonts else ():
        families = text.get_fontfamily()
        text.set_fontfamily([*families, *(font for font in fonts if font not in families)])


def _numbers(figure: Figure) -> set[Text]:
    """Tick labels of numeric axes, which matplotlib itself may write as mathtext."""
    axes = [axis for each in figure.axes for axis in (each.xaxis, each.yaxis)]
    numeric = [axis for axis in axes if isinstance(axis.get_major_formatter(), (ScalarFormatter, LogFormatter))]
    return {text for axis in numeric for text in axis.findobj(Text) if text is not axis.label}


class _Fonts:
    """Fallback fonts for all characters so far."""

    def __init__(self) -> None:
        self._chosen: list[str] = []
        self._searched: set[str] = set()
        self._warned = False

    def covering(self, characters: frozenset[str]) -> list[str]:
        """Font families needed beside the default one for these characters and all earlier ones."""
        new = characters - self._searched
        self._searched |= new
        missing = _missing_from(np.array(sorted(map(ord, new)), np.uint32), "")
        for family in self._chosen:
            missing = _missing_from(missing, family)
        while len(missing):
            left = {family: _missing_from(missing, family) for family in _families()}
            best = min(left, key=lambda family: len(left[family]), default="")
            if not best or len(left[best]) == len(missing):
                break
            self._chosen.append(best)
            missing = left[best]
        if len(missing) and not self._warned:
            self._warned = True
            shown = " ".join(chr(code) for code in missing[:NAMED_CHARACTERS])
            logger.warning(
                "figures show boxes for characters of names that no installed font has (%s); install a font that has "
                "them, such as Noto Sans (fonts-noto, fonts-noto-cjk)",
                shown,
            )
        return self._chosen


_fonts = _Fonts()


@functools.cache
def _families() -> dict[str, str]:
    """Installed font families and a file of each, preferably the regular one."""
    entries = sorted(
        font_manager.fontManager.ttflist, key=lambda entry: entry.weight == 400 and entry.style == "normal"
    )
    return {entry.name: entry.fname for entry in entries if not entry.name.startswith(BOXES)}


def _missing_from(codes: np.ndarray, family: str) -> np.ndarray:
    return codes[~np.isin(codes, _codes_of(family))] if len(codes) else codes


@functools.cache
def _codes_of(family: str) -> np.ndarray:
    """Code points of a font family, uint32; of the default font for an empty name."""
    try:
        file = _families()[family] if family else font_manager.findfont(FontProperties())
        return np.fromiter(FT2Font(file).get_charmap(), np.uint32)
    except (OSError, RuntimeError, ValueError):  # matplotlib cannot use the font, for example one of coloured bitmaps
        return np.zeros(0, np.uint32)
