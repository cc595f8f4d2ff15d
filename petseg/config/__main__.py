"""Writes the tables of flags into the package's README.md: python -m petseg.config."""

from pathlib import Path

from petseg.config import Config
from petseg.config.eval_config import EvalConfig
from petseg.config.options import markdown_table

README = Path(__file__).parent / "README.md"


def with_tables(text: str) -> str:
    """Returns the text with its tables of flags, between their markers, generated from the config classes."""
    tables = {
        "train.py": markdown_table(Config),
        "eval.py": markdown_table(EvalConfig, without=["distribution"]),  # which the table of train.py has
    }
    for program, table in tables.items():
        table = f"<!-- {program}: begin -->\n\n{table}\n\n<!-- {program}: end -->"
        before, after = text.partition(f"<!-- {program}: begin -->")[0], text.partition(f"<!-- {program}: end -->")[2]
        text = before + table + after
    return text


if __name__ == "__main__":
    README.write_text(with_tables(README.read_text()))
