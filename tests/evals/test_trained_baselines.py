"""What the world model is compared with trains through the same loop, and knows no more than it should."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from evals.image_regressor import KNOWN, ImageRegressor, RegressorTask, predict_risks
from evals.trained_baselines import (
    DENOISERS,
    REGRESSOR,
    load_regressor,
    main,
    preset_for,
    train_baseline,
    trained_minutes,
    trained_simulators,
)
from models.clinical_record import ClinicalRecord
from models.engine import Engine, Prepared
from models.networks.denoiser import Denoiser
from models.networks.preset import Preset
from models.networks.record_vector import record_vector
from models.phantom.pool import PatchPool
from models.protocol import Protocol
from models.training.loop import FINAL, METRICS
from models.weights import PARTS, init_world_model, save_world_model
from tests.models.test_engine import phantom
from tests.models.training.conftest import make_pool, shrink

ONE = Protocol(drugs=("Cisplatin",), embolics=("Lipiodol",))
OTHER = Protocol(drugs=("Mitomycin", "Epirubicin"), embolics=("PVA",))


@pytest.fixture(scope="module")
def preset() -> Preset:
    return shrink(Preset.load("small"))


@pytest.fixture(scope="module")
def bundle(preset: Preset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model, folder = init_world_model(preset, seed=2), tmp_path_factory.mktemp("bundle")
    networks = {name: model.part(name) for name in PARTS}
    save_world_model(networks, model.preset, folder, origin="untrained", provenance={"command": "a test"})
    return folder


@pytest.fixture(scope="module")
def pool() -> PatchPool:
    made: Any = make_pool()
    return made  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def run(pool: PatchPool, bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("baselines")
    for name in ("without_action", REGRESSOR):
        assert train_baseline(name, pool, out, weights=bundle, steps=2).finished
    return out


def test_each_baseline_is_the_shipped_preset_with_one_thing_hidden(preset: Preset) -> None:
    changed = {name: preset_for(name, preset) for name in DENOISERS}
    assert changed["retrained"] == preset
    assert changed["text_only"].denoiser.condition == "text"
    assert changed["without_action"].denoiser.condition == "none"
    assert changed["without_action"].denoiser.guidance == 1.0
    assert changed["without_action"].training.denoiser.options["contrast_weight"] == 0.0
    for one in changed.values():
        assert one.autoencoder == preset.autoencoder
        assert one.denoiser.channels == preset.denoiser.channels


@pytest.mark.parametrize(("name", "sees_action", "sees_text"), [
    ("retrained", True, True), ("text_only", False, True), ("without_action", False, False),
])  # fmt: skip
def test_what_is_hidden_cannot_change_the_output(preset: Preset, name: str, sees_action: bool, sees_text: bool) -> None:
    sizes = preset_for(name, preset)
    torch.manual_seed(0)
    network = Denoiser(sizes.denoiser, sizes.autoencoder.latent_channels).eval()
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    size = sizes.latent_size
    cube = torch.randn(1, sizes.autoencoder.latent_channels, size, size, size)
    mask = torch.ones(1, 1, size, size, size)

    def velocity(action: float, text: float, shares: float) -> torch.Tensor:
        with torch.no_grad():
            out: torch.Tensor = network(
                cube, torch.tensor([0.5]), cube, mask, torch.full((1, 18, 3), action),
                torch.full((1, sizes.denoiser.text_dim), text), torch.zeros(1), torch.full((1, 4), shares),
            )  # fmt: skip
        return out

    base = velocity(0.1, 0.1, 0.2)
    assert torch.equal(velocity(0.9, 0.1, 0.2), base) == (not sees_action)
    assert torch.equal(velocity(0.1, 0.1, 0.5), base) == (not sees_action)
    assert torch.equal(velocity(0.1, 0.9, 0.2), base) == (not sees_text)


def test_a_trained_one_simulates_on_the_shipped_latents(run: Path, bundle: Path) -> None:
    engine = Engine("cpu", bundle, precision="fp32", batch=2)
    found, missing = trained_simulators(run, bundle, engine)
    assert [one.name for one in found] == ["without_action"]
    assert len(missing) == 2
    assert all("not trained" in why for why in missing.values())
    (blind,) = found
    assert blind.engine.weights_hash != engine.weights_hash
    volume, labels = phantom()
    prepared: Prepared = engine.prepare(volume, labels, ClinicalRecord(age_years=60), "ball")
    (one,), (other,) = (blind.scans(prepared, [(protocol, 0)]) for protocol in (ONE, OTHER))
    np.testing.assert_array_equal(one, other)  # it does not know the protocol
    assert (one != np.rint(prepared.pre)).any()


def test_the_regressor_knows_scan_record_and_protocol(run: Path, bundle: Path, preset: Preset) -> None:
    network = load_regressor(run, preset)
    assert isinstance(network, ImageRegressor)
    assert load_regressor(run / "nowhere", preset) is None
    rng = torch.Generator().manual_seed(0)
    scan = torch.rand(2, preset.size, preset.size, preset.size, generator=rng)
    record = record_vector(ClinicalRecord(age_years=60))
    base = predict_risks(network, scan, 30.0, 1, 1.5, record, [ONE, OTHER, ONE])
    assert base[0] == base[2] != base[1]
    assert not np.array_equal(predict_risks(network, scan * 0, 30.0, 1, 1.5, record, [ONE, OTHER, ONE]), base)
    assert not np.array_equal(predict_risks(network, scan, 300.0, 1, 1.5, record, [ONE, OTHER, ONE]), base)
    older = record_vector(ClinicalRecord(age_years=80))
    assert not np.array_equal(predict_risks(network, scan, 30.0, 1, 1.5, older, [ONE, OTHER, ONE]), base)
    assert KNOWN == 3


def test_the_regressor_is_trained_to_the_end_and_its_best_validation_is_kept(
    pool: PatchPool, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranks = iter([0.1, 0.6, 0.3, 0.2, 0.6])  # the last is that of the kept weights
    monkeypatch.setattr(RegressorTask, "validate", lambda *_: {"within_patient_rank": next(ranks)})
    result = train_baseline(REGRESSOR, pool, tmp_path, weights=bundle, steps=4)
    assert result.step == 4
    with safe_open(tmp_path / REGRESSOR / FINAL, "pt") as kept:
        assert kept.metadata()["step"] == "2"


def test_minutes_are_those_that_the_trainings_took(run: Path, tmp_path: Path) -> None:
    assert trained_minutes(run) == "0"
    assert trained_minutes(tmp_path) == "no"
    for name, seconds in (("retrained", 1195.0), ("text_only", 1080.0)):
        (tmp_path / name).mkdir()
        (tmp_path / name / FINAL).touch()
        rows = f"step,seconds,split,metric,value\n10,{seconds / 2},train,loss,1\n20,{seconds},train,loss,1\n"
        (tmp_path / name / METRICS).write_text(rows)
    assert trained_minutes(tmp_path) == "18 to 20"


def test_a_finished_training_is_not_repeated(pool: PatchPool, run: Path, bundle: Path) -> None:
    stamp = (run / REGRESSOR / FINAL).stat().st_mtime_ns
    assert train_baseline(REGRESSOR, pool, run, weights=bundle, steps=2).finished
    assert (run / REGRESSOR / FINAL).stat().st_mtime_ns == stamp
    assert (run / "without_action" / "latents").resolve() == (run / "latents").resolve()


def test_the_command_names_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path / "none")])
    assert "No training pool" in capsys.readouterr().err


def test_a_run_of_another_seed_is_one_sentence(
    pool: PatchPool, run: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(PatchPool, "open", lambda _: pool)
    with pytest.raises(SystemExit) as left:
        main(["pool", "--out", str(run), "--weights", str(bundle), "--only", REGRESSOR, "--seed", "5"])
    assert left.value.code == 1
    assert "started with other data, preset or seed" in capsys.readouterr().err
