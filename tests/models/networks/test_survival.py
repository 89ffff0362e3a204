from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch

from models.clinical_record import ClinicalRecord
from models.networks import survival as module
from models.networks.preset import Preset
from models.networks.survival import BURDEN_SIZE, RECORD_SIZE, GatedAttention, SurvivalNet, post_channel, record_vector
from models.networks.survival import SurvivalNet as Net
from models.training.survival import forget_fields
from models.weights import WorldModel


def _inputs(count: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(count, 2, 32, 32, 32, generator=generator), torch.randn(count, 2, 32, 32, 32, generator=generator),
        torch.rand(count, BURDEN_SIZE, generator=generator), torch.rand(count, RECORD_SIZE, generator=generator),
    )  # fmt: skip


def test_no_agent_identity_can_reach_the_network() -> None:
    assert list(inspect.signature(Net.forward).parameters) == ["self", "pre_tokens", "post", "burden", "record"]
    assert list(inspect.signature(Net.encode_pre).parameters) == ["self", "x"]
    assert list(inspect.signature(record_vector).parameters) == ["record"]
    source = inspect.getsource(module)
    assert "Protocol" not in source
    assert "formulary" not in source


def test_risk_is_raw_and_a_patient_does_not_depend_on_the_batch(model: WorldModel) -> None:
    pre, post, burden, record = _inputs(5)
    with torch.no_grad():
        together = model.survival(model.survival.encode_pre(pre), post, burden * 1000, record)
        alone = model.survival(model.survival.encode_pre(pre[2:3]), post[2:3], burden[2:3] * 1000, record[2:3])
    torch.testing.assert_close(together[2:3], alone, rtol=1e-3, atol=1e-3)
    assert float(together.abs().max()) > 1.5  # a sigmoid could not get there


def test_attention_is_a_softmax_over_tokens_by_hand() -> None:
    torch.manual_seed(0)
    pool = GatedAttention(6)
    tokens = torch.randn(3, 10, 6)
    torch.testing.assert_close(pool.weights(tokens).sum(1), torch.ones(3, 1))
    same = torch.randn(3, 1, 6).expand(3, 10, 6)
    torch.testing.assert_close(pool(same), same[:, 0])  # a mean, not a sum: ten equal tokens give the token


@pytest.mark.parametrize("index", [0, 1, 2, 3])
def test_scans_burden_and_record_all_matter(model: WorldModel, index: int) -> None:
    inputs = list(_inputs(2))

    def risk() -> torch.Tensor:
        with torch.no_grad():
            return model.survival(model.survival.encode_pre(inputs[0]), *inputs[1:])

    before = risk()
    inputs[index] = inputs[index].roll(1, 0) + 0.3
    assert not torch.allclose(risk(), before, atol=1e-5)


def test_paper_mode_sees_the_images_alone(tiny: Preset) -> None:
    torch.manual_seed(0)
    network = SurvivalNet(tiny.survival.model_copy(update={"fuse_record": False})).eval()
    pre, post, burden, record = _inputs(2)
    with torch.no_grad():
        tokens = network.encode_pre(pre)
        assert torch.equal(network(tokens, post, burden, record), network(tokens, post, burden + 1, record * 3))


def test_an_absent_field_is_not_a_value() -> None:
    empty = record_vector(ClinicalRecord())
    assert empty.shape == (RECORD_SIZE,)
    assert not empty.any()
    half = RECORD_SIZE // 2
    middle = record_vector(ClinicalRecord(age_years=65.0))
    assert middle[0] == 0.0
    assert middle[half] == 1.0
    assert middle[half:].sum() == 1.0


def test_a_full_record_is_bounded_and_worse_is_more() -> None:
    def vector(**values: object) -> np.ndarray:
        return record_vector(ClinicalRecord(**values))  # type: ignore[arg-type]

    assert np.abs(vector(afp_ng_ml=1e6, bilirubin_mg_dl=0.05, child_pugh_score=15)).max() <= 4.0
    for name, mild, severe in (
        ("child_pugh_class", "A", "C"), ("bclc", "0", "D"), ("portal_vein_invasion", "none", "main"),
        ("ascites", "none", "moderate_severe"), ("cirrhosis", False, True), ("afp_ng_ml", 5.0, 5000.0),
    ):  # fmt: skip
        assert vector(**{name: severe}).sum() > vector(**{name: mild}).sum()


def test_post_channel_by_hand() -> None:
    labels = torch.tensor([0, 1, 2, 3, 4], dtype=torch.uint8)
    assert post_channel(labels).tolist() == [0.0, 0.0, 1.0, 0.0, 0.0]


def test_fields_of_the_record_are_forgotten_with_their_flags() -> None:
    """Training hides fields: value and flag go together, and every share from none to all occurs."""
    record = torch.from_numpy(np.tile(np.arange(1, RECORD_SIZE + 1, dtype=np.float32), (400, 1)))
    seen = forget_fields(record, np.random.default_rng(0))
    half = RECORD_SIZE // 2
    kept = seen[:, :half] != 0
    assert torch.equal(kept, seen[:, half:] != 0)
    assert torch.equal(seen[:, :half][kept], record[:, :half][kept])
    share = kept.float().mean(1)
    assert 0.42 < float(share.mean()) < 0.58
    assert float(share.min()) < 0.1
    assert float(share.max()) > 0.9


def test_the_overall_survival_head_stands_beside_the_risk_and_changes_nothing(model: WorldModel, tiny: Preset) -> None:
    pre, post, burden, record = _inputs(2)
    with torch.no_grad():
        tokens = model.survival.encode_pre(pre)
        risk, logits = model.survival.with_survival(tokens, post, burden, record)
        assert torch.equal(model.survival(tokens, post, burden, record), risk)
    assert logits is not None
    assert logits.shape == (2, len(tiny.survival.os_edges_months))
    assert list(inspect.signature(Net.with_survival).parameters)[1:] == ["pre_tokens", "post", "burden", "record"]
    plain = SurvivalNet(tiny.survival.model_copy(update={"os_edges_months": (), "fuse_record": False})).eval()
    with torch.no_grad():
        one, none = plain.with_survival(plain.encode_pre(pre), post, burden, record)
        other = plain(plain.encode_pre(pre), post, burden + 1, record + 1)
    assert none is None
    assert torch.equal(one, other)  # the paper's network sees images only
