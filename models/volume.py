"""Volume: a CT image in HU with its affine, in RAS+ order; reading, checking, writing and resampling it."""

from __future__ import annotations

import gzip
import io
import math
import os
import tempfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import yaml
from nibabel.filebasedimages import ImageFileError
from nibabel.fileholders import FileHolder
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from nibabel.spatialimages import HeaderDataError, HeaderTypeError
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from scipy import ndimage

from models.errors import InputError, MaskError, VolumeError

LABEL_NAMES: dict[int, str] = {1: "liver", 2: "tumour", 3: "portal vein", 4: "aorta"}
"""Label values of every label volume in the program; 0 is background."""

Affine = NDArray[np.float64]
_OTHER_PACKERS = (".bz2", ".zst")  # nibabel opens them too, but nothing bounds what a damaged one unpacks to
_DEFLATE_RATIO = 1032  # gzip packs no tighter
_UNREADABLE = (
    ImageFileError, HeaderDataError, HeaderTypeError, OSError, EOFError, ValueError, OverflowError, zlib.error
)  # fmt: skip


class _Limits(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    min_voxels_per_axis: int
    air_hu: int
    gas_below_hu: float
    min_gas_share: float
    soft_tissue_hu: tuple[float, float]
    min_soft_tissue_share: float
    unscaled_tissue_hu: tuple[float, float]
    max_unscaled_share: float
    max_hu: float
    max_shear_cosine: float
    grid_tolerance: float


@cache
def limits() -> _Limits:
    """The sanity limits of `volume_limits.yaml`."""
    text = resources.files("models").joinpath("volume_limits.yaml").read_text(encoding="utf-8")
    return _Limits.model_validate(yaml.safe_load(text))


@dataclass(frozen=True, eq=False)
class Volume:
    """A 3-D image.

    Attributes:
        data: (X, Y, Z) HU, int16 (exact scanner values) or float32; axes run to the right, anterior, superior.
        affine: (4, 4) float64, voxel index to world mm (RAS+).
    """

    data: NDArray[Any]
    affine: Affine

    def __post_init__(self) -> None:
        if self.data.ndim != 3 or self.data.dtype not in (np.dtype(np.int16), np.dtype(np.float32)):
            raise ValueError(f"a Volume is a 3-D int16 or float32 array, not {self.data.ndim}-D {self.data.dtype}")
        if self.affine.shape != (4, 4):
            raise ValueError(f"an affine is (4, 4), not {self.affine.shape}")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along x, y, z."""
        x, y, z = self.data.shape
        return x, y, z

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel sides in mm."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel in ml."""
        return float(abs(np.linalg.det(self.affine[:3, :3]))) / 1000.0


def read_nifti(path: Path | str) -> Volume:
    """Read a CT in HU from NIfTI, turned to RAS+ by whole axes (no interpolation).

    Values below air (-1024 HU) are scanner padding and become air; nothing else is changed. Whole numbers stay int16.

    Raises:
        VolumeError: missing or unreadable file; not 3-D; NaN, constant or 8-bit values; not a CT in HU; sheared grid.
    """
    path = Path(path)
    data, affine = _read_array(path, VolumeError, "image")
    if data.dtype in (np.dtype(np.uint8), np.dtype(np.int8), np.dtype(bool)):
        raise VolumeError(f"{path} holds 8-bit values ({data.dtype}), not HU; give the original CT.")
    return checked_ct(data, affine, str(path))


def checked_ct(data: NDArray[Any], affine: Affine, name: str) -> Volume:
    """Make a Volume of an array after checking that it can be a CT in HU (limits: `volume_limits.yaml`).

    Args:
        data: 3-D array of HU, any real dtype.
        affine: (4, 4) voxel to world, mm, RAS+.
        name: what the messages call it.

    Raises:
        VolumeError: as `read_nifti`.
    """
    bound = limits()
    _check_grid(data.shape, affine, name, VolumeError)
    low, high = float(data.min()), float(data.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        bad = int(np.size(data) - np.count_nonzero(np.isfinite(data)))
        raise VolumeError(f"{name} has {bad} voxels that are NaN or infinite; give a CT with a HU in every voxel.")
    if low == high:
        raise VolumeError(f"{name} has the value {low:g} in every voxel; give a CT in HU.")
    if high > bound.max_hu:
        raise VolumeError(f"{name} reaches {high:g}, which no CT in HU does; give the original CT in HU.")
    if low >= 0 and high <= 255:
        raise VolumeError(f"{name} runs from {low:g} to {high:g} like an 8-bit picture, not HU; give the original CT.")
    clipped = data if data.dtype.kind == "u" else np.maximum(data, bound.air_hu)
    gas = _share(clipped, -np.inf, bound.gas_below_hu)
    tissue = _share(clipped, *bound.soft_tissue_hu)
    unscaled = _share(clipped, *bound.unscaled_tissue_hu)
    if unscaled > bound.max_unscaled_share:
        raise VolumeError(
            f"{name} has {unscaled:.0%} of its voxels between {bound.unscaled_tissue_hu[0]:g} and "
            f"{bound.unscaled_tissue_hu[1]:g}, so it seems to be a CT without its rescale offset; convert it to HU."
        )
    if gas < bound.min_gas_share or tissue < bound.min_soft_tissue_share:
        raise VolumeError(
            f"{name} runs from {low:g} to {high:g} with {gas:.1%} of the voxels like gas and {tissue:.1%} like soft "
            "tissue, so it is not a CT in HU (an MRI or a rescaled picture?); give the original CT."
        )
    if clipped.dtype.kind == "f" and not np.array_equal(clipped, np.rint(clipped)):
        return Volume(np.ascontiguousarray(clipped, dtype=np.float32), affine)
    return Volume(np.ascontiguousarray(clipped, dtype=np.int16), affine)


def _share(data: NDArray[Any], low: float, high: float) -> float:
    return float(np.count_nonzero((data >= low) & (data <= high))) / data.size


def read_labels(path: Path | str, like: Volume, tumour_label: int = 2) -> NDArray[np.uint8]:
    """Read the label volume of an image.

    Args:
        path: NIfTI with whole numbers: 1 liver, 2 tumour, 3 portal vein, 4 aorta.
        like: the image that the labels belong to; the grids must agree.
        tumour_label: the number that means tumour in this file; it is written as 2.

    Returns:
        (X, Y, Z) uint8 on the grid of `like`, values of `LABEL_NAMES`.

    Raises:
        MaskError: unreadable; other shape or position than the image; other values than labels; no tumour.
    """
    path = Path(path)
    data, affine = _read_array(path, MaskError, "label volume")
    if data.shape != like.shape:
        raise MaskError(
            f"The labels {path} have {_times(data.shape)} voxels, the image has {_times(like.shape)}; "
            "give labels drawn on this image."
        )
    if not same_grid(like.shape, like.affine, data.shape, affine):
        raise MaskError(
            f"The labels {path} lie elsewhere than the image (corners differ by up to "
            f"{_corner_distance(like.shape, like.affine, affine):.3g} mm); give labels with the affine of the image."
        )
    values = np.unique(data)
    if not np.array_equal(values, np.rint(values)) or values.min() < 0 or values.max() > 255:
        raise MaskError(f"The labels {path} hold values that are not whole numbers from 0 to 255; give a label volume.")
    found = [int(v) for v in values if v != 0]
    if tumour_label not in found:
        names = ", ".join(f"{v} ({LABEL_NAMES[v]})" if v in LABEL_NAMES else str(v) for v in found) or "none"
        raise MaskError(
            f"The labels {path} mark no tumour (label {tumour_label}); found: {names}; "
            "if another number means tumour, say so with --tumour-label."
        )
    others = [v for v in found if v != tumour_label]
    if strange := [v for v in others if v not in LABEL_NAMES or v == 2]:
        known = ", ".join(f"{v} {name}" for v, name in LABEL_NAMES.items())
        raise MaskError(
            f"The labels {path} hold {', '.join(map(str, strange))} beside the tumour label {tumour_label}, "
            f"which is not known here; relabel the file as {known}."
        )
    labels = data.astype(np.uint8)
    if tumour_label != 2:
        labels[labels == tumour_label] = 2
    return labels


def same_grid(shape_a: Sequence[int], affine_a: Affine, shape_b: Sequence[int], affine_b: Affine) -> bool:
    """Whether two grids have one shape and put every corner at the same place (to a tenth of the smallest voxel)."""
    if tuple(shape_a) != tuple(shape_b):
        return False
    side = min(np.linalg.norm(affine_a[:3, :3], axis=0).min(), np.linalg.norm(affine_b[:3, :3], axis=0).min())
    return bool(_corner_distance(shape_a, affine_a, affine_b) <= limits().grid_tolerance * side)


def _corner_distance(shape: Sequence[int], affine_a: Affine, affine_b: Affine) -> float:
    ends = np.stack(np.meshgrid(*[(0, n - 1) for n in shape], indexing="ij"), axis=-1).reshape(-1, 3)
    corners = np.c_[ends, np.ones(len(ends))].T
    return float(np.linalg.norm(((affine_a - affine_b) @ corners)[:3], axis=0).max())


def load_exact(path: Path | str) -> Volume:
    """Read a volume that this program wrote, without judging its values.

    Raises:
        VolumeError: missing, unreadable or not 3-D.
    """
    data, affine = _read_array(Path(path), VolumeError, "image")
    return Volume(np.ascontiguousarray(data, dtype=np.int16 if data.dtype.kind in "iu" else np.float32), affine)


def load_exact_labels(path: Path | str) -> tuple[NDArray[np.uint8], Affine]:
    """Read a label volume that this program wrote, and its affine, without judging its values.

    Raises:
        MaskError: missing, unreadable or not 3-D.
    """
    data, affine = _read_array(Path(path), MaskError, "label volume")
    return np.ascontiguousarray(data, dtype=np.uint8), affine


def read_grid(path: Path | str) -> tuple[tuple[int, ...], Affine]:
    """Shape and affine of a volume that this program wrote, from its header alone.

    Raises:
        VolumeError: missing or unreadable.
    """
    try:
        image = nib.load(path)
    except _UNREADABLE as error:
        raise VolumeError(f"The image {path} can't be read as NIfTI: {_one_line(error)}.") from error
    return tuple(image.shape), np.asarray(image.affine, dtype=np.float64)


def _read_array(path: Path, error_type: type[InputError], what: str) -> tuple[NDArray[Any], Affine]:
    """A 3-D NIfTI as it is stored (rescaled only where its header says so), turned to RAS+ by whole axes."""
    try:
        if not path.is_file():
            raise error_type(f"There is no {what} file {path}; check the path.")
        image = nib.load(path)
        if not isinstance(image, nib.Nifti1Pair):
            raise error_type(f"{path} is a {type(image).__name__}, not NIfTI; convert it to .nii.gz.")
        shape = tuple(image.shape)
        while len(shape) > 3 and shape[-1] == 1:
            shape = shape[:-1]  # a time axis of one volume holds nothing more
        if len(shape) != 3 or min(shape) < 2:
            raise error_type(f"{path} is {_times(image.shape)} voxels, {_dimension(shape)}; give one 3-D volume.")
        stored = image.get_data_dtype()
        if stored.kind not in "iuf":
            kind = {"c": "complex numbers", "V": "colours"}.get(stored.kind, f"values of type {stored}")
            raise error_type(f"The {what} {path} holds {kind}, not one real number in every voxel; give the original.")
        data = np.asanyarray(_checked_files(image, path, error_type, what).dataobj).reshape(shape)
        affine = np.asarray(image.affine, dtype=np.float64)
    except (zlib.error, gzip.BadGzipFile, EOFError) as error:
        raise error_type(
            f"The {what} {path} can't be read as NIfTI, its gzip data are damaged ({_one_line(error)}); copy it again."
        ) from error
    except _UNREADABLE as error:
        raise error_type(f"The {what} {path} can't be read as NIfTI: {_one_line(error)}.") from error
    no_volume = f"The {what} {path} has an affine that maps no volume; repair its header."
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise error_type(no_volume)
    try:
        return to_ras(data, affine)
    except (ValueError, np.linalg.LinAlgError) as error:  # no axis of the grid runs along one of the body's
        raise error_type(no_volume) from error


def _checked_files(image: nib.Nifti1Pair, path: Path, error_type: type[InputError], what: str) -> nib.Nifti1Pair:
    """The same image over files that are whole, gzip data unpacked in memory.

    nibabel stops reading at the last voxel, before the check sum at the end of gzip data, so that flipped bits would
    come through as changed voxels. A header that claims too many voxels is told before room is made for them.
    """
    wanted = int(image.dataobj.offset) + math.prod(image.shape) * image.get_data_dtype().itemsize
    files = {}
    for part, holder in image.file_map.items():
        file = Path(holder.filename)
        if file.suffix.lower() in _OTHER_PACKERS:
            raise error_type(f"The {what} {path} is packed as {file.suffix}; unpack it or convert it to .nii.gz.")
        packed = file.suffix.lower() == ".gz"
        size = file.stat().st_size * (_DEFLATE_RATIO if packed else 1)
        if packed and (part != "image" or size >= wanted):
            with gzip.open(file) as stream:
                content = stream.read(wanted)
                while stream.read(1 << 20):  # to the check sum
                    pass
            size = len(content)
            files[part] = FileHolder(filename=str(file), fileobj=io.BytesIO(content))
        else:
            files[part] = FileHolder(filename=str(file))
        if part == "image" and size < wanted:
            raise error_type(
                f"The {what} {path} holds less than the {_times(image.shape)} voxels that its header claims; "
                "copy it again."
            )
    return type(image).from_file_map(files)


def to_ras(data: NDArray[Any], affine: Affine) -> tuple[NDArray[Any], Affine]:
    """Turn a 3-D array by flips and axis swaps so that its axes run closest to right, anterior, superior."""
    turn = ornt_transform(io_orientation(affine), axcodes2ornt("RAS"))
    turned = nib.orientations.apply_orientation(data, turn)
    return np.ascontiguousarray(turned), np.asarray(affine @ inv_ornt_aff(turn, data.shape), dtype=np.float64)


def _check_grid(shape: tuple[int, ...], affine: Affine, name: str, error_type: type[InputError]) -> None:
    bound = limits()
    if len(shape) != 3 or min(shape) < bound.min_voxels_per_axis:
        raise error_type(
            f"{name} is {_times(shape)} voxels; give one 3-D volume of at least {bound.min_voxels_per_axis} a side."
        )
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    shear = float(np.abs(axes.T @ axes - np.eye(3)).max())
    if shear > bound.max_shear_cosine:
        raise error_type(
            f"{name} has a sheared grid (axes {np.degrees(np.arcsin(min(shear, 1.0))):.1f} degrees from perpendicular, "
            "as an uncorrected gantry tilt leaves it); resample it to a straight grid first."
        )


def write_nifti(volume: Volume, path: Path | str) -> None:
    """Write a volume as .nii or .nii.gz, int16 and float32 exactly, at once or not at all.

    The same volume always gives the same bytes.

    Raises:
        VolumeError: the file can't be written.
    """
    _write_array(volume.data, volume.affine, Path(path))


def write_label_nifti(labels: NDArray[np.uint8], affine: Affine, path: Path | str) -> None:
    """Write a (X, Y, Z) uint8 label volume like `write_nifti`.

    Raises:
        VolumeError: the file can't be written.
    """
    _write_array(np.asarray(labels, dtype=np.uint8), affine, Path(path))


def _write_array(data: NDArray[Any], affine: Affine, path: Path) -> None:
    image = nib.Nifti1Image(data, affine)
    image.header.set_xyzt_units("mm")
    image.header.set_slope_inter(1.0, 0.0)
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    content = image.to_bytes()
    if path.name.endswith(".gz"):
        buffer = io.BytesIO()
        # No name and no time in the gzip header: equal volumes are equal files.
        with gzip.GzipFile(filename="", mode="wb", fileobj=buffer, compresslevel=4, mtime=0) as packed:
            packed.write(content)
        content = buffer.getvalue()
    partial: Path | None = None
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        partial = Path(name)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        partial.chmod(0o644)
        partial.replace(path)
    except OSError as error:
        if partial is not None:
            partial.unlink(missing_ok=True)
        raise VolumeError(f"The volume {path} can't be written: {error.strerror}.") from error


def resample(volume: Volume, spacing: float | Sequence[float], order: int = 1) -> Volume:
    """Resample to another voxel size over the same field of view, keeping direction and position.

    Args:
        volume: the image.
        spacing: new voxel sides in mm, one number or three.
        order: spline order: 0 nearest (labels), 1 linear, 3 cubic. Above 0 a Gaussian of the extra width precedes
            coarsening, so that fine detail does not alias.

    Returns:
        float32 volume for order above 0, the dtype of the input for order 0.
    """
    old = np.array(volume.spacing_mm)
    new = np.broadcast_to(np.asarray(spacing, dtype=np.float64), (3,)).copy()
    if not (np.isfinite(new).all() and (new > 0).all()):
        raise VolumeError(f"A voxel size of {spacing} mm is not possible; give sides above zero.")
    shape = np.maximum(1, np.rint(np.array(volume.shape) * old / new)).astype(int)
    scale = new / old
    # Outer faces of the two grids coincide at the low corner, so voxel centres shift by half the difference.
    offset = (scale - 1) / 2
    data = volume.data if order == 0 else volume.data.astype(np.float32)
    if order > 0 and (scale > 1).any():
        sigma = np.sqrt(np.maximum(scale**2 - 1, 0)) / 2.355  # widths at half maximum add in squares
        data = ndimage.gaussian_filter(data, sigma, mode="nearest")
    out = ndimage.affine_transform(data, scale, offset, output_shape=tuple(shape), order=order, mode="nearest")
    affine = volume.affine.copy()
    affine[:3, :3] = volume.affine[:3, :3] * scale
    affine[:3, 3] = volume.affine[:3, 3] + volume.affine[:3, :3] @ offset
    return Volume(np.ascontiguousarray(out), affine)


def _times(shape: Sequence[int]) -> str:
    return " x ".join(str(n) for n in shape)


def _dimension(shape: Sequence[int]) -> str:
    return "a single slice" if len(shape) == 3 else f"{len(shape)}-D"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")
