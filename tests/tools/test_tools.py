"""The chain of tools on a case whose truth is known by construction."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from models.errors import ToolError, UnknownItemError
from models.patch import feather
from models.protocol import Protocol
from tests.tools.conftest import LESIONS, LIVER_HU, NECROTIC_HU, OIL_HU, SHAPE, SPACING, TUMOUR_HU, phantom
from tools.artifacts import ArtifactDamagedError
from tools.compose_outcome import compose_outcome
from tools.describe_case import describe_case
from tools.measure_response import Response, measure_response
from tools.segment import segment
from tools.simulate_tumor import simulate_tumor
from tools.survival_risk import survival_risk
from tools.workspace import Workspace, pack

PROTOCOLS = ["Cisplatin; Lipiodol", "THP 40 mg; gelatin sponge"]
MakeWorkspace = Callable[[], Workspace]


def ball_ml(radius: float) -> float:
    return 4 / 3 * np.pi * radius**3 / 1000


GIVEN = Protocol(drugs=("Cisplatin",), embolics=("Lipiodol",))


def put_outcome(
    workspace: Workspace,
    paint: Callable[[NDArray[np.float64], int], NDArray[np.float64]],
    seed: int = 0,
    protocol: Protocol = GIVEN,
) -> str:
    """Stores an outcome whose HU inside the tumour are `paint(mm from the lesion's centre, lesion number)`."""
    prepared = workspace.prepared("two")
    difference = np.zeros(prepared.pre.shape, dtype=np.int16)
    for row, patch in enumerate(prepared.patches):
        grid = np.stack(np.meshgrid(*[np.arange(patch.size)] * 3, indexing="ij"), axis=-1)
        world = grid * patch.spacing_mm + patch.affine[:3, 3]
        for number in patch.lesions:
            centre = np.array(LESIONS[number - 1][0]) * SPACING + np.array([-90.0, -60.0, 10.0])
            hu = paint(np.linalg.norm(world - centre, axis=-1), number)
            inside = prepared.numbers[row] == number
            difference[row][inside] = np.rint(hu - prepared.pre[row])[inside]
    return workspace.artifacts.put(
        "outcome", workspace.outcome_key("two", protocol, seed, 1), {"difference": pack(prepared, difference)}
    )


def respond(
    workspace: Workspace, paint: Callable[[NDArray[np.float64], int], NDArray[np.float64]], seed: int = 0
) -> Response:
    name = segment([put_outcome(workspace, paint, seed)], workspace=workspace).segmentations[0].segmentation_id
    return measure_response("two", [name], workspace=workspace).responses[0]


def test_every_protocol_under_every_seed_once(workspace: Workspace):
    result = simulate_tumor("two", [*PROTOCOLS, "lipiodol, cisplatin"], [3, 1, 3], workspace=workspace)
    assert [(o.protocol, o.seed) for o in result.outcomes] == [
        ("Cisplatin | Lipiodol", 3),
        ("Cisplatin | Lipiodol", 1),
        ("Pirarubicin 40 mg | Gelatin sponge", 3),
        ("Pirarubicin 40 mg | Gelatin sponge", 1),
    ]
    assert (result.simulated, result.from_cache, result.origin) == (4, 0, "untrained")
    assert {o.steps for o in result.outcomes} == {2}
    assert {o.patches for o in result.outcomes} == {2}
    assert result.how == "2 lesions in 2 patches of 96 mm at 1.5 mm voxels"
    assert len({o.outcome_id for o in result.outcomes}) == 4


def test_nothing_is_simulated_twice_also_by_a_new_process(
    make_workspace: MakeWorkspace, monkeypatch: pytest.MonkeyPatch
):
    first = simulate_tumor("two", PROTOCOLS, [0], workspace=make_workspace())
    again = make_workspace()
    more = simulate_tumor("two", PROTOCOLS, [0, 1], workspace=again)
    assert (more.simulated, more.from_cache) == (2, 2)
    assert {o.outcome_id for o in first.outcomes} == {o.outcome_id for o in more.outcomes if o.cached}
    monkeypatch.setattr(again.engine.model.denoiser, "forward", lambda *_: pytest.fail("simulated again"))
    assert simulate_tumor("two", PROTOCOLS, [0, 1], workspace=again).simulated == 0


def test_an_outcome_does_not_depend_on_the_call_it_came_from(make_workspace: MakeWorkspace, tmp_path: Path):
    workspace = make_workspace()
    alone = simulate_tumor("two", PROTOCOLS[1:], [1], workspace=workspace).outcomes[0].outcome_id
    content = workspace.artifacts.path(alone).read_bytes()
    workspace.artifacts.path(alone).unlink()
    simulate_tumor("two", [*PROTOCOLS, "Lobaplatin; PVA"], [0, 1, 2], workspace=workspace)
    assert workspace.artifacts.path(alone).read_bytes() == content


def test_what_landed_before_a_crash_is_kept(make_workspace: MakeWorkspace, monkeypatch: pytest.MonkeyPatch):
    workspace = make_workspace()
    stopped = []

    def stop(tool: str, done: int, total: int) -> None:
        stopped.append((tool, done, total))
        if done == 3:
            raise KeyboardInterrupt

    workspace.progress = stop
    with pytest.raises(KeyboardInterrupt):
        simulate_tumor("two", PROTOCOLS, [0, 1, 2], workspace=workspace)
    assert stopped[0] == ("simulate_tumor", 0, 6)
    assert simulate_tumor("two", PROTOCOLS, [0, 1, 2], workspace=make_workspace()).from_cache == 3


def test_steps_and_weights_are_part_of_the_name(workspace: Workspace):
    two = simulate_tumor("two", PROTOCOLS[:1], [0], workspace=workspace).outcomes[0]
    same = simulate_tumor("two", PROTOCOLS[:1], [0], steps=2, workspace=workspace).outcomes[0]
    three = simulate_tumor("two", PROTOCOLS[:1], [0], steps=3, workspace=workspace).outcomes[0]
    assert same.outcome_id == two.outcome_id
    assert three.outcome_id != two.outcome_id


def test_the_last_comparison_takes_the_steps_that_the_preset_gives_it(workspace: Workspace):
    preset = workspace.engine.model.preset.denoiser
    assert preset.finalist_steps is not None
    assert preset.finalist_steps > preset.steps
    steps = [
        simulate_tumor("two", PROTOCOLS[:1], [0], **values, workspace=workspace).outcomes[0].steps  # type: ignore[arg-type]
        for values in ({}, {"last_comparison": True}, {"steps": 3, "last_comparison": True})
    ]
    assert steps == [preset.steps, preset.finalist_steps, 3]


def test_a_damaged_outcome_is_simulated_again(make_workspace: MakeWorkspace):
    workspace = make_workspace()
    name = simulate_tumor("two", PROTOCOLS[:1], [0], workspace=workspace).outcomes[0].outcome_id
    path = workspace.artifacts.path(name)
    content = path.read_bytes()
    path.write_bytes(content[:-10])
    with pytest.raises(ArtifactDamagedError, match="simulate_tumor again"):
        segment([name], workspace=workspace)
    assert simulate_tumor("two", PROTOCOLS[:1], [0], workspace=make_workspace()).simulated == 1
    assert path.read_bytes() == content


def test_every_outcome_is_read_beside_its_own_patches_before_treatment(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
):
    prepared = workspace.prepared("two")
    outcomes = simulate_tumor("two", PROTOCOLS, [0], workspace=workspace).outcomes
    names = [o.outcome_id for o in outcomes]
    segment(names[:1], workspace=workspace)
    engine, seen = workspace.engine, []
    real = engine.segment

    def keep(*arguments: NDArray[np.generic]) -> NDArray[np.uint8]:
        seen.append(arguments)
        return real(*arguments)  # type: ignore[arg-type]

    third = put_outcome(workspace, lambda d, n: np.full(d.shape, OIL_HU), seed=9)
    monkeypatch.setattr(engine, "segment", keep)
    segment([*names, third], workspace=workspace)
    ((patches, before, mask),) = seen

    def boxes(*scans: NDArray[np.generic]) -> NDArray[np.generic]:
        return np.stack([p[box] for scan in scans for p, box in zip(scan, prepared.boxes, strict=True)])

    np.testing.assert_array_equal(patches, boxes(*(workspace.outcome(n).composite for n in (names[1], third))))
    np.testing.assert_array_equal(before, boxes(prepared.pre, prepared.pre))
    np.testing.assert_array_equal(mask, boxes(*[prepared.numbers > 0] * 2))


def test_a_damaged_segmentation_is_computed_again(make_workspace: MakeWorkspace):
    workspace = make_workspace()
    outcome = put_outcome(workspace, lambda d, n: np.where(d < 8, NECROTIC_HU, TUMOUR_HU))
    first = segment([outcome], workspace=workspace)
    assert (first.segmented, first.from_cache) == (1, 0)
    path = workspace.artifacts.path(first.segmentations[0].segmentation_id)
    content = path.read_bytes()
    path.write_bytes(b"")
    assert segment([outcome, outcome], workspace=workspace).segmented == 1
    assert path.read_bytes() == content
    other = {"tissue": np.zeros(7, np.uint8)}  # a whole file that does not fit the case
    workspace.artifacts.put("segmentation", workspace.segmentation_key(outcome), other)
    assert segment([outcome], workspace=workspace).segmented == 1
    assert path.read_bytes() == content
    again = segment([outcome], workspace=workspace)
    assert (again.segmented, again.from_cache, again.segmentations[0].cached) == (0, 1, True)


def test_volumes_of_a_painted_outcome(workspace: Workspace):
    # Lesion 1 (21 mm): necrotic core of 12 mm in oil to 16 mm in a viable rim. Lesion 2 (12 mm): gone.
    def paint(distance: NDArray[np.float64], lesion: int) -> NDArray[np.float64]:
        if lesion == 2:
            return np.full(distance.shape, LIVER_HU)
        return np.select([distance < 12, distance < 16], [NECROTIC_HU, OIL_HU], TUMOUR_HU)

    outcome = put_outcome(workspace, paint)
    found = segment([outcome], workspace=workspace).segmentations[0]
    assert found.necrotic_ml == pytest.approx(ball_ml(12), rel=0.05)
    assert found.oil_ml == pytest.approx(ball_ml(16) - ball_ml(12), rel=0.05)
    assert found.viable_ml == pytest.approx(ball_ml(21) - ball_ml(16), rel=0.06)
    _, labels = phantom()
    assert found.liver_ml == pytest.approx(np.isin(labels, (1, 2, 3)).sum() * 1.5 * 1.5 * 2.5 / 1000)
    response = measure_response("two", [found.segmentation_id], workspace=workspace).responses[0]
    total = ball_ml(21) + ball_ml(12)
    assert response.tumour_before_ml == pytest.approx(total, rel=0.02)
    assert response.viable_before_ml == pytest.approx(total, rel=0.05)
    assert response.necrotic_before_fraction == 0.0
    assert response.necrotic_fraction == pytest.approx(ball_ml(12) / total, rel=0.06)
    assert response.oil_fraction == pytest.approx((ball_ml(16) - ball_ml(12)) / total, rel=0.06)
    assert response.oil_confounded
    assert [lesion.lesion for lesion in response.lesions] == [1, 2]
    assert response.lesions[0].viable_mm == pytest.approx(42, abs=2)
    assert response.lesions[1].viable_mm == 0.0
    assert response.lesions[1].longest_mm == 0.0
    assert response.mrecist_before_mm == pytest.approx(42 + 24, abs=3)
    assert response.recist_before_mm == pytest.approx(42 + 24, abs=3)
    assert response.recist_mm == pytest.approx(42, abs=2)
    assert response.mrecist_change_percent == pytest.approx(-100 * 24 / 66, abs=4)
    assert response.mrecist_category == "PR"
    assert response.easl_before_mm2 == pytest.approx(np.pi * (21**2 + 12**2), rel=0.06)
    # every slice through the core cuts the same ring area, and the caps beyond it are smaller
    assert response.easl_mm2 == pytest.approx(np.pi * (21**2 - 16**2), rel=0.12)
    assert response.longest_diameter_before_mm == pytest.approx(42, abs=2)


def test_response_categories_from_paint(workspace: Workspace):
    def shrunk(share: float) -> Callable[[NDArray[np.float64], int], NDArray[np.float64]]:
        return lambda d, n: np.where(d < share * LESIONS[n - 1][1], TUMOUR_HU, NECROTIC_HU)

    gone = respond(workspace, lambda d, n: np.full(d.shape, NECROTIC_HU))
    assert (gone.mrecist_category, gone.easl_category) == ("CR", "CR")
    assert gone.mrecist_mm == 0.0
    assert gone.recist_mm == pytest.approx(gone.recist_before_mm, abs=1.6)
    assert gone.necrotic_fraction == 1.0
    assert not gone.oil_confounded
    half = respond(workspace, shrunk(0.5), seed=1)
    assert (half.mrecist_category, half.easl_category) == ("PR", "PR")
    assert half.mrecist_change_percent == pytest.approx(-50, abs=5)
    assert half.easl_change_percent == pytest.approx(-75, abs=5)
    same = respond(workspace, lambda d, n: np.full(d.shape, TUMOUR_HU), seed=2)
    assert (same.mrecist_category, same.easl_category) == ("SD", "SD")
    assert same.mrecist_change_percent == pytest.approx(0, abs=0.1)


def test_risk_is_network_plus_toxicity(workspace: Workspace):
    outcomes = simulate_tumor("two", PROTOCOLS, [0, 1], workspace=workspace).outcomes
    parts = segment([o.outcome_id for o in outcomes], workspace=workspace).segmentations
    result = survival_risk("two", [p.segmentation_id for p in parts], workspace=workspace)
    assert [(e.protocol, e.seed) for e in result.estimates] == [(o.protocol, o.seed) for o in outcomes]
    for estimate in result.estimates:
        assert estimate.log_risk == pytest.approx(estimate.tumour_log_risk + estimate.toxicity_log_risk)
        assert estimate.toxicity_log_risk == pytest.approx(sum(p.log_hazard for p in estimate.toxicity_parts))
        curve = [s ** np.exp(estimate.log_risk) for s in result.baseline]
        below = [t for t, s in zip(result.times_months, curve, strict=True) if s <= 0.5]
        assert estimate.median_survival_months == (below[0] if below else None)
    a, b, c, d = result.estimates
    assert a.toxicity_log_risk == b.toxicity_log_risk != c.toxicity_log_risk == d.toxicity_log_risk
    assert (result.baseline_n, result.baseline_origin) == (120, "synthetic")


def test_the_risk_of_a_tumour_is_that_of_its_scan_whatever_was_given(workspace: Workspace):
    """Of what a protocol does to the tumour the network knows the scan and its tissue only; toxicity is beside it."""
    given = (Protocol(drugs=("Cisplatin",)), Protocol(drugs=("Doxorubicin",), embolics=("Lipiodol", "PVA")))
    paints = (lambda d, n: np.full(d.shape, TUMOUR_HU), lambda d, n: np.where(d < 15, NECROTIC_HU, TUMOUR_HU))
    names = [put_outcome(workspace, paint, n, protocol) for n, paint in enumerate(paints) for protocol in given]
    parts = segment(names, workspace=workspace).segmentations
    alive, same_alive, dying, same_dying = survival_risk(
        "two", [part.segmentation_id for part in parts], workspace=workspace
    ).estimates
    assert alive.protocol != same_alive.protocol
    assert alive.toxicity_log_risk != same_alive.toxicity_log_risk
    assert alive.tumour_log_risk == pytest.approx(same_alive.tumour_log_risk, abs=1e-6)
    assert dying.tumour_log_risk == pytest.approx(same_dying.tumour_log_risk, abs=1e-6)
    assert abs(alive.tumour_log_risk - dying.tumour_log_risk) > 1e-3


def test_risk_is_the_same_in_a_new_process_and_scored_once(
    make_workspace: MakeWorkspace, monkeypatch: pytest.MonkeyPatch
):
    workspace = make_workspace()
    outcomes = simulate_tumor("two", PROTOCOLS, [0, 1], workspace=workspace).outcomes
    names = [s.segmentation_id for s in segment([o.outcome_id for o in outcomes], workspace=workspace).segmentations]
    first = survival_risk("two", names, workspace=workspace)
    alone = [survival_risk("two", [name], workspace=make_workspace()).estimates[0] for name in names]
    assert tuple(alone) == first.estimates
    monkeypatch.setattr(workspace.engine.model.survival, "forward", lambda *_: pytest.fail("scored again"))
    assert survival_risk("two", names[::-1], workspace=workspace).estimates == first.estimates[::-1]


def test_the_composed_outcome_on_the_case_grid(workspace: Workspace):
    outcome = put_outcome(workspace, lambda d, n: np.where(d < 0.6 * LESIONS[n - 1][1], NECROTIC_HU, TUMOUR_HU))
    with pytest.raises(ToolError, match="no segmentation"):  # drawing computes nothing that no tool call is traced for
        compose_outcome(outcome, workspace=workspace)
    segment([outcome], workspace=workspace)
    volume, labels = compose_outcome(outcome, workspace=workspace)
    before, truth = phantom()
    assert (volume.data.dtype, volume.data.shape, labels.shape) == (np.int16, SHAPE, SHAPE)
    np.testing.assert_array_equal(volume.affine, before.affine)
    weight = feather(truth == 2, before.affine)
    np.testing.assert_array_equal(volume.data[weight == 0], before.data[weight == 0])
    for centre, _ in LESIONS:
        assert volume.data[centre] == pytest.approx(NECROTIC_HU, abs=1)
        assert labels[centre] == 3
    voxel = 1.5 * 1.5 * 2.5 / 1000
    necrotic = ball_ml(0.6 * 21) + ball_ml(0.6 * 12)
    assert (labels == 3).sum() * voxel == pytest.approx(necrotic, rel=0.08)
    assert (labels == 2).sum() * voxel == pytest.approx(ball_ml(21) + ball_ml(12) - necrotic, rel=0.08)
    far = weight == 0
    np.testing.assert_array_equal(labels[far], np.isin(truth, (1, 2, 3))[far])
    assert set(np.unique(labels)) == {0, 1, 2, 3}


def test_the_description_measures_the_phantom(workspace: Workspace):
    seen = describe_case("two", workspace=workspace)
    assert (seen.lesion_count, seen.specks) == (2, 0)
    assert seen.lesion_ml == pytest.approx((ball_ml(21), ball_ml(12)), rel=0.02)
    assert seen.largest_diameter_mm == pytest.approx(42, abs=1.6)
    assert (seen.aorta_hu, seen.liver_hu, seen.tumour_hu, seen.contrast_hu) == (350.0, 100.0, 160.0, 60.0)
    assert (seen.heterogeneity_hu, seen.hypodense_fraction) == (0.0, 0.0)
    assert (seen.phase, seen.phases, seen.image) == ("arterial", ("arterial",), "pre_arterial")
    assert seen.record["child_pugh_class"] == "A"
    assert "ecog" not in seen.record
    scores = {score.name: score for score in seen.scores}
    assert scores["six-and-twelve"].value == pytest.approx(seen.largest_diameter_mm / 10 + 2)
    assert (scores["Child-Pugh"].grade, scores["Child-Pugh"].stated) == ("A", True)
    assert scores["ALBI"].missing


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"case_id": "nobody"}, "known cases are: two"),
        ({"case_id": "../two"}, "known cases are: two"),
        ({"protocols": []}, "at least one protocol"),
        ({"protocols": [" "]}, "names no agent"),
        ({"seeds": []}, "at least one seed"),
        ({"seeds": [-1]}, "seed -1"),
        ({"seeds": [2**31]}, "seed 2147483648"),
        ({"steps": 0}, "0 steps"),
    ],
)
def test_bad_arguments_are_one_sentence(workspace: Workspace, arguments: dict[str, object], message: str):
    values = {"case_id": "two", "protocols": PROTOCOLS, "seeds": [0], **arguments}
    with pytest.raises(ToolError, match=message):
        simulate_tumor(**values, workspace=workspace)  # type: ignore[arg-type]


def test_an_unknown_agent_names_its_neighbours(workspace: Workspace):
    with pytest.raises(UnknownItemError, match="Cisplatin"):
        simulate_tumor("two", ["Cisplatine forte"], [0], workspace=workspace)


@pytest.mark.parametrize("name", ["outcome-" + "0" * 20, "segmentation-" + "0" * 20, "nonsense", "../x", ""])
def test_unknown_ids_are_one_sentence(workspace: Workspace, name: str):
    with pytest.raises(ToolError, match="outcome_id"):
        segment([name], workspace=workspace)
    for tool in (measure_response, survival_risk):
        with pytest.raises(ToolError, match="segment"):
            tool("two", [name], workspace=workspace)


def test_empty_lists_are_one_sentence(workspace: Workspace):
    for call in (segment, lambda ids, workspace: measure_response("two", ids, workspace=workspace)):
        with pytest.raises(ToolError, match="at least one"):
            call([], workspace=workspace)
    with pytest.raises(ToolError, match="at least one"):
        survival_risk("two", [], workspace=workspace)


def test_a_segmentation_of_another_case_is_refused(case_folder: Path, workspace: Workspace, tmp_path: Path):
    from models.case import ImageMeta, write_case

    volume, labels = phantom()
    write_case(tmp_path / "b", "b", "synthetic", "the same without record", {ImageMeta("pre"): volume}, labels)
    both = Workspace({"two": case_folder, "b": tmp_path / "b"}, workspace.artifacts.root, engine=workspace.engine)
    outcome = simulate_tumor("two", PROTOCOLS[:1], [0], workspace=both).outcomes[0].outcome_id
    name = segment([outcome], workspace=both).segmentations[0].segmentation_id
    with pytest.raises(ToolError, match="belongs to case 'two', not to 'b'"):
        measure_response("b", [name], workspace=both)
    only_b = Workspace({"b": tmp_path / "b"}, workspace.artifacts.root, engine=workspace.engine)
    with pytest.raises(ToolError, match="not known here"):
        segment([outcome], workspace=only_b)


def test_outcomes_of_other_weights_are_refused(make_workspace: MakeWorkspace, monkeypatch: pytest.MonkeyPatch):
    import dataclasses

    workspace = make_workspace()
    outcome = simulate_tumor("two", PROTOCOLS[:1], [0], workspace=workspace).outcomes[0].outcome_id
    monkeypatch.setattr(workspace.engine, "model", dataclasses.replace(workspace.engine.model, weights_hash="other"))
    with pytest.raises(ToolError, match="simulate it again"):
        segment([outcome], workspace=workspace)
