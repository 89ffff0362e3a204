"""The engine: reproducible to the bit, common random numbers, every lesion, untouched surroundings."""

from __future__ import annotations

import dataclasses
import platform
import resource
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.clinical_record import ClinicalRecord
from models.engine import Engine, Prepared
from models.engine_thread import in_engine_thread
from models.errors import InputError, TransientToolError
from models.networks.diffusion import Flow
from models.networks.preset import Preset
from models.protocol import Protocol
from models.redraw import redraw
from models.volume import Volume
from models.weights import WorldModel, init_world_model

CISPLATIN = Protocol(drugs=("Cisplatin",), embolics=("Lipiodol",))
RALTITREXED = Protocol(drugs=("Raltitrexed",), embolics=("PVA",))
LOBAPLATIN = Protocol(drugs=("Lobaplatin", "Epirubicin"), embolics=("Gelatin sponge",))


def phantom(
    spacing: tuple[float, float, float] = (1.5, 1.5, 3.0),
    shape: tuple[int, int, int] = (100, 100, 44),
    lesions: tuple[tuple[tuple[float, float, float], float], ...] = (((50, 50, 22), 18.0),),
) -> tuple[Volume, NDArray[np.uint8]]:
    """A liver of 100 HU with balls of 160 HU in noise; centres in voxels, radii in mm."""
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = (-70.0, -40.0, 120.0)
    grid = np.ogrid[tuple(slice(0, n) for n in shape)]
    labels = np.ones(shape, dtype=np.uint8)
    for centre, radius in lesions:
        squared = sum(((g - c) * s) ** 2 for g, c, s in zip(grid, centre, spacing, strict=True))
        labels[squared <= radius**2] = 2
    noise = 8 * np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    return Volume((np.where(labels == 2, 160, 100) + noise).astype(np.int16), affine), labels


def tiny_preset() -> Preset:
    """The small preset's geometry at half its resolution with slimmer networks."""
    small = Preset.load("small").model_dump()
    small.update(name="tiny", size=32, spacing_mm=3.0)
    small["autoencoder"].update(channels=(8, 16), res_layers=1)
    small["denoiser"].update(channels=(32, 32), attention=(False, False), steps=2)
    small["segmenter"].update(filters=(4, 8, 8))
    small["localiser"].update(filters=(4, 8, 8))
    small["survival"].update(width=4, heads=2)
    return Preset.model_validate(small)


@pytest.fixture(scope="module")
def model() -> WorldModel:
    return init_world_model(tiny_preset(), seed=3)


@pytest.fixture
def engine(model: WorldModel) -> Engine:
    return Engine("cpu", model=model, precision="fp32", batch=4)


def prepare(engine: Engine, **arguments: Any) -> Prepared:
    volume, labels = phantom(**arguments)
    return engine.prepare(volume, labels, ClinicalRecord(age_years=60))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_result_is_the_same_alone_in_any_slot_and_beside_any_neighbour(precision: Any):
    engine = Engine("cpu", model=init_world_model("small", seed=1), precision=precision)
    prepared = prepare(engine)
    target = (RALTITREXED, 7)
    jobs = [(p, s) for p in (CISPLATIN, LOBAPLATIN) for s in range(10, 14)]
    jobs[6:6] = [target]  # slot 6 of the first batch
    jobs[9:9] = [target]  # slot 1 of the second, which is filled up
    assert [position for position, job in enumerate(jobs) if job == target] == [6, 9]
    (alone,) = engine.simulate(prepared, [target], steps=1)
    beside = engine.simulate(prepared, jobs, steps=1)
    before, mask = prepared.pre, prepared.numbers > 0
    (tissue,) = engine.segment(alone, before, mask)
    count = len(jobs)
    tissues = engine.segment(np.concatenate(beside), np.repeat(before, count, 0), np.repeat(mask, count, 0))
    risk = engine.log_risk(prepared, [alone], [tissue[None]])
    risks = engine.log_risk(prepared, beside, list(tissues[:, None]))
    for position in (6, 9):
        np.testing.assert_array_equal(beside[position], alone)
        np.testing.assert_array_equal(tissues[position], tissue)
        assert risks[position] == risk[0]
    assert len(set(risks)) == 9


def test_two_engines_agree_to_the_bit(model: WorldModel):
    jobs = [(CISPLATIN, 0), (RALTITREXED, 1)]
    runs = []
    for _ in range(2):
        engine = Engine("cpu", model=model, precision="fp32", batch=4)
        runs.append(engine.simulate(prepare(engine), jobs))
    for first, second in zip(*runs, strict=True):
        np.testing.assert_array_equal(first, second)


class Recorder(nn.Module):
    """A denoiser that changes nothing and keeps the noise that it is given."""

    def __init__(self, preset: Any) -> None:
        super().__init__()
        self.preset = preset
        self.diffusion = Flow()
        self.seen: list[Tensor] = []

    def forward(self, z_t: Tensor, *rest: Tensor, **more: Tensor) -> Tensor:
        self.seen.append(z_t.clone())
        return torch.zeros_like(z_t)

    def predict_shares(self, z_pre: Tensor, *rest: Tensor) -> Tensor:
        return torch.full((z_pre.shape[0], 4), 0.25)


def recorded_noise(model: WorldModel, jobs: list[tuple[Protocol, int]], key: str | None = None, **case: Any) -> Tensor:
    # guidance would call it twice for each batch
    recorder = Recorder(model.preset.denoiser.model_copy(update={"guidance": 1.0}))
    engine = Engine("cpu", model=dataclasses.replace(model, denoiser=recorder), precision="fp32", batch=4)
    volume, labels = phantom(**case)
    engine.simulate(engine.prepare(volume, labels, ClinicalRecord(), key), jobs, steps=1)
    return torch.cat(recorder.seen)


def test_noise_is_common_to_protocols_and_differs_between_seeds_patches_and_cases(model: WorldModel):
    two = {"shape": (100, 30, 30), "spacing": (2.5, 2.5, 2.5), "lesions": (((12, 15, 15), 12.0), ((85, 15, 15), 10.0))}
    noise = recorded_noise(model, [(CISPLATIN, 5), (RALTITREXED, 5), (CISPLATIN, 6)], **two)
    (a0, a1, b0, b1, c0, _) = noise[:6]
    assert torch.equal(a0, b0)
    assert torch.equal(a1, b1)
    assert not torch.equal(a0, a1)
    assert not torch.equal(a0, c0)
    assert not torch.equal(recorded_noise(model, [(CISPLATIN, 5)], key="x", **two)[0], a0)
    assert abs(float(noise.mean())) < 0.05
    assert float(noise.std()) == pytest.approx(1.0, abs=0.05)


def test_protocols_and_seeds_matter(engine: Engine):
    prepared = prepare(engine)
    first, other_protocol, other_seed, again = engine.simulate(
        prepared, [(CISPLATIN, 0), (RALTITREXED, 0), (CISPLATIN, 1), (CISPLATIN, 0)]
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other_protocol).any()
    assert (first != other_seed).any()


def test_nothing_changes_outside_the_feather(engine: Engine):
    prepared = prepare(engine)
    for position, difference in engine.simulate_differences(prepared, [(CISPLATIN, 0), (LOBAPLATIN, 3)]):
        composite = engine.composite(prepared, difference)
        outside = prepared.weight == 0
        assert outside.mean() > 0.5
        assert (difference[outside] == 0).all(), position
        np.testing.assert_array_equal(composite[outside], np.rint(prepared.pre[outside]).astype(np.int16))
        inside = prepared.weight == 1
        expected = np.clip(prepared.pre[inside] + difference[inside], -1024, 3071)
        np.testing.assert_array_equal(composite[inside], np.rint(expected).astype(np.int16))
        assert (difference[inside] != 0).any()


def test_a_small_tumour_is_decoded_and_segmented_in_a_box(model: WorldModel):
    """Against the whole patch: the change in HU agrees, and the segmenter sees and answers for the box only."""
    crops = {p: getattr(model.preset.training, p).model_copy(update={"crop": 16}) for p in ("autoencoder", "segmenter")}
    # as it is drawn: a correction asks the segmenter, which an edge nearby may make change its mind
    drawn = model.preset.model_copy(update={"denoiser": model.preset.denoiser.model_copy(update={"redraws": 0})})
    small = drawn.model_copy(update={"training": drawn.training.model_copy(update=crops)})
    case = {"shape": (60, 60, 40), "spacing": (1.5, 1.5, 2.25), "lesions": (((30, 30, 20), 5.0),)}
    whole, boxed = (
        Engine("cpu", model=dataclasses.replace(model, preset=preset), precision="fp32", batch=4)
        for preset in (drawn, small)
    )
    one, other = prepare(whole, **case), prepare(boxed, **case)
    assert one.boxes == ((slice(0, 32),) * 3,)
    (box,) = other.boxes
    assert all(s.stop - s.start == 24 for s in box)
    assert other.support.sum() == other.support[0][box].sum()
    (_, full), (_, part) = (
        *whole.simulate_differences(one, [(CISPLATIN, 0)]),
        *boxed.simulate_differences(other, [(CISPLATIN, 0)]),
    )
    assert np.abs(full).max() > 20
    assert np.abs(full - part).max() <= 8  # untrained networks; trained ones stay within 2
    assert np.abs(full - part)[one.support].mean() < 2
    assert not part[~other.support].any()
    scans = [boxed.composite(other, part)]
    (found,) = boxed.segment_near(other, scans)
    cut = [np.asarray(a)[0][box][None] for a in (scans[0], other.pre, other.numbers > 0)]
    np.testing.assert_array_equal(found[0][box], np.where(other.near[0][box] > 0, boxed.segment(*cut)[0], 0))
    assert found[other.near > 0].any()
    assert not found[other.near == 0].any()
    (alone,) = whole.segment_near(one, [one.pre])
    np.testing.assert_array_equal(alone, np.where(one.near > 0, whole.segment(one.pre, one.pre, one.numbers > 0), 0))


TWO = {"shape": (100, 30, 30), "spacing": (2.5, 2.5, 2.5), "lesions": (((12, 15, 15), 12.0), ((85, 15, 15), 10.0))}


def told(model: WorldModel, *, spread: float = 0.0, redraws: int = 0, condition: str = "action") -> Engine:
    """An engine that corrects its drawings so often, with so much luck."""
    asked = {"viable_spread": spread, "redraws": redraws, "condition": condition}
    preset = model.preset.model_copy(update={"denoiser": model.preset.denoiser.model_copy(update=asked)})
    return Engine("cpu", model=dataclasses.replace(model, preset=preset), precision="fp32", batch=4)


def predicted(engine: Engine, prepared: Prepared, jobs: list[tuple[Protocol, int]]) -> NDArray[np.float32]:
    """The viable shares (N, L) that the denoiser is given."""
    seen: list[Tensor] = []
    handle = engine.model.denoiser.register_forward_pre_hook(lambda _, given: seen.append(given[7]))
    batch = len(jobs) * len(prepared.patches)
    try:
        Engine("cpu", model=engine.model, precision="fp32", batch=batch).simulate(prepared, jobs, steps=1)
    finally:
        handle.remove()
    return seen[0][:, 0].reshape(len(jobs), -1).numpy()


def test_a_drawing_is_corrected_inside_the_tumour_alone_and_towards_what_was_predicted(model: WorldModel):
    drawn, corrected = told(model), told(model, redraws=2)
    prepared, jobs = prepare(corrected, **TWO), [(CISPLATIN, 0), (RALTITREXED, 0)]
    shares = predicted(corrected, prepared, jobs)
    assert len(np.unique(shares)) == 4
    scans, after = drawn.simulate(prepared, jobs), corrected.simulate(prepared, jobs)
    mask = prepared.numbers > 0
    low, high = model.preset.hu_window

    def read(hu: Tensor) -> Tensor:
        def unit(values: Tensor) -> Tensor:
            return ((values.clamp(low, high) - low) * (2.0 / (high - low)) - 1.0)[:, None]

        before = torch.from_numpy(prepared.pre.astype(np.float32))
        cut = torch.cat([unit(hu), unit(before), torch.from_numpy(mask.astype(np.float32))[:, None]], dim=1)
        with torch.no_grad():
            return model.segmenter(cut).float()

    for job in range(2):
        np.testing.assert_array_equal(after[job][~mask], scans[job][~mask])
        before, inside = torch.from_numpy(prepared.pre.astype(np.float32)), torch.from_numpy(mask)
        drawing, oiled = torch.from_numpy(scans[job].astype(np.float32)), torch.tensor([job == 0] * 2)
        by_hand = redraw(drawing, before, inside, torch.from_numpy(shares[job]), oiled, read, 2).clamp(low, high)
        # the engine sees the box around the tumour only
        differs = np.abs(by_hand.numpy() - after[job])[mask] > 1.0
        assert differs.mean() < 0.1 < (after[job] != scans[job])[mask].mean()
    assert ((scans[1] > 200) & mask & (prepared.pre <= 200)).any()
    assert not ((after[1] > 200) & mask & (prepared.pre <= 200)).any()


def test_nothing_is_corrected_where_the_denoiser_does_not_know_the_agents(model: WorldModel):
    assert told(model, redraws=2).redraws == 2
    blind, plain = told(model, redraws=2, condition="text"), told(model, condition="text")
    assert blind.redraws == plain.redraws == 0
    prepared = prepare(plain)
    np.testing.assert_array_equal(
        blind.simulate(prepared, [(CISPLATIN, 0)]), plain.simulate(prepared, [(CISPLATIN, 0)])
    )


def test_luck_differs_between_seeds_and_patches_and_is_common_to_protocols(model: WorldModel):
    plain, lucky = told(model), told(model, spread=0.5)
    prepared = prepare(lucky, **TWO)
    seeds = list(range(400))

    def logit(shares: NDArray[np.float32]) -> NDArray[np.float64]:
        return np.log(shares / (1.0 - shares.astype(np.float64)))

    luck = [
        logit(predicted(lucky, prepared, [(protocol, seed) for seed in seeds]))
        - logit(predicted(plain, prepared, [(protocol, 0)]))
        for protocol in (CISPLATIN, LOBAPLATIN)
    ]
    np.testing.assert_allclose(luck[0], luck[1], atol=1e-4)
    assert luck[0].std() == pytest.approx(0.5, rel=0.1)
    assert abs(luck[0].mean()) < 0.06
    assert abs(np.corrcoef(luck[0].T)[0, 1]) < 0.15
    # the picture is drawn with the same luck
    jobs = [(CISPLATIN, 5), (CISPLATIN, 6)]
    for one, other in zip(plain.simulate(prepared, jobs), lucky.simulate(prepared, jobs), strict=True):
        assert (one != other).any()


def test_jobs_are_yielded_in_order_with_all_patches(engine: Engine):
    case = {"shape": (100, 30, 30), "spacing": (2.5, 2.5, 2.5), "lesions": (((12, 15, 15), 12.0), ((85, 15, 15), 10.0))}
    prepared = prepare(engine, **case)
    results = list(engine.simulate_differences(prepared, [(CISPLATIN, s) for s in range(5)]))
    assert [position for position, _ in results] == list(range(5))
    assert all(difference.shape == (2, 32, 32, 32) for _, difference in results)
    assert list(engine.simulate_differences(prepared, [])) == []


def test_every_lesion_is_owned_by_one_patch(engine: Engine):
    case = {"shape": (100, 30, 30), "spacing": (2.5, 2.5, 2.5), "lesions": (((12, 15, 15), 12.0), ((85, 15, 15), 10.0))}
    prepared = prepare(engine, **case)
    assert [sorted(set(np.unique(own)) - {0}) for own in prepared.own] == [[1], [2]]

    def voxels(radius: float) -> float:
        return 4 / 3 * np.pi * radius**3 / 3.0**3

    # 5 mm from the outermost voxel centres, which lie up to half a voxel below the surface
    assert voxels(12 + 5 - 1.5) < (prepared.own[0] == 1).sum() < voxels(12 + 5)


def test_the_case_is_prepared_once(engine: Engine, monkeypatch: pytest.MonkeyPatch):
    volume, labels = phantom()
    first = engine.prepare(volume, labels, ClinicalRecord(), "case")
    monkeypatch.setattr(engine, "segment", lambda *_: pytest.fail("prepared twice"))
    assert engine.prepare(volume, labels, ClinicalRecord(), "case") is first
    assert engine.prepared("case") is first


class Reader(nn.Module):
    """A segmenter that keeps what it is given and finds liver everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.clone())
        return nn.functional.one_hot(torch.ones(x.shape[0], *x.shape[2:], dtype=torch.long), 5).movedim(-1, 1).float()


def test_the_segmenter_reads_a_scan_beside_the_one_before_and_the_tumours_mask(model: WorldModel):
    reader = Reader()
    engine = Engine("cpu", model=dataclasses.replace(model, segmenter=reader), precision="fp32", batch=1)
    prepared = prepare(engine)
    (first,) = reader.seen
    assert torch.equal(first[:, 0], first[:, 1])  # the scan before treatment is read beside itself
    low, high = model.preset.hu_window
    unit = np.clip((prepared.pre - low) / (high - low) * 2 - 1, -1, 1)
    np.testing.assert_allclose(first[:, 1].numpy(), unit, atol=1e-5)
    np.testing.assert_array_equal(first[:, 2].numpy(), prepared.numbers > 0)
    assert 0 < float(first[:, 2].mean()) < 0.5
    engine.segment(np.full_like(prepared.pre, high), prepared.pre, np.zeros(prepared.pre.shape, dtype=bool))
    second = reader.seen[1]
    assert (second[:, 0] == 1).all()
    assert torch.equal(second[:, 1], first[:, 1])
    assert not second[:, 2].any()


def test_record_and_image_make_the_key(engine: Engine):
    volume, labels = phantom()
    keys = {
        engine.prepare(volume, labels, ClinicalRecord()).key,
        engine.prepare(volume, labels, ClinicalRecord(age_years=70)).key,
        engine.prepare(Volume(volume.data + np.int16(1), volume.affine), labels, ClinicalRecord()).key,
    }
    assert len(keys) == 3


def test_risk_of_several_patches_is_weighted_by_tumour_volume(model: WorldModel):
    class Spacing(nn.Module):
        """Risk = log2 of the patch spacing plus burden, so the expected value can be written down."""

        def encode_pre(self, x: Tensor) -> Tensor:
            return torch.zeros(x.shape[0], 1, 1)

        def forward(self, tokens: Tensor, post: Tensor, burden: Tensor, record: Tensor) -> Tensor:
            return burden[:, 3] + 10 * burden[:, 2] + 100 * burden[:, 1]

    engine = Engine("cpu", model=dataclasses.replace(model, survival=Spacing()), precision="fp32", batch=4)
    case = {
        "shape": (150, 60, 60),
        "spacing": (2.5, 2.5, 2.5),
        "lesions": (((40, 30, 30), 70.0), ((130, 30, 30), 20.0)),
    }
    prepared = prepare(engine, **case)
    coarse, fine = (patch.spacing_mm for patch in prepared.patches)
    assert (coarse > 3.0, fine) == (True, 3.0)
    big, small = prepared.lesion_ml
    expected = (big * np.log2(coarse / 1.5) + small * np.log2(fine / 1.5)) / (big + small)
    expected += 10 * 2 + 100 * np.log1p(big + small)
    (risk,) = engine.log_risk(prepared, [prepared.pre.astype(np.int16)], [prepared.tissue])
    assert risk == pytest.approx(expected, rel=1e-5)


def test_memory_errors_are_transient(model: WorldModel):
    class Hungry(Recorder):
        def forward(self, z_t: Tensor, *rest: Tensor, **more: Tensor) -> Tensor:
            return torch.empty(2**60)

    engine = Engine("cpu", model=dataclasses.replace(model, denoiser=Hungry(model.preset.denoiser)), precision="fp32")
    with pytest.raises(TransientToolError, match="memory"):
        engine.simulate(prepare(engine), [(CISPLATIN, 0)])


def test_other_runtime_errors_stay_bugs(model: WorldModel):
    class Broken(Recorder):
        def forward(self, z_t: Tensor, *rest: Tensor, **more: Tensor) -> Tensor:
            raise RuntimeError("shape mismatch")

    engine = Engine("cpu", model=dataclasses.replace(model, denoiser=Broken(model.preset.denoiser)), precision="fp32")
    with pytest.raises(RuntimeError, match="shape mismatch"):
        engine.simulate(prepare(engine), [(CISPLATIN, 0)])


def test_cuda_that_is_not_there_is_one_sentence(model: WorldModel, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="--device cpu"):
        Engine("cuda", model=model)


def test_a_large_case_fits_in_memory(model: WorldModel):
    case = {"shape": (512, 512, 69), "spacing": (0.74, 0.74, 2.5), "lesions": (((250, 250, 34), 85.0),)}
    volume, labels = phantom(**case)
    engine = Engine("cpu", model=model, precision="fp32", batch=8)
    prepared = engine.prepare(volume, labels, ClinicalRecord())
    assert prepared.patches[0].spacing_mm > 3.0
    engine.simulate(prepared, [(CISPLATIN, s) for s in range(3)])
    # The whole test process, everything before this test included.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 4 * 1024**2


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator of glibc is set up")
def test_freed_memory_is_used_again_instead_of_fetched_anew():
    count, rounds = 10_000_000, 8  # 40 MB, a layer of the segmenter: glibc by itself would give it back each time

    @in_engine_thread
    def fetched() -> int:
        torch.ones(count)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(rounds):
            torch.ones(count)
        return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) * resource.getpagesize()

    assert fetched() < 4 * count * rounds / 2


def test_networks_run_in_one_thread_whoever_calls(model: WorldModel):
    threads = set()
    handle = model.denoiser.register_forward_hook(lambda *_: threads.add(threading.current_thread().name))
    engine = Engine("cpu", model=model, precision="fp32", batch=2)
    volume, labels = phantom()
    prepared = engine.prepare(volume, labels, ClinicalRecord())
    try:
        with ThreadPoolExecutor(2) as callers:
            drawn = [callers.submit(engine.simulate, prepared, [(CISPLATIN, seed)]) for seed in (0, 0)]
            one, other = (future.result() for future in drawn)
    finally:
        handle.remove()
    assert threads == {"engine_0"}
    np.testing.assert_array_equal(one, other)


def test_what_goes_wrong_in_the_engines_thread_reaches_the_caller():
    @in_engine_thread
    def outer() -> int:
        return inner()

    @in_engine_thread
    def inner() -> int:
        raise TransientToolError("out of memory")

    with pytest.raises(TransientToolError, match="out of memory"):
        outer()


def test_a_whole_scan_is_labelled_on_its_own_grid_without_a_mask(model: WorldModel):
    volume, _ = phantom(shape=(60, 56, 30))
    found = Engine("cpu", model=model, precision="fp32", batch=4).segment_volume(volume)
    assert found.shape == volume.data.shape
    assert found.dtype == np.uint8
    assert set(np.unique(found)) <= {0, 1, 2}
