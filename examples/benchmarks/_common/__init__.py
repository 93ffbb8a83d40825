"""What the benchmark scripts share, an idea a module; scripts import the names from here.

- `command_line`: options, and parameters of the classifier from them
- `data`: data sets, and the digest of one
- `scores`: AUC and accuracy as MedMNIST computes them, AUROC of unusual images, intervals
- `machine`: reference seconds, description of the machine, processes of their own
- `records`: what a record holds, and which records count today
- `networks`: ResNets and a vision transformer in plain torch
- `generated`: generated images beside real ones
- `systems`: everything that is trained on the same data, in one registry
"""

from _common.command_line import (
    RECORDS_FOLDER,
    add_budget_options,
    add_data_options,
    add_npz_option,
    add_settings_option,
    budget_of,
    group_parameters,
    make_parser,
    settings_of,
    shown_settings,
    split_settings,
)
from _common.data import (
    SPLITS,
    as_bytes,
    as_tensor,
    describe_data,
    first_images,
    load,
    resized,
)
from _common.generated import (
    DEFAULT_SAMPLER,
    PAPERS_SAMPLER,
    PAPERS_SAMPLING,
    counts_of,
    make_imagenet_features,
    name_sampler,
    quality,
    sample_images,
    sampler_of,
)
from _common.machine import (
    REFERENCE_GFLOPS,
    describe_machine,
    gemm_gflops,
    in_own_process,
    local_seconds,
    peak_memory_mib,
    reference_seconds,
)
from _common.networks import (
    MEDMNIST_RECIPE,
    Recipe,
    ResidualBlock,
    TrainedNetwork,
    make_resnet,
    make_vit,
    train_network,
)
from _common.records import (
    Benchmark,
    Records,
    asked_parameters,
    described,
    is_earlier,
    machines,
    resolved_parameters,
)
from _common.scores import accuracy, auc_score, auroc, mean_and_spread, resampled_interval
from _common.systems import (
    BALANCED,
    RESNET18,
    SYSTEMS,
    VOTING,
    System,
    Task,
    Trained,
    equal_seconds,
    frozen_backbone,
    paper_name,
)

__all__ = [
    "BALANCED",
    "DEFAULT_SAMPLER",
    "MEDMNIST_RECIPE",
    "PAPERS_SAMPLER",
    "PAPERS_SAMPLING",
    "RECORDS_FOLDER",
    "REFERENCE_GFLOPS",
    "RESNET18",
    "SPLITS",
    "SYSTEMS",
    "VOTING",
    "Benchmark",
    "Recipe",
    "Records",
    "ResidualBlock",
    "System",
    "Task",
    "Trained",
    "TrainedNetwork",
    "accuracy",
    "add_budget_options",
    "add_data_options",
    "add_npz_option",
    "add_settings_option",
    "as_bytes",
    "as_tensor",
    "asked_parameters",
    "auc_score",
    "auroc",
    "budget_of",
    "counts_of",
    "describe_data",
    "describe_machine",
    "described",
    "equal_seconds",
    "first_images",
    "frozen_backbone",
    "gemm_gflops",
    "group_parameters",
    "in_own_process",
    "is_earlier",
    "load",
    "local_seconds",
    "machines",
    "make_imagenet_features",
    "make_parser",
    "make_resnet",
    "make_vit",
    "mean_and_spread",
    "name_sampler",
    "paper_name",
    "peak_memory_mib",
    "quality",
    "reference_seconds",
    "resampled_interval",
    "resized",
    "resolved_parameters",
    "sample_images",
    "sampler_of",
    "settings_of",
    "shown_settings",
    "split_settings",
    "train_network",
]
