"""Flags and what they mean: one field of a frozen dataclass is one flag. Imports no TensorFlow."""

from petseg.config.distribution_config import DistributionConfig
from petseg.config.serialization import (
    CONFIG_FORMAT,
    changes,
    fingerprint,
    from_dict,
    hyperparameters,
    markdown_of,
    to_dict,
)
from petseg.config.train_config import (
    CACHE_DIR,
    PRECISIONS,
    AugmentationConfig,
    ComputeConfig,
    Config,
    DataConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    RuntimeConfig,
    ScheduleConfig,
)

__all__ = [
    "CACHE_DIR",
    "CONFIG_FORMAT",
    "PRECISIONS",
    "AugmentationConfig",
    "ComputeConfig",
    "Config",
    "DataConfig",
    "DistributionConfig",
    "LossConfig",
    "ModelConfig",
    "OptimizerConfig",
    "RuntimeConfig",
    "ScheduleConfig",
    "changes",
    "fingerprint",
    "from_dict",
    "hyperparameters",
    "markdown_of",
    "to_dict",
]
