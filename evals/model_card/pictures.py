"""Pictures of the model card: reconstructions, protocols side by side, segmentations; and the real pair.

Drawn by a command into a folder of the user's choice. Those of the real patient show a real scan: they are not for the
repository.
"""

from __future__ import annotations

from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt

from evals.model_card.blocks import FIRST_SEED
from evals.model_card.dynamics import wanted_protocols
from evals.model_card.scene import Scene
from evals.simulators import WorldModelSimulator
from models.engine import Device, Engine
from models.errors import InputError
from models.patch import spacing_of
from models.phantom.response import respond
from models.volume import Volume

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

if TYPE_CHECKING:
    from evals.model_card.real_patient import RealPair

WINDOW = (-100.0, 400.0)
PATIENTS = 3
PROTOCOLS = 4
COLOURS = {2: (0.90, 0.25, 0.20), 3: (0.25, 0.45, 0.90), 4: (0.95, 0.80, 0.15)}


def draw_pictures(out: Path, weights: Path, device: Device = "auto", patients: int = PATIENTS) -> list[Path]:
    """Draw one picture per patient: true and simulated follow-ups of some protocols, with the tissue that is found.

    Args:
        out: Folder; made if missing.
        weights: Folder of the bundle.
        device: Where the networks run.
        patients: How many, the first of the model card's.

    Raises:
        InputError: the folder can't be written.
    """
    _make(out)
    engine = Engine(device, weights)
    written = []
    for seed in range(FIRST_SEED, FIRST_SEED + patients):
        scene = Scene.of(seed, engine)
        protocols = wanted_protocols(seed, PROTOCOLS)
        true = [scene.truth(respond(scene.patient, protocol)) for protocol in protocols]
        simulated = scene.simulated(WorldModelSimulator(engine), [(protocol, 0) for protocol in protocols])
        decoded = engine.reconstruct(true[0].hu)
        figure, axes = plt.subplots(3, len(protocols) + 1, figsize=(3.2 * (len(protocols) + 1), 9.6))
        _show(axes[0, 0], scene.prepared.pre[0], "before")
        _show(axes[1, 0], true[0].hu[0], "true, first protocol")
        _show(axes[2, 0], decoded[0], "the same, after encoding and decoding")
        for column, protocol in enumerate(protocols, start=1):
            mine = simulated[column - 1]
            _show(axes[0, column], true[column - 1].hu[0], "true: " + fill(protocol.key, 42))
            _show(axes[1, column], mine.hu[0], "simulated")
            _show(axes[2, column], mine.hu[0], "tissue found", mine.tissue[0])
        figure.suptitle("Synthetic patient. Red viable, blue necrotic, yellow Lipiodol; window -100 to 400 HU")
        figure.tight_layout()
        path = out / f"{scene.patient.patient_id}.png"
        figure.savefig(path, dpi=80)
        plt.close(figure)
        written.append(path)
    return written


def draw_real_patient(out: Path, pair: RealPair, simulated: Volume, result: dict[str, Any]) -> Path:
    """The real pair beside the simulated follow-up in three planes, as radiologists look, and histograms of HU."""
    _make(out)
    mass = pair.labels == 2
    centre = [round(float(axis.mean())) for axis in np.nonzero(mass)]
    figure, axes = plt.subplots(4, 3, figsize=(11, 14))
    scans = (("before", pair.before), ("real follow-up, registered", pair.after), ("simulated follow-up", simulated))
    spacing = spacing_of(pair.before.affine)
    for column, (title, volume) in enumerate(scans):
        for row, axis in enumerate((2, 1, 0)):
            across, up = (one for one in range(3) if one != axis)
            plane, marked = (np.take(a, centre[axis], axis=axis).T[::-1, ::-1] for a in (volume.data, mass))
            aspect = float(spacing[up] / spacing[across])
            axes[row, column].imshow(plane, cmap="gray", vmin=WINDOW[0], vmax=WINDOW[1], aspect=aspect)
            axes[row, column].contour(marked, levels=[0.5], colors="lime", linewidths=0.6)
            axes[row, column].set_axis_off()
            axes[row, column].set_title(title if row == 0 else "")
    for column, key in enumerate(("before", "after", "simulated_0")):
        first, _, step = result["hu"][key]["edges"]
        shares = result["hu"][key]["histogram"]
        axes[3, column].bar(first + step * np.arange(len(shares)), shares, width=step, align="edge", color="0.4")
        axes[3, column].set_xlabel("HU in the mass")
        axes[3, column].set_ylim(0, 0.45)
    figure.suptitle(f"HCC_009, {result['protocol']}: development picture, not for the repository")
    figure.tight_layout()
    path = out / "HCC_009.png"
    figure.savefig(path, dpi=80)
    plt.close(figure)
    return path


def _show(axes: Axes, cube: npt.NDArray[np.generic], title: str, tissue: npt.NDArray[np.uint8] | None = None) -> None:
    middle = cube.shape[2] // 2
    axes.imshow(np.asarray(cube)[:, :, middle].T[::-1, ::-1], cmap="gray", vmin=WINDOW[0], vmax=WINDOW[1])
    if tissue is not None:
        classes = tissue[:, :, middle].T[::-1, ::-1]
        painted = np.zeros((*classes.shape, 4))
        for label, colour in COLOURS.items():
            painted[classes == label] = (*colour, 0.55)
        axes.imshow(painted)
    axes.set_title(title, fontsize=7)
    axes.set_axis_off()


def _make(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"The folder {out} can't be written: {error.strerror}; choose another.") from error
