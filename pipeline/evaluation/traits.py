"""What evaluated networks are like: their traits and embeddings, and how accuracy differs with each trait.

Traits come together: networks with attention often lack convolutions. So beside the difference of the means of networks
with and without a trait there is the adjusted one: its coefficient in a linear regression of accuracy on all traits.

Dimensions: N networks, H hidden, T traits, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import pandera.pandas as pa
from pandera.typing import DataFrame
from scipy.stats import ttest_ind

from ghn.deepnets1m.traits import LONG_PATH, TRAITS, traits_of
from ghn.networks.network import Network
from pipeline.contracts import Contract, finite, natural, share
from pipeline.evaluation.initialisations import HEADLINE
from pipeline.evaluation.networks import Candidate
from pipeline.evaluation.rank_correlation import interval_of, resample_counts
from pipeline.evaluation.significance import holm
from pipeline.evaluation.tables import ArchitectureScores

TRAIT_LABELS = {
    "norm_free": "no batch norm",
    "attention": "attention",
    "no_convolution": "no spatial convolution",
    "squeeze_excitation": "squeeze and excitation",
    "no_global_pool": "no global pool",
    "deep": f"over {LONG_PATH} edges deep",
}
"""Each of `TRAITS` in words, in their order."""

COMPONENT = r"^component_\d+$"

FEWEST_NETWORKS = 5
"""With fewer networks that have a trait, or that lack it, accuracies are not compared."""

WORST = 0.1
"""The share of the networks, those of the lowest accuracies, whose traits are counted."""

RESAMPLES = 1000
"""Bootstrap resamples of the networks, which give the interval of an adjusted difference."""


class EvaluatedNetworks(Contract):
    """`results/evaluate/networks.parquet`: a row for each (split, index), with a column for each of `TRAITS`.

    `component_0`, `component_1`, … are the principal components of the embeddings of all rows, by decreasing variance.
    """

    split: str
    index: int = natural()
    component: float = finite(alias=COMPONENT, regex=True)

    class Config:
        unique = ["split", "index"]

    @pa.dataframe_check(error=f"a table with the traits {', '.join(TRAITS)}, each true or false")
    def has_all_traits(cls, table: pd.DataFrame) -> bool:
        return all(name in table and table[name].dtype == bool for name in TRAITS)


class TraitEffects(Contract):
    """`results/evaluate/traits.csv`: a row for each of `TRAITS`, over all evaluated networks with predicted parameters.

    `networks_with` of them have the trait; `top1_with` is their mean accuracy, with its standard error. `difference` is
    that mean minus the one of the others, and `corrected_p_value` that of Welch's t-test, corrected by Holm over the
    table. `adjusted` is the difference with all other traits equal, and `adjusted_low` to `adjusted_high` its 95 %
    bootstrap interval. They are missing where fewer than `FEWEST_NETWORKS` networks have the trait or lack it.
    `worst_with` of the `worst` networks, those of the lowest accuracies, have the trait.
    """

    trait: str = pa.Field(unique=True)
    networks_with: int = natural()
    networks_without: int = natural()
    worst: int = natural()
    worst_with: int = natural()
    top1_with: float = share(nullable=True)
    top1_with_error: float = pa.Field(nullable=True)
    top1_without: float = share(nullable=True)
    top1_without_error: float = pa.Field(nullable=True)
    difference: float = finite(nullable=True)
    p_value: float = share(nullable=True)
    corrected_p_value: float = share(nullable=True)
    adjusted: float = finite(nullable=True)
    adjusted_low: float = finite(nullable=True)
    adjusted_high: float = finite(nullable=True)


def _traits(network: Network, image_size: int, classes: int) -> dict[str, bool]:
    """Return the traits of a network; language models have none of these."""
    return dict.fromkeys(TRAITS, False) if network.reads_text else traits_of(network.graph(image_size, classes))


def describe_networks(
    candidates: Sequence[Candidate], embeddings_NH: np.ndarray, image_size: int, classes: int
) -> DataFrame[EvaluatedNetworks]:
    """Return the traits of each candidate, and the principal components of their embeddings."""
    keys = [{"split": candidate.split, "index": candidate.index} for candidate in candidates]
    traits = [_traits(candidate.network, image_size, classes) for candidate in candidates]
    components_NK = principal_components(embeddings_NH)
    names = [f"component_{number}" for number in range(components_NK.shape[1])]
    parts = [pd.DataFrame(keys), pd.DataFrame(components_NK, columns=names), pd.DataFrame(traits)]
    return EvaluatedNetworks.validate(pd.concat(parts, axis=1))


def principal_components(values_NH: np.ndarray) -> np.ndarray:
    """Return the principal components (N, min(N, H)) of centred values, by decreasing variance.

    The sign of each is such that its largest loading is positive, so that the same values give the same components.
    """
    centred_NH = values_NH.astype(np.float64) - values_NH.mean(axis=0)
    _, _, loadings_KH = np.linalg.svd(centred_NH, full_matrices=False)
    largest_K1 = np.abs(loadings_KH).argmax(axis=1, keepdims=True)
    loadings_KH *= np.sign(np.take_along_axis(loadings_KH, largest_K1, axis=1))
    components_NK: np.ndarray = centred_NH @ loadings_KH.T
    return components_NK


def trait_effects(
    scores: DataFrame[ArchitectureScores], networks: DataFrame[EvaluatedNetworks], seed: int = 0
) -> DataFrame[TraitEffects]:
    """Return how the accuracy of predictions differs with each trait, over the networks of all splits."""
    predicted = scores[scores["initialisation"] == HEADLINE][["split", "index", "top1"]]
    table = predicted.merge(networks, on=["split", "index"])
    worst = table.nsmallest(max(1, round(WORST * len(table))), "top1")
    counted = {name: int(table[name].sum()) for name in TRAITS}
    compared = [name for name, n in counted.items() if FEWEST_NETWORKS <= n <= len(table) - FEWEST_NETWORKS]
    adjusted = adjusted_differences(table[compared].to_numpy(float), table["top1"].to_numpy(), seed)
    rows = []
    for name in TRAITS:
        row: dict[str, str | float] = {
            "trait": name,
            "networks_with": counted[name],
            "networks_without": len(table) - counted[name],
            "worst": len(worst),
            "worst_with": int(worst[name].sum()),
        }
        if name in compared:
            row |= _comparison(table.loc[table[name], "top1"], table.loc[~table[name], "top1"])
            row |= dict(zip(("adjusted", "adjusted_low", "adjusted_high"), adjusted[compared.index(name)], strict=True))
        rows.append(row)
    effects = pd.DataFrame(rows).reindex(columns=list(TraitEffects.to_schema().columns))
    effects["corrected_p_value"] = holm(effects["p_value"].to_numpy(dtype=float))
    return TraitEffects.validate(effects)


def _comparison(having: pd.Series, lacking: pd.Series) -> dict[str, float]:
    """Return the figures of the networks that have a trait beside those that lack it."""
    p_value = float(ttest_ind(having, lacking, equal_var=False).pvalue)
    return {
        "top1_with": having.mean(),
        "top1_with_error": having.sem(),
        "top1_without": lacking.mean(),
        "top1_without_error": lacking.sem(),
        "difference": having.mean() - lacking.mean(),
        "p_value": 1.0 if math.isnan(p_value) else p_value,  # all accuracies are the same
    }


def adjusted_differences(traits_NT: np.ndarray, top1_N: np.ndarray, seed: int = 0) -> list[tuple[float, float, float]]:
    """Return the coefficient of each trait in a linear regression of accuracy on all traits, with its interval.

    Traits that always come together share their coefficient equally, as the solution of least norm has it. Resamples in
    which all networks have a trait, or none has it, do not count for its interval.
    """
    counts_RN = resample_counts(len(top1_N), RESAMPLES, seed)
    coefficients_T = _coefficients(traits_NT, top1_N, np.ones(len(top1_N)))
    resampled_RT = np.array([_coefficients(traits_NT, top1_N, counts_N) for counts_N in counts_RN])
    having_RT = counts_RN @ traits_NT
    resampled_RT = np.where((having_RT > 0) & (having_RT < len(top1_N)), resampled_RT, np.nan)
    return [(float(value), *interval_of(resampled_RT[:, t])) for t, value in enumerate(coefficients_T)]


def _coefficients(traits_NT: np.ndarray, top1_N: np.ndarray, counts_N: np.ndarray) -> np.ndarray:
    """Return the coefficients (T,) of least squares with an intercept; network i counts `counts_N[i]` times."""
    weights_N1 = np.sqrt(counts_N)[:, None]
    design_NC = np.concatenate([np.ones((len(top1_N), 1)), traits_NT], axis=1)
    solution_C, *_ = np.linalg.lstsq(weights_N1 * design_NC, weights_N1[:, 0] * top1_N, rcond=None)
    coefficients_T: np.ndarray = solution_C[1:]
    return coefficients_T
