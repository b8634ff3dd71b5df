"""Hostile tables, splits, stores and files of published data sets."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import h5py
import polars as pl

from attacks.evil import attack
from attacks.evil_arrays import of_holes, written
from attacks.evil_folders import OUT, saved
from bags.stores import change_json, make_manifest
from qgmil.bags.store.layout import FEATURES, HEADER, INDEX
from qgmil.bags.store.pack import pack_store

# Tables.


def table(root: Path, *rows: str, header: str = "bag_id,label,features") -> Path:
    saved(root / "a.npy")
    return written(root / "bags.csv", "\n".join([header, *rows, ""]).encode())


@attack("table", r"bag id '\.\./a' cannot be used", act="open", error="ManifestError")
def an_id_that_climbs(root: Path, outside: Path) -> Path:
    return table(root, "../a,x,a.npy")


@attack("table", "bag id '/etc/passwd' cannot be used", act="open", error="ManifestError")
def an_absolute_id(root: Path, outside: Path) -> Path:
    return table(root, "/etc/passwd,x,a.npy")


@attack("table", "'a' is there 2 times", act="open", error="ManifestError")
def an_id_twice(root: Path, outside: Path) -> Path:
    return table(root, "a,x,a.npy", "a,y,a.npy")


@attack("table", "it is blank", act="open", error="ManifestError")
def a_blank_id(root: Path, outside: Path) -> Path:
    return table(root, "a,x,a.npy", " ,y,a.npy")


@attack("table", "1 of 2 bags have no label: 'b'", act="open", error="ManifestError")
def blanks_for_labels(root: Path, outside: Path) -> Path:
    return table(root, "a,x,a.npy", "b, ,a.npy")


@attack("table", None, act="open")
def a_mark_semicolons_and_numbers_as_texts(root: Path, outside: Path) -> Path:
    saved(root / "a.npy")
    return written(root / "bags.csv", b"\xef\xbb\xbfbag_id;label;features\r\n0012;1;a.npy\r\n12;0;a.npy\r\n")


@attack("table", "is not a regular file", act="open", names="pipe.npy")
def a_row_that_names_a_pipe(root: Path, outside: Path) -> Path:
    os.mkfifo(root / "pipe.npy")
    return table(root, "a,x,pipe.npy")


@attack("table", "not a regular file", act="open", error="ManifestError")
def a_table_that_is_a_pipe(root: Path, outside: Path) -> Path:
    os.mkfifo(root / "bags.csv")
    return root / "bags.csv"


@attack("table", "not a regular file", act="open", error="ManifestError")
def a_table_that_is_a_device(root: Path, outside: Path) -> Path:
    (root / "bags.csv").symlink_to("/dev/zero")
    return root / "bags.csv"


@attack("table", "the rest are holes", act="open", error="ManifestError")
def a_table_of_terabytes(root: Path, outside: Path) -> Path:
    return of_holes(root / "bags.csv", 2**42, b"bag_id,label,features\na,x,a.npy\n")


@attack("table", "no column of feature files", act="open", error="ManifestError")
def very_many_columns(root: Path, outside: Path) -> Path:
    return table(root, header=",".join(f"c{i}" for i in range(50_000)))


@attack("table", "there is no column|no column of feature files", act="open", error="ManifestError")
def columns_with_names_of_megabytes(root: Path, outside: Path) -> Path:
    return table(root, header=f"bag_id,features,{'x' * 10**6},{'lable' * 10**5}")


@attack("table", "cannot be used", act="open", error="ManifestError")
def an_id_of_a_megabyte(root: Path, outside: Path) -> Path:
    return table(root, f"{'../' * 10**6},x,a.npy")


@attack("table", "no such file, the name is too long", act="open", names=None)
def a_file_cell_of_a_megabyte(root: Path, outside: Path) -> Path:
    return table(root, f"a,x,{'b/' * 10**6}.npy")


@attack("table", None, act="open")
def a_class_called_by_a_huge_number(root: Path, outside: Path) -> Path:
    return table(root, f"a,{'1' * 5000},a.npy", "b,2,a.npy")


@attack("table", None, act="open")
def a_huge_number_in_a_long_table(root: Path, outside: Path) -> Path:
    return written(root / "long.csv", f"{'1' * 5000}.,a,1,2\n2.,b,3,4\n".encode())


@attack("table", "has no|cannot be read as parquet", act="open", error="ManifestError")
def a_parquet_whose_footer_lies(root: Path, outside: Path) -> Path:
    pl.DataFrame({"bag_id": ["a"], "label": ["x"], "features": ["a.npy"]}).write_parquet(root / "bags.parquet")
    raw = bytearray((root / "bags.parquet").read_bytes())
    struct.pack_into("<I", raw, len(raw) - 8, 2**31 - 1)
    return written(root / "bags.parquet", bytes(raw))


@attack("split", "belongs to one part, once|is in train and again", act="splits_of", error="SplitError")
def a_bag_on_two_sides(root: Path, outside: Path) -> Path:
    return written(root / "splits_0.csv", b",train,val,test\n0,a,b,a\n")


@attack("split", r"names 1 bag that is not in the table.*'\.\./\.\./etc/passwd'", act="splits_of", error="SplitError")
def a_bag_of_a_split_that_climbs(root: Path, outside: Path) -> Path:
    return written(root / "splits_0.csv", b",train,val,test\n0,a,b,../../etc/passwd\n")


@attack("split", "not a regular file", act="splits", error="ManifestError")
def a_split_that_is_a_pipe(root: Path, outside: Path) -> Path:
    os.mkfifo(root / "splits_0.csv")
    return root / "splits_0.csv"


# Stores.


def store(root: Path) -> Path:
    return pack_store(make_manifest(root / "packed"), root / "store").path


@attack("store", "checksum is another", act="verify", error="QGMILError", names=FEATURES)
def a_flipped_bit(root: Path, outside: Path) -> Path:
    made = store(root)
    raw = bytearray((made / FEATURES).read_bytes())
    raw[20] ^= 4
    written(made / FEATURES, bytes(raw))
    return made


@attack("store", "checksum is another", act="check", error="QGMILError", names=FEATURES)
def a_flipped_bit_that_check_finds(root: Path, outside: Path) -> Path:
    return a_flipped_bit(root, outside)  # type: ignore[return-value]


@attack("store", "checksum is another", act="verify", error="QGMILError", names=INDEX)
def another_label(root: Path, outside: Path) -> Path:
    made = store(root)
    written(made / INDEX, (made / INDEX).read_bytes().replace(b'"high"', b'"none"'))
    return made


@attack("store", r"features\.bin should have 12,000,000,000,000,000 bytes", act="open", names=HEADER)
def a_store_that_declares_petabytes(root: Path, outside: Path) -> Path:
    made = store(root)
    change_json(made / HEADER, lambda said: said.update(instances=10**15))
    return made


@attack("store", "is a link; a store keeps its own files", act="open", names=FEATURES)
def a_store_whose_features_are_elsewhere(root: Path, outside: Path) -> Path:
    made = store(root)
    (made / FEATURES).rename(outside / "features.bin")
    (made / FEATURES).symlink_to(outside / "features.bin")
    return made


@attack("store", "has 1,099,511,627,776 bytes, more than", act="open", names=HEADER)
def a_header_of_terabytes(root: Path, outside: Path) -> Path:
    made = store(root)
    of_holes(made / HEADER, 2**40)
    return made


# Published data sets.


def mat(*elements: bytes) -> bytes:
    return b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM" + b"".join(elements)


def element(kind: int, content: bytes) -> bytes:
    return struct.pack("<II", kind, len(content)) + content + bytes(-len(content) % 8)


@attack("mat", "inflates to more than any honest data would", act="corel")
def a_variable_that_is_a_bomb(root: Path, outside: Path) -> Path:
    return written(root / "fox.mat", mat(element(15, zlib.compress(bytes(2**27), 9))))


@attack("mat", "declares 1,000,000,000,000 elements", act="corel")
def a_cell_array_of_a_million_million(root: Path, outside: Path) -> Path:
    flags, dims = element(6, struct.pack("<II", 1, 0)), element(5, struct.pack("<ii", 10**6, 10**6))
    return written(root / "fox.mat", mat(element(14, flags + dims + element(1, b"bags"))))


@attack("mat", "cells inside cells", act="corel")
def cells_a_hundred_deep(root: Path, outside: Path) -> Path:
    inner = b""
    for _ in range(100):
        flags, dims = element(6, struct.pack("<II", 1, 0)), element(5, struct.pack("<ii", 1, 1))
        inner = element(14, flags + dims + element(1, b"") + inner)
    return written(root / "fox.mat", mat(inner))


@attack("mat", "is a MATLAB 7.3 file", act="corel")
def an_h5_file_with_links_as_matlab(root: Path, outside: Path) -> Path:
    with h5py.File(root / "fox.mat", "w") as file:
        file["features"] = h5py.ExternalLink(str(outside / "secret.h5"), "/features")
    return root / "fox.mat"


@attack("svm", "the largest index, 9,000,000,000,", act="corel")
def an_index_of_thousands_of_millions(root: Path, outside: Path) -> Path:
    return written(root / "fox.svm", b"1:1:1 1:2 9000000000:1\n")


@attack("svm", "an index below 1", act="corel")
def an_index_that_no_number_holds(root: Path, outside: Path) -> Path:
    return written(root / "fox.svm", b"1:1:1 1:2 " + b"9" * 30 + b":1\n")


@attack("image", "50000 x 50000, more than 50,000,000 pixels|DecompressionBomb", act="image")
def an_image_of_gigapixels(root: Path, outside: Path) -> Path:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0))
    return written(root / "a.png", b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(2**24), 9)))


@attack("image", "cannot be read as an image", act="image")
def a_program_for_a_printer(root: Path, outside: Path) -> Path:
    path = str(outside / "secret.bin")
    return written(root / "a.png", f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n({path}) run\n".encode())


@attack("yaml", "anchors or aliases", act="task", names="config.yaml")
def a_configuration_that_repeats_itself(root: Path, outside: Path) -> Path:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    return written(root / "config.yaml", "\n".join(lines).encode())


@attack("yaml", "cannot be read as YAML", act="task", names="config.yaml")
def a_configuration_that_makes_an_object(root: Path, outside: Path) -> Path:
    return written(root / "config.yaml", f"a: !!python/object/apply:os.mkdir ['{outside / 'owned'}']\n".encode())


@attack("dataset", OUT, act="dataset", names="p1", name="aml_hehr")
def a_patient_who_is_elsewhere(root: Path, outside: Path) -> Path:
    written(root / "aml_hehr" / "metadata.csv", b"patient_id,bag_label\np1,control\n")
    (root / "aml_hehr" / "data" / "control").mkdir(parents=True)
    (root / "aml_hehr" / "data" / "control" / "p1").symlink_to(outside)
    return root


@attack("dataset", r"cannot be used", act="dataset", error="ManifestError", names="metadata.csv", name="aml_hehr")
def a_patient_who_climbs(root: Path, outside: Path) -> Path:
    written(root / "aml_hehr" / "metadata.csv", b"patient_id,bag_label\n../../outside,control\n")
    saved(root / "aml_hehr" / "data" / "control" / "p1" / "features.npy")
    return root
