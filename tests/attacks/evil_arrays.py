"""Hostile .npy, .npz, .pt and .safetensors."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import torch

from attacks.evil import attack

OBJECTS = "holds Python objects"
BOMB = r"declares 268,435,[0-9]+ bytes but only"


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.target),)


def npy(header: str, body: bytes = b"") -> bytes:
    text = header.encode().ljust(118) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + body


def floats(shape: str, body: bytes = bytes(16)) -> bytes:
    return npy(f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}", body)


def written(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def of_holes(path: Path, size: int, head: bytes = b"") -> Path:
    """A file whose size costs nothing."""
    written(path, head)
    os.truncate(path, size)
    return path


@attack("npy", OBJECTS)
def an_object_array(root: Path, outside: Path) -> Path:
    np.save(root / "evil.npy", np.array([Evil(outside / "owned"), None], dtype=object), allow_pickle=True)
    return root / "evil.npy"


@attack("npy", r"declares shape \(1000000000000, 1024\)")
def a_header_of_four_petabytes(root: Path, outside: Path) -> Path:
    return written(root / "evil.npy", floats("(1000000000000, 1024)"))


@attack("npy", "the rest are holes")
def terabytes_of_holes(root: Path, outside: Path) -> Path:
    return of_holes(root / "evil.npy", 2**42, floats(f"({2**32}, 256)"))


@attack("npy", "the rest are holes", act="shape")
def terabytes_of_holes_asked_for_their_shape(root: Path, outside: Path) -> Path:
    return of_holes(root / "evil.npy", 2**42, floats(f"({2**32}, 256)"))


@attack("npy", "cannot be read as npy|does not fit")
def a_header_of_nested_brackets(root: Path, outside: Path) -> Path:
    return written(root / "evil.npy", npy("(" * 9000))


@attack("npy", r"evil\.npy")
def a_header_of_nested_signs(root: Path, outside: Path) -> Path:
    return written(root / "evil.npy", floats(f"({'-' * 9000}1,)"))


@attack("npy", "maximum supported dimension")
def an_array_of_thousands_of_axes(root: Path, outside: Path) -> Path:
    return written(root / "evil.npy", floats(f"({'1,' * 4000})"))


@attack("npy", "bytes.* but 12 follow")
def a_file_cut_short(root: Path, outside: Path) -> Path:
    return written(root / "evil.npy", floats("(2, 2)", bytes(12)))


@attack("npy", r"instance 1.*nan|nan.*instance 1", act="finite", error="BagError")
def a_row_that_is_not_finite(root: Path, outside: Path) -> Path:
    np.save(root / "evil.npy", np.array([[1, 2], [3, np.nan]], np.float32))
    return root / "evil.npy"


@attack("npz", OBJECTS)
def an_object_array_in_an_archive(root: Path, outside: Path) -> Path:
    np.savez(root / "evil.npz", features=np.array([Evil(outside / "owned"), None], dtype=object))
    return root / "evil.npz"


def bomb(compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip with 256 MiB of zeros behind a good header, in a few hundred kilobytes."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive, archive.open("features.npy", "w") as member:
        member.write(floats("(65536, 1024)", b""))
        for _ in range(256):
            member.write(bytes(2**20))
    return out.getvalue()


@attack("npz", BOMB)
def a_zip_bomb(root: Path, outside: Path) -> Path:
    return written(root / "evil.npz", bomb())


@attack("npz", BOMB)
def a_zip_bomb_of_another_packer(root: Path, outside: Path) -> Path:
    return written(root / "evil.npz", bomb(zipfile.ZIP_BZIP2))


@attack("npz", r"evil\.npz")
def a_zip_that_lies_about_its_size(root: Path, outside: Path) -> Path:
    np.savez_compressed(root / "good.npz", features=np.zeros((1000, 100), np.float32))
    raw = (root / "good.npz").read_bytes()
    return written(root / "evil.npz", raw.replace(struct.pack("<I", 400_128), struct.pack("<I", 1000)))


@attack("npz", "coords have shape")
def coordinates_of_other_instances(root: Path, outside: Path) -> Path:
    np.savez(root / "evil.npz", features=np.ones((3, 2), np.float32), coords=np.zeros((4, 2), int))
    return root / "evil.npz"


@attack("npz", r"declares shape \(2,\)")
def texts_of_gigabytes(root: Path, outside: Path) -> Path:
    with zipfile.ZipFile(root / "evil.npz", "w") as archive:
        archive.writestr("features.npy", floats("(2, 2)"))
        archive.writestr("instance_ids.npy", npy("{'descr': '<U500000000', 'fortran_order': False, 'shape': (2,)}"))
    return root / "evil.npz"


@attack("npz", "it has none")
def members_that_climb(root: Path, outside: Path) -> Path:
    with zipfile.ZipFile(root / "evil.npz", "w") as archive:
        archive.writestr("../../etc/passwd", "x")
    return root / "evil.npz"


@attack("pt", OBJECTS)
def a_pickle_that_runs_code(root: Path, outside: Path) -> Path:
    torch.save({"features": torch.ones(2, 3), "extra": Evil(outside / "owned")}, root / "evil.pt")
    return root / "evil.pt"


@attack("pt", OBJECTS)
def an_old_pickle_that_runs_code(root: Path, outside: Path) -> Path:
    content = {"features": torch.ones(2, 3), "extra": Evil(outside / "owned")}
    torch.save(content, root / "evil.pt", _use_new_zipfile_serialization=False)
    return root / "evil.pt"


@attack("pt", OBJECTS)
def a_bare_pickle_that_runs_code(root: Path, outside: Path) -> Path:
    return written(root / "evil.pt", pickle.dumps(Evil(outside / "owned"), protocol=2))


def archive_of(path: Path, instructions: bytes, data: bytes = bytes(16)) -> Path:
    """An archive of torch.save with these instructions."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (
            ("data.pkl", instructions),
            ("byteorder", b"little"),
            ("data/0", data),
            ("version", b"3"),
        ):
            archive.writestr(f"a/{name}", content)
    return path


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def number(value: int) -> bytes:
    return b"\x8a\x09" + value.to_bytes(9, "little")


def tensor(stored: int, rows: int, width: int) -> bytes:
    """Instructions for a float tensor on a storage of so many elements."""
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + number(stored) + b"tQ"
    sizes = b"(" + number(rows) + number(width) + b"t(" + number(width) + number(1) + b"t"
    return b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + storage + number(0) + sizes + b"\x89}tR."


@attack("pt", None)
def instructions_that_are_in_order(root: Path, outside: Path) -> Path:
    return archive_of(root / "good.pt", tensor(4, 2, 2))


@attack("pt", r"declare 4,000,000,000 bytes but only 16 are stored")
def a_storage_larger_than_its_record(root: Path, outside: Path) -> Path:
    return archive_of(root / "evil.pt", tensor(10**9, 10**6, 1000))


@attack("pt", r"shape \(1000000, 1000\) declares more than the 16 bytes")
def a_tensor_larger_than_its_storage(root: Path, outside: Path) -> Path:
    return archive_of(root / "evil.pt", tensor(4, 10**6, 1000))


@attack("pt", OBJECTS)
def two_gigabytes_of_bytes(root: Path, outside: Path) -> Path:
    return archive_of(root / "evil.pt", b"\x80\x02cbuiltins\nbytearray\n" + number(2 * 10**9) + b"\x85R.")


@attack("pt", OBJECTS)
def a_tensor_made_of_a_number(root: Path, outside: Path) -> Path:
    return archive_of(root / "evil.pt", b"\x80\x02ctorch\nTensor\n" + number(5 * 10**8) + b"\x85R.")


@attack("pt", OBJECTS)
def a_new_tensor_made_of_a_number(root: Path, outside: Path) -> Path:
    return archive_of(root / "evil.pt", b"\x80\x02ctorch\nFloatTensor\n" + number(5 * 10**8) + b"\x85\x81.")


@attack("pt", "tuples of more than 10,000 elements")
def a_key_that_takes_for_ever_to_hash(root: Path, outside: Path) -> Path:
    doubled = b"".join(b"h" + bytes([n]) + b"\x86q" + bytes([n + 1]) for n in range(60))
    return archive_of(root / "evil.pt", b"\x80\x02}K\x01K\x01\x86q\x00" + doubled + b"K\x01s.")


@attack("pt", r"declare 12,000,000,000 bytes but only")
def an_old_file_with_a_huge_storage(root: Path, outside: Path) -> Path:
    torch.save(torch.ones(3, 4), root / "good.pt", _use_new_zipfile_serialization=False)
    raw = (root / "good.pt").read_bytes()
    at = raw.index(b"K\x0cN")  # the number of elements, behind it no view
    return written(root / "evil.pt", raw[:at] + number(3 * 10**9) + raw[at + 2 :])


@attack("pt", r"4,000,000,000,000 bytes")
def a_tensor_without_steps(root: Path, outside: Path) -> Path:
    torch.save(torch.ones(1).expand(10**12, 1), root / "evil.pt")
    return root / "evil.pt"


@attack("pt", r"evil\.pt")
def a_tar_with_links(root: Path, outside: Path) -> Path:
    with tarfile.open(root / "evil.pt", "w", format=tarfile.PAX_FORMAT) as archive:
        for name in ("storages", "tensors", "pickle"):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, str(outside / "secret.bin")
            archive.addfile(link)
    return root / "evil.pt"


@attack("pt", "declares [0-9,]+ bytes but only")
def a_bomb_of_zeros(root: Path, outside: Path) -> Path:
    with zipfile.ZipFile(root / "evil.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", tensor(2**26, 2**13, 2**13))
        with archive.open("a/data/0", "w") as member:
            for _ in range(256):
                member.write(bytes(2**20))
    return root / "evil.pt"


@attack("safetensors", r"evil\.safetensors")
def a_tensor_beyond_the_end(root: Path, outside: Path) -> Path:
    said = {"features": {"dtype": "F32", "shape": [10**12, 1], "data_offsets": [0, 4 * 10**12]}}
    header = json.dumps(said).encode()
    return written(root / "evil.safetensors", struct.pack("<Q", len(header)) + header + bytes(24))


@attack("safetensors", r"evil\.safetensors")
def a_header_without_end(root: Path, outside: Path) -> Path:
    return written(root / "evil.safetensors", struct.pack("<Q", 2**62) + b'{"features": ')


@attack("safetensors", r"evil\.safetensors")
def a_header_of_a_million_brackets(root: Path, outside: Path) -> Path:
    return written(root / "evil.safetensors", struct.pack("<Q", 10**6) + b"[" * 10**6)
