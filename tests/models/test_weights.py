from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch

from models.errors import WeightsError
from models.networks.preset import Preset
from models.weights import (
    MANIFEST,
    PARTS,
    SurvivalBaseline,
    init_world_model,
    load_world_model,
    read_manifest,
    save_world_model,
)
from tests.models.training.conftest import shrink

BASELINE = SurvivalBaseline(times_months=(0.0, 1.0), survival=(1.0, 0.9), n=10, data_origin="synthetic")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    model = init_world_model(shrink(Preset.load("small")), seed=3)
    save_world_model(
        {name: model.part(name) for name in PARTS}, model.preset, tmp_path, origin="synthetic",
        provenance={"command": "mewm train all", "seed": "3"}, baseline=BASELINE,
    )  # fmt: skip
    return tmp_path


def test_round_trip_keeps_every_weight_to_half_precision(bundle: Path) -> None:
    original = init_world_model(shrink(Preset.load("small")), seed=3)
    loaded = load_world_model(bundle)
    for name in PARTS:
        mine, theirs = loaded.part(name).state_dict(), original.part(name).state_dict()
        assert mine.keys() == theirs.keys()
        for key in mine:
            assert torch.equal(mine[key], theirs[key].half().float()), key
        assert not loaded.part(name).training
        assert not any(p.requires_grad for p in loaded.part(name).parameters())
    assert loaded.baseline == BASELINE
    assert loaded.origin == "synthetic"
    assert loaded.preset == original.preset
    assert len(loaded.weights_hash) == 12


def test_seed_decides_the_random_weights_and_leaves_the_global_state_alone() -> None:
    preset = shrink(Preset.load("small"))
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    models = [init_world_model(preset, seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(torch.rand(1), expected)
    first, again, other = (next(iter(m.denoiser.unet.parameters())) for m in models)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert models[0].origin == "untrained"


@pytest.mark.parametrize("name", PARTS)
def test_one_changed_byte_is_found(bundle: Path, name: str) -> None:
    path = bundle / f"{name}.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=rf"{name}.safetensors is damaged: its hash"):
        load_world_model(bundle)


def test_a_missing_file_a_missing_manifest_and_a_cut_manifest_are_named(bundle: Path, tmp_path: Path) -> None:
    (bundle / "denoiser.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"denoiser.safetensors can't be read"):
        load_world_model(bundle)
    with pytest.raises(WeightsError, match="no model weights"):
        load_world_model(tmp_path / "nowhere")
    (bundle / MANIFEST).write_text((bundle / MANIFEST).read_text()[:200])
    with pytest.raises(WeightsError, match="manifest"):
        load_world_model(bundle)


def test_a_pickle_in_place_of_weights_is_never_opened(bundle: Path) -> None:
    path = bundle / "survival.safetensors"
    torch.save({"weight": torch.zeros(3)}, path)
    manifest = json.loads((bundle / MANIFEST).read_text())
    manifest["files"]["survival.safetensors"]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (bundle / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(WeightsError, match="no safetensors file"):
        load_world_model(bundle)


def test_another_format_and_weights_of_another_size_are_refused(bundle: Path) -> None:
    manifest = json.loads((bundle / MANIFEST).read_text())
    (bundle / MANIFEST).write_text(json.dumps(manifest | {"format": 99}))
    with pytest.raises(WeightsError, match="format 99"):
        load_world_model(bundle)
    manifest["preset"]["survival"]["width"] = 8
    (bundle / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(WeightsError, match="does not fit"):
        load_world_model(bundle)


def test_weights_that_are_not_finite_are_never_written(tmp_path: Path) -> None:
    model = init_world_model(shrink(Preset.load("small")), seed=3)
    with torch.no_grad():
        next(model.segmenter.parameters()).fill_(float("nan"))
    with pytest.raises(WeightsError, match="segmenter was not saved"):
        save_world_model({n: model.part(n) for n in PARTS}, model.preset, tmp_path, origin="synthetic", provenance={})
    assert not (tmp_path / MANIFEST).exists()


def test_the_hash_changes_with_the_weights(bundle: Path, tmp_path: Path) -> None:
    before = read_manifest(bundle)
    other = init_world_model(shrink(Preset.load("small")), seed=4)
    after = save_world_model(
        {n: other.part(n) for n in PARTS},
        other.preset,
        tmp_path / "other",
        origin="synthetic",
        provenance=before.provenance,
    )
    assert before.weights_hash != after.weights_hash


def test_the_hash_is_that_of_the_bundle_as_it_was_written(bundle: Path) -> None:
    """A setting that presets gain later has a default; it must not make other weights of these."""
    manifest = json.loads((bundle / MANIFEST).read_text())
    del manifest["preset"]["denoiser"]["guidance_at"]
    (bundle / MANIFEST).write_text(json.dumps(manifest))
    files = json.dumps({name: file["sha256"] for name, file in sorted(manifest["files"].items())})
    told = json.dumps({k: manifest[k] for k in ("origin", "preset", "survival_baseline")}, separators=(",", ":"))
    wanted = hashlib.sha256((files + told).encode()).hexdigest()[:12]
    assert read_manifest(bundle).weights_hash == wanted


def test_another_survival_baseline_makes_other_weights_of_them(bundle: Path) -> None:
    before = read_manifest(bundle).weights_hash
    manifest = json.loads((bundle / MANIFEST).read_text())
    manifest["survival_baseline"]["survival"][-1] *= 0.5
    (bundle / MANIFEST).write_text(json.dumps(manifest))
    assert read_manifest(bundle).weights_hash != before


def test_a_bundle_that_is_read_has_the_hash_that_it_was_written_with(tmp_path: Path) -> None:
    model = init_world_model(shrink(Preset.load("small")), seed=3)
    sparse = model.preset.model_dump()
    del sparse["denoiser"]["timesteps"]
    parts = {name: model.part(name) for name in PARTS}
    written = save_world_model(
        parts, Preset.model_validate(sparse), tmp_path, origin="synthetic", provenance={"command": "a test"}
    )
    assert read_manifest(tmp_path).weights_hash == written.weights_hash
