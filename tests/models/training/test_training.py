from __future__ import annotations

import csv
import itertools
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import load_file, save_file

from models.errors import RunError, WeightsError
from models.networks.autoencoder import Autoencoder
from models.networks.diffusion import Flow
from models.networks.preset import Preset
from models.protocol import Protocol
from models.redraw import redraw
from models.training import drawings, simulations
from models.training.autoencoder import AutoencoderTask, measure_latents, train_autoencoder
from models.training.checkpoint import FILE as CHECKPOINT
from models.training.denoiser import DenoiserTask, train_denoiser
from models.training.drawings import Drawings, Painter
from models.training.export import export_bundle, load_trained, unpack_bundle
from models.training.latents import compute_latents
from models.training.localiser import LocaliserTask, train_localiser
from models.training.loop import (
    FINAL,
    Cadence,
    RunOptions,
    RunResult,
    Task,
    learning_rate,
    run_training,
    update_average,
)
from models.training.parts import train_part
from models.training.pool import crop_around, hu_to_unit
from models.training.response import effect_slope
from models.training.segmenter import SegmenterTask, train_segmenter
from models.training.simulations import Simulations, Simulator, simulate_pool
from models.training.survival import SurvivalTask, train_survival
from models.weights import PARTS, PartName, build_network, load_world_model
from tests.models.training.conftest import FakePool, shrink

QUIET = Cadence(checkpoint_seconds=1e9, metrics_steps=1, validate_every=0.5)
Train = Callable[..., RunResult]


def _autoencoder(tiny: Preset, pool: FakePool) -> Autoencoder:
    torch.manual_seed(3)
    network = build_network("autoencoder", tiny)
    assert isinstance(network, Autoencoder)
    measure_latents(network.eval(), pool, tiny)
    return network


def quietly(**options: Any) -> RunOptions:
    return RunOptions(cadence=QUIET, mixed_precision=False, **options)


def _trainer(name: str, pool: FakePool, tiny: Preset) -> Train:
    def train(out: Path, **options: Any) -> RunResult:
        chosen = quietly(**options)
        if name in ("autoencoder", "localiser"):
            return {"autoencoder": train_autoencoder, "localiser": train_localiser}[name](pool, tiny, out, chosen)
        trainer = {"denoiser": train_denoiser, "segmenter": train_segmenter, "survival": train_survival}[name]
        return trainer(pool, tiny, _autoencoder(tiny, pool), out, chosen, autoencoder_id="test")  # type: ignore[operator]

    return train


def _losses(out: Path) -> list[float]:
    with (out / "metrics.csv").open(newline="") as file:
        return [
            float(row["value"]) for row in csv.DictReader(file) if row["split"] == "train" and row["metric"] == "loss"
        ]


@pytest.mark.parametrize("name", PARTS)
def test_a_resumed_run_equals_an_unbroken_one_bit_for_bit(
    name: PartName, pool: FakePool, tiny: Preset, tmp_path: Path
) -> None:
    """As `mewm train all` trains it: in mixed precision, on what the networks before it make of the pool."""
    for earlier in PARTS[: PARTS.index(name)]:
        train_part(earlier, pool, tiny, tmp_path / "whole", quietly(steps=1))
    if (tmp_path / "whole").exists():
        shutil.copytree(tmp_path / "whole", tmp_path / "broken")

    def train(folder: str, **options: Any) -> RunResult:
        chosen = replace(quietly(seed=5, steps=6, **options), mixed_precision=True)
        return train_part(name, pool, tiny, tmp_path / folder, chosen)

    train("whole")
    broken = train("broken", stop_after=3)
    assert not broken.finished
    assert not (tmp_path / "broken" / name / FINAL).exists()
    assert train("broken", resume=True).finished
    whole, again = load_file(tmp_path / "whole" / name / FINAL), load_file(tmp_path / "broken" / name / FINAL)
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[key], again[key]) for key in whole)
    assert _losses(tmp_path / "whole" / name) == _losses(tmp_path / "broken" / name)
    assert len(_losses(tmp_path / "whole" / name)) == 6
    assert list((tmp_path / "whole" / name / "samples").glob("*.png"))


def test_the_paper_preset_trains_by_its_own_losses_and_sampling(pool: FakePool, tmp_path: Path) -> None:
    """Noise prediction, DDPM, decoded codes, no record, on networks that are made small: what `tiny` has otherwise."""
    settings = shrink(Preset.load("paper")).model_dump()
    settings["denoiser"]["timesteps"] = 20  # DDPM takes them all
    paper = Preset.model_validate(settings)
    assert (paper.denoiser.objective, paper.autoencoder.decode_codes) == ("noise", True)
    for name in PARTS:
        assert train_part(name, pool, paper, tmp_path, quietly(steps=2)).finished
        assert np.isfinite(_losses(tmp_path / name)).all()
    manifest = export_bundle(tmp_path, paper, tmp_path / "weights", origin="synthetic", provenance={})
    assert load_world_model(tmp_path / "weights").weights_hash == manifest.weights_hash


def _task(name: str, pool: FakePool, tiny: Preset, folder: Path) -> Task:
    torch.manual_seed(7)
    if name in ("autoencoder", "localiser"):
        return AutoencoderTask(pool, tiny) if name == "autoencoder" else LocaliserTask(pool, tiny)
    autoencoder = _autoencoder(tiny, pool)
    if name == "denoiser":
        return DenoiserTask(
            pool, tiny, compute_latents(autoencoder, pool, tiny, folder / "latents", "test"), autoencoder
        )
    return SegmenterTask(pool, tiny, autoencoder) if name == "segmenter" else SurvivalTask(pool, tiny, autoencoder)


def _loss_on_the_same_batches(task: Task) -> float:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    with torch.no_grad():
        return float(np.mean([task.loss(rng, 1.0)[0].item() for _ in range(6)]))


STEPS = [("autoencoder", 25), ("denoiser", 60), ("segmenter", 25), ("localiser", 25), ("survival", 120)]


@pytest.mark.parametrize(("name", "steps"), STEPS)
def test_a_few_steps_lower_the_loss(name: str, steps: int, pool: FakePool, tiny: Preset, tmp_path: Path) -> None:
    task = _task(name, pool, tiny, tmp_path)
    before = _loss_on_the_same_batches(task)
    options = getattr(tiny.training, name).model_copy(update={"ema": 0.5, "learning_rate": 0.01})
    run_training(task, options, tmp_path / name, quietly(seed=1, steps=steps), fingerprint="test")
    assert _loss_on_the_same_batches(task) < 0.95 * before


def test_a_run_is_not_overwritten_and_not_continued_as_another(pool: FakePool, tiny: Preset, tmp_path: Path) -> None:
    train = _trainer("autoencoder", pool, tiny)
    train(tmp_path, seed=0, steps=2, stop_after=1)
    with pytest.raises(RunError, match="--resume"):
        train(tmp_path, seed=0, steps=2)
    with pytest.raises(RunError, match="other data, preset or seed"):
        train(tmp_path, seed=1, steps=2, resume=True)


@pytest.mark.parametrize("name", PARTS)
def test_a_refused_run_leaves_the_other_one_as_it_is(name: str, pool: FakePool, tiny: Preset, tmp_path: Path) -> None:
    _trainer(name, pool, tiny)(tmp_path, seed=0, steps=2, stop_after=1)

    def files() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}

    before = files()
    other = _trainer(name, replace(pool, data_hash="other"), tiny)
    for resume in (False, True):
        with pytest.raises(RunError, match="other data, preset or seed" if resume else "--resume"):
            other(tmp_path, seed=0, steps=2, resume=resume)
    assert files() == before


def test_a_damaged_checkpoint_is_one_sentence(pool: FakePool, tiny: Preset, tmp_path: Path) -> None:
    train = _trainer("autoencoder", pool, tiny)
    train(tmp_path, seed=0, steps=2, stop_after=1)
    (tmp_path / "checkpoint.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(RunError, match="can't be continued"):
        train(tmp_path, seed=0, steps=2, resume=True)


def test_a_finished_run_is_kept(pool: FakePool, tiny: Preset, tmp_path: Path) -> None:
    train = _trainer("autoencoder", pool, tiny)
    train(tmp_path, seed=0, steps=2)
    before = (tmp_path / FINAL).read_bytes()
    assert train(tmp_path, seed=0, steps=2, resume=True).step == 2
    assert (tmp_path / FINAL).read_bytes() == before


def test_a_trained_network_without_its_checkpoint_is_neither_overwritten_nor_trained_for_nothing(
    pool: FakePool, tiny: Preset, tmp_path: Path
) -> None:
    train = _trainer("autoencoder", pool, tiny)
    train(tmp_path, seed=0, steps=1)
    (tmp_path / CHECKPOINT).unlink()
    for resume in (False, True):
        with pytest.raises(RunError, match="without its checkpoint"):
            train(tmp_path, seed=0, steps=1, resume=resume)


def test_the_average_moves_from_the_first_step() -> None:
    network, average = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    start = average.weight.detach().clone()
    update_average(average, network, decay=0.999, step=0)
    expected = 0.1 * start + 0.9 * network.weight.detach()
    torch.testing.assert_close(average.weight.detach(), expected)


def test_learning_rate_warms_up_and_decays() -> None:
    rates = [learning_rate(1.0, step, warmup=10, progress=step / 100) for step in range(101)]
    assert rates[0] < rates[5] < rates[9]
    assert rates[100] == pytest.approx(0.02)
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))


def test_latents_are_computed_once_and_continued(pool: FakePool, tiny: Preset, tmp_path: Path) -> None:
    autoencoder = _autoencoder(tiny, pool)
    first = compute_latents(autoencoder, pool, tiny, tmp_path, "a")
    x = hu_to_unit(pool.post[2, 1], tiny.hu_window)[None, None]
    with torch.no_grad():
        exact = autoencoder.encode(x)[0].numpy()
    assert np.corrcoef(exact.ravel(), first.post[2, 1].astype(np.float64).ravel())[0, 1] > 0.999
    assert float(first.mask[3].sum()) * 64 == pytest.approx(float(pool.tumour_mask[3].sum()), rel=1e-2)
    stamp = (tmp_path / "pre.npy").stat().st_mtime_ns
    compute_latents(autoencoder, pool, tiny, tmp_path, "a")
    assert (tmp_path / "pre.npy").stat().st_mtime_ns == stamp
    compute_latents(autoencoder, pool, tiny, tmp_path, "b")
    assert (tmp_path / "pre.npy").stat().st_mtime_ns > stamp


def test_what_a_kill_left_of_other_latents_is_not_taken_for_these(
    pool: FakePool, tiny: Preset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    autoencoder = _autoencoder(tiny, pool)
    written = compute_latents(autoencoder, pool, tiny, tmp_path, "a")
    first = {name: np.array(values) for name, values in vars(written).items()}

    def killed(_: torch.Tensor) -> torch.Tensor:
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(autoencoder, "encode", killed)
        with pytest.raises(KeyboardInterrupt):
            compute_latents(autoencoder, pool, tiny, tmp_path, "b")
    again = vars(compute_latents(autoencoder, pool, tiny, tmp_path, "a"))
    for name, values in first.items():
        np.testing.assert_array_equal(again[name], values)


def test_crops_hold_the_tumour_and_hu_maps_to_the_unit_range(pool: FakePool) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        assert pool.tumour_mask[0][crop_around(pool.tumour_mask[0], 16, rng)].any()
    values = hu_to_unit(np.array([-1024, -175, 212.5, 600, 3000]), (-175.0, 600.0))
    np.testing.assert_allclose(values.numpy(), [-1, -1, 0, 1, 1], atol=1e-6)


def test_times_cover_the_start_of_the_flow() -> None:
    times = Flow().times(np.random.default_rng(0), 4000).numpy()
    assert times.min() < 0.005
    assert times.max() > 0.995
    assert np.mean((times > 0.25) & (times < 0.75)) > 0.6


def _denoiser_task(pool: FakePool, tiny: Preset, folder: Path, *changes: str) -> DenoiserTask:
    task = _task("denoiser", pool, tiny.changed([f"training.denoiser.options.{change}" for change in changes]), folder)
    assert isinstance(task, DenoiserTask)
    return task


def test_the_contrastive_loss_moves_the_denoiser(pool: FakePool, tiny: Preset, tmp_path: Path) -> None:
    gradients = []
    for weight in (0.01, 1.01):  # the same network on the same batch
        task = _denoiser_task(pool, tiny, tmp_path, f"contrast_weight={weight}", "attenuation_share=0")
        task.loss(np.random.default_rng(3), 1.0)[0].backward()
        given = [(name, p.grad) for name, p in task.network.named_parameters() if p.grad is not None]
        gradients.append(dict(given))
    moved = [name for name in gradients[0] if not torch.allclose(gradients[0][name], gradients[1][name])]
    assert moved
    assert not any(name.startswith("response") for name in moved)


def test_what_the_denoiser_sees_fades_more_where_more_dies(pool: FakePool, tiny: Preset, tmp_path: Path) -> None:
    patients = np.repeat(pool.train[:3], 2)
    seen = {}
    for share in (0, 1):
        task = _denoiser_task(pool, tiny, tmp_path, f"attenuation_share={share}")
        before = task._latents("pre", patients)
        for name, protocol in (("alive", 0), ("dead", 3)):  # Cisplatin alone kills nothing here, PVA everything
            protocols = np.full(len(patients), protocol)
            after = task._attenuated(before, patients, protocols, np.random.default_rng(0))
            seen[name, share] = float((after - before).abs().mean())
    assert seen["alive", 0] == seen["dead", 0] == 0
    assert 0 < seen["alive", 1] < 0.7 * seen["dead", 1]


def test_effect_slope_of_half_the_effect_is_a_half_whatever_the_patient_level() -> None:
    rng = np.random.default_rng(0)
    true = rng.normal(size=(30, 4))
    slope, r = effect_slope(true, 0.5 * true + rng.normal(size=(30, 1)) * 10)
    assert slope == pytest.approx(0.5)
    assert r == pytest.approx(1.0)


class _Keeps(torch.nn.Module):
    """Finds what `classify` says and keeps what it was given."""

    def __init__(self, classify: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.classify = classify
        self.seen: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(x)
        return torch.nn.functional.one_hot(self.classify(x), 5).movedim(-1, 1).float()


def _by_hu(x: torch.Tensor) -> torch.Tensor:
    """The truth of `FakePool` on a scan that no autoencoder touched."""
    hu = (x[:, 0] + 1) * 387.5 - 175
    return torch.where(hu < 60, 3, torch.where(hu < 125, 1, torch.where(hu < 300, 2, 4)))


def test_segmenter_sees_each_scan_beside_the_one_before_and_the_mask_mirrored_alike(
    pool: FakePool, tiny: Preset
) -> None:
    task = SegmenterTask(pool, tiny, _autoencoder(tiny, pool))
    network = _Keeps(_by_hu)
    labels: list[torch.Tensor] = []

    def criterion(logits: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        labels.append(classes[:, 0])
        return logits.mean()

    task.network, task.criterion = network, criterion  # type: ignore[assignment]
    rng = np.random.default_rng(0)
    for _ in range(100):
        task.loss(rng, 0.0)
    inputs, classes = torch.cat(network.seen), torch.cat(labels)
    assert inputs.shape == (200, 3, 16, 16, 16)
    same = 0
    for (scan, before, mask), truth in zip(inputs, classes, strict=True):
        tumour = truth >= 2  # in this pool exactly the tumour before treatment, in every view
        assert mask.any()
        assert torch.equal(mask, tumour.float())
        same += torch.equal(scan, before)
        # 160 HU in a liver of 90 HU, whatever the scan after it shows
        assert before[tumour].mean() - before[~tumour].mean() == pytest.approx(140 / 775, abs=0.05)
    assert 45 <= same <= 90  # one view of three is the scan before treatment itself


def test_localiser_sees_abdomens_of_training_patients_as_they_lie(pool: FakePool, tiny: Preset) -> None:
    wide = np.full((len(pool.pre), 20, 20, 20), -100, np.int16)
    wide[:, -8:] = 150
    wide[pool.val] = 400
    classes = np.where(wide == 150, 3, 0).astype(np.uint8)  # dead tumour is tumour
    task = LocaliserTask(replace(pool, wide=wide, wide_labels=classes), tiny)
    network = _Keeps(lambda x: torch.zeros_like(x[:, 0], dtype=torch.long))
    labels: list[torch.Tensor] = []

    def criterion(logits: torch.Tensor, regions: torch.Tensor) -> torch.Tensor:
        labels.append(regions[:, 0])
        return logits.mean()

    task.network, task.criterion = network, criterion  # type: ignore[assignment]
    rng = np.random.default_rng(0)
    for _ in range(20):
        task.loss(rng, 0.0)
    seen, regions = torch.cat(network.seen)[:, 0], torch.cat(labels)
    assert seen.shape == (40, 16, 16, 16)
    inside = regions == 2
    assert not regions[~inside].any()
    assert 4 <= inside.sum(1).max() <= 8
    assert (inside.float().diff(dim=1) >= 0).all()  # never mirrored
    hu = (seen + 1) * 387.5 - 175
    assert (hu[inside].mean() - hu[~inside].mean()) == pytest.approx(250, abs=30)
    assert hu[~inside].max() < 0  # no validation patient


def test_segmenter_validation_measures_the_effect_on_the_viable_share(pool: FakePool, tiny: Preset) -> None:
    task = SegmenterTask(pool, tiny, _autoencoder(tiny, pool))
    with torch.no_grad():
        exact = task.validate(_Keeps(_by_hu))
        before = task.validate(_Keeps(lambda x: _by_hu(x[:, 1:])))
        masked = task.validate(_Keeps(lambda x: torch.where(x[:, 2] > 0, 2, 1)))
    assert exact["viable_slope_post"] == pytest.approx(1.0, abs=0.05)
    assert exact["viable_r_post"] > 0.99
    assert exact["dice_viable_pre"] > 0.95
    assert exact["dice_necrotic_post"] > 0.95
    for view in ("post", "composite"):  # whoever reads the scan before only finds no effect
        assert before[f"viable_slope_{view}"] == pytest.approx(0.0, abs=1e-9)
    assert masked["dice_tumour_pre"] == masked["dice_tumour_post"] == 1.0


def test_trained_networks_become_a_bundle(pool: FakePool, tiny: Preset, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for name in PARTS:
        _trainer(name, pool, tiny)(run / name, seed=0, steps=1)
    manifest = export_bundle(run, tiny, tmp_path / "weights", origin="synthetic", provenance={"command": "test"})
    model = load_world_model(tmp_path / "weights")
    assert model.weights_hash == manifest.weights_hash
    assert model.baseline is not None
    assert model.baseline.survival[0] == 1.0
    assert all(a >= b for a, b in itertools.pairwise(model.baseline.survival))
    trained, _ = load_trained("denoiser", run, tiny)
    for mine, theirs in zip(model.denoiser.parameters(), trained.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=2e-3, atol=1e-6)
    with pytest.raises(WeightsError, match="no trained autoencoder"):
        load_trained("autoencoder", tmp_path / "elsewhere", tiny)

    again = tmp_path / "again"
    unpack_bundle(tmp_path / "weights", again, ["autoencoder", "denoiser", "segmenter"], {})
    with pytest.raises(WeightsError, match="has a denoiser already"):
        unpack_bundle(tmp_path / "weights", again, ["localiser", "denoiser"], {})
    assert not (again / "localiser").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(WeightsError, match="can't be written"):
        unpack_bundle(tmp_path / "weights", tmp_path / "file", ["denoiser"], {})
    with pytest.raises(
        WeightsError, match="can't be written"
    ):  # the second network's note fails: the first is not left
        unpack_bundle(tmp_path / "weights", tmp_path / "half", PARTS, {"denoiser": {"no/folder.txt": ""}})
    assert list((tmp_path / "half").iterdir()) == []
    train_part("survival", pool, tiny, again, quietly(steps=1))
    assert (again / "survival" / "simulations").exists()
    unpack_bundle(tmp_path / "weights", again, ["localiser"], {"localiser": {"note.txt": "read"}})
    assert (again / "localiser" / "note.txt").read_text() == "read"
    unpack_bundle(tmp_path / "weights", tmp_path / "whole", PARTS, {})
    export_bundle(tmp_path / "whole", tiny, tmp_path / "third", origin="synthetic", provenance={"command": "test"})
    whole = load_world_model(tmp_path / "third")
    assert whole.baseline == model.baseline
    export_bundle(again, tiny, tmp_path / "second", origin="synthetic", provenance={"command": "test"})
    second = load_world_model(tmp_path / "second")
    for part in PARTS:
        for key, tensor in model.part(part).state_dict().items():
            assert torch.equal(whole.part(part).state_dict()[key], tensor), (part, key)
            assert part == "survival" or torch.equal(second.part(part).state_dict()[key], tensor), (part, key)


@pytest.mark.parametrize(
    ("part", "name", "other"),
    [
        ("denoiser", "objective", "noise"), ("denoiser", "condition", "none"), ("denoiser", "timesteps", 50),
        ("denoiser", "text_encoder", "clip"), ("autoencoder", "decode_codes", True),
    ],
)  # fmt: skip
def test_a_setting_that_no_weight_shows_is_compared_with_the_training(
    part: Any, name: str, other: Any, pool: FakePool, tiny: Preset, tmp_path: Path
) -> None:
    for trained in dict.fromkeys(("autoencoder", part)):
        train_part(trained, pool, tiny, tmp_path, quietly(steps=1))
    settings = tiny.model_dump()
    settings["denoiser"]["steps"] += 1  # how it is sampled is free
    load_trained(part, tmp_path, Preset.model_validate(settings))
    settings[part][name] = other
    forgotten = Preset.model_validate(settings)
    was = getattr(getattr(tiny, part), name)
    with pytest.raises(WeightsError, match=rf"was trained with {part}\.{name}={was}: .*--set"):
        load_trained(part, tmp_path, forgotten)
    if part == "denoiser":
        with pytest.raises(WeightsError, match="--set"):  # a later part of the same run
            train_part("segmenter", pool, forgotten, tmp_path, quietly(steps=1))


def test_weights_are_not_exported_under_another_training_than_they_had(
    pool: FakePool, tiny: Preset, tmp_path: Path
) -> None:
    """Else weights trained with contrastive learning could be passed off as trained without it."""
    for trained in ("autoencoder", "denoiser"):
        train_part(trained, pool, tiny, tmp_path, quietly(steps=1))
    settings = tiny.model_dump()
    settings["training"]["denoiser"]["minutes"] += 1  # how long is the command's to say
    load_trained("denoiser", tmp_path, Preset.model_validate(settings))
    was = settings["training"]["denoiser"]["options"]["contrast_weight"]
    settings["training"]["denoiser"]["options"]["contrast_weight"] = was + 1.0
    with pytest.raises(WeightsError, match=rf"was trained with training\.denoiser\.options\.contrast_weight={was}: "):
        load_trained("denoiser", tmp_path, Preset.model_validate(settings))
    settings["training"]["denoiser"]["options"] |= {"contrast_weight": was, "a_later_option": 0.0}
    load_trained("denoiser", tmp_path, Preset.model_validate(settings))
    settings["training"]["denoiser"]["options"]["a_later_option"] = 2.0
    with pytest.raises(WeightsError, match=r"was trained with training\.denoiser\.options\.a_later_option=0: "):
        load_trained("denoiser", tmp_path, Preset.model_validate(settings))


def test_a_trained_file_without_its_settings_is_one_sentence(tiny: Preset, tmp_path: Path) -> None:
    (tmp_path / "survival").mkdir()
    save_file(build_network("survival", tiny).state_dict(), tmp_path / "survival" / FINAL)
    with pytest.raises(WeightsError, match="damaged or was trained with another preset"):
        load_trained("survival", tmp_path, tiny)


def test_segmenter_and_survival_network_learn_from_simulated_scans(
    pool: FakePool, tiny: Preset, tmp_path: Path
) -> None:
    for name in PARTS:
        train_part(name, pool, tiny, tmp_path, quietly(steps=2))
    assert "viable_slope_simulated" in (tmp_path / "segmenter" / "metrics.csv").read_text()
    assert "within_patient_rank_simulated" in (tmp_path / "survival" / "metrics.csv").read_text()
    tissue = np.load(tmp_path / "survival" / "simulations" / "tissue.npy")
    assert tissue.shape[:2] == (6, 4)  # four training patients and the two of the validation
    drawn = np.load(tmp_path / "segmenter" / "drawings" / "shares.npy")
    np.testing.assert_allclose(drawn.sum(axis=2), 1.0, rtol=1e-5)
    assert ",train,drawn," in (tmp_path / "segmenter" / "metrics.csv").read_text()


def test_two_drawn_scans_of_one_patient_hold_its_whole_tumour_under_one_scanner(pool: FakePool, tiny: Preset) -> None:
    patients = np.array([3, 5])
    pairs = Drawings(patients, pool.post[patients], np.full((2, 4, 4), 0.25, np.float32))
    task = SegmenterTask(pool, tiny, _autoencoder(tiny, pool), drawings=pairs)
    task.training = task.training.model_copy(update={"crop": 24})
    rng = np.random.default_rng(0)
    for _ in range(10):
        inputs, mask, meant = task._drawn_pair(pairs, rng)
        assert mask.shape == (24, 24, 24)
        assert int(mask.sum()) in {int((pool.tumour_mask[p] > 0).sum()) for p in patients}
        assert torch.equal(inputs[0][1], inputs[1][1])  # one scan before treatment
        assert torch.equal(inputs[0][2], mask.float())
        assert not torch.equal(inputs[0][0], inputs[1][0])  # two protocols
        assert meant.shape == (2, 3)


def test_simulations_are_kept_for_the_same_patients_and_sampling_only(
    pool: FakePool, tiny: Preset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []

    def draw(_: Any, pool: FakePool, preset: Preset, patient: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        drawn.append(patient)
        return torch.zeros(pool.post.shape[1:]), torch.zeros(pool.post.shape[1], 4)

    monkeypatch.setattr(drawings, "draw_patient", draw)
    painter = Painter(_autoencoder(tiny, pool), build_network("denoiser", tiny), "painter")  # type: ignore[arg-type]
    simulator = Simulator(painter, build_network("segmenter", tiny), "weights")  # type: ignore[arg-type]

    def call(patients: list[int], **denoiser: Any) -> list[int]:
        preset = tiny.model_copy(update={"denoiser": tiny.denoiser.model_copy(update=denoiser)})
        drawn.clear()
        simulate_pool(simulator, pool, preset, np.array(patients), tmp_path)
        return list(drawn)

    assert call([1, 4]) == [1, 4]
    assert call([1, 4]) == []
    assert call([2, 3]) == [2, 3]  # as many, with the same sum
    assert call([2, 3], steps=9) == [2, 3]
    assert call([2, 3], steps=9, guidance=2.0) == [2, 3]
    assert call([2, 3], steps=9, guidance=2.0, guidance_at=0.5) == [2, 3]
    assert call([2, 3], steps=9, guidance=2.0, guidance_at=0.5) == []

    def killed(*_: Any) -> tuple[torch.Tensor, torch.Tensor]:
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(drawings, "draw_patient", killed)
        with pytest.raises(KeyboardInterrupt):
            call([1, 4])
    assert call([2, 3], steps=9, guidance=2.0, guidance_at=0.5) == [2, 3]  # the other call had begun to write over them


def test_simulations_are_corrected_and_read_as_the_engine_does_it(
    pool: FakePool, tiny: Preset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares = torch.tensor([0.1, 0.4, 0.75, 1.0])
    oiled = torch.tensor([True, False, True, False])
    given = [Protocol(drugs=("Cisplatin",), embolics=("Lipiodol",) if oil else ()) for oil in oiled]
    protocols = [given if patient == 1 else one for patient, one in enumerate(pool.protocols)]
    pool = replace(pool, protocols=protocols)
    spot = tuple(np.argwhere(pool.tumour_mask[1] > 0)[0])

    def draw(_: Any, pool: FakePool, preset: Preset, patient: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        meant = torch.stack([shares, *[(1.0 - shares) / 3.0] * 3], dim=1)
        dense = pool.post[patient].copy()
        dense[:, *spot] = 400
        return hu_to_unit(dense, preset.hu_window), meant

    monkeypatch.setattr(drawings, "draw_patient", draw)
    segmenter = build_network("segmenter", tiny).eval()
    painter = Painter(_autoencoder(tiny, pool), build_network("denoiser", tiny), "painter")  # type: ignore[arg-type]
    simulator = Simulator(painter, segmenter, "weights")  # type: ignore[arg-type]

    def simulated(redraws: int) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.uint8]]:
        preset = tiny.model_copy(update={"denoiser": tiny.denoiser.model_copy(update={"redraws": redraws})})
        found = simulate_pool(simulator, pool, preset, np.array([1]), tmp_path)
        # copies: the next ones are written where these were
        return np.array(found.scan[0]), np.array(found.tissue[0])

    def logits(scan: torch.Tensor) -> torch.Tensor:
        window = tiny.hu_window
        beside = hu_to_unit(pool.pre[1], window).expand_as(scan)
        with torch.no_grad():
            return segmenter(torch.stack([hu_to_unit(scan, window), beside, mask.float()], dim=1)).float()

    mask = torch.from_numpy(pool.tumour_mask[1] > 0).expand(4, -1, -1, -1)
    drawn, read = simulated(0)
    low, high = tiny.hu_window
    elsewhere = np.ones(drawn.shape, dtype=bool)
    elsewhere[:, *spot] = False
    assert np.abs(drawn - np.clip(pool.post[1], low, high))[elsewhere].max() <= 1
    scan, tissue = simulated(2)
    assert (drawn[:, *spot] == 400).all()
    assert pool.pre[1][spot] <= 200
    np.testing.assert_array_equal(scan[:, *spot] > 200, oiled.numpy())
    before = torch.from_numpy(pool.pre[1].astype(np.float32)).expand(4, -1, -1, -1)
    drawing = torch.from_numpy(drawn.astype(np.float32))
    by_hand = redraw(drawing, before, mask, shares, oiled, logits, 2).clamp(low, high)
    # half precision decides a few voxels otherwise: the classes of an untrained network lie close together
    assert (np.abs(scan - by_hand.numpy()) > 1).mean() < 0.02
    assert (scan != drawn).any()
    np.testing.assert_array_equal(scan[~mask.numpy()], drawn[~mask.numpy()])
    found = logits(torch.from_numpy(scan.astype(np.float32))).argmax(dim=1).numpy()
    assert (tissue != found).mean() < 0.05
    again = simulated(0)
    np.testing.assert_array_equal(again[0], drawn)
    np.testing.assert_array_equal(again[1], read)
    assert not np.array_equal(read, tissue)

    def killed(*_: Any) -> torch.Tensor:
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(simulations, "redraw", killed)
        with pytest.raises(KeyboardInterrupt):
            simulated(2)
    np.testing.assert_array_equal(simulated(0)[1], read)


def test_simulations_see_the_box_that_the_engine_looks_at(
    pool: FakePool, tiny: Preset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Coarse voxels, so that tumour, feather (2 voxels) and margin (6) leave a part of the cube out."""

    def draw(_: Any, pool: FakePool, preset: Preset, patient: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        return hu_to_unit(pool.post[patient], preset.hu_window), torch.full((4, 4), 0.25)

    monkeypatch.setattr(drawings, "draw_patient", draw)
    patient = int(np.argmin((pool.tumour_mask > 0).sum(axis=(1, 2, 3))))
    coarse = replace(pool, spacing_mm=np.full(len(pool.pre), 4.5, np.float32))
    crops = {name: getattr(tiny.training, name).model_copy(update={"crop": 8}) for name in ("autoencoder", "segmenter")}
    preset = tiny.model_copy(update={"training": tiny.training.model_copy(update=crops)})
    painter = Painter(_autoencoder(tiny, pool), build_network("denoiser", tiny), "painter")  # type: ignore[arg-type]
    simulator = Simulator(painter, build_network("segmenter", tiny).eval(), "weights")  # type: ignore[arg-type]
    found = simulate_pool(simulator, coarse, preset, np.array([patient]), tmp_path)
    inside = np.argwhere(pool.tumour_mask[patient] > 0)
    low, high = np.maximum(inside.min(axis=0) - 8, 0), np.minimum(inside.max(axis=0) + 9, pool.pre.shape[1])
    assert (high - low).min() < pool.pre.shape[1]
    seen = np.argwhere(found.tissue[0].any(axis=0))
    step = preset.box_step
    assert (seen.min(axis=0) > low - step).all()
    assert (seen.max(axis=0) < high + step).all()
    assert not found.tissue[0].any(axis=0).all()
    drawn = np.rint(np.clip(pool.post[patient], *tiny.hu_window))
    beyond = np.broadcast_to(pool.tumour_mask[patient] == 0, drawn.shape)
    assert np.abs(found.scan[0] - drawn)[beyond].max() <= 1


def test_a_simulated_burden_is_the_truth_corrected_by_what_the_patch_shows(pool: FakePool) -> None:
    tissue = np.array(pool.post_labels[[3]])
    row = {3: 0}
    same = Simulations(row, np.zeros((1, 4, 1, 1, 1), np.int16), tissue)
    np.testing.assert_allclose(same.viable_ml(3, pool), np.expm1(pool.burden[3, :, 0]), rtol=1e-5)
    dead = Simulations(row, same.scan, np.where(tissue == 2, 3, tissue).astype(np.uint8))
    np.testing.assert_allclose(dead.viable_ml(3, pool), 0.0, atol=1e-4)
