"""Contracts of the tables that stages sgd, evaluate, copies and finetune write: columns, types and ranges of values.

A stage validates a table before it writes it, and the readers validate it again, with the models of this file.
"""

from __future__ import annotations

import pandas as pd
import pandera.pandas as pa

from pipeline.contracts import Contract, correlation, count, finite, natural, positive, share
from pipeline.evaluation.significance import PairedComparisons

# The columns of a summary that exist for each initialisation.
TOP1, TOP1_ERROR, TOP1_MAX, TOP5 = r"^.+(?<!_running)_top1$", r"^.+_top1_error$", r"^.+_top1_max$", r"^.+_top5$"
RUNNING_TOP1 = r"^.+_running_top1$"
NONFINITE = r"^(.+_)?nonfinite$"

ALL_SPLITS = "all"
"""The name of all splits together, in tables of correlations."""


class NetworkTable(Contract):
    """A table with networks: `name` is that of a predefined one, else empty; `identity` is the network's hash."""

    split: str
    index: int = natural()
    name: str
    identity: str
    parameters: int = count()
    nodes: int = count()


class ArchitectureScores(NetworkTable):
    """`results/evaluate/architectures.parquet`: a row for each (split, index, initialisation).

    `name` is that of a predefined network, else empty; `identity` the network's hash. `loss` is the mean cross
    entropy, missing if it is not finite. Networks normalise with the statistics of each batch; `running_top1` is the
    accuracy with running statistics, missing if it was not measured. `initialise_seconds` is the time of making the
    parameters, a part of `seconds`, the time of the measurement of the other figures.
    """

    initialisation: str
    top1: float = share()
    top5: float = share()
    loss: float = finite(nullable=True)
    running_top1: float = share(nullable=True)
    initialise_seconds: float = finite()
    seconds: float = finite()

    class Config:
        unique = ["split", "index", "initialisation"]

    @pa.dataframe_check(error="a table with every initialisation of each architecture")
    def is_complete(cls, table: pd.DataFrame) -> bool:
        return bool((table.groupby(["split", "index"]).size() == table["initialisation"].nunique()).all())


class CopyScores(ArchitectureScores):
    """`results/copies/architectures.parquet`: a row for each (split, index, initialisation), a copy onto a network.

    `initialisation` is `copy_wl` or `copy_embedding`, after the way in which the most similar source was found.
    `source` is its index in split train, `similarity` how similar it is, `source_top1` its own accuracy, and
    `source_train_seconds` the time of its training. `share_copied` is the share of the network's parameters that come
    from it. The others are random, as those of initialisation `random`.
    """

    source: int = natural()
    similarity: float = correlation()
    share_copied: float = share()
    source_top1: float = share()
    source_train_seconds: float = finite()


class SplitSummary(Contract):
    """`results/evaluate/summary.csv`: a row for each split, over its architectures.

    For each initialisation: `<initialisation>_top1`, the mean, `_top1_error`, its standard error (missing for a single
    architecture), `_top1_max`, `_top5`, `_running_top1`, the mean over the architectures that have it (missing if none
    has), and `_nonfinite`, the number of architectures without a finite loss. `nonfinite` is that of the headline's
    initialisation.
    """

    split: str = pa.Field(unique=True)
    architectures: int = count()
    top1: float = share(alias=TOP1, regex=True)
    top1_error: float = finite(alias=TOP1_ERROR, regex=True, nullable=True)
    top1_max: float = share(alias=TOP1_MAX, regex=True)
    top5: float = share(alias=TOP5, regex=True)
    running_top1: float = share(alias=RUNNING_TOP1, regex=True, nullable=True)
    nonfinite: int = natural(alias=NONFINITE, regex=True)


class SimilarityToTraining(Contract):
    """`results/evaluate/similarity.parquet`: a row for each (split, index, by), the nearest training architecture.

    `by` is a way to compare networks (`pipeline.evaluation.nearest`): `wl`, by the kernel of their graphs, 0 to 1, or
    `embedding`, by the cosine of their embeddings, -1 to 1. `similarity` is that of the nearest of the first training
    architectures, and `nearest` its index in split train. The distance is 1 - similarity.
    """

    split: str
    index: int = natural()
    by: str
    similarity: float = correlation()
    nearest: int = natural()

    class Config:
        unique = ["split", "index", "by"]


class SimilarityCorrelations(Contract):
    """`results/evaluate/similarity.csv`: a row for each (split, initialisation, by), and for split `all`.

    `rho` is Spearman's ρ of top-1 accuracy with the similarity of the nearest training architecture, over
    `architectures`; `low` and `high` are the bounds of its 95 % interval. They are missing for few architectures, and
    where accuracies or similarities are all the same.
    """

    split: str
    initialisation: str
    by: str
    architectures: int = count()
    rho: float = correlation(nullable=True)
    low: float = correlation(nullable=True)
    high: float = correlation(nullable=True)

    class Config:
        unique = ["split", "initialisation", "by"]


class SgdScores(NetworkTable):
    """`results/sgd/scores.parquet`: a row for each (split, index, epochs), a network trained by SGD.

    Split `train` has the sources of nearest copies. `name`, `identity` and `loss` are those of `ArchitectureScores`.
    `rate_is_inside`: a smaller and a larger learning rate were tried, neither of which was better. `running_top1` is
    the accuracy with running statistics, `noisy_top1` that on test images with noise. `convergence_steps` is the first
    step at which the running training accuracy reaches the setting `sgd.converged_at`, missing if there is none.
    `train_seconds` is the time of training, `seconds` that of the measurements too.
    """

    epochs: int = count()
    learning_rate: float = positive()
    rate_is_inside: bool
    top1: float = share()
    top5: float = share()
    loss: float = finite(nullable=True)
    running_top1: float = share()
    noisy_top1: float = share()
    convergence_steps: pd.Int64Dtype = count(nullable=True)
    steps: int = count()
    train_seconds: float = finite()
    seconds: float = finite()

    class Config:
        unique = ["split", "index", "epochs"]

    @pa.dataframe_check(error="a table with every budget of each architecture")
    def is_complete(cls, table: pd.DataFrame) -> bool:
        return bool((table.groupby(["split", "index"]).size() == table["epochs"].nunique()).all())


class SgdLearningRates(Contract):
    """`results/sgd/learning_rates.csv`: a row for each budget and learning rate that was tried.

    `held_out_top1` is the mean accuracy on held-out images, over the architectures that choose.
    """

    epochs: int
    learning_rate: float
    held_out_top1: float = share()
    is_chosen: bool

    class Config:
        unique = ["epochs", "learning_rate"]


class FinetuningCurves(Contract):
    """`results/finetune/curves.parquet`: the test accuracy of each run at each measured step.

    A run is (dataset, images_per_class, architecture, initialisation, seed); `architecture` is an index in split test.
    `rate_is_inside`: a smaller and a larger learning rate were tried, neither of which was better.
    """

    dataset: str
    images_per_class: int = count()
    architecture: int = natural()
    initialisation: str
    seed: int = natural()
    learning_rate: float = positive()
    rate_is_inside: bool
    step: int = natural()
    test_top1: float = share()

    class Config:
        unique = ["dataset", "images_per_class", "architecture", "initialisation", "seed", "step"]


class LearningRates(Contract):
    """`results/finetune/learning_rates.csv`: a row for each learning rate that was tried.

    `held_out_top1` is the mean accuracy on held-out images after all steps, over the architectures that choose.
    """

    dataset: str
    images_per_class: int
    initialisation: str
    learning_rate: float
    held_out_top1: float = share()
    is_chosen: bool

    class Config:
        unique = ["dataset", "images_per_class", "initialisation", "learning_rate"]


class FinetuningSummary(Contract):
    """`results/finetune/summary.csv`: a row for each (dataset, images_per_class, initialisation), over its runs.

    `steps` is the number of steps, `classes` that of the data set's classes. `test_top1` is the mean final accuracy,
    `test_top1_error` its standard error (missing for a single run). `target_top1` is the mean final accuracy of the
    baseline, `steps_to_target` the first measured step at which the mean accuracy is at least that, and
    `share_to_target` its share of the steps (both missing if there is none).
    """

    dataset: str
    images_per_class: int = count()
    initialisation: str
    classes: int = count()
    steps: int = count()
    learning_rate: float = positive()
    rate_is_inside: bool
    runs: int = count()
    test_top1: float = share()
    test_top1_error: float = finite(nullable=True)
    steps_to_target: pd.Int64Dtype = natural(nullable=True)
    share_to_target: float = share(nullable=True)
    target_top1: float = share()

    class Config:
        unique = ["dataset", "images_per_class", "initialisation"]


class FinetuningBudgets(PairedComparisons):
    """`results/finetune/budgets.csv`: a row for each (dataset, images_per_class, initialisation) and budget.

    `budget` is a share of the steps, and `step` the step there. `test_top1` is the mean accuracy over the runs,
    `difference` its mean difference from the baseline, paired over architectures and seeds. `p_value` is that of the
    difference, and `corrected_p_value` the same, corrected for the number of comparisons in the table. The baseline has
    no difference, and a single run no error and no p-value.
    """

    dataset: str
    images_per_class: int = count()
    initialisation: str
    budget: float = share()
    step: int = count()
    runs: int = count()
    test_top1: float = share()
    test_top1_error: float = finite(nullable=True)

    class Config:
        unique = ["dataset", "images_per_class", "initialisation", "budget"]
