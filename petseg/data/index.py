"""Writes the index by which --cache=none finds single records: python -m petseg.data.index [flags of the data].

One small file for each TFRecord file, beside it, or under --cache_dir where nothing can be written there. A training
that finds none writes it at its start; for many files, have it written before, on a machine near them. Started again,
it goes on with what is missing. Files of array_record bring an index of their own.
"""

import dataclasses
import logging
import multiprocessing
from concurrent import futures

from petseg.config import DataConfig, command_line
from petseg.config.options import Group, option
from petseg.runtime import startup
from petseg.runtime.cpus import usable_cpus

logger = logging.getLogger("petseg.data.index")  # whose __name__ is __main__


@dataclasses.dataclass(frozen=True)
class IndexOptions(Group):
    """How the index is written."""

    processes: int = option(0, "number of files that are read at one time; 0: as many as there are CPUs", minimum=0)
    debug: bool = option(False, "show the traceback of an error that is otherwise one line")


@dataclasses.dataclass(frozen=True)
class IndexConfig:
    """All flags: those of the data, of which all splits are read, and its own."""

    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    index: IndexOptions = dataclasses.field(default_factory=IndexOptions)


def main(config: IndexConfig) -> None:
    """Writes what is missing of the index of a data set.

    Raises:
      PetsegError: if the data set cannot be had or read, or the index cannot be written.
    """
    startup.load_tensorflow(show_greetings=config.index.debug)  # after the flags are checked
    from petseg.data import catalog
    from petseg.data.records import record_index

    data_set = catalog.open_data(config.data)
    if data_set.file_format != catalog.TFRECORD:
        print(f"{data_set.full_name} lies in files of format {data_set.file_format}: no index is needed")
        return
    shards = [
        record_index.Shard(stretch.file, stretch.in_file)
        for split in data_set.builder.info.splits
        for stretch in data_set.stretches(split)
    ]
    folder = record_index.folder_of(shards, config.data.cache_dir)
    lacking = record_index.missing(shards, folder)
    processes = min(config.index.processes or usable_cpus(), len(lacking) or 1)
    done = len(shards) - len(lacking)

    def tell(shard: record_index.Shard) -> None:
        nonlocal done
        done += 1
        logger.info("%d of %d: %s, %d records", done, len(shards), shard.file.name, shard.count)

    if lacking:
        # Spawned, for TensorFlow runs in this one.
        with futures.ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as executor:
            record_index.write(
                lacking, folder, executor, tell, flag=record_index.flag_of(folder, config.data.cache_dir)
            )
    records = sum(shard.count for shard in shards)
    print(f"{data_set.full_name}: {records} records in {len(shards)} files; index: {folder}")


if __name__ == "__main__":
    command_line.run(main, IndexConfig, __doc__)
