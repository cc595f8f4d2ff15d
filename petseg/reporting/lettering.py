"""Text in figures: drawn as it is, in fonts that have its characters."""

import functools
import logging

import numpy as np
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text
from matplotlib.ticker import LogFormatter, ScalarFormatter

logger = logging.getLogger(__name__)
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
BOXES = "Last Resort"  # matplotlib's own font of boxes, which claims to have every character
NAMED_CHARACTERS = 12  # at most, in the warning


def prepare(figure: Figure) -> None:
    """Makes the texts of a figure safe to draw, whatever file and class names they hold.

    Dollar signs are not read as mathematics, what cannot be drawn at all is replaced, and fonts are added for
    characters that the default font lacks. Where no installed font has them, a warning says so once.
    """
    texts, numbers = figure.findobj(Text), _numbers(figure)
    for text in texts:
        text.set_usetex(False)
        text.set_parse_math(text in numbers)
        if text.get_text() != (drawn := printable(text.get_text())):
            text.set_text(drawn)
    characters = frozenset(character for text in texts for character in text.get_text() if character != "\n")
    fonts = _fonts.that_have(characters)
    for text in texts if fonts else ():
        families = text.get_fontfamily()
        text.set_fontfamily([*families, *(font for font in fonts if font not in families)])


def _numbers(figure: Figure) -> set[Text]:
    """The numbers along axes, which matplotlib itself may write as mathematics."""
    axes = [axis for each in figure.axes for axis in (each.xaxis, each.yaxis)]
    numeric = [axis for axis in axes if isinstance(axis.get_major_formatter(), (ScalarFormatter, LogFormatter))]
    return {text for axis in numeric for text in axis.findobj(Text) if text is not axis.label}


def printable(text: str) -> str:
    """A text without control characters and without the bytes of a name that is not UTF-8, which fonts cannot draw."""
    return "".join(each if each == "\n" or not _is_control(each) else REPLACEMENT for each in text)


def _is_control(character: str) -> bool:
    code = ord(character)
    return code < 0x20 or 0x7F <= code < 0xA0 or 0xD800 <= code < 0xE000


class _Fonts:
    """Finds fonts for characters, and remembers which it has looked for."""

    def __init__(self) -> None:
        self._chosen: list[str] = []
        self._looked_for: set[str] = set()
        self._warned = False

    def that_have(self, characters: frozenset[str]) -> list[str]:
        """The families that are needed beside the default one for these characters and all before them."""
        new = characters - self._looked_for
        self._looked_for |= new
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
                "pictures show boxes in place of some characters of names (%s), which no installed font has; install "
                "one that has them, such as Noto Sans (fonts-noto, fonts-noto-cjk)",
                shown,
            )
        return self._chosen


_fonts = _Fonts()


@functools.cache
def _families() -> dict[str, str]:
    """The installed font families, and a file of each, the regular one if there is one."""
    entries = sorted(
        font_manager.fontManager.ttflist, key=lambda entry: entry.weight == 400 and entry.style == "normal"
    )
    return {entry.name: entry.fname for entry in entries if not entry.name.startswith(BOXES)}


def _missing_from(codes: np.ndarray, family: str) -> np.ndarray:
    return codes[~np.isin(codes, _codes_of(family))] if len(codes) else codes


@functools.cache
def _codes_of(family: str) -> np.ndarray:
    """The characters of a font family, uint32; of the default font if the name is empty."""
    try:
        file = _families()[family] if family else font_manager.findfont(FontProperties())
        return np.fromiter(FT2Font(file).get_charmap(), np.uint32)
    except (OSError, RuntimeError, ValueError):  # a font that matplotlib cannot use, such as one of coloured bitmaps
        return np.zeros(0, np.uint32)
