"""Uploads: files from a browser, received and unpacked so that no file can do more than be read as a CT.

Everything is bounded before room is made for it, and counted again while it is written. What a file claims of itself
(its length, its name, the size of its image) is never trusted alone. Files of an archive get names of our own: no name
that somebody else chose ever reaches the disk.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import re
import secrets
import shutil
import stat
import struct
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import cache
from importlib import resources
from math import prod
from pathlib import Path, PurePosixPath

import pydicom
import yaml
from pydantic import BaseModel, ConfigDict
from pydicom.filereader import read_file_meta_info
from pydicom.uid import DeflatedExplicitVRLittleEndian

from agent.web.access import Owner, private_folder
from models.case import safe_name
from models.dicom import DAMAGE, untrusted_headers
from models.errors import InputError, RecordError, RunError, VolumeError
from models.volume import read_grid

NIFTI, ZIP, RECORD = (".nii.gz", ".nii"), (".zip",), (".yaml", ".yml", ".json")
_PART = 1 << 20
_ID = re.compile(r"[0-9a-f]{32}")
_END, _LOCATOR_64 = b"PK\x05\x06", b"PK\x06\x07"
_END_BYTES, _LOCATOR_BYTES, _COMMENT_BYTES = 22, 20, 1 << 16


class UploadLimits(BaseModel):
    """Content of `uploads.yaml`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    upload_mib: int
    record_kib: int
    spare_mib: int
    waiting: int
    keep_minutes: int
    cases: int
    unpacked_mib: int
    ratio: int
    files: int
    listing_mib: int
    packed_suffixes: tuple[str, ...]
    voxels: int
    slice_pixels: int


@cache
def upload_limits() -> UploadLimits:
    """The limits of `uploads.yaml`."""
    text = resources.files("agent.web").joinpath("uploads.yaml").read_text(encoding="utf-8")
    return UploadLimits.model_validate(yaml.safe_load(text))


@dataclass(frozen=True)
class Upload:
    """A file that was received.

    Attributes:
        upload_id: what the browser calls it.
        name: its name as the person knows it, made safe.
        path: where it lies, in a folder of its own.
    """

    upload_id: str
    name: str
    path: Path

    @property
    def folder(self) -> Path:
        """The folder that holds it and what is unpacked of it."""
        return self.path.parent

    def discard(self) -> None:
        """Remove it with everything that was made of it."""
        shutil.rmtree(self.folder, ignore_errors=True)


async def receive(owner: Owner, name: str, parts: AsyncIterator[bytes], length: int | None) -> Upload:
    """Write what a browser sends to a file of the owner's; nothing is left of what is refused or cut off.

    Args:
        owner: whose it is.
        name: the file's name at the person's computer.
        parts: its bytes as they come.
        length: how many the browser says it will send.

    Raises:
        InputError: not a kind that can be imported, too large, or too many uploads wait.
        RunError: the disk has no room, or can't be written.
    """
    limits = upload_limits()
    safe, most = _checked_name(name), _most(name)
    if length is not None and length > most:
        raise InputError(_too_large(safe, most))
    sweep(owner, limits.keep_minutes * 60)
    private_folder(owner.incoming)
    if sum(1 for _ in owner.incoming.iterdir()) >= limits.waiting:
        raise InputError(f"{limits.waiting} uploads wait for their import already: import or cancel them first.")
    _need_room(owner.incoming, length or 0)
    upload_id = secrets.token_hex(16)
    folder = owner.incoming / upload_id
    upload = Upload(upload_id, safe, folder / safe)
    done = False
    try:
        folder.mkdir(mode=0o700)
        received = 0
        with upload.path.open("xb") as file:
            async for part in parts:
                received += len(part)
                if received > most:
                    raise InputError(_too_large(safe, most))
                file.write(part)
        if received == 0:
            raise InputError(f"The file {safe} is empty.")
        done = True
    except OSError as exc:
        raise RunError(f"The upload can't be written ({exc.strerror}): free space on the server's disk.") from exc
    finally:
        if not done:  # also where the browser went away
            shutil.rmtree(folder, ignore_errors=True)
    return upload


def find_upload(owner: Owner, upload_id: str) -> Upload:
    """A received file by its id.

    Raises:
        InputError: there is none, or it was waiting too long.
    """
    folder = owner.incoming / upload_id
    if _ID.fullmatch(upload_id) and folder.is_dir():
        for path in folder.iterdir():
            if path.is_file():
                return Upload(upload_id, path.name, path)
    raise InputError("This upload is gone: choose the file again.")


def sweep(owner: Owner, older_than_s: float) -> None:
    """Remove uploads that nobody imported."""
    if not owner.incoming.is_dir():
        return
    for folder in owner.incoming.iterdir():
        with contextlib.suppress(FileNotFoundError):
            if time.time() - folder.stat().st_mtime > older_than_s:
                shutil.rmtree(folder, ignore_errors=True)


def checked_nifti(upload: Upload) -> Path:
    """A NIfTI file whose size is bounded, packed and unpacked; whether it is a CT is for its reader to say.

    Raises:
        VolumeError: it unpacks to more, or states more voxels, than a CT has.
    """
    limits = upload_limits()
    most = limits.voxels * 8  # the widest number in a voxel that NIfTI commonly holds
    if upload.path.suffix == ".gz":
        size = 0
        # a file that is no gzip or is cut short is told by its reader, in the words of the command line
        with contextlib.suppress(OSError, EOFError, zlib.error), gzip.open(upload.path) as stream:
            while part := stream.read(_PART):
                size += len(part)
                if size > most:
                    break
        if size > most:
            raise VolumeError(f"{upload.name} unpacks to more than {_size(most)}, which no CT needs; nothing was kept.")
    try:
        shape, _ = read_grid(upload.path)
    except VolumeError:
        return upload.path
    if prod(max(0, n) for n in shape) > limits.voxels:
        raise VolumeError(
            f"{upload.name} states {' x '.join(map(str, shape))} voxels; at most {limits.voxels:,} can be imported."
        )
    return upload.path


def checked_record(upload: Upload) -> Path:
    """A clinical record that is plain text without references in it: a few lines of those can mean gigabytes.

    Raises:
        RecordError: it has references, or lists in lists in lists.
    """
    try:
        depth = 0
        for token in yaml.scan(upload.path.read_text(encoding="utf-8-sig")):
            if isinstance(token, yaml.AliasToken | yaml.AnchorToken):
                raise RecordError(f"The clinical record {upload.name} holds references (& or *); write values out.")
            opens = isinstance(token, yaml.FlowMappingStartToken | yaml.FlowSequenceStartToken)
            closes = isinstance(token, yaml.FlowMappingEndToken | yaml.FlowSequenceEndToken)
            opens = opens or isinstance(token, yaml.BlockMappingStartToken | yaml.BlockSequenceStartToken)
            depth += opens - (closes or isinstance(token, yaml.BlockEndToken))
            if depth > 8:
                raise RecordError(f"The clinical record {upload.name} is nested too deep to be one.")
    except (yaml.YAMLError, UnicodeDecodeError):
        pass  # its reader says what is wrong
    return upload.path


def unpack_dicom(upload: Upload) -> Path:
    """Unpack a zip archive of DICOM files into a folder beside it, named as the archive.

    Raises:
        InputError: it is damaged, too large, a bomb, or holds what leads out of a folder.
        VolumeError: a DICOM file states an image that is too large, or is packed as a whole.
        RunError: the disk has no room.
    """
    target = upload.folder / "dicom" / (Path(upload.name).stem or "dicom")
    try:
        _check_listing(upload)
        with zipfile.ZipFile(upload.path) as archive:
            entries = _checked_entries(upload, archive)
            _need_room(upload.folder, sum(entry.file_size for entry in entries))
            target.mkdir(parents=True)
            _unpack(upload, archive, entries, target)
    except (
        zipfile.BadZipFile,
        NotImplementedError,
        RuntimeError,
        EOFError,
        zlib.error,
        struct.error,
        ValueError,
    ) as exc:
        raise InputError(f"The archive {upload.name} is damaged or no zip archive; pack the folder again.") from exc
    except OSError as exc:
        raise RunError(f"The archive can't be unpacked ({exc.strerror}): free space on the server's disk.") from exc
    _check_slices(upload, target)
    return target


def _check_listing(upload: Upload) -> None:
    """The length of the list of files, before `zipfile` reads that list into memory."""
    limits = upload_limits()
    size = upload.path.stat().st_size
    tail_bytes = min(size, _END_BYTES + _COMMENT_BYTES + _LOCATOR_BYTES)
    with upload.path.open("rb") as file:
        file.seek(size - tail_bytes)
        tail = file.read(tail_bytes)
    end = len(tail) - _END_BYTES
    if end < 0 or not (tail[end:].startswith(_END) and tail.endswith(b"\0\0")):
        end = tail.rfind(_END)
    if end < 0 or len(tail) - end < _END_BYTES:
        raise zipfile.BadZipFile
    count, listing = struct.unpack_from("<HL", tail, end + 10)
    large = tail[max(0, end - _LOCATOR_BYTES) : end].startswith(_LOCATOR_64)  # more than 65535 files, or 4 GB
    if large or count > limits.files or listing > limits.listing_mib << 20:
        raise InputError(f"The archive {upload.name} holds more than {limits.files:,} files; pack one study alone.")


def _checked_entries(upload: Upload, archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """The files of an archive, after everything that its list says was judged."""
    limits, name = upload_limits(), upload.name
    entries = []
    for entry in archive.infolist():
        path = entry.filename.replace("\\", "/")
        mode = stat.S_IFMT(entry.external_attr >> 16)
        if path.startswith("/") or re.match(r"[A-Za-z]:", path) or ".." in path.split("/"):
            raise InputError(f"The archive {name} holds a file that would be written outside of it; nothing was kept.")
        if mode not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise InputError(f"The archive {name} holds a link or a device, not only files; nothing was kept.")
        if entry.is_dir() or PurePosixPath(path).name.startswith(".") or path.startswith("__MACOSX/"):
            continue
        if entry.flag_bits & 1:
            raise InputError(f"The archive {name} is encrypted; pack it without a password.")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise InputError(f"The archive {name} is packed in an unusual way; pack it as an ordinary zip.")
        if PurePosixPath(path).suffix.lower() in limits.packed_suffixes:
            raise InputError(
                f"The archive {name} holds packed files; give DICOM slices in one zip, or a NIfTI file by itself."
            )
        entries.append(entry)
    total, packed = sum(e.file_size for e in entries), sum(e.compress_size for e in entries)
    if len(entries) > limits.files:
        raise InputError(f"The archive {name} holds more than {limits.files:,} files; pack one study alone.")
    if total > limits.unpacked_mib << 20:
        raise InputError(f"The archive {name} unpacks to {_size(total)}; at most {limits.unpacked_mib:,} MiB can be.")
    if total > limits.ratio * max(packed, 1) and total > _PART:
        raise InputError(f"The archive {name} unpacks to {total // max(packed, 1)} times its size, as no CT does.")
    if not entries:
        raise InputError(f"The archive {name} holds no files.")
    return entries


def _unpack(upload: Upload, archive: zipfile.ZipFile, entries: list[zipfile.ZipInfo], target: Path) -> None:
    left = upload_limits().unpacked_mib << 20
    # A folder that holds slices itself is a series, whose name is header text; one above studies is a patient's. The
    # importer tells them apart by that, so it is kept as on a disk.
    deep = max(entry.filename.replace("\\", "/").count("/") for entry in entries) > 1
    target = target / "studies" if deep else target
    target.mkdir(exist_ok=True)
    for number, entry in enumerate(entries):
        suffix = ".nii" if entry.filename.lower().endswith(".nii") else ".dcm"
        with archive.open(entry) as source, (target / f"{number:06d}{suffix}").open("xb") as file:
            while part := source.read(_PART):
                left -= len(part)
                if left < 0:
                    raise InputError(f"The archive {upload.name} unpacks to more than it says; nothing was kept.")
                file.write(part)


_SIZES = ["Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "BitsAllocated", "SeriesInstanceUID"]


def _check_slices(upload: Upload, folder: Path) -> None:
    """What each DICOM file says of its image, before anything decodes one."""
    limits = upload_limits()
    voxels: Counter[str] = Counter()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        try:
            with untrusted_headers():
                if read_file_meta_info(path).get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
                    raise VolumeError(
                        f"{upload.name} holds DICOM files that are packed as a whole; export uncompressed."
                    )
                header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(_SIZES))
                rows, columns = int(header.get("Rows", 0) or 0), int(header.get("Columns", 0) or 0)
                frames, samples = int(header.get("NumberOfFrames", 1) or 1), int(header.get("SamplesPerPixel", 1) or 1)
                deep = int(header.get("BitsAllocated", 16) or 16) > 32
                series = str(header.get("SeriesInstanceUID", ""))
        except DAMAGE:  # no DICOM, or damaged: the reader of series counts it
            continue
        pixels = rows * columns * max(1, frames) * max(1, samples)
        if pixels > limits.slice_pixels or deep:
            told = f"{columns} x {rows} pixels" + (f" in {frames} frames" if frames > 1 else "")
            raise VolumeError(f"{upload.name} holds a DICOM file that states {told}, which no CT slice has.")
        voxels[series] += pixels
    if voxels and max(voxels.values()) > limits.voxels:
        raise VolumeError(f"{upload.name} holds a series of more than {limits.voxels:,} voxels; export it thicker.")


def _checked_name(name: str) -> str:
    """The file's name without its folder, in characters that are safe anywhere."""
    plain = PurePosixPath(name.replace("\\", "/")).name
    for kind in (*NIFTI, *ZIP, *RECORD):
        if plain.lower().endswith(kind):
            return safe_name(plain[: -len(kind)])[:80] + kind
    raise InputError(
        f"{safe_name(plain)[:80]} is none of .nii, .nii.gz, .zip (DICOM), .yaml or .json; pack DICOM slices as one zip."
    )


def _most(name: str) -> int:
    limits = upload_limits()
    return limits.record_kib << 10 if name.lower().endswith(RECORD) else limits.upload_mib << 20


def _need_room(folder: Path, size: int) -> None:
    if shutil.disk_usage(folder).free < size + (upload_limits().spare_mib << 20):
        raise RunError("The server's disk has no room for this upload: ask whoever runs it to free space.")


def _too_large(name: str, most: int) -> str:
    return f"{name} is larger than {_size(most)}, the most that can be uploaded."


def _size(size: int) -> str:
    return (
        f"{size / (1 << 30):,.1f} GiB"
        if size >= 1 << 30
        else f"{max(1, size >> 20):,} MiB"
        if size >= 1 << 20
        else f"{size >> 10} KiB"
    )


def fresh_folder(parent: Path, name: str) -> Path:
    """A folder name that is free: `name`, else `name-2`, `name-3`, ..."""
    number = 1
    while os.path.lexists(parent / (taken := name if number == 1 else f"{name}-{number}")):
        number += 1
    return parent / taken
