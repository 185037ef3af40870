"""Seconds of a step from its kernels: rooflines, the host, several GPUs, and what is never computed twice."""

from __future__ import annotations

from dataclasses import replace

import pytest

from peftplan.catalog import GpuRecord, find_gpu
from peftplan.catalog.step_time_fit import Constants, step_time_fit
from peftplan.cost.rates import link_bytes_per_s, rates
from peftplan.cost.step_time import Setting, StepTime, step_time
from peftplan.specs.work import KINDS, Kernel, Work

CONSTANTS = Constants(
    matmul_frac=0.9,
    flash_frac=0.7,
    efficient_frac=0.5,
    bandwidth_frac=0.8,
    near_speed=3.0,
    unpack_flop=100.0,
    host_s=30e-6,
    backward_frac=0.5,
    floor_s=2e-6,
)


def gpu(name: str = "a100-80") -> GpuRecord:
    record = find_gpu(name)
    assert record is not None
    return record


def kernel(**changes: object) -> Kernel:
    """A large bf16 product of the forward pass, unless said otherwise."""
    usual = Kernel("forward", "matmul", "base", "mm", "bf16", 10**13, 5 * 10**8, 5 * 10**8, 4)
    return usual._replace(**changes)


def elementwise(**changes: object) -> Kernel:
    return kernel(**{"kind": "elementwise", "op": "mul", "num_flop": 0, **changes})


def seconds(*work: Kernel, on: str = "a100-80", setting: Setting = Setting()) -> StepTime:  # noqa: B008
    found = step_time(work, gpu(on), setting, CONSTANTS)
    assert found is not None
    return found


def test_terms_sum_to_the_step() -> None:
    """Every kind of kernel has its term, and they add up, waiting for the host included."""
    work = tuple(kernel(kind=kind, phase=phase) for kind in KINDS for phase in ("forward", "recompute", "backward"))
    found = seconds(*work, elementwise(bytes_read=8, bytes_written=8, count=100_000))
    assert sum(found.terms.values()) == pytest.approx(found.step_s)
    assert set(found.terms) == {*KINDS, "launches"}


def test_a_product_takes_its_flop_and_its_bytes() -> None:
    """10^13 flop at 0.9 of 271.2 TFLOP/s, and 10^9 bytes at 0.8 of 2039 GB/s, four times."""
    expected = 4 * (1e13 / (0.9 * 271.2e12) + 1e9 / (0.8 * 2.039e12))
    assert seconds(kernel()).terms["matmul"] == pytest.approx(expected)


def test_streaming_takes_the_bandwidth_and_less_out_of_the_cache() -> None:
    """What fits into the last cache streams three times as fast."""
    far = seconds(elementwise(count=1)).terms["elementwise"]
    assert far == pytest.approx(1e9 / (0.8 * 2.039e12))
    near = elementwise(bytes_read=10**7, bytes_written=10**7, count=50)
    assert seconds(near).terms["elementwise"] == pytest.approx(far / 3)


def test_unpacking_a_weight_takes_operations_beside_its_bytes() -> None:
    """10^9 bf16 weights at 100 operations each on 19.5 TFLOP/s of fp32; a lookup takes 0.6 of that."""
    packed = kernel(kind="dequantise", num_flop=0, bytes_read=5 * 10**8, bytes_written=2 * 10**9, count=1)
    bytes_s = 2.5e9 / (0.8 * 2.039e12)
    compared = seconds(packed, setting=Setting(by_lookup=False)).terms["dequantise"]
    assert compared == pytest.approx(bytes_s + 1e9 * 100 / 19.5e12)
    assert seconds(packed).terms["dequantise"] == pytest.approx(bytes_s + 0.6 * 1e9 * 100 / 19.5e12)


def test_fused_attention_is_slower_than_a_product_of_as_many_flop() -> None:
    """Flash attention reaches 0.7 of the rate of products, the memory-efficient kernel 0.5."""
    flash = seconds(kernel(kind="attention", op="_flash_attention_forward")).step_s
    efficient = seconds(kernel(kind="attention", op="_efficient_attention_forward")).step_s
    assert seconds(kernel()).step_s < flash < efficient


def test_no_kernel_is_shorter_than_the_floor() -> None:
    """A launch of a few bytes takes 2 us on the device."""
    assert seconds(elementwise(bytes_read=2, bytes_written=2, count=10)).terms["elementwise"] == pytest.approx(2e-5)


def test_many_small_launches_wait_for_the_host() -> None:
    """10,000 launches of nothing take the host 0.3 s, and that is what the step is bound by."""
    found = seconds(elementwise(bytes_read=2, bytes_written=2, count=10_000))
    assert found.step_s == pytest.approx(0.3)
    assert found.bound == "host launches"


def test_backward_is_launched_faster() -> None:
    """Autograd's engine launches from C++: 10,000 launches of backward take half of those of forward."""
    small = elementwise(bytes_read=2, bytes_written=2, count=10_000, phase="backward")
    assert seconds(small).step_s == pytest.approx(0.15)
    assert seconds(small._replace(phase="recompute")).step_s == pytest.approx(0.3)


def test_the_host_runs_ahead_while_the_gpu_works() -> None:
    """Launches of the backward pass are hidden behind a forward pass that takes longer."""
    long, small = kernel(count=100), elementwise(phase="backward", bytes_read=2, bytes_written=2, count=10_000)
    assert seconds(long, small).terms.get("launches", 0.0) == 0.0


def test_a_forward_pass_cannot_hide_launches_behind_what_follows() -> None:
    """The GPU waits for a host-bound forward pass, however long backward is."""
    small, long = elementwise(bytes_read=2, bytes_written=2, count=10_000), kernel(phase="backward", count=100)
    assert seconds(small, long).terms["launches"] > 0.2


def test_what_is_computed_twice_counts_for_the_hardware_alone() -> None:
    """With as much recomputed as computed, model utilisation is half of the hardware's, which is below one."""
    found = seconds(kernel(), kernel(phase="recompute"))
    assert found.hfu_frac is not None
    assert found.mfu_frac == pytest.approx(found.hfu_frac / 2)
    assert 0.5 < found.hfu_frac < 0.9


def test_utilisation_holds_each_type_against_its_own_peak() -> None:
    """A step of fp32 and bf16 products cannot use more than all of the card."""
    found = seconds(kernel(), kernel(dtype="fp32"))
    assert found.hfu_frac is not None
    assert 0.7 < found.hfu_frac < 1


def test_micro_batches_repeat_all_but_the_update() -> None:
    """Four micro-batches take four times as long; the optimizer runs once."""
    update = kernel(phase="optimizer_step", kind="optimizer", num_flop=0)
    one = seconds(kernel(), update)
    four = seconds(kernel(), update, setting=Setting(grad_accum=4))
    assert four.terms["matmul"] == pytest.approx(4 * one.terms["matmul"])
    assert four.terms["optimizer"] == pytest.approx(one.terms["optimizer"])
    assert four.num_flop == 4 * one.num_flop


def test_gradients_are_summed_behind_backward_but_for_the_last_bucket() -> None:
    """Beside a long backward pass only the last 25 MiB of 1 GB show; beside a short one what outlasts it."""
    shared = Setting(num_gpus=2, gradient_bytes=10**9)
    rate = link_bytes_per_s(gpu()) * 0.8
    hidden = seconds(kernel(phase="backward", count=100), setting=shared).terms["communication"]
    assert hidden == pytest.approx(25 * 1024**2 / rate)  # 2 (n - 1) / n is one for two
    bare = seconds(kernel(), setting=shared).terms["communication"]
    assert bare == pytest.approx(1e9 / rate)
    slow = seconds(kernel(), on="l40s", setting=shared).terms["communication"]
    assert slow > 5 * bare
    assert "communication" not in seconds(kernel(), setting=Setting(gradient_bytes=10**9)).terms


def test_accumulated_gradients_are_summed_once() -> None:
    """Only the last micro-batch's backward pass hides the sum."""
    shared = Setting(num_gpus=8, gradient_bytes=10**10)
    backward: Work = (kernel(phase="backward", count=2),)
    one, four = seconds(*backward, setting=shared), seconds(*backward, setting=replace(shared, grad_accum=4))
    assert four.terms["communication"] == pytest.approx(one.terms["communication"])


def test_without_a_rate_there_is_no_time() -> None:
    """A card whose fp32 rate nobody states has no time for fp32 products, and one for bf16 products."""
    assert "fp32" not in rates(gpu("gaudi2")).flop
    assert step_time((kernel(dtype="fp32"),), gpu("gaudi2"), Setting(), CONSTANTS) is None
    assert step_time((kernel(),), gpu("gaudi2"), Setting(), CONSTANTS) is not None


def test_the_shipped_constants_are_shares_and_small_times() -> None:
    """No constant lets a kernel run faster than its card's measured rate or peak bandwidth."""
    found = step_time_fit().constants
    shares = (found.matmul_frac, found.flash_frac, found.efficient_frac, found.bandwidth_frac)
    assert all(0 < share <= 1 for share in shares)
    assert 1e-6 < found.floor_s < found.host_s < 1e-4
