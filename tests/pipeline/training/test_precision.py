from __future__ import annotations

from pathlib import Path

import pytest
import torch
from worker_processes import in_processes

from pipeline.training.precision import (
    BF16_FROM_PIXELS,
    TORCH_DTYPES,
    PrecisionChoice,
    agree_on_precision,
    allow_tf32,
    choose_precision,
    has_native_bf16,
)


@pytest.mark.parametrize(
    ("device_type", "image_size", "precision"),
    [
        ("cuda", 14, "fp32"),
        ("cuda", 32, "fp32"),  # the published CIFAR-10 settings, measured
        ("cuda", 111, "fp32"),
        ("cuda", 112, "bf16"),
        ("cuda", 224, "bf16"),  # the published ImageNet settings
        ("cpu", 14, "fp32"),
        ("cpu", 23, "fp32"),
        ("cpu", 24, "bf16"),
        ("cpu", 224, "bf16"),
    ],
)
def test_only_networks_for_large_images_run_in_bfloat16(device_type: str, image_size: int, precision: str) -> None:
    choice = choose_precision(device_type, True, image_size)
    assert choice.precision == precision
    assert f"{image_size} pixels" in choice.reason
    if precision == "fp32":
        assert f"bf16 from {BF16_FROM_PIXELS[device_type]} pixels" in choice.reason


@pytest.mark.parametrize("image_size", [8, 224])
@pytest.mark.parametrize("device_type", ["cpu", "cuda"])
def test_a_device_without_bfloat16_never_emulates_it(device_type: str, image_size: int) -> None:
    choice = choose_precision(device_type, False, image_size)
    assert choice.precision == "fp32"
    assert "no bfloat16" in choice.reason


def test_tf32_is_mentioned_where_a_gpu_uses_it() -> None:
    small, large = (choose_precision("cuda", True, size).reason for size in (32, 224))
    assert "TF32" in small and "wait for launches" in small
    assert "TF32" not in large
    assert "TF32" not in choose_precision("cpu", True, 14).reason


BF16, FP32 = PrecisionChoice("bf16", "it is faster"), PrecisionChoice("fp32", "the CPU has no bfloat16")


def agree(rank: int, workers: int, choices: list[PrecisionChoice]) -> PrecisionChoice:
    return agree_on_precision(choices[rank], workers, torch.device("cpu"))


@pytest.mark.parametrize("choice", [BF16, FP32], ids=str)
def test_workers_that_choose_the_same_keep_their_choice(choice: PrecisionChoice) -> None:
    assert agree(0, 1, [choice]) == choice  # needs no process group
    assert in_processes(2, agree, [choice, choice]) == [choice, choice]


def test_one_worker_without_bfloat16_decides_for_all() -> None:
    first, second = in_processes(2, agree, [FP32, BF16])
    assert first == FP32
    assert second == ("fp32", "the device of another worker has no bfloat16")


def test_bfloat16_of_this_machine_is_told_from_its_processor() -> None:
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    assert has_native_bf16(torch.device("cpu")) == ("avx512_bf16" in flags)


def test_tf32_changes_nothing_on_a_cpu(recwarn: pytest.WarningsRecorder) -> None:
    random = torch.Generator().manual_seed(0)
    a, b = (torch.randn(64, 64, generator=random) for _ in range(2))
    images, kernels = torch.randn(2, 3, 8, 8, generator=random), torch.randn(4, 3, 3, 3, generator=random)
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    expected = a @ b, torch.conv2d(images, kernels)
    try:
        allow_tf32()
        assert torch.backends.cuda.matmul.allow_tf32 and torch.backends.cudnn.allow_tf32
        for found, wanted in zip((a @ b, torch.conv2d(images, kernels)), expected, strict=True):
            assert torch.equal(found, wanted)
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
    assert not recwarn.list


def test_every_precision_of_the_settings_has_its_type() -> None:
    assert {"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64} == TORCH_DTYPES


def test_nothing_is_claimed_of_texts() -> None:
    for device_type in ("cpu", "cuda"):
        choice = choose_precision(device_type, True, None)
        assert choice.precision == "fp32" and "not measured for texts" in choice.reason
