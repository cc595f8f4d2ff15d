"""Writes the tables of flags into the package's README.md: python -m petseg.config."""

from pathlib import Path

from petseg.config import Config
from petseg.config.eval_config import EvalConfig
from petseg.config.options import markdown_table

README = Path(__file__).parent / "README.md"


def with_tables(text: str) -> str:
    """A text whose tables of flags, between their markers, are as the flags are."""
    for program, config_class in (("train.py", Config), ("eval.py", EvalConfig)):
        table = f"<!-- {program}: begin -->\n\n{markdown_table(config_class)}\n\n<!-- {program}: end -->"
        before, after = text.partition(f"<!-- {program}: begin -->")[0], text.partition(f"<!-- {program}: end -->")[2]
        text = before + table + after
    return text


if __name__ == "__main__":
    README.write_text(with_tables(README.read_text()))
