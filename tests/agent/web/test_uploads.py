"""Hostile and broken uploads: refused in one sentence, and nothing of them is left."""

from __future__ import annotations

import asyncio
import gzip
import io
import stat
import struct
import zipfile
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.uid import DeflatedExplicitVRLittleEndian, RLELossless

from agent.web import uploads
from agent.web.access import Access, Owner
from agent.web.cases import ImportRequest, Shelf
from agent.web.uploads import receive, upload_limits
from models.case import Case
from models.errors import InputError, MewmError, RunError
from tests.models.synthetic_ct import labels_of, trunk, write_series

SHAPE = (64, 56, 32)
AFFINE = np.diag([2.0, 2.5, 5.0, 1.0])


@pytest.fixture
def owner(tmp_path: Path) -> Owner:
    access = Access(tmp_path / "outer" / "work")
    found = access.owner_of(access.new_browser())
    assert found is not None
    return found


@pytest.fixture
def shelf() -> Shelf:
    return Shelf(lambda _: None)


async def in_parts(content: bytes, size: int = 1 << 16) -> AsyncIterator[bytes]:
    for start in range(0, len(content), size):
        yield content[start : start + size]


def send(owner: Owner, name: str, content: bytes, length: int | None = None) -> str:
    return asyncio.run(receive(owner, name, in_parts(content), length)).upload_id


def everything(owner: Owner) -> list[str]:
    """All files and links of the work folder and of the folder around it."""
    top = owner.folder.parents[2]
    return sorted(str(p.relative_to(top)) for p in top.rglob("*") if not p.is_dir() or p.is_symlink())


def nifti(data: np.ndarray, affine: np.ndarray = AFFINE) -> bytes:
    return gzip.compress(nib.Nifti1Image(data, affine).to_bytes(), 1)


def zipped(members: dict[str, bytes], edit: Callable[[zipfile.ZipInfo], None] = lambda _: None) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            entry = zipfile.ZipInfo("placeholder")
            entry.filename = name  # the constructor would tidy it
            entry.compress_type = zipfile.ZIP_DEFLATED
            edit(entry)
            archive.writestr(entry, content)
    return buffer.getvalue()


def folder_zip(folder: Path) -> bytes:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return zipped({str(p.relative_to(folder.parent)): p.read_bytes() for p in files})


def zeros(mib: int) -> Iterator[bytes]:
    """The deflate stream of that many MiB of zeros, without packing them: one block, again and again."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    for _ in range(mib):
        yield block
    yield b"\x03\x00"


def bomb(mib: int, said: int) -> bytes:
    """A zip of one file of zeros that says it has `said` bytes."""
    stream, name = b"".join(zeros(mib)), b"1.dcm"
    head = struct.pack("<HHHHHLLLHH", 20, 0, 8, 0, 0, 0, len(stream), said & 0xFFFFFFFF, len(name), 0)
    local = b"PK\x03\x04" + head + name + stream
    central = b"PK\x01\x02" + struct.pack("<H", 20) + head + struct.pack("<HHHLL", 0, 0, 0, 0, 0) + name
    end = b"PK\x05\x06" + struct.pack("<HHHHLLH", 0, 0, 1, 1, len(central), len(local), 0)
    return local + central + end


def crowd(count: int) -> bytes:
    """A zip of that many empty files; beyond 65535 its end is written in the longer form."""
    local, central = bytearray(), bytearray()
    for n in range(count):
        name = b"%d" % n
        head = struct.pack("<HHHHHLLLHH", 20, 0, 0, 0, 0, 0, 0, 0, len(name), 0)
        central += b"PK\x01\x02" + struct.pack("<H", 20) + head + struct.pack("<HHHLL", 0, 0, 0, 0, len(local)) + name
        local += b"PK\x03\x04" + head + name
    start, size = len(local), len(central)
    long_end = b"PK\x06\x06" + struct.pack("<QHHLLQQQQ", 44, 45, 45, 0, 0, count, count, size, start)
    locator = b"PK\x06\x07" + struct.pack("<LQL", 0, start + size, 1)
    end = b"PK\x05\x06" + struct.pack("<HHHHLLH", 0, 0, 0xFFFF, 0xFFFF, size, start, 0)
    return bytes(local + central) + long_end + locator + end


def test_the_crowd_is_a_zip_archive() -> None:
    assert len(zipfile.ZipFile(io.BytesIO(crowd(300))).namelist()) == 300


def as_link(entry: zipfile.ZipInfo) -> None:
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16


def as_device(entry: zipfile.ZipInfo) -> None:
    entry.external_attr = (stat.S_IFCHR | 0o666) << 16


def one_slice(tmp_path: Path, change: Callable[[pydicom.FileDataset], None]) -> bytes:
    write_series(tmp_path / "s", trunk((48, 40, 10)))
    for path in (tmp_path / "s").iterdir():
        dataset = pydicom.dcmread(path)
        change(dataset)
        dataset.save_as(path, enforce_file_format=True)
    return folder_zip(tmp_path / "s")


def absurd(dataset: pydicom.FileDataset) -> None:
    dataset.Rows = dataset.Columns = 65535


def absurd_packed(dataset: pydicom.FileDataset) -> None:
    """A few bytes that a decoder would make room of 4 GB for."""
    absurd(dataset)
    dataset.file_meta.TransferSyntaxUID = RLELossless
    dataset.PixelData = pydicom.encaps.encapsulate([bytes(64)])
    dataset["PixelData"].is_undefined_length = True


def many_frames(dataset: pydicom.FileDataset) -> None:
    dataset.NumberOfFrames = 1_000_000


def deflated(dataset: pydicom.FileDataset) -> None:
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian


TEXT = b"patient: nobody\n" * 400
ARCHIVES: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "dots": (lambda _: zipped({"../../evil.dcm": b"x"}), "written outside"),
    "dots inside": (lambda _: zipped({"a/../../../evil.dcm": b"x"}), "written outside"),
    "backslashes": (lambda _: zipped({"..\\..\\evil.dcm": b"x"}), "written outside"),
    "absolute": (lambda _: zipped({"/etc/cron.d/evil": b"x"}), "written outside"),
    "drive": (lambda _: zipped({"C:\\evil.dcm": b"x"}), "written outside"),
    "link": (lambda _: zipped({"1.dcm": b"/etc/passwd"}, as_link), "a link or a device"),
    "device": (lambda _: zipped({"1.dcm": b""}, as_device), "a link or a device"),
    "nested": (lambda _: zipped({"inner.zip": zipped({"1.dcm": b"x"})}), "packed files"),
    "packed nifti": (lambda _: zipped({"ct.nii.gz": b"x"}), "packed files"),
    "10 GB of zeros": (lambda _: bomb(10240, 10240 << 20), "unpacks to"),
    "4 GB of zeros": (lambda _: bomb(4000, 4000 << 20), "times its size"),
    "zeros that say they are few": (lambda _: bomb(600, 5000), "damaged"),
    "200000 files": (lambda _: crowd(200_000), "more than 10,000 files"),
    "10001 files": (lambda _: zipped({f"{n}": b"" for n in range(10_001)}), "more than 10,000 files"),
    "text": (lambda _: TEXT, "damaged or no zip"),
    "truncated": (lambda _: zipped({"1.dcm": bytes(9000)})[:-40], "damaged or no zip"),
    "empty": (lambda _: zipped({}), "holds no files"),
    "only hidden files": (lambda _: zipped({"__MACOSX/a": b"x", ".DS_Store": b"x"}), "holds no files"),
    "no DICOM": (lambda _: zipped({"a.txt": TEXT}), "holds no CT series"),
    "65535 x 65535": (lambda tmp: one_slice(tmp, absurd), "65535 x 65535 pixels, which no CT slice has"),
    "65535 x 65535 packed": (lambda tmp: one_slice(tmp, absurd_packed), "65535 x 65535 pixels, which no CT"),
    "a million frames": (lambda tmp: one_slice(tmp, many_frames), "in 1000000 frames"),
    "deflated": (lambda tmp: one_slice(tmp, deflated), "packed as a whole"),
}


@pytest.mark.parametrize("kind", ARCHIVES)
def test_hostile_archives_are_refused_and_leave_nothing(kind: str, owner: Owner, shelf: Shelf, tmp_path: Path) -> None:
    make, message = ARCHIVES[kind]
    content = make(tmp_path)
    before = everything(owner)
    upload = send(owner, "HCC_900.zip", content)
    with pytest.raises(MewmError, match=message) as told:
        shelf.import_upload(owner, ImportRequest(image=upload))
    assert everything(owner) == before
    assert str(tmp_path) not in str(told.value)
    assert "HCC_900" in str(told.value)
    assert not list(owner.incoming.iterdir())


def test_an_archive_that_is_encrypted_or_packed_otherwise(owner: Owner, shelf: Shelf) -> None:
    content = bytearray(zipped({"1.dcm": b"x"}))
    content[content.rindex(b"PK\x01\x02") + 8] |= 1
    for data, message in ((bytes(content), "encrypted"), (zipped({"1.dcm": b"x" * 99}, as_lzma), "unusual way")):
        upload = send(owner, "a.zip", data)
        with pytest.raises(InputError, match=message):
            shelf.import_upload(owner, ImportRequest(image=upload))
    assert not list(owner.incoming.iterdir())


def as_lzma(entry: zipfile.ZipInfo) -> None:
    entry.compress_type = zipfile.ZIP_LZMA


def header_only(shape: tuple[int, ...]) -> bytes:
    header = nib.Nifti1Header()
    header.set_data_shape(shape)
    header.set_data_dtype(np.int16)
    header["magic"], header["vox_offset"] = b"n+1", 352
    return bytes(header.binaryblock) + b"\0\0\0\0"


NIFTIS: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "text renamed": ("ct.nii.gz", lambda: TEXT, "ct.nii.gz is not a gzip file"),
    "text renamed, not packed": ("ct.nii", lambda: TEXT, "can't be read as NIfTI"),
    "truncated gzip": ("ct.nii.gz", lambda: nifti(trunk(SHAPE))[:-3000], "gzip data are damaged"),
    "flipped bits": ("ct.nii.gz", lambda: flipped(nifti(trunk(SHAPE))), "gzip data are damaged"),
    "a header alone": ("ct.nii.gz", lambda: gzip.compress(header_only(SHAPE)), "less than"),
    "absurd size": ("ct.nii", lambda: header_only((30000, 30000, 30000)), "states 30000 x 30000 x 30000 voxels"),
    "an MRI": ("ct.nii.gz", lambda: nifti(np.abs(trunk(SHAPE)).astype(np.int16) % 900), "not a CT|like gas"),
    "a picture": ("ct.nii.gz", lambda: nifti(np.zeros(SHAPE, np.uint8)), "8-bit"),
    "all the same": ("ct.nii.gz", lambda: nifti(np.zeros(SHAPE, np.int16)), "in every voxel"),
}


def flipped(content: bytes) -> bytes:
    changed = bytearray(content)
    changed[len(changed) // 2] ^= 255
    return bytes(changed)


@pytest.mark.parametrize("kind", NIFTIS)
def test_broken_images_are_refused_as_on_the_command_line(
    kind: str, owner: Owner, shelf: Shelf, tmp_path: Path
) -> None:
    name, make, message = NIFTIS[kind]
    before = everything(owner)
    upload = send(owner, name, make())
    with pytest.raises(MewmError, match=message) as told:
        shelf.import_upload(owner, ImportRequest(image=upload))
    assert everything(owner) == before
    assert str(tmp_path) not in str(told.value)


def test_ten_gigabytes_of_zeros_as_nifti(owner: Owner, shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unpacking stops at the limit, not at the end (the limit is lowered here: reading a gigabyte takes seconds)."""
    small = upload_limits().model_copy(update={"voxels": 1 << 20})
    monkeypatch.setattr(uploads, "upload_limits", lambda: small)
    upload = send(owner, "ct.nii.gz", b"\x1f\x8b\x08\0\0\0\0\0\0\x03" + b"".join(zeros(10240)) + bytes(8))
    with pytest.raises(InputError, match="unpacks to more than 8 MiB, which no CT needs"):
        shelf.import_upload(owner, ImportRequest(image=upload))
    assert not list(owner.incoming.iterdir())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &a [1, 1]\nb: &b [*a, *a]\nc: [*b, *b]\n", "holds references"),
        ("age: " + "[" * 5000, "nested too deep"),
        ("age: sixty", "age"),
        ("albumin: 3.8", "unit"),
        ("\t: :", "not valid YAML"),
    ],
)
def test_hostile_records(text: str, message: str, owner: Owner, shelf: Shelf) -> None:
    image, record = send(owner, "ct.nii.gz", nifti(trunk(SHAPE))), send(owner, "record.yaml", text.encode())
    with pytest.raises(InputError, match=message):
        shelf.import_upload(owner, ImportRequest(image=image, record=record))
    assert not list(owner.incoming.iterdir())
    assert not owner.cases.exists()


def test_sizes_are_bounded_while_they_arrive(owner: Owner, monkeypatch: pytest.MonkeyPatch) -> None:
    small = upload_limits().model_copy(update={"upload_mib": 1, "waiting": 2})
    monkeypatch.setattr(uploads, "upload_limits", lambda: small)
    for length in (None, 5, 2 << 20):  # said nothing, said too little, said the truth
        with pytest.raises(InputError, match="larger than 1 MiB"):
            send(owner, "ct.nii.gz", bytes(2 << 20), length)
    with pytest.raises(InputError, match="larger than 256 KiB"):
        send(owner, "record.yaml", bytes(300 << 10))
    with pytest.raises(InputError, match="is empty"):
        send(owner, "ct.nii.gz", b"")
    assert not list(owner.incoming.iterdir())
    send(owner, "a.nii.gz", b"1")
    send(owner, "b.nii.gz", b"1")
    with pytest.raises(InputError, match="2 uploads wait"):
        send(owner, "c.nii.gz", b"1")


def test_an_upload_that_breaks_off_leaves_nothing(owner: Owner) -> None:
    class GoneError(Exception):
        pass

    async def parts() -> AsyncIterator[bytes]:
        yield b"half"
        raise GoneError

    with pytest.raises(GoneError):
        asyncio.run(receive(owner, "ct.nii.gz", parts(), None))
    assert not list(owner.incoming.iterdir())


def test_a_full_disk_is_told_before_anything_is_written(owner: Owner, monkeypatch: pytest.MonkeyPatch) -> None:
    full = upload_limits().model_copy(update={"spare_mib": 1 << 40})
    monkeypatch.setattr(uploads, "upload_limits", lambda: full)
    with pytest.raises(RunError, match="no room"):
        send(owner, "ct.nii.gz", b"1")


@pytest.mark.parametrize(
    "name", ["../../evil.nii", "/etc/evil.nii", "C:\\evil.nii", "..\\evil.nii", "a\0b.nii", "ä ö.nii"]
)
def test_a_name_never_leads_anywhere(name: str, owner: Owner) -> None:
    upload = asyncio.run(receive(owner, name, in_parts(b"1"), None))
    assert upload.path.parent == owner.incoming / upload.upload_id
    assert upload.path.name.isascii()
    assert upload.path.resolve() == upload.path


@pytest.mark.parametrize("name", ["ct.exe", "ct", "page.html", "ct.nii.gz.sh", ".nii/../x"])
def test_other_kinds_are_refused(name: str, owner: Owner) -> None:
    with pytest.raises(InputError, match=r"none of \.nii"):
        send(owner, name, b"1")


def test_an_upload_id_is_no_path(owner: Owner, shelf: Shelf) -> None:
    for bad in ("..", "../cases", "", "0" * 32, "a/b"):
        with pytest.raises(InputError, match="upload is gone"):
            shelf.import_upload(owner, ImportRequest(image=bad))


def test_old_uploads_are_swept(owner: Owner) -> None:
    send(owner, "a.nii.gz", b"1")
    uploads.sweep(owner, older_than_s=3600)
    assert len(list(owner.incoming.iterdir())) == 1
    uploads.sweep(owner, older_than_s=-1)
    assert not list(owner.incoming.iterdir())


def test_a_good_study_is_imported_whatever_its_files_are_called(owner: Owner, shelf: Shelf, tmp_path: Path) -> None:
    """The counterpart of all refusals: the same volume as the command line's, and nothing left of the upload."""
    write_series(tmp_path / "HCC_900" / "02-03-2001" / "4.0", trunk(SHAPE), removed="YES")
    upload = send(owner, "HCC_900.zip", folder_zip(tmp_path / "HCC_900"))
    found = shelf.import_upload(owner, ImportRequest(image=upload))
    assert found.case == "HCC_900"
    np.testing.assert_array_equal(Case.load(owner.cases / "HCC_900").volume().data, trunk(SHAPE))
    assert not list(owner.incoming.iterdir())
    again = send(owner, "HCC_900.zip", folder_zip(tmp_path / "HCC_900"))
    assert shelf.import_upload(owner, ImportRequest(image=again)).case == "HCC_900-2"


def test_the_name_of_a_series_or_of_a_patient_is_not_taken(owner: Owner, shelf: Shelf, tmp_path: Path) -> None:
    write_series(tmp_path / "LIVER 3 PHASE", trunk(SHAPE), removed="YES")
    write_series(tmp_path / "DOE" / "x" / "y", trunk(SHAPE))
    for name, folder in (("LIVER.zip", "LIVER 3 PHASE"), ("doe.zip", "DOE"), ("CT 2001-02-03.zip", "DOE")):
        upload = send(owner, name, folder_zip(tmp_path / folder))
        made = shelf.import_upload(owner, ImportRequest(image=upload)).case
        assert made is not None
        assert made.startswith("case-")


def test_labels_and_record_come_with_the_image(owner: Owner, shelf: Shelf) -> None:
    image = send(owner, "scan.nii.gz", nifti(trunk(SHAPE)))
    labels = send(owner, "labels.nii.gz", nifti(labels_of(SHAPE)))
    record = send(owner, "record.yaml", b"albumin: 38 g/L\n")
    found = shelf.import_upload(owner, ImportRequest(image=image, labels=labels, record=record))
    case = Case.load(owner.cases / str(found.case))
    np.testing.assert_array_equal(case.label_array(), labels_of(SHAPE))
    assert case.record.albumin_g_dl == 3.8
    assert not list(owner.incoming.iterdir())
