from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from models.errors import WeightsError
from models.formulary import ITEM_ORDER, Formulary
from models.networks.action import (
    CLIP_FOLDER,
    ActionEncoder,
    HashedTextEncoder,
    action_vector,
    encode_protocols,
    text_encoder,
    text_vector,
)
from models.networks.preset import Preset
from models.protocol import Dose, Protocol

THREE = Protocol(
    drugs=("Mitomycin", "Cisplatin"), embolics=("Lipiodol",), doses=(("Cisplatin", Dose(amount=50, unit="mg")),)
)


def test_vector_holds_presence_and_dose_by_hand() -> None:
    reference = next(i.dose.reference for i in Formulary.load("all").items if i.name == "Cisplatin" and i.dose)
    vector = action_vector(THREE)
    assert vector.shape == (18, 3)
    assert set(np.flatnonzero(vector[:, 0])) == {ITEM_ORDER.index(n) for n in ("Mitomycin", "Cisplatin", "Lipiodol")}
    assert vector[ITEM_ORDER.index("Cisplatin")].tolist() == pytest.approx([1, 1, np.log2(50 / reference)])
    assert vector[ITEM_ORDER.index("Mitomycin")].tolist() == [1, 0, 0]


def test_a_wild_dose_is_limited() -> None:
    wild = Protocol(drugs=("Cisplatin",), doses=(("Cisplatin", Dose(amount=1e6, unit="mg")),))
    assert action_vector(wild)[ITEM_ORDER.index("Cisplatin"), 2] == 2.0


def test_neither_the_order_of_agents_nor_that_of_keys_matters(tiny: Preset) -> None:
    text = HashedTextEncoder(tiny.denoiser.text_dim)
    turned = Protocol.model_validate(
        {
            "doses": {"Cisplatin": {"unit": "mg", "amount": 50.0}},
            "embolics": ["Lipiodol"],
            "drugs": ["Cisplatin", "Mitomycin"],
        }
    )
    np.testing.assert_array_equal(action_vector(THREE), action_vector(turned))
    np.testing.assert_array_equal(text_vector(THREE, text), text_vector(turned, text))


def test_the_network_has_no_order_of_agents(tiny: Preset) -> None:
    torch.manual_seed(0)
    encoder = ActionEncoder(tiny.denoiser).double()
    action, text = encode_protocols([THREE], HashedTextEncoder(tiny.denoiser.text_dim))
    before = encoder(action.double(), text.double())
    turn = torch.randperm(18)
    with torch.no_grad():
        for parameter in (encoder.concept, encoder.dose_direction, encoder.stated_direction):
            parameter.copy_(parameter[turn])
    torch.testing.assert_close(encoder(action[:, turn].double(), text.double()), before)


def test_agents_and_doses_make_a_difference_and_a_hidden_action_makes_none(tiny: Preset) -> None:
    torch.manual_seed(0)
    encoder = ActionEncoder(tiny.denoiser)
    undosed = Protocol(drugs=THREE.drugs, embolics=THREE.embolics)
    other = Protocol(drugs=("Mitomycin", "Oxaliplatin"), embolics=("Lipiodol",))
    action, text = encode_protocols([THREE, undosed, other], HashedTextEncoder(tiny.denoiser.text_dim))
    out = encoder(action, text).detach()
    assert torch.cdist(out, out)[~torch.eye(3, dtype=torch.bool)].min() > 1e-4
    hidden = encoder(action, text, keep=torch.zeros(3, dtype=torch.bool)).detach()
    assert torch.equal(hidden, hidden[:1].expand_as(hidden))


def test_text_hash_is_the_same_in_every_process() -> None:
    vector = HashedTextEncoder(16).encode("Cisplatin 50 mg")
    assert float(np.linalg.norm(vector)) == pytest.approx(1.0)
    np.testing.assert_array_equal(vector, HashedTextEncoder(16).encode(" cisplatin 50 MG "))
    # measured once; Python's own string hash would change from process to process
    np.testing.assert_allclose(vector[:4], EXPECTED, atol=1e-6)


EXPECTED = [0.4423259, 0.2948839, -0.147442, -0.147442]


class FakeClip:
    """As much of `transformers` as is called: the text's length, and one, as the embedding."""

    def __init__(self, dim: int) -> None:
        self.config = SimpleNamespace(projection_dim=dim)

    def eval(self) -> FakeClip:
        return self

    def __call__(self, tokens: list[str]) -> SimpleNamespace:
        return SimpleNamespace(text_embeds=torch.tensor([[float(len(text)), 1.0] for text in tokens]))


def test_clip_is_read_from_the_folder_that_is_named(tiny: Preset, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load(folder: Any, **options: Any) -> FakeClip:
        asked.append((str(folder), options))
        return FakeClip(2)

    def tokenise(texts: list[str], **_: Any) -> dict[str, list[str]]:
        return {"tokens": texts}

    fake = SimpleNamespace(
        CLIPTextModelWithProjection=SimpleNamespace(from_pretrained=load),
        CLIPTokenizerFast=SimpleNamespace(from_pretrained=lambda *_, **__: tokenise),
    )
    monkeypatch.setitem(sys.modules, "transformers", fake)
    monkeypatch.setenv(CLIP_FOLDER, "somewhere")
    clip = tiny.denoiser.model_copy(update={"text_encoder": "clip", "text_dim": 2})
    text_encoder.cache_clear()
    encoder = text_encoder(clip)
    np.testing.assert_allclose(encoder.encode("PVA"), np.array([3, 1]) / np.sqrt(10), rtol=1e-6)
    assert asked == [("somewhere", {"local_files_only": True, "use_safetensors": True})]  # nothing is downloaded
    with pytest.raises(WeightsError, match="gives 2 numbers, the preset's text_dim is 3"):
        text_encoder(clip.model_copy(update={"text_dim": 3}))
    text_encoder.cache_clear()


def test_without_clip_its_absence_is_one_sentence(tiny: Preset, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = tiny.denoiser.model_copy(update={"text_encoder": "clip"})
    monkeypatch.delenv(CLIP_FOLDER, raising=False)
    with pytest.raises(WeightsError, match=f"set {CLIP_FOLDER}"):
        text_encoder(clip)
    monkeypatch.setenv(CLIP_FOLDER, "somewhere")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(WeightsError, match="package transformers"):
        text_encoder(clip)
