"""Hostile HDF5 files, and those of layouts that are made of HDF5."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import h5py
import numpy as np

from attacks.evil import attack
from attacks.evil_arrays import of_holes, written
from attacks.orchard import H5_KINDS, SECRET

ELSEWHERE, LINK = "keeps its data in other files", "link to another file"


def file_of(root: Path, name: str = "evil.h5", **arrays: object) -> Path:
    with h5py.File(root / name, "w") as file:
        for key, value in arrays.items():
            file[key] = value
    return root / name


@attack("h5", LINK)
def an_external_link(root: Path, outside: Path) -> Path:
    return file_of(root, features=h5py.ExternalLink(str(outside / "secret.h5"), "/features"))


@attack("h5", LINK)
def an_external_link_to_a_pipe(root: Path, outside: Path) -> Path:
    os.mkfifo(outside / "pipe")  # opening it would wait for ever
    return file_of(root, features=h5py.ExternalLink(str(outside / "pipe"), "/features"))


@attack("h5", LINK)
def a_soft_link_through_an_external_one(root: Path, outside: Path) -> Path:
    door = h5py.ExternalLink(str(outside / "secret.h5"), "/")
    return file_of(root, door=door, features=h5py.SoftLink("/door/features"))


@attack("h5", "a chain or a circle of links")
def a_circle_of_soft_links(root: Path, outside: Path) -> Path:
    return file_of(root, features=h5py.SoftLink("/feats"), feats=h5py.SoftLink("/features"))


@attack("h5", LINK, dataset="door/features")
def an_external_link_in_the_middle_of_a_name(root: Path, outside: Path) -> Path:
    return file_of(root, door=h5py.ExternalLink(str(outside / "secret.h5"), "/"))


@attack("h5", LINK)
def coordinates_behind_an_external_link(root: Path, outside: Path) -> Path:
    return file_of(root, features=SECRET, coords=h5py.ExternalLink(str(outside / "secret.h5"), "/features"))


@attack("h5", ELSEWHERE)
def external_storage(root: Path, outside: Path) -> Path:
    H5_KINDS["external_storage"](root / "evil.h5", outside)
    return root / "evil.h5"


@attack("h5", ELSEWHERE)
def a_virtual_data_set(root: Path, outside: Path) -> Path:
    H5_KINDS["virtual"](root / "evil.h5", outside)
    return root / "evil.h5"


@attack("h5", "cannot tell which")
def a_virtual_data_set_of_another_name(root: Path, outside: Path) -> Path:
    layout = h5py.VirtualLayout((3, 6), "f4")
    layout[:] = h5py.VirtualSource(str(outside / "secret.h5"), "features", (3, 6))
    with h5py.File(root / "evil.h5", "w") as file:
        file.create_virtual_dataset("something", layout)
    return root / "evil.h5"


@attack("h5", ELSEWHERE)
def a_virtual_data_set_whose_list_never_ends(root: Path, outside: Path) -> Path:
    path = a_virtual_data_set(root, outside)
    raw = bytearray(Path(path).read_bytes())
    heap = raw.index(b"GCOL")
    at, end = heap + 16, heap + struct.unpack_from("<Q", raw, heap + 8)[0]
    while at < end:  # the free space at its end becomes an object of no size, past which HDF5 does not get
        index, size = struct.unpack_from("<H6xQ", raw, at)
        if index == 0:
            struct.pack_into("<Q", raw, at + 8, 0)
            break
        at += 16 + -(-size // 8) * 8
    return written(Path(path), bytes(raw))


@attack("h5", "declares 32,000,000,000,000 bytes")
def a_data_set_that_was_never_written(root: Path, outside: Path) -> Path:
    with h5py.File(root / "evil.h5", "w") as file:
        file.create_dataset("features", (10**12, 8), "f4")
    return root / "evil.h5"


@attack("h5", "declares 32,000,000,000,000 bytes", act="shape")
def chunks_that_were_never_written(root: Path, outside: Path) -> Path:
    with h5py.File(root / "evil.h5", "w") as file:
        file.create_dataset("features", (10**12, 8), "f4", chunks=(1024, 8), compression="gzip")
    return root / "evil.h5"


@attack("h5", "declares 80,000,000 bytes but only")
def a_compression_bomb(root: Path, outside: Path) -> Path:
    with h5py.File(root / "evil.h5", "w") as file:
        made = file.create_dataset("features", (20_000, 1000), "f4", chunks=(5000, 1000), compression="gzip")
        packed = zlib.compress(bytes(20_000_000), 9)
        for start in range(0, 20_000, 5000):
            made.id.write_direct_chunk((start, 0), packed)
    return root / "evil.h5"


def one_chunk(root: Path, shape: tuple[int, int], content: bytes, **filters: object) -> Path:
    with h5py.File(root / "evil.h5", "w") as file:
        made = file.create_dataset("features", shape, "f4", chunks=shape, **(filters or {"compression": "gzip"}))
        made.id.write_direct_chunk((0, 0), content)
    return root / "evil.h5"


def zeros(megabytes: int) -> bytes:
    packer = zlib.compressobj(9)
    return b"".join([*(packer.compress(bytes(2**20)) for _ in range(megabytes)), packer.flush()])


@attack("h5", "stores [0-9,]+ bytes for the 1,280 that it should have")
def a_bomb_in_a_small_chunk(root: Path, outside: Path) -> Path:
    return one_chunk(root, (40, 8), zeros(256))


@attack("h5", "unpacks to more than the 320,000 bytes")
def a_bomb_in_a_chunk_that_could_be_honest(root: Path, outside: Path) -> Path:
    return one_chunk(root, (1000, 80), zeros(256))


@attack("h5", "unpacks to less than the 4,000,000 bytes")
def a_chunk_that_ends_before_its_end(root: Path, outside: Path) -> Path:
    """What lies behind it in memory would become features."""
    return one_chunk(root, (1000, 1000), zlib.compress(bytes(16)))


@attack("h5", "unpacks to less than the 4,000,000 bytes")
def a_chunk_of_lzf_that_ends_before_its_end(root: Path, outside: Path) -> Path:
    return one_chunk(root, (1000, 1000), b"\x03abcd", compression="lzf")


@attack("h5", "stores 8 bytes for the 4,000,000 that it should have")
def a_shuffled_chunk_that_ends_before_its_end(root: Path, outside: Path) -> Path:
    return one_chunk(root, (1000, 1000), b"abcdefgh", shuffle=True)


@attack("h5", "stores 8 bytes for the 4,000,000 that it should have")
def a_bare_chunk_that_ends_before_its_end(root: Path, outside: Path) -> Path:
    return one_chunk(root, (1000, 1000), b"abcdefgh", maxshape=(None, 1000))


@attack("h5", "stores 3 bytes for the 4,000,000 that it should have")
def a_chunk_shorter_than_its_checksum(root: Path, outside: Path) -> Path:
    return one_chunk(root, (1000, 1000), b"abc", fletcher32=True)


@attack("h5", "in a way that nothing writes")
def a_bomb_in_a_bomb(root: Path, outside: Path) -> Path:
    with h5py.File(root / "evil.h5", "w") as file:
        creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        creation.set_chunk((40, 8))
        creation.set_deflate(9)
        creation.set_deflate(9)
        space = h5py.h5s.create_simple((40, 8))
        made = h5py.h5d.create(file.id, b"features", h5py.h5t.IEEE_F32LE, space, creation)
        made.write_direct_chunk((0, 0), zlib.compress(zeros(256), 9))
    return root / "evil.h5"


@attack("h5", "packed with the filter 32015, which is not read")
def a_filter_whose_library_would_be_loaded(root: Path, outside: Path) -> Path:
    with h5py.File(root / "evil.h5", "w") as file:
        file.create_dataset("features", data=np.ones((40, 8), "f4"), chunks=(40, 8), compression="gzip")
    raw = (root / "evil.h5").read_bytes()
    entry = struct.pack("<HHHH", 1, 8, 1, 1) + b"deflate\0"
    assert raw.count(entry) == 1
    return written(root / "evil.h5", raw.replace(entry, struct.pack("<HHHH", 32015, 8, 1, 1) + b"deflate\0"))


@attack("h5", "is cut into 67,108,864 chunks")
def more_chunks_than_bytes(root: Path, outside: Path) -> Path:
    with h5py.File(root / "evil.h5", "w") as file:
        file.create_dataset("features", (2**26, 1), "u1", chunks=(1, 1))
    return root / "evil.h5"


@attack("h5", None)
def very_many_chunks_of_one_number(root: Path, outside: Path) -> Path:
    with h5py.File(root / "evil.h5", "w", libver="latest") as file:
        made = file.create_dataset("features", (20_000, 1), "u1", chunks=(1, 1))
        made[:] = 1
    return root / "evil.h5"


def many_groups(path: Path, count: int, **how: object) -> Path:
    """A file with so many links to one group."""
    with h5py.File(path, "w", **how) as file:
        file.create_group("g")
        links = file.id.links
        for i in range(count):
            links.create_hard(b"g%d" % i, file.id, b"g")
    return path


@attack("h5", "cannot tell which data set holds the features; it has none|has more than 2,000 objects")
def very_many_groups(root: Path, outside: Path) -> Path:
    return many_groups(root / "evil.h5", 30_000)


@attack("h5", "has more than 2,000 objects")
def very_many_data_sets(root: Path, outside: Path) -> Path:
    with h5py.File(root / "evil.h5", "w", libver="latest") as file:
        for i in range(2500):
            file[f"d{i}"] = i
    return root / "evil.h5"


@attack("h5", "it has none")
def a_circle_of_groups(root: Path, outside: Path) -> Path:
    with h5py.File(root / "evil.h5", "w") as file:
        file.create_group("a")["b"] = file["/"]
    return root / "evil.h5"


@attack("h5", "it has none")
def groups_a_thousand_deep(root: Path, outside: Path) -> Path:
    with h5py.File(root / "evil.h5", "w") as file:
        file.create_group("/".join(["a"] * 1000))
    return root / "evil.h5"


@attack("h5", "a text of 4,294,967,295 bytes is not in its heap")
def a_text_that_declares_gigabytes(root: Path, outside: Path) -> Path:
    path = file_of(root, features=SECRET, instance_ids=["a", "b", "c"])
    with h5py.File(path) as file:
        at = file["instance_ids"].id.get_offset()
    raw = bytearray(path.read_bytes())
    raw[at : at + 4] = b"\xff\xff\xff\xff"
    return written(path, bytes(raw))


@attack("h5", "the texts of the file are broken")
def a_heap_of_no_size(root: Path, outside: Path) -> Path:
    path = file_of(root, features=SECRET, instance_ids=["a", "b", "c"])
    raw = bytearray(path.read_bytes())
    struct.pack_into("<Q", raw, raw.index(b"GCOL") + 8, 0)
    return written(path, bytes(raw))


@attack("h5", "the rest are holes")
def a_file_of_holes(root: Path, outside: Path) -> Path:
    path = file_of(root, features=SECRET)
    return of_holes(path, 2**42, path.read_bytes())


@attack("trident", None)
def very_many_attributes(root: Path, outside: Path) -> Path:
    with h5py.File(root / "evil.h5", "w", libver="latest") as file:
        file["features"], file["coords"] = SECRET, np.zeros((3, 2), int)
        file["coords"].attrs["patch_size_level0"] = 256
        for i in range(3000):
            file["coords"].attrs[f"a{i}"] = i
    return root / "evil.h5"


def trident(root: Path, coords: object = None, **attributes: object) -> Path:
    path = file_of(root, features=SECRET, coords=np.zeros((3, 2), int) if coords is None else coords)
    with h5py.File(path, "r+") as file:
        file["coords"].attrs.update({"patch_size_level0": 256, **attributes})
    return path


@attack("trident", r"coords have shape \(4, 2\) for 3 instances")
def trident_coordinates_of_other_instances(root: Path, outside: Path) -> Path:
    return trident(root, np.zeros((4, 2), int))


@attack("trident", "patch_size_level0 is -1")
def a_tile_of_negative_size(root: Path, outside: Path) -> Path:
    return trident(root, patch_size_level0=-1)


@attack("trident", r"row 1 of coords is \[inf")
def coordinates_without_end(root: Path, outside: Path) -> Path:
    return trident(root, np.array([[0, 0], [np.inf, 0], [0, 0]]))


@attack("stamp", "attribute tile_size_um .* expected one number")
def an_attribute_of_many_numbers(root: Path, outside: Path) -> Path:
    path = file_of(root, feats=SECRET, coords=np.zeros((3, 2)))
    with h5py.File(path, "r+") as file:
        file.attrs.update({"tile_size_um": np.ones(1000), "unit": "um"})
    return path


@attack("stamp", LINK, format="stamp")
def stamp_features_behind_a_link(root: Path, outside: Path) -> Path:
    return file_of(root, feats=h5py.ExternalLink(str(outside / "secret.h5"), "/features"))


TILING = "bags/256px_0.5mpp"


@attack("pathforge", LINK)
def a_bag_behind_a_link(root: Path, outside: Path) -> Path:
    link = h5py.ExternalLink(str(outside / "secret.h5"), "/features")
    return file_of(root, **{f"{TILING}/features/uni": link, f"{TILING}/coords": SECRET})


@attack("pathforge", r"has no bag '\.\./\.\./etc/passwd'", names="evil.h5")
def a_part_that_climbs(root: Path, outside: Path) -> str:
    return f"{file_of(root, **{f'{TILING}/features/uni': SECRET})}::../../etc/passwd"


@attack("acmil", r"has no slide '\.\./\.\./etc/passwd'", names="evil.h5")
def a_slide_that_climbs(root: Path, outside: Path) -> str:
    return f"{file_of(root, **{'slide/feat': SECRET})}::../../etc/passwd"


@attack("acmil", LINK, names="evil.h5", format="acmil")
def a_slide_behind_a_link(root: Path, outside: Path) -> str:
    link = h5py.ExternalLink(str(outside / "secret.h5"), "/features")
    return f"{file_of(root, **{'slide/feat': link})}::slide"


@attack("acmil", r"\.\..*cannot be used|cannot be used.*\.\.", act="build", error="ManifestError", names=None)
def a_slide_whose_name_would_climb(root: Path, outside: Path) -> Path:
    path = file_of(root, **{"../feat": SECRET, "slide/feat": SECRET})
    with h5py.File(path, "r+") as file:
        for group in file.values():
            group.attrs["label"] = 1
    return path


@attack("acmil", "has 100,001 groups", act="parts", format="acmil")
def more_slides_than_there_are(root: Path, outside: Path) -> Path:
    return many_groups(root / "evil.h5", 100_000)


@attack("acmil", "holds no slide", format="acmil")
def groups_that_are_no_slides(root: Path, outside: Path) -> Path:
    return many_groups(root / "evil.h5", 30_000, libver="latest")


@attack("clam", r"3 instances but .*slide\.h5 has 5 coordinates", names="slide.pt")
def clam_coordinates_of_other_instances(root: Path, outside: Path) -> Path:
    import torch

    (root / "pt_files").mkdir()
    (root / "h5_files").mkdir()
    torch.save(torch.ones(3, 6), root / "pt_files" / "slide.pt")
    file_of(root / "h5_files", "slide.h5", features=np.ones((5, 6), "f4"), coords=np.zeros((5, 2), int))
    return root / "pt_files" / "slide.pt"
