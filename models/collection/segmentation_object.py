"""DICOM segmentation objects: which CT they belong to, what their segments are, and their labels on its slices.

An object is resolved to its CT by what it references, never by folders. A frame is laid on the slice that it states the
position of, so the order of frames and of files does not matter. Words and codes are in `segments.yaml`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from scipy import ndimage

from models.dicom import DAMAGE, DicomSeries, Slice, untrusted_headers
from models.errors import MaskError

MadeBy = Literal["experts", "corrected_ai", "ai"]
_PIXEL = 0.05  # pixels whose centres are closer than this share of a side are the same
_PARALLEL = 1e-3


class _Words(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    painted: tuple[int, ...]
    words: dict[int, tuple[str, ...]]
    codes: dict[int, tuple[str, ...]]
    made_by: dict[MadeBy, tuple[str, ...]]
    fraction: float


@cache
def _words() -> _Words:
    text = resources.files("models.collection").joinpath("segments.yaml").read_text(encoding="utf-8")
    return _Words.model_validate(yaml.safe_load(text))


@dataclass(frozen=True)
class Segment:
    """One segment: its number in the object, and its label here (1 to 4); None where neither word nor code tells."""

    number: int
    label: int | None


@dataclass(frozen=True)
class SegmentationObject:
    """A segmentation object, read.

    Attributes:
        path: its file.
        made_by: the collection's experts, an AI, or an AI that a radiologist corrected.
        segments: what it marks.
        series: SeriesInstanceUIDs that it references.
        images: SOPInstanceUIDs that it references, a frame's sources included.
    """

    path: Path
    made_by: MadeBy
    segments: tuple[Segment, ...]
    series: frozenset[str]
    images: frozenset[str]
    dataset: Any = field(repr=False)

    @property
    def unknown(self) -> int:
        """How many of its segments are none of liver, tumour, portal vein and aorta."""
        return sum(segment.label is None for segment in self.segments)

    def belongs_to(self, series: Sequence[DicomSeries]) -> DicomSeries | None:
        """The CT that the object was drawn on.

        Where a series holds two phases, it is the one with most of the referenced slices; where only the series is
        referenced, the first.

        Args:
            series: every CT that could be meant, in order.
        """
        shared = [len(self.images & {one.sop_uid for one in ct.slices}) for ct in series]
        if any(shared):
            return series[shared.index(max(shared))]
        return next((ct for ct in series if ct.uid in self.series), None)

    def planes(self, series: DicomSeries) -> list[NDArray[np.uint8]]:
        """The labels on every slice of its CT, from the first slice to the last.

        Returns:
            One (rows, columns) array per slice, values of `models.volume.LABEL_NAMES`; unknown segments are left out.

        Raises:
            MaskError: a frame that lies on none of the slices, or across them; pixels that can't be read.
        """
        labels = {segment.number: segment.label for segment in self.segments}
        stack = [np.zeros((one.rows, one.columns), np.uint8) for one in series.slices]
        heights = np.array([one.height for one in series.slices])
        reach = 0.5 * float(np.diff(heights).min())
        order = _words().painted
        frames: list[tuple[int, int, int, NDArray[Any]]] = []
        try:
            with untrusted_headers():
                for number, frame in enumerate(self._frames()):
                    at = _position(self.dataset, frame)
                    one = series.slices[int(np.abs(heights - _height(at, series.slices[0])).argmin())]
                    if abs(one.height - _height(at, one)) > reach:
                        raise MaskError(
                            f"The segmentation {self.path} marks a place that none of the slices of its CT shows; "
                            "it belongs to other slices, download the series again."
                        )
                    pixels = self.dataset.get_stored_frame(number, as_index=True)
                    for segment, mask in self._marked(frame, pixels):
                        label = labels.get(segment)
                        if label is not None and mask.any():
                            placed = _on_slice(mask, at, self.dataset, frame, one, self.path)
                            frames.append((order.index(label), series.slices.index(one), label, placed))
        except DAMAGE as error:
            raise MaskError(f"The pixels of the segmentation {self.path} can't be read; download it again.") from error
        for _, place, label, mask in sorted(frames, key=lambda entry: entry[:3]):
            stack[place][mask] = label
        return stack

    def _frames(self) -> Sequence[Any]:
        frames: Sequence[Any] = self.dataset.PerFrameFunctionalGroupsSequence
        return frames

    def _marked(self, frame: Any, pixels: NDArray[Any]) -> list[tuple[int, NDArray[np.bool_]]]:
        """The segments of a frame and where they are."""
        kind = str(self.dataset.SegmentationType)
        if kind == "LABELMAP":
            return [(segment.number, pixels == segment.number) for segment in self.segments]
        group = _group(self.dataset, frame, "SegmentIdentificationSequence")
        number = int(group.ReferencedSegmentNumber)
        if kind == "FRACTIONAL":
            return [(number, pixels >= _words().fraction * float(self.dataset.MaximumFractionalValue))]
        return [(number, pixels != 0)]


def read_segmentation(path: Path) -> SegmentationObject:
    """Read a DICOM segmentation object.

    Raises:
        MaskError: highdicom is not installed, or the file is no segmentation that it can read.
    """
    try:
        from highdicom.seg import segread
    except ImportError as error:
        raise MaskError("Reading segmentation objects needs highdicom; install mewm[collection].") from error
    try:
        with untrusted_headers():
            dataset = segread(path)
            # Number 0 is the background of a label map.
            segments = tuple(_segment(item) for item in dataset.SegmentSequence if int(item.SegmentNumber) != 0)
            made_by = _made_by(dataset)
            uids = dataset.get_source_image_uids()
            series = {str(item.SeriesInstanceUID) for item in dataset.get("ReferencedSeriesSequence", [])}
            images = {str(image) for _, _, image in uids} | set(_frame_sources(dataset))
    except OSError as error:
        raise MaskError(f"The segmentation {path} can't be read: {error.strerror or error}.") from error
    except DAMAGE as error:
        raise MaskError(f"The segmentation {path} is damaged or of an unknown form; download it again.") from error
    return SegmentationObject(
        path, made_by, segments, frozenset(series | {str(uid) for _, uid, _ in uids}), frozenset(images), dataset
    )


def _segment(item: Any) -> Segment:
    text = " ".join(re.findall(r"[a-z0-9]+", str(item.get("SegmentLabel", "")).casefold()))
    for label, words in _words().words.items():
        if any(re.search(rf"\b{re.escape(word)}\b", text) for word in words):
            return Segment(int(item.SegmentNumber), label)
    code = str(item.SegmentedPropertyTypeCodeSequence[0].get("CodeValue", ""))
    label_of = {code: label for label, codes in _words().codes.items() for code in codes}
    return Segment(int(item.SegmentNumber), label_of.get(code))


def made_by(description: str) -> MadeBy:
    """Who drew a segmentation object, by the description of its series."""
    text = description.casefold()
    for who, words in _words().made_by.items():
        if any(word in text for word in words):
            return who
    return "experts"


def _made_by(dataset: Any) -> MadeBy:
    who = made_by(str(dataset.get("SeriesDescription", "")))
    types = {str(item.get("SegmentAlgorithmType", "")) for item in dataset.SegmentSequence}
    return "ai" if who == "experts" and types == {"AUTOMATIC"} else who


def _frame_sources(dataset: Any) -> list[str]:
    return [
        str(source.ReferencedSOPInstanceUID)
        for frame in dataset.PerFrameFunctionalGroupsSequence
        for derivation in frame.get("DerivationImageSequence", [])
        for source in derivation.get("SourceImageSequence", [])
    ]


def _group(dataset: Any, frame: Any, name: str) -> Any:
    """The first item of a functional group, of the frame or shared by all frames."""
    found = frame.get(name) or dataset.SharedFunctionalGroupsSequence[0].get(name)
    if not found:
        raise ValueError(f"no {name}")
    return found[0]


def _position(dataset: Any, frame: Any) -> NDArray[np.float64]:
    return np.array([float(x) for x in _group(dataset, frame, "PlanePositionSequence").ImagePositionPatient])


def _height(position: NDArray[np.float64], one: Slice) -> float:
    return float(np.dot(position, np.cross(one.direction[:3], one.direction[3:])))


def _on_slice(
    mask: NDArray[np.bool_], at: NDArray[np.float64], dataset: Any, frame: Any, one: Slice, path: Path
) -> NDArray[np.bool_]:
    """A frame's mask on the pixels of a slice; the nearest pixel where the two grids differ."""
    direction = [float(x) for x in _group(dataset, frame, "PlaneOrientationSequence").ImageOrientationPatient]
    rows_mm, columns_mm = (float(x) for x in _group(dataset, frame, "PixelMeasuresSequence").PixelSpacing)
    across, down = np.array(one.direction[:3]), np.array(one.direction[3:])
    if abs(abs(np.dot(np.cross(direction[:3], direction[3:]), np.cross(across, down))) - 1) > _PARALLEL:
        raise MaskError(
            f"The segmentation {path} lies across the slices of its CT, so it can't be laid on them; "
            "give one that was drawn on these slices."
        )
    # Pixel (row, column) of the slice to pixel of the frame: where a step on the slice goes on the frame.
    to_frame = np.array([
        [np.dot(down, direction[3:]) * one.pixel_mm[0], np.dot(across, direction[3:]) * one.pixel_mm[1]],
        [np.dot(down, direction[:3]) * one.pixel_mm[0], np.dot(across, direction[:3]) * one.pixel_mm[1]],
    ]) / np.array([[rows_mm], [columns_mm]])  # fmt: skip
    start = np.array(one.position) - at
    offset = np.array([np.dot(start, direction[3:]) / rows_mm, np.dot(start, direction[:3]) / columns_mm])
    shape = (one.rows, one.columns)
    if mask.shape == shape and np.allclose(to_frame, np.eye(2), atol=1e-4) and np.abs(offset).max() < _PIXEL:
        return mask
    placed = ndimage.affine_transform(
        mask.astype(np.uint8), to_frame, offset, output_shape=shape, order=0, mode="grid-constant"
    )
    result: NDArray[np.bool_] = placed != 0
    return result
