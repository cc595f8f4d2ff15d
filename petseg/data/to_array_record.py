"""Converts a TFDS data set from TFRecord to array_record files, which --cache=none reads.

    python -m petseg.data.to_array_record --dataset=NAME --data_dir=DIR --output_dir=OTHER

Then train with --data_dir=OTHER --cache=none.
"""

import dataclasses
import json
import logging
import shutil
from pathlib import Path

from petseg.config import command_line
from petseg.config.options import Group, option
from petseg.errors import ConfigError
from petseg.runtime import startup

logger = logging.getLogger("petseg.data.to_array_record")  # __name__ may be __main__


@dataclasses.dataclass(frozen=True)
class ConversionConfig(Group):
    """Flags: the data set, and the output folder."""

    dataset: str = option("oxford_iiit_pet", "TFDS data set", required=True)
    data_dir: str = option("", "folder of prepared TFDS data sets; empty: TFDS's own default")
    output_dir: str = option("", "folder for the converted data set, not --data_dir")
    debug: bool = option(False, "show the traceback of an error that is otherwise one line")


def main(config: ConversionConfig) -> None:
    """Writes the records of a data set, in the same order, to array_record files.

    Raises ConfigError if --output_dir is missing or has the data set already, or the files cannot be written, and
    PetsegError if the data set cannot be opened.
    """
    if not config.output_dir:
        raise ConfigError("--output_dir: must be a folder for the converted data set")
    startup.load_tensorflow(show_greetings=config.debug)  # after the flags are checked
    from petseg import files
    from petseg.data import catalog, tfds_builders

    builder = tfds_builders.prepare(config.dataset, config.data_dir)
    source = Path(builder.data_path)
    target = Path(config.output_dir).expanduser() / builder.info.full_name
    if target.exists():
        raise ConfigError(f"--output_dir={config.output_dir}: {target} exists; must be another folder")
    unfinished = target.with_name(f".{target.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    with files.explain_write_errors(target, flag=f"--output_dir={config.output_dir}", error_class=ConfigError):
        unfinished.mkdir(parents=True)
        for file in sorted(source.iterdir()):
            if f".{builder.info.file_format.value}-" in file.name:
                _convert(file, unfinished, builder.info.file_format.value)
            elif file.is_file():
                shutil.copy(file, unfinished)
        info = json.loads((unfinished / "dataset_info.json").read_text())
        info["fileFormat"] = catalog.ARRAY_RECORD
        (unfinished / "dataset_info.json").write_text(json.dumps(info, indent=2))
        files.move(unfinished, target)
    print(f"{builder.info.full_name}: {target}\ntrain with --data_dir={config.output_dir} --cache=none")


def _convert(file: Path, folder: Path, file_format: str) -> None:
    """Writes the records of one TFRecord file as array_record."""
    import tensorflow as tf
    from array_record.python import array_record_module

    from petseg.data.catalog import ARRAY_RECORD

    # One record per group, so that random access decompresses no others.
    path = folder / file.name.replace(f".{file_format}-", f".{ARRAY_RECORD}-")
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
    for record in tf.data.TFRecordDataset(str(file)).as_numpy_iterator():
        writer.write(record)
    writer.close()
    logger.info("wrote %s", path.name)


if __name__ == "__main__":
    command_line.run(main, ConversionConfig, __doc__)
