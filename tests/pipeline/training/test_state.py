from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.train import Checkpoint
from safetensors.torch import load_file
from small_settings import small_settings

from ghn.deepnets1m.sampling import sample_architecture
from ghn.models.checkpoints import CheckpointError
from ghn.models.hypernetwork import Hypernetwork
from ghn.training.meta_batch import SampledArchitecture
from ghn.training.step import MicroBatch, StepSettings, Stopwatch, accumulate_micro_batch
from pipeline.errors import Terminated
from pipeline.params import Params
from pipeline.training.gradient_reduction import GradientReducer
from pipeline.training.hypernetwork_training import final_state
from pipeline.training.job import RunSettings
from pipeline.training.state import TrainingState

CPU = torch.device("cpu")
SIZE, CLASSES, META_BATCH, STEPS = 8, 3, 2, 7
LOG_EVERY = 2
ARCHITECTURES = [sample_architecture(0, "train", index).with_width(8, fc_dim=16) for index in range(4)]


def run_settings(**changes: Any) -> RunSettings:
    return RunSettings.of(Params.model_validate(small_settings(**changes)))


def new_state(ema: float | None = None, dtype: torch.dtype = torch.float64) -> TrainingState:
    return TrainingState.new(run_settings(train={"ema": ema}), CLASSES, CPU, dtype)


def take_steps(state: TrainingState, count: int) -> None:
    """Take steps as the training loop does: every third step is validated, the fourth drops an architecture."""
    dtype = next(state.ghn.parameters()).dtype
    for _ in range(count):
        random = torch.Generator().manual_seed(state.step)
        x = torch.randn(4, 3, SIZE, SIZE, generator=random, dtype=dtype)
        labels = torch.randint(CLASSES, (4,), generator=random)
        several = [ARCHITECTURES[(state.step + p) % len(ARCHITECTURES)] for p in range(META_BATCH)]
        sampled = {p: SampledArchitecture(p, a, a.program(SIZE, CLASSES)) for p, a in enumerate(several)}
        reducer = GradientReducer(state.ghn.parameters(), META_BATCH)
        micro_batch = MicroBatch.of(state.ghn, sampled, range(META_BATCH))
        reducer.add(
            accumulate_micro_batch(state.ghn, micro_batch, x, labels, state.step, StepSettings(0), Stopwatch(CPU))
        )
        result = reducer.all_reduce(0, 1, {}, 1.0, ())
        norm = state.update(0.01, clip=1.0)
        dropped = [state.step] if state.step == 4 else []
        state.record_nonfinite(dropped, "identity-{}".format)
        row = {"loss": result.row["loss"], "gradient_norm": norm, "dropped": len(dropped)}
        if state.step % 3 == 0:
            state.keep_if_best({"val_top1": 1 / state.step, "val_loss": 0.5})
            row["val_top1"] = 1 / state.step
        state.record(row, LOG_EVERY, STEPS)


def content(state: TrainingState) -> dict[str, Any]:
    """Return all of a state that decides how the run goes on and what its result is."""
    ghns = {"ghn": state.ghn, "average": state.average, "best": state.best}
    return {
        "weights": {name: ghn and dict(ghn.state_dict()) for name, ghn in ghns.items()},
        "optimizer": state.optimizer.state_dict()["state"],
        "progress": (state.step, state.history, state.unlogged_rows, list(state.dropped), state.dropped_architectures),
        "best": state.best_row,
    }


def assert_equal(one: Any, other: Any) -> None:
    """Assert equality to the last bit."""
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype and torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal(one[key], other[key])
    else:
        assert one == other


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("ema", [None, 0.9])
def test_a_run_that_goes_on_from_a_checkpoint_is_the_uninterrupted_one(
    ema: float | None, dtype: torch.dtype, tmp_path: Path
) -> None:
    whole = new_state(ema, dtype)
    take_steps(whole, STEPS)
    state = new_state(ema, dtype)
    for number, count in enumerate([3, 1, 3]):  # after a validation, amid the rows of a mean, to the end
        take_steps(state, count)
        folder = tmp_path / str(number)
        folder.mkdir()
        state.save(folder)
        loaded = new_state(ema, dtype)
        loaded.load(folder)
        assert_equal(content(loaded), content(state))
        state = loaded
    assert_equal(content(state), content(whole))
    assert [row["step"] for row in state.history] == [2, 4, 6, 7]
    assert state.best_row["step"] == 3


def test_the_state_before_the_first_step_can_be_saved(tmp_path: Path) -> None:
    first, loaded = new_state(), new_state()
    first.save(tmp_path)
    loaded.load(tmp_path)
    assert_equal(content(loaded), content(first))
    for state in (first, loaded):
        take_steps(state, 1)
    assert_equal(content(loaded), content(first))


def test_the_first_state_is_a_function_of_the_seed() -> None:
    torch.manual_seed(12345)
    first = new_state()
    torch.manual_seed(54321)
    assert_equal(content(new_state()), content(first))
    weights = TrainingState.new(run_settings(seed=1), CLASSES, CPU, torch.float64).ghn.state_dict()
    assert any(not torch.equal(weights[name], value) for name, value in first.ghn.state_dict().items())


# --- checkpoints --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a checkpoint with everything that one can have."""
    folder = tmp_path_factory.mktemp("checkpoint")
    state = new_state(ema=0.9)
    take_steps(state, 4)
    state.save(folder)
    return folder


FILES = [
    "ghn/model.safetensors",
    "average/model.safetensors",
    "best/model.safetensors",
    "optimizer.safetensors",
    "progress.json",
]


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def copy_of(folder: Path, to: Path) -> Path:
    for file in folder.rglob("*.*"):
        (to / file.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
        (to / file.relative_to(folder)).write_bytes(file.read_bytes())
    return to


@pytest.mark.parametrize("damage", [cut_off, emptied, Path.unlink])
@pytest.mark.parametrize("file", FILES)
def test_a_damaged_file_of_a_checkpoint_is_named(
    checkpoint: Path, file: str, damage: Callable[[Path], None], tmp_path: Path
) -> None:
    folder = copy_of(checkpoint, tmp_path / "copy")
    damage(folder / file)
    with pytest.raises(CheckpointError) as caught:
        new_state(ema=0.9).load(folder)
    assert str(folder / file) in str(caught.value)


@pytest.mark.parametrize("name", ["ghn", "average", "best"])
def test_weights_of_another_hypernetwork_do_not_fit(checkpoint: Path, name: str, tmp_path: Path) -> None:
    folder = copy_of(checkpoint, tmp_path / "copy")
    Hypernetwork.from_pretrained(folder / name)  # each can be read alone
    for file in (folder / name).iterdir():
        file.unlink()
    TrainingState.new(run_settings(), CLASSES + 1, CPU, torch.float64).ghn.save(folder / name)
    with pytest.raises(CheckpointError, match=rf"{name}/model\.safetensors does not fit"):
        new_state(ema=0.9).load(folder)


def test_nothing_in_a_checkpoint_can_execute_code(checkpoint: Path) -> None:
    files = [path for path in checkpoint.rglob("*") if path.is_file()]
    assert {str(file.relative_to(checkpoint)) for file in files} >= set(FILES)
    for file in files:
        if file.suffix == ".safetensors":
            assert load_file(file)
        else:
            assert json.loads(file.read_text())


# --- steps --------------------------------------------------------------------------------------------------


def with_gradients(state: TrainingState, value: float) -> TrainingState:
    for weight in state.ghn.parameters():
        weight.grad = torch.full_like(weight, value)
    return state


def test_an_update_takes_a_step_of_the_given_rate_and_clips_the_gradient() -> None:
    state = new_state()
    state.optimizer = torch.optim.SGD(state.ghn.parameters(), lr=1.0)  # whose steps are easy to tell
    before = copy.deepcopy(state.ghn.state_dict())
    count = sum(weight.numel() for weight in state.ghn.parameters())
    assert with_gradients(state, 2.0).update(0.5, clip=1e9) == pytest.approx(2 * math.sqrt(count))
    for name, weight in state.ghn.state_dict().items():
        torch.testing.assert_close(weight, before[name] - 0.5 * 2)
    assert with_gradients(state, 2.0).update(0.5, clip=1.0) == pytest.approx(2 * math.sqrt(count))  # before clipping
    for name, weight in state.ghn.state_dict().items():
        torch.testing.assert_close(weight, before[name] - 0.5 * 2 - 0.5 / math.sqrt(count))
    assert state.step == 2


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_counts_as_a_step_that_changes_nothing(value: float) -> None:
    state = new_state(ema=0.9)
    take_steps(state, 2)
    before = copy.deepcopy(content(state))
    with_gradients(state, 0.5)
    next(iter(state.ghn.parameters())).grad.flatten()[0] = value
    assert math.isnan(state.update(0.01, clip=1.0))
    assert state.step == 3
    after = content(state)
    assert_equal(after["weights"], before["weights"])
    assert_equal(after["optimizer"], before["optimizer"])


def test_the_moving_average_follows_its_formula() -> None:
    state = new_state(ema=0.15)
    state.optimizer = torch.optim.SGD(state.ghn.parameters(), lr=1.0)
    with torch.no_grad():
        for ghn in (state.ghn, state.average):
            for weight in ghn.parameters():
                weight.fill_(8.0)
    averages = []
    for rate in (4.0, 4.0, 0.0):
        with_gradients(state, 1.0).update(rate, clip=1e9)
        values = torch.cat([weight.flatten() for weight in state.average.parameters()])
        assert values.max() - values.min() < 1e-12
        averages.append(values[0].item())
    # The weights are 8, 4, 0, 0; average ← d average + (1 - d) weights, where d is 1/10 and then 0.15 instead of 2/11.
    assert averages == pytest.approx([0.1 * 8 + 0.9 * 4, 0.15 * 4.4, 0.15**2 * 4.4])
    assert state.eval_model is state.average


def test_without_a_moving_average_the_weights_themselves_are_evaluated() -> None:
    state = new_state()
    take_steps(state, 1)
    assert state.average is None
    assert state.eval_model is state.ghn


# --- the best weights -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ema", [None, 0.9])
def test_the_weights_that_did_best_are_kept_as_they_were(ema: float | None) -> None:
    state = new_state(ema)
    results = {}
    for step, top1 in enumerate([0.2, 0.5, 0.4, 0.5], 1):
        with_gradients(state, 1.0).update(0.1, clip=1.0)
        state.keep_if_best({"val_top1": top1, "val_loss": 1.0})
        results[step] = copy.deepcopy(state.eval_model.state_dict())
    assert state.best_row == {"val_top1": 0.5, "val_loss": 1.0, "step": 2}  # of equals the first
    assert_equal(dict(state.best.state_dict()), dict(results[2]))


def test_the_first_validated_weights_are_kept_even_if_they_do_badly() -> None:
    state = new_state()
    assert state.best is None
    state.keep_if_best({"val_top1": 0.0, "val_loss": math.nan})
    assert state.best is not None and state.best_row["step"] == 0


def test_a_best_loss_that_is_not_finite_survives_a_checkpoint(tmp_path: Path) -> None:
    state = new_state()
    state.keep_if_best({"val_top1": 0.0, "val_loss": math.nan})
    state.save(tmp_path)
    loaded = new_state()
    loaded.load(tmp_path)
    assert math.isnan(loaded.best_row["val_loss"]) and loaded.best is not None


# --- rows ---------------------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(log_every=st.integers(1, 9), steps=st.integers(1, 30))
def test_rows_are_the_means_of_the_steps_since_the_last_one(log_every: int, steps: int) -> None:
    state = new_state()
    returned = []
    for step in range(1, steps + 1):
        state.step = step
        returned.append(state.record({"loss": float(step), "dropped": step % 2}, log_every, steps))
    assert [row for row in returned if row] == state.history
    ends = [row["step"] for row in state.history]
    assert ends == [step for step in range(1, steps + 1) if step % log_every == 0 or step == steps]
    for start, row in zip([0, *ends], state.history, strict=False):
        several = range(start + 1, row["step"] + 1)
        assert row["loss"] == pytest.approx(sum(several) / len(several))
        assert row["dropped"] == sum(step % 2 for step in several)
    assert not state.unlogged_rows


def test_a_mean_leaves_out_nan() -> None:
    state = new_state()
    rows = [
        {"loss": 1.0, "dropped": 0},
        {"loss": math.nan, "dropped": 3, "val_top1": 0.25},
        {"loss": 2.0, "dropped": 0},
    ]
    for row in rows:
        state.step += 1
        logged = state.record(row, 3, 100)
    assert logged == {"loss": 1.5, "dropped": 3, "val_top1": 0.25, "step": 3}


def test_a_run_that_is_stopped_before_its_first_row_goes_on_later(tmp_path: Path) -> None:
    state = new_state(dtype=torch.float32)
    take_steps(state, LOG_EVERY - 1)
    assert not state.history
    state.save(tmp_path)
    with pytest.raises(Terminated, match="after step 1 of 6, whose checkpoint is kept"):
        final_state(run_settings(train={"ema": None}), Checkpoint.from_directory(tmp_path), CLASSES)


def test_a_run_has_diverged_when_a_tenth_of_the_last_hundred_steps_was_dropped() -> None:
    state = new_state()
    for step in range(1, 101):
        state.step = step
        state.record_nonfinite([7, 8][: 1 if step <= 40 else 0], str)
    assert not state.has_diverged(meta_batch=4)  # 40 of 400
    state.record_nonfinite([9], str)  # and one of the first hundred is forgotten
    assert not state.has_diverged(meta_batch=4)
    state.record_nonfinite([9, 9], str)
    assert state.has_diverged(meta_batch=4)
    assert not state.has_diverged(meta_batch=5)
    for _ in range(100):
        state.record_nonfinite([], str)
    assert not state.has_diverged(meta_batch=4)
    assert len(state.dropped_architectures) == 43


def test_a_dropped_architecture_is_recorded_with_its_step_and_identity() -> None:
    state = new_state()
    state.step = 12
    state.record_nonfinite([3, 5], "id-{}".format)
    assert state.dropped_architectures == [
        {"step": 12, "index": 3, "identity": "id-3"},
        {"step": 12, "index": 5, "identity": "id-5"},
    ]
