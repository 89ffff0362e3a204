"""Weights without a part: the shipped networks with a denoiser that never had it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from evals.ablation import CONTROL, TRAINED_WITH, check_trained_without
from evals.trained_without import BUNDLE, CHANGES, main, preset_without, train_without
from models.errors import InputError
from models.networks.preset import Preset
from models.weights import PARTS, init_world_model, load_world_model, save_world_model
from tests.models.training.conftest import make_pool, shrink


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model, folder = init_world_model(shrink(Preset.load("small")), seed=2), tmp_path_factory.mktemp("bundle")
    networks = {name: model.part(name) for name in PARTS}
    save_world_model(
        networks, model.preset, folder, origin="synthetic", provenance={"survival": "a test", "data": "ab"}
    )
    return folder


def test_the_bundle_has_the_other_networks_and_says_what_its_denoiser_lacks(bundle: Path, tmp_path: Path) -> None:
    pool: Any = make_pool()
    with pytest.raises(InputError, match="not trained without contrastive"):
        check_trained_without("contrastive", bundle)
    manifest = train_without("contrastive", pool, tmp_path, weights=bundle, steps=2, command="this test")
    folder = tmp_path / "without_contrastive" / BUNDLE
    check_trained_without("contrastive", folder)
    shipped, mine = load_world_model(bundle), load_world_model(folder)
    assert manifest.weights_hash == mine.weights_hash != shipped.weights_hash
    assert (manifest.origin, manifest.provenance["survival"]) == ("synthetic", "a test")
    assert manifest.provenance["denoiser"] == "this test"
    assert manifest.provenance["data"] == "ab (autoencoder, segmenter, localiser, survival); fake (denoiser)"
    for name in PARTS:
        states = [model.part(name).state_dict() for model in (shipped, mine)]
        same = all(torch.equal(states[0][key], states[1][key]) for key in states[0])
        assert same == (name != "denoiser")


def test_every_part_that_can_be_left_out_is_left_out_of_the_settings() -> None:
    shipped = Preset.load("small")
    assert set(CHANGES) == {*TRAINED_WITH, CONTROL}
    assert preset_without(CONTROL, shipped) == shipped
    for what, setting in TRAINED_WITH.items():
        options = preset_without(what, shipped).training.denoiser.options
        assert shipped.training.denoiser.options[setting] > 0 == options[setting]
    paper = preset_without("paper_losses", shipped)
    assert (paper.denoiser.objective, paper.denoiser.guidance_at) == ("noise", None)
    assert paper.training.denoiser.options["attenuation_share"] == 1


def test_bad_input_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path / "none"), "--steps", "3"])
    assert "No training pool" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path), "--steps", "0"])
    assert "--steps must be at least 1, got 0" in capsys.readouterr().err
