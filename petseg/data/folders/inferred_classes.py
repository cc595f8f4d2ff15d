"""Classes of a folder without a classes file: one for each value or colour in its masks."""

import dataclasses
from collections.abc import Sequence

from petseg.classes import IGNORED, MAX_CLASSES, MIN_CLASSES, UNNAMED, Classes, Color, SegmentationClass, distinct_color
from petseg.data.folders.faults import Fault, Kind
from petseg.data.folders.mask_values import ZERO_AND_255, color_number, color_of
from petseg.data.mask_survey import MaskFacts, MaskSurvey
from petseg.errors import ConfigError

CLASSES_FILE = "classes.json"


def classes_from_masks(masks: Sequence[tuple[str, MaskFacts]]) -> tuple[Classes | None, list[Fault]]:
    """A class for each value that masks, given by name and facts, hold; None if they have faults."""
    survey = MaskSurvey(None)
    for name, facts in masks:
        survey.add(name, facts)
    found = survey.faults()
    if any(fault.kind is Kind.RESAMPLED for fault in found):
        return None, found
    try:
        classes = _classes_of([facts for _, facts in masks], colored=survey.holds_colors)
    except ConfigError as error:
        return None, [Fault(Kind.CLASSES, CLASSES_FILE, f"there is none, and {error}")]
    return (None, found) if found else (classes, [])


def _classes_of(found: Sequence[MaskFacts], *, colored: bool) -> Classes:
    """Creates a class for each value found in masks.

    Args:
      colored: whether colours are the values; numbers are then converted to colours by palettes, or as shades of grey.

    Raises:
      ConfigError: if the number of values is no valid number of classes, or a classes file is needed.
    """
    numbers: set[int] = set()
    palette: dict[int, Color] = {}  # of values
    for facts in found:
        values, colors = facts.values.tolist(), () if facts.palette is None else map(tuple, facts.palette.tolist())
        own = dict(zip(values, colors, strict=False))
        palette = own | palette
        convert = colored and not facts.colored
        numbers.update(color_number(own.get(value, (value, value, value))) if convert else value for value in values)
    if not colored and IGNORED in numbers and len(numbers) == 2:
        raise ConfigError(
            f"the masks hold {min(numbers)} and 255 alone, and 255 is ignored without a classes file; it must be "
            f"{ZERO_AND_255}"
        )
    used = sorted(numbers if colored else numbers - {IGNORED})
    if not MIN_CLASSES <= len(used) <= MAX_CLASSES:
        what = "colours" if colored else "values"
        hint = '; those of panoptic masks are segments, whose classes "segments_info" has' if colored else ""
        raise ConfigError(
            f"the masks hold {len(used)} {what}; must be {MIN_CLASSES} to {MAX_CLASSES}, one for each class{hint}"
        )
    members, taken = [], set()
    for i, number in enumerate(used):
        color = color_of(number) if colored else palette.get(number)
        if color is None or color in taken:
            color = next(free for free in map(distinct_color, range(1000)) if free not in taken)
        taken.add(color)
        members.append(SegmentationClass(f"{UNNAMED}{i if colored else number}", color if colored else number, color))
    if len(members) == 2:
        members[1] = dataclasses.replace(members[1], foreground=1.0)  # the default of classes files
    return Classes(tuple(members))
