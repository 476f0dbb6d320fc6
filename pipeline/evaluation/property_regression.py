"""Predicting properties of networks from features of their graphs, without training the networks.

As published (Knyazev et al., NeurIPS 2021, section 5): support vector regression with a radial kernel, whose settings a
five-fold search chooses, is fitted on architectures of split val and scored by Kendall's τ on those of split test.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
from pandera.typing import DataFrame
from sklearn.compose import TransformedTargetRegressor
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVR

from ghn.models.hypernetwork import Hypernetwork
from pipeline.evaluation.networks import Candidate, seed_of
from pipeline.evaluation.property_features import EMBEDDING, feature_tables
from pipeline.evaluation.property_tables import PropertyCorrelations, PropertyPredictions, PropertyScores
from pipeline.evaluation.rank_correlation import interval_of, kendall_tau, resample_counts, resampled_taus

FITTED_SPLIT, SCORED_SPLIT = "val", "test"

FEWEST = 5
"""Fewer networks are neither fitted on nor scored: each fold of the search needs one."""

FOLDS = 5

GRID = {"C": (0.1, 1.0, 10.0, 100.0, 1000.0), "gamma": (0.03, 0.1, 0.3, 1.0), "epsilon": (0.05, 0.2)}
"""Settings of the regression that the search tries. Features and target are standardised, so that they have no unit;
`gamma` is divided by the number of features, and `epsilon` is in standard deviations of the target."""


@dataclass(frozen=True)
class PropertyResults:
    """The tables of stage properties: see their contracts."""

    scores: DataFrame[PropertyScores]
    predictions: DataFrame[PropertyPredictions]
    correlations: DataFrame[PropertyCorrelations]


@dataclass(frozen=True)
class _Fit:
    """A regression of one target on some features: true and predicted values by network, or why there are none."""

    target: str
    features: str
    fitted: int
    scored: int
    values: pd.DataFrame
    reason: str | None

    @property
    def test_values(self) -> tuple[np.ndarray, np.ndarray]:
        """True and predicted values of the scored networks."""
        scored = self.values.loc[SCORED_SPLIT]
        return scored["true"].to_numpy(), scored["predicted"].to_numpy()


@dataclass(frozen=True)
class MeasuredNetworks:
    """Networks and their properties.

    Attributes:
        candidates: the networks.
        targets: a column for each property that is predicted, a row for each network, by split and index; a missing
            value leaves the network out.
        others: properties of the same networks that are compared with the targets and are none themselves.
    """

    candidates: Sequence[Candidate]
    targets: pd.DataFrame
    others: pd.DataFrame


def analyse_properties(measured: MeasuredNetworks, ghn: Hypernetwork, resamples: int, seed: int) -> PropertyResults:
    """Return how well each kind of features predicts each target, and how properties correlate with each other.

    Args:
        measured: the networks of splits val and test, with their properties.
        ghn: the hypernetwork whose embeddings are features.
        resamples: bootstrap resamples of the networks of split test.
        seed: that of the folds and of the resamples.
    """
    features = feature_tables(measured.candidates, ghn)
    scores, predictions = regress_properties(features, measured.targets, resamples, seed)
    properties = measured.targets.join(measured.others)
    return PropertyResults(scores, predictions, correlate_properties(properties, resamples, seed))


def joined_results(parts: Sequence[PropertyResults]) -> PropertyResults:
    """Return the rows of several results, which are of different targets, in their order."""
    return PropertyResults(
        PropertyScores.validate(pd.concat([part.scores for part in parts], ignore_index=True)),
        PropertyPredictions.validate(pd.concat([part.predictions for part in parts], ignore_index=True)),
        PropertyCorrelations.validate(pd.concat([part.correlations for part in parts], ignore_index=True)),
    )


def regress_properties(
    features: Mapping[str, pd.DataFrame], targets: pd.DataFrame, resamples: int, seed: int
) -> tuple[DataFrame[PropertyScores], DataFrame[PropertyPredictions]]:
    """Return scores and predictions of each target from each kind of features.

    Args:
        features: a table for each kind, one of them `EMBEDDING`; a row for each network, by split and index.
        targets: see `MeasuredNetworks`.
        resamples: bootstrap resamples of the networks of split test, the same for all features of a target.
        seed: that of the folds and of the resamples.
    """
    scores: list[dict] = []
    predictions: list[pd.DataFrame] = []
    for target in targets:
        fits = {name: _fit(target, name, table, targets[target], seed) for name, table in features.items()}
        scores += _scores(fits, resamples, seed_of(seed, "resamples", target))
        predictions += [_rows(fit) for fit in fits.values() if fit.reason is None]
    columns = list(PropertyPredictions.to_schema().columns)
    table = pd.concat(predictions) if predictions else pd.DataFrame(columns=columns)
    return PropertyScores.validate(pd.DataFrame(scores)), PropertyPredictions.validate(table.reset_index(drop=True))


def property_regressor(features: int, seed: int) -> TransformedTargetRegressor:
    """Return the regression, which is not fitted yet: its settings are chosen by the mean squared error on five folds.

    Args:
        features: the number of features.
        seed: that of the folds.
    """
    grid = GRID | {"gamma": tuple(gamma / features for gamma in GRID["gamma"])}
    folds = KFold(FOLDS, shuffle=True, random_state=seed % 2**32)
    search = GridSearchCV(SVR(kernel="rbf"), grid, cv=folds, scoring="neg_mean_squared_error")
    return TransformedTargetRegressor(make_pipeline(StandardScaler(), search), transformer=StandardScaler())


def _fit(target: str, name: str, features: pd.DataFrame, values: pd.Series, seed: int) -> _Fit:
    known = values.dropna()
    fitted, scored = (_of_split(known, split) for split in (FITTED_SPLIT, SCORED_SPLIT))
    counts = {"fitted": len(fitted), "scored": len(scored)}
    if reason := _impossible(fitted, "fit on") or _impossible(scored, "score"):
        return _Fit(target, name, **counts, values=pd.DataFrame(), reason=reason)
    regressor = property_regressor(features.shape[1], seed)
    regressor.fit(features.loc[fitted.index].to_numpy(), fitted.to_numpy())
    true = pd.concat([fitted, scored])
    predicted = regressor.predict(features.loc[true.index].to_numpy())
    table = pd.DataFrame({"true": true, "predicted": predicted})
    constant = np.ptp(table.loc[SCORED_SPLIT, "predicted"]) == 0
    reason = f"the same is predicted for all {len(scored)} networks" if constant else None
    return _Fit(target, name, **counts, values=table, reason=reason)


def _of_split(values: pd.Series, split: str) -> pd.Series:
    return values[values.index.get_level_values("split") == split]


def _impossible(values: pd.Series, purpose: str) -> str | None:
    """Return why the networks are not enough to fit on or to score, or None if they are."""
    if len(values) < FEWEST:
        return f"{len(values)} networks to {purpose}: must be at least {FEWEST}"
    if values.nunique() == 1:
        return f"all {len(values)} networks to {purpose} have the same value"
    return None


def _rows(fit: _Fit) -> pd.DataFrame:
    return fit.values.reset_index().assign(target=fit.target, features=fit.features)


def _scores(fits: Mapping[str, _Fit], resamples: int, seed: int) -> Iterator[dict]:
    """Yield a row for each kind of features of one target."""
    scored = {name: fit.test_values for name, fit in fits.items() if fit.reason is None}
    taus = {name: kendall_tau(*values) for name, values in scored.items()}
    taus_R = {  # one seed for all features: the same networks are in a resample, so that differences are paired
        name: resampled_taus(*values, resample_counts(fits[name].scored, resamples, seed))
        for name, values in scored.items()
    }
    for name, fit in fits.items():
        row: dict = {"target": fit.target, "features": name, "fitted": fit.fitted, "scored": fit.scored}
        row |= dict.fromkeys(("tau", "tau_low", "tau_high"), math.nan)
        row |= dict.fromkeys(("difference", "difference_low", "difference_high"), math.nan)
        if name in taus:
            row |= dict(zip(("tau", "tau_low", "tau_high"), (taus[name], *interval_of(taus_R[name])), strict=True))
        if name in taus and EMBEDDING in taus and name != EMBEDDING:
            low, high = interval_of(taus_R[EMBEDDING] - taus_R[name])
            row |= {"difference": taus[EMBEDDING] - taus[name], "difference_low": low, "difference_high": high}
        yield row | {"reason": fit.reason}


def correlate_properties(values: pd.DataFrame, resamples: int, seed: int) -> DataFrame[PropertyCorrelations]:
    """Return Kendall's τ of each pair of properties (columns) over the networks of split test that have both.

    Args:
        values: a row for each network, by split and index; values may be missing.
        resamples: bootstrap resamples of the networks.
        seed: that of the resamples.
    """
    scored = values[values.index.get_level_values("split") == SCORED_SPLIT]
    rows = []
    for first, second in combinations(values, 2):
        both = scored[[first, second]].dropna()
        row = {"first": first, "second": second, "networks": len(both), "tau": math.nan}
        reasons = [_impossible(both[name], "compare") for name in (first, second)]
        reason = next((reason for reason in reasons if reason), None)
        if reason is None:
            x_N, y_N = (both[name].to_numpy() for name in (first, second))
            counts_RN = resample_counts(len(both), resamples, seed_of(seed, "correlation", first, second))
            low, high = interval_of(resampled_taus(x_N, y_N, counts_RN))
            row |= {"tau": kendall_tau(x_N, y_N), "tau_low": low, "tau_high": high}
        rows.append(row | {"reason": reason})
    columns = list(PropertyCorrelations.to_schema().columns)
    return PropertyCorrelations.validate(pd.DataFrame(rows, columns=columns))
