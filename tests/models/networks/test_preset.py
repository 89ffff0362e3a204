from __future__ import annotations

import pytest
from pydantic import ValidationError

from models.errors import InputError, WeightsError
from models.networks.preset import Preset
from models.weights import PARTS, build_network


def test_small_is_a_96_mm_cube_with_16_cubed_latents() -> None:
    preset = Preset.load("small")
    assert preset.size * preset.spacing_mm == 96.0
    assert preset.latent_size == 16
    assert preset.hu_window == (-175.0, 600.0)


def test_paper_has_the_papers_sizes() -> None:
    preset = Preset.load("paper")
    assert (preset.size, preset.spacing_mm, preset.latent_size) == (96, 1.0, 24)
    assert preset.segmenter.filters == (32, 64, 128, 256, 320)
    assert not preset.survival.fuse_record
    assert sum(p.numel() for p in build_network("segmenter", preset).parameters()) > 16e6


def test_shipped_weights_stay_small() -> None:
    preset = Preset.load("small")
    sizes = {name: sum(t.numel() for t in build_network(name, preset).state_dict().values()) * 2 for name in PARTS}
    assert max(sizes.values()) < 16 * 2**20
    assert sum(sizes.values()) < 40 * 2**20


def test_unknown_preset_names_the_known_ones() -> None:
    with pytest.raises(WeightsError, match="paper, small"):
        Preset.load("large")


def test_an_impossible_preset_is_refused() -> None:
    values = Preset.load("small").model_dump()
    with pytest.raises(ValidationError, match="not a multiple"):
        Preset.model_validate(values | {"size": 66})
    with pytest.raises(ValidationError, match="empty"):
        Preset.model_validate(values | {"hu_window": (600.0, -175.0)})


def test_a_change_reaches_one_setting_and_a_wrong_one_is_one_sentence() -> None:
    plain = Preset.load("small")
    changed = Preset.load("small", ["denoiser.objective=noise", "training.denoiser.options.contrast_weight=0"])
    assert changed.denoiser.objective == "noise"
    assert changed.training.denoiser.options["contrast_weight"] == 0
    assert changed.model_copy(update={"denoiser": plain.denoiser, "training": plain.training}) == plain
    assert changed.fingerprint("denoiser") != plain.fingerprint("denoiser")
    for wrong in ("denoiser.colour=red", "steps=3", "denoiser.steps"):
        with pytest.raises(InputError, match="names no setting"):
            Preset.load("small", [wrong])
    with pytest.raises(InputError, match="no YAML"):
        Preset.load("small", ["denoiser.channels=[1"])
    with pytest.raises(InputError, match=r"denoiser\.steps"):
        Preset.load("small", ["denoiser.steps=0"])
