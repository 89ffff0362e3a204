"""Trains the survival network: Cox with Efron ties and a censoring-aware survival head, toxicity as a fixed offset.

It sees true follow-up scans with true labels, and simulated ones as a plan shows them, with the tissue that the
segmenter finds (corrected by `models.redraw` where the preset says so, without the luck of a seed).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import spearmanr
from sksurv.metrics import concordance_index_censored
from torch import Tensor, nn

from models.errors import RunError
from models.networks.autoencoder import Autoencoder
from models.networks.preset import Preset
from models.networks.survival import SurvivalNet, post_channel, record_vector
from models.patch import feather
from models.training.breslow import breslow_survival
from models.training.drawings import composite
from models.training.loop import RunOptions, RunResult, check_folder, run_training
from models.training.losses import cox_efron, discrete_hazard_loss
from models.training.pool import Pool, hu_to_unit, random_flips
from models.training.processes import Processes
from models.training.simulations import Simulations, Simulator, simulate_pool
from models.weights import SurvivalBaseline

BASELINE = "baseline.json"
LINEAR_STEPS = 300
VALIDATION_PATIENTS = 48
BASELINE_PATIENTS = 800  # all of a large pool would take many minutes for a curve of a few dozen steps


def forget_fields(record: Tensor, rng: np.random.Generator) -> Tensor:
    """Record vectors with fields hidden at random, value and flag together; a share of each row, drawn from 0 to 1.

    Every phantom has a full record, hardly any real patient has: the network must have seen absent fields.

    Args:
        record: (N, RECORD_SIZE) from `record_vector`.
        rng: draws the share and the fields of each row.
    """
    fields = record.shape[1] // 2
    keep = torch.from_numpy(rng.random((len(record), fields)) >= rng.random((len(record), 1))).to(record.dtype)
    return record * torch.cat([keep, keep], dim=1)


class SurvivalTask:
    """Risk sets over patients and protocols; the offset is the pool's fixed toxicity term."""

    def __init__(
        self, pool: Pool, preset: Preset, autoencoder: Autoencoder, simulations: Simulations | None = None
    ) -> None:
        """Build the network from the global random state; without simulations only true scans are seen."""
        self.pool = pool
        self.preset = preset
        self.autoencoder = autoencoder
        self.simulations = simulations
        self.device = next(autoencoder.parameters()).device
        self.training = preset.training.survival
        self.network = SurvivalNet(preset.survival).to(self.device)
        self.simulated_train = np.array(
            [p for p in pool.train if simulations is not None and int(p) in simulations.row], dtype=np.int64
        )
        self.record = torch.from_numpy(np.stack([record_vector(record) for record in pool.records]))
        self.burden = torch.from_numpy(np.array(pool.burden, dtype=np.float32))
        self.offset = torch.from_numpy(np.array(pool.toxicity, dtype=np.float32))
        self.time = torch.from_numpy(np.array(pool.time_months, dtype=np.float32))
        self.event = torch.from_numpy(np.array(pool.event, dtype=bool))
        if not bool(self.event[pool.train].any()):
            raise RunError("No training patient of the pool died, so no risk can be learned; make a larger pool.")

    def fit_linear(self) -> None:
        """Start from the Cox model of burden and record alone (ridge), so that the image adds to what is simple."""
        linear = self.network.linear
        if linear is None:
            return
        known = torch.cat(
            [self.burden * self.network.burden_scale.cpu(), self.record[:, None].expand(-1, self.burden.shape[1], -1)],
            2,
        )
        rows = known[self.pool.train].flatten(0, 1).to(self.device)
        offset, time, event = (
            v[self.pool.train].flatten().to(self.device) for v in (self.offset, self.time, self.event)
        )
        nn.init.zeros_(linear.weight)
        rng = np.random.default_rng(LINEAR_STEPS)
        burden = self.burden.shape[2]
        optimiser = torch.optim.Adam(linear.parameters(), lr=0.02)
        for _ in range(LINEAR_STEPS):
            forgotten = forget_fields(rows[:, burden:].cpu(), rng).to(self.device)
            seen = torch.cat([rows[:, :burden], forgotten], dim=1)
            loss = cox_efron(linear(seen).squeeze(1) + offset, time, event) + 1e-3 * linear.weight.square().sum()
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()

    def _scans(self, patient: int, protocols: npt.NDArray[np.int64], decoded: bool) -> tuple[Tensor, Tensor]:
        """Pre input (2, S, S, S) and post inputs (k, 2, S, S, S); `decoded` shows the engine's composite."""
        pool, window = self.pool, self.preset.hu_window
        tumour = np.asarray(pool.tumour_mask[patient])
        before = hu_to_unit(pool.pre[patient], window)
        after = torch.stack([hu_to_unit(pool.post[patient, k], window) for k in protocols])
        if decoded:
            with torch.no_grad():
                cubes = torch.cat([before[None], after])[:, None].to(self.device)
                images = self.autoencoder.decode(self.autoencoder.encode(cubes))[:, 0].cpu()
            spacing = float(pool.spacing_mm[patient])
            weight = torch.from_numpy(feather(tumour, np.diag([spacing] * 3 + [1.0])))
            after = composite(before, images[0], images[1:], weight)
        labels = torch.from_numpy(np.stack([np.asarray(pool.post_labels[patient, k]) for k in protocols]))
        return self._before(patient), torch.stack([after, post_channel(labels)], dim=1)

    def _before(self, patient: int) -> Tensor:
        """Pre input (2, S, S, S)."""
        tumour = torch.from_numpy((np.asarray(self.pool.tumour_mask[patient]) > 0).astype(np.float32))
        return torch.stack([hu_to_unit(self.pool.pre[patient], self.preset.hu_window), tumour])

    def _simulated(self, patient: int) -> tuple[Tensor, Tensor, Tensor]:
        """As `_scans` of all protocols, simulated and segmented, and the burden (K, 4) that was found."""
        assert self.simulations is not None
        row = self.simulations.row[patient]
        pre = self._before(patient)
        scans = torch.stack([hu_to_unit(scan, self.preset.hu_window) for scan in self.simulations.scan[row]])
        alive = post_channel(torch.from_numpy(np.array(self.simulations.tissue[row])))
        burden = self.burden[patient].clone()
        burden[:, 0] = torch.from_numpy(np.log1p(self.simulations.viable_ml(patient, self.pool))).float()
        return pre, torch.stack([scans, alive], dim=1), burden

    def loss(self, rng: np.random.Generator, progress: float) -> tuple[Tensor, dict[str, float]]:  # noqa: ARG002
        """See `models.training.loop.Task.loss`. All protocols of `batch` patients form one risk set."""
        count = self.pool.post.shape[1]
        protocols = np.arange(count)
        options = self.training.options
        simulated = self.simulated_train.size > 0 and rng.random() < options["simulated_share"]
        # a risk set is of one kind: what separates a simulated scan from a true one is no risk
        from_these = self.simulated_train if simulated else self.pool.train
        patients = rng.choice(from_these, size=min(self.training.batch, from_these.size), replace=False)
        pres, posts, burdens = [], [], []
        for patient in patients:
            if simulated:
                pre, post, burden = self._simulated(int(patient))
            else:
                pre, post = self._scans(int(patient), protocols, decoded=rng.random() < options["decoded_share"])
                burden = self.burden[patient].clone()
                # the engine's volumes are measured on an imperfect segmentation
                noise = torch.from_numpy(rng.standard_normal(count)).float()
                burden[:, 0] = (burden[:, 0] + options["burden_noise"] * noise).clamp_min(0.0)
            flips = random_flips(rng)
            pres.append(pre.flip(flips))
            posts.append(post.flip(flips))
            burdens.append(burden)
        tokens = self.network.encode_pre(torch.stack(pres).to(self.device)).repeat_interleave(count, dim=0)
        record = forget_fields(self.record[patients], rng).repeat_interleave(count, dim=0)
        risk, logits = self.network.with_survival(
            tokens, torch.cat(posts).to(self.device), torch.cat(burdens).to(self.device), record.to(self.device)
        )
        offset, time, event = (v[patients].flatten().to(self.device) for v in (self.offset, self.time, self.event))
        loss = cox_efron(risk + offset, time, event)
        parts = {"cox": float(loss.detach()), "spread": float(risk.detach().std())}
        if logits is not None:
            edges = self.preset.survival.os_edges_months
            regression = discrete_hazard_loss(logits + offset[:, None], time, event, edges)
            loss = loss + options["os_weight"] * regression
            parts["os"] = float(regression.detach())
        return loss, parts

    def predict(self, network: SurvivalNet, patients: npt.NDArray[np.int64], *, simulated: bool = False) -> Tensor:
        """Log-risk without toxicity (len(patients), K), on true or on simulated scans."""
        count = self.pool.post.shape[1]
        out = []
        for patient in patients:
            if simulated:
                pre, post, burden = self._simulated(int(patient))
            else:
                pre, post = self._scans(int(patient), np.arange(count), decoded=False)
                burden = self.burden[patient]
            record = self.record[patient].expand(count, -1)
            # steps of bfloat16 are as large as differences between protocols
            with torch.autocast(self.device.type, enabled=False):
                tokens = network.encode_pre(pre[None].to(self.device)).expand(count, -1, -1)
                inputs = [one.to(self.device) for one in (post, burden, record)]
                out.append(network(tokens, *inputs).cpu())
        return torch.stack(out)

    def validate(self, network: nn.Module) -> dict[str, float]:
        """c-index on unseen patients, beside the true hazard's, and mean within-patient rank correlation with it."""
        assert isinstance(network, SurvivalNet)
        patients = self.pool.val[:VALIDATION_PATIENTS]
        total = (self.predict(network, patients) + self.offset[patients]).numpy()
        true = np.asarray(self.pool.true_log_risk[patients])
        out = {"within_patient_rank": _mean_rank(total, true)}
        event, time = self.event[patients].flatten().numpy(), self.time[patients].flatten().numpy()
        if event.any():
            out["c_index"] = float(concordance_index_censored(event, time, total.ravel())[0])
            out["c_index_true_hazard"] = float(concordance_index_censored(event, time, true.ravel())[0])
        if self.simulations is not None and all(int(patient) in self.simulations.row for patient in patients):
            shown = (self.predict(network, patients, simulated=True) + self.offset[patients]).numpy()
            out["within_patient_rank_simulated"] = _mean_rank(shown, true)
            if event.any():
                out["c_index_simulated"] = float(concordance_index_censored(event, time, shown.ravel())[0])
        return out

    def picture(self, network: nn.Module) -> npt.NDArray[np.uint8]:
        """Predicted (up) against true (right) log-risk of unseen patients, both standardised to +-3."""
        assert isinstance(network, SurvivalNet)
        patients = self.pool.val[:VALIDATION_PATIENTS]
        canvas = np.full((192, 192), 255, dtype=np.uint8)
        predicted = (self.predict(network, patients) + self.offset[patients]).numpy().ravel()
        true = np.asarray(self.pool.true_log_risk[patients]).ravel()
        x, y = ((v - v.mean()) / (v.std() + 1e-9) for v in (true, predicted))
        columns = np.clip((x / 6.0 + 0.5) * 190, 0, 190).astype(int)
        rows = 190 - np.clip((y / 6.0 + 0.5) * 190, 0, 190).astype(int)
        for dx, dy in ((0, 0), (0, 1), (1, 0), (1, 1)):
            canvas[rows + dy, columns + dx] = 0
        return canvas


def _mean_rank(predicted: npt.NDArray[np.float64], true: npt.NDArray[np.float64]) -> float:
    """Mean over patients of Spearman's correlation over their protocols; 0 where none has two values."""
    ranks = [
        float(spearmanr(mine, truth).statistic)
        for mine, truth in zip(predicted, true, strict=True)
        if np.ptp(mine) > 0 and np.ptp(truth) > 0
    ]
    return float(np.mean(ranks)) if ranks else 0.0


def fit_baseline(task: SurvivalTask, network: SurvivalNet, origin: str) -> SurvivalBaseline:
    """Breslow baseline on training patients, with the network's own risks."""
    patients = task.pool.train[:BASELINE_PATIENTS]
    with torch.no_grad():
        total = (task.predict(network, patients) + task.offset[patients]).flatten().double().numpy()
    time, event = task.time[patients].flatten().numpy(), task.event[patients].flatten().numpy()
    grid = np.arange(0.0, np.floor(float(time.max())) + 1.0)
    curve = breslow_survival(total, time, event, grid)
    return SurvivalBaseline(
        times_months=tuple(float(t) for t in grid),
        survival=tuple(float(s) for s in curve),
        n=len(patients),
        data_origin=origin,
    )


def train_survival(
    pool: Pool, preset: Preset, autoencoder: Autoencoder, out: Path, options: RunOptions, *, autoencoder_id: str,
    origin: str = "synthetic", simulator: Simulator | None = None,
) -> RunResult:  # fmt: skip
    """Train in `out` (see `run_training`); a finished run also leaves `baseline.json` (Breslow).

    With a simulator the follow-up scans of some patients are simulated first, into `out/simulations`.

    Args:
        autoencoder: trained, decodes what the engine would show.
        autoencoder_id: of its weights.
        origin: of the pool's data, stored with the baseline.
        pool: patches of many patients.
        preset: sizes and settings.
        out: folder of the run.
        options: seed, budget and so on.
        simulator: trained networks; None trains on true scans only.

    Raises:
        RunError: no training patient died; and see `run_training`.
    """
    fingerprint = (
        f"{preset.fingerprint('survival')} {pool.data_hash} {autoencoder_id} "
        f"{simulator.identity if simulator else 'none'} seed {options.seed}"
    )
    check_folder(out, options, fingerprint)
    me = Processes.join()
    simulations = None
    if simulator is not None and (number := int(preset.training.survival.options["simulated_patients"])):
        chosen = np.concatenate([pool.train[:number], pool.val[:VALIDATION_PATIENTS]])
        made = simulator
        simulations = me.in_turn(lambda: simulate_pool(made, pool, preset, chosen, out / "simulations"))
    torch.manual_seed(options.seed)
    task = SurvivalTask(pool, preset, autoencoder.eval(), simulations)
    task.fit_linear()
    result = run_training(task, task.training, out, options, fingerprint=fingerprint, validate_every=0.25)
    if result.finished and me.first and not (out / BASELINE).exists():
        assert isinstance(result.network, SurvivalNet)
        part = out / f"{BASELINE}.part"
        part.write_text(fit_baseline(task, result.network, origin).model_dump_json(), encoding="utf-8")
        part.replace(out / BASELINE)
    return result
