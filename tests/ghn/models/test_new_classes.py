from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ghn import GHN, GHNConfig
from ghn.deepnets1m.sampling import sample_architecture
from ghn.models.new_classes import with_new_classes
from ghn.models.node_encoder import channel_vocabulary

NETWORK = sample_architecture(0, "test", 0).with_width(8, 16)


def make_ghn(num_classes: int) -> GHN:
    torch.manual_seed(0)
    return GHN(GHNConfig(num_classes, 8, hidden=8, kernel=5)).eval()


@given(st.integers(1, 10_000), st.integers(1, 10_000))
@settings(max_examples=20)
def test_all_but_the_rows_of_classes_is_taken_over(before: int, after: int) -> None:
    ghn = make_ghn(before)
    adapted = with_new_classes(ghn, after, seed=1)
    assert adapted.config.num_classes == after
    old, new = ghn.state_dict(), adapted.state_dict()
    same = {name for name in old if old[name].shape == new[name].shape and old[name].equal(new[name])}
    assert {name for name in old if name not in same and "classes" not in name} <= {"encoder.channels.weight"}
    assert not any(name in same for name in old if "classes" in name)
    rows = {value: ghn.encoder.channels.weight[row] for row, value in enumerate(channel_vocabulary(before))}
    for row, value in enumerate(channel_vocabulary(after)):
        if value in rows:
            assert adapted.encoder.channels.weight[row].equal(rows[value])
    if after not in rows:
        row = channel_vocabulary(after).index(after)
        assert adapted.encoder.channels.weight[row].equal(rows[before])
    assert adapted.encoder.channels.weight[-1].equal(ghn.encoder.channels.weight[-1])


@pytest.mark.parametrize("classes", [2, 10, 37])
def test_all_but_the_class_layer_is_predicted_as_before(classes: int) -> None:
    ghn = make_ghn(10)
    adapted = with_new_classes(ghn, classes, seed=1)
    (before,), (after,) = (model.predict_parameters([NETWORK]) for model in (ghn, adapted))
    if classes == 10:
        body = [name for name in before if before[name].equal(after[name])]
        assert len(before) - len(body) == 2
    assert after.keys() == before.keys()
    assert with_new_classes(ghn, classes, seed=1).state_dict().keys() == adapted.state_dict().keys()
    again = with_new_classes(ghn, classes, seed=1).state_dict()
    assert all(weight.equal(again[name]) for name, weight in adapted.state_dict().items())
