"""Configuration: each field of a frozen dataclass is a flag. Imports no TensorFlow."""

from petseg.config.augmentation_config import AugmentationConfig
from petseg.config.data_config import CACHE_DIR, DataConfig
from petseg.config.distribution_config import DistributionConfig
from petseg.config.extension_config import ExtensionConfig
from petseg.config.model_config import ModelConfig
from petseg.config.serialization import (
    CONFIG_FORMAT,
    changes,
    code_hashes,
    code_references,
    fingerprint,
    from_dict,
    hyperparameters,
    markdown_of,
    to_dict,
    with_code,
    with_run_defaults,
    without_code,
)
from petseg.config.train_config import (
    PRECISIONS,
    ComputeConfig,
    Config,
    LossConfig,
    OptimizerConfig,
    RuntimeConfig,
    ScheduleConfig,
)
