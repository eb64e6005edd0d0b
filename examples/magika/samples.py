"""Files of many kinds that every machine with this project's environment has, or that real tools make at once."""

from __future__ import annotations

import bz2
import csv
import email.message
import gzip
import io
import json
import lzma
import os
import pickle
import plistlib
import sqlite3
import struct
import sys
import sysconfig
import tarfile
import tempfile
import wave
import zipfile
import zlib
from collections.abc import Callable, Iterator
from importlib.util import cache_from_source, find_spec
from pathlib import Path

import numpy as np

STDLIB = Path(os.__file__).parent
EXAMPLES = Path(__file__).resolve().parents[1]
ROOT = EXAMPLES.parent

# (folder, pattern): the smallest match is taken that is worth asking about, so that every machine picks the same.
FOUND: dict[str, tuple[Path | str, str]] = {
    "python module": (STDLIB, "json/decoder.py"),
    "python stub": ("numpy", "__init__.pyi"),
    "cython": ("numpy", "random/_examples/cython/*.pyx"),
    "shared library": ("numpy", "_core/*.so"),
    "fortran": ("numpy", "f2py/tests/src/**/*.f90"),
    "c header": ("ziglang", "lib/include/stdint.h"),
    "c++ source": ("ziglang", "lib/libcxx/src/algorithm.cpp"),
    "c source": (EXAMPLES, "magika/magika.c"),
    "assembly": ("ziglang", "lib/libc/**/*.s"),
    "zig": ("ziglang", "lib/std/ascii.zig"),
    "onnx model": ("onnx", "**/light_*.onnx"),
    "protobuf schema": ("onnx", "onnx.proto"),
    "toml": (ROOT, "pyproject.toml"),
    "shell script": (ROOT, "hack/env"),
    "markdown": (ROOT, "README.md"),
    "ignore file": (ROOT, ".gitignore"),
    "yaml": (ROOT, "serving_runtime.yaml"),
    "package metadata": ("numpy", "../numpy-*/METADATA"),
    "certificates": ("certifi", "cacert.pem"),
    "javascript": ("numpy", "../**/*.js"),
    "stylesheet": ("numpy", "../**/*.css"),
    "licence text": (ROOT, "LICENSE"),
}

MIN_SIZE = 100

# What one machine has and another may not.
MACHINE = {
    "executable": "/bin/ls",
    "shell": "/bin/sh",
    "user list": "/etc/passwd",
    "resolver": "/etc/nsswitch.conf",
    "manual page": "/usr/share/man/man1/ls.1.gz",
    "perl module": "/usr/share/perl5/Debconf/Config.pm",
    "mime types": "/usr/share/mime/packages/freedesktop.org.xml",
    "time zone": "/usr/share/zoneinfo/Europe/Rome",
    "bash completion": "/usr/share/bash-completion/bash_completion",
    "python executable": sys.executable,
    "shared c library": "/lib/x86_64-linux-gnu/libc.so.6",
}

PROSE = "In the beginning the file was without form, and zeros were upon the face of the disk. "
ROWS = [("id", "name", "score")] + [(i, f"name {i}", i * 0.25) for i in range(200)]


def samples() -> Iterator[tuple[str, bytes]]:
    """Yield the name and the bytes of every file there is here."""
    for name, (where, pattern) in FOUND.items():
        base = package_folder(where) if isinstance(where, str) else where
        matches = (
            [p for p in base.glob(pattern) if p.is_file() and p.stat().st_size >= MIN_SIZE] if base else []
        )
        if matches:
            yield name, min(matches, key=lambda p: (p.stat().st_size, p.name)).read_bytes()
    for name, path in MACHINE.items():
        if os.path.isfile(path) and os.access(path, os.R_OK):
            yield name, Path(path).read_bytes()
    for name, make in MADE.items():
        yield name, make()


def package_folder(package: str) -> Path | None:
    """Return where a package is installed, without importing it."""
    spec = find_spec(package)
    return Path(spec.origin).parent if spec and spec.origin else None


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def tarred() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.add(STDLIB / "json", "json")
    return buffer.getvalue()


def wheel() -> bytes:
    files = {f"json/{p.name}": p.read_bytes() for p in sorted((STDLIB / "json").glob("*.py"))}
    info = b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    return zipped(files | {"json-1.0.dist-info/WHEEL": info, "json-1.0.dist-info/RECORD": b""})


def database() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "scores.db")
        with sqlite3.connect(path) as connection:
            connection.execute("create table scores (id integer primary key, name text, score real)")
            connection.executemany("insert into scores values (?, ?, ?)", ROWS[1:])
        connection.close()
        return path.read_bytes()


def table(delimiter: str) -> bytes:
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter).writerows(ROWS)
    return text.getvalue().encode()


def sound() -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", "not compressed"))
        file.writeframes((np.sin(np.arange(8000) / 10) * 20000).astype("<i2").tobytes())
    return buffer.getvalue()


def picture() -> bytes:
    """Return a PNG of 64 x 64 pixels (W3C, Portable Network Graphics, section 5)."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    lines = b"".join(b"\0" + bytes((x * y) & 255 for x in range(64)) for y in range(64))
    header = struct.pack(">IIBBBBB", 64, 64, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(lines))
        + chunk(b"IEND", b"")
    )


def bitmap() -> bytes:
    pixels = bytes((x * y) & 255 for y in range(64) for x in range(64 * 3))
    info = struct.pack("<IiiHHIIiiII", 40, 64, 64, 1, 24, 0, len(pixels), 2835, 2835, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + len(pixels), 0, 0, 54) + info + pixels


def letter() -> bytes:
    message = email.message.EmailMessage()
    message["From"], message["To"], message["Subject"] = "ada@example.org", "bob@example.org", "Files"
    message["Date"], message["Message-ID"] = "Mon, 02 Mar 2026 10:00:00 +0000", "<1@example.org>"
    message.set_content(PROSE * 4)
    message.add_attachment(
        gzip.compress(PROSE.encode()), maintype="application", subtype="gzip", filename="a.gz"
    )
    message.set_boundary("a-boundary-that-stays")
    return bytes(message)


def document() -> bytes:
    """Return a PDF of one page (ISO 32000-1, section 7.5)."""
    stream = b"BT /F1 24 Tf 72 700 Td (Hello from a sandbox) Tj ET"
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R"
        b" /Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    out, offsets = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    rows = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    end = b"trailer\n<< /Size 6 /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % len(out)
    return out + b"xref\n0 6\n0000000000 65535 f \n" + rows + end


def saved(save: Callable[[io.BytesIO], None]) -> bytes:
    buffer = io.BytesIO()
    save(buffer)
    return buffer.getvalue()


def byte_code() -> bytes:
    path = Path(cache_from_source(str(STDLIB / "os.py")))
    if path.is_file():
        return path.read_bytes()
    import importlib._bootstrap_external as external

    code = compile((STDLIB / "os.py").read_text(), "os.py", "exec")
    return bytes(external._code_to_timestamp_pyc(code))  # type: ignore[attr-defined]


def rich_list() -> dict[str, object]:
    return {"name": "sample", "items": [{"id": i, "text": PROSE} for i in range(20)]}


WEB_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Files</title></head>
<body><h1>Files</h1><p>{}</p><ul><li>one</li><li>two</li></ul></body></html>
"""
DRAWING = """<svg xmlns="http://www.w3.org/2000/svg" width="64" height="64" viewBox="0 0 64 64">
  <circle cx="32" cy="32" r="24" fill="teal"/><path d="M8 8 L56 56" stroke="black"/>
</svg>
"""
SETTINGS = "[server]\nport = 8080\nhost = 127.0.0.1\n\n[log]\nlevel = info\nfile = /var/log/server.log\n"
SERVICE = """apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata:
  name: magika
spec:
  predictor:
    model:
      modelFormat:
        name: wasm
      storageUri: s3://models/magika
"""
FEED = '<?xml version="1.0" encoding="UTF-8"?>\n<feed>\n{}</feed>\n'
QUERY = "SELECT name, count(*) AS n FROM scores WHERE score > 0.5 GROUP BY name ORDER BY n DESC LIMIT 10;\n"
RECIPE = 'FROM python:3.12-slim\nWORKDIR /app\nCOPY . .\nRUN pip install --no-cache-dir .\nCMD ["python"]\n'
SUBTITLES = "".join(f"{i}\n00:00:{i:02},000 --> 00:00:{i + 1:02},000\nLine {i}\n\n" for i in range(1, 20))
MAKE = (
    "CC = cc\nall: main\nmain: main.o\n\t$(CC) -o $@ $^\n%.o: %.c\n\t$(CC) -c $<\nclean:\n\trm -f *.o main\n"
)

MADE: dict[str, Callable[[], bytes]] = {
    "zip archive": lambda: zipped({"a.txt": PROSE.encode() * 40, "b.bin": bytes(range(256)) * 8}),
    "wheel": wheel,
    "tar archive": tarred,
    "gzip": lambda: gzip.compress(PROSE.encode() * 200, mtime=0),
    "tar.gz": lambda: gzip.compress(tarred(), mtime=0),
    "bzip2": lambda: bz2.compress((STDLIB / "os.py").read_bytes()),
    "xz": lambda: lzma.compress((STDLIB / "os.py").read_bytes()),
    "zlib stream": lambda: zlib.compress((STDLIB / "os.py").read_bytes()),
    "sqlite database": database,
    "pickle": lambda: pickle.dumps(rich_list(), protocol=4),
    "python byte code": byte_code,
    "npy": lambda: saved(lambda file: np.save(file, np.eye(40))),
    "npz": lambda: saved(lambda file: np.savez(file, a=np.arange(1000), b=np.eye(16))),
    "json": lambda: json.dumps(rich_list(), indent=2).encode(),
    "json lines": lambda: "".join(json.dumps({"id": i, "text": PROSE}) + "\n" for i in range(50)).encode(),
    "csv": lambda: table(","),
    "tsv": lambda: table("\t"),
    "xml": lambda: FEED.format("".join(f"  <entry><id>{i}</id></entry>\n" for i in range(60))).encode(),
    "html": lambda: WEB_PAGE.format(PROSE * 5).encode(),
    "svg": lambda: DRAWING.encode(),
    "ini": lambda: (SETTINGS * 3).encode(),
    "kubernetes manifest": lambda: SERVICE.encode(),
    "sql": lambda: (QUERY * 8).encode(),
    "dockerfile": lambda: RECIPE.encode(),
    "subtitles": lambda: SUBTITLES.encode(),
    "makefile": lambda: (
        Path(sysconfig.get_makefile_filename()).read_bytes()
        if os.path.isfile(sysconfig.get_makefile_filename())
        else MAKE.encode()
    ),
    "property list": lambda: plistlib.dumps(rich_list()),
    "binary property list": lambda: plistlib.dumps(rich_list(), fmt=plistlib.FMT_BINARY),
    "sound": sound,
    "png": picture,
    "bmp": bitmap,
    "email": letter,
    "pdf": document,
    "prose": lambda: (PROSE * 30).encode(),
    "utf-16 text": lambda: (PROSE * 30).encode("utf-16"),
    "wasm module": lambda: (
        b"\0asm\1\0\0\0"
        + b"\1\5\1\x60\0\1\x7f"
        + b"\3\2\1\0"
        + b"\7\7\1\3run\0\0"
        + b"\n\6\1\4\0\x41\x2a\x0b"
    ),
    "empty": lambda: b"",
    "one byte": lambda: b"x",
    "seven bytes": lambda: b"1234567",
    "seven bytes, not text": lambda: b"\xff\xfe\xfd\xfc\xfb\xfa\xf9",
    "white space": lambda: b" \t\r\n" * 2000,
    "white space, then code": lambda: b" " * 3000 + (STDLIB / "abc.py").read_bytes(),
    "text behind 4096 spaces": lambda: b" " * 4096 + (STDLIB / "abc.py").read_bytes(),
    "zeros": lambda: bytes(10_000),
    "noise": lambda: np.random.default_rng(7).bytes(10_000),
    "a cut gzip": lambda: gzip.compress(PROSE.encode() * 200, mtime=0)[:40],
    "a cut png": lambda: picture()[:24],
    "half a python file": lambda: (STDLIB / "os.py").read_bytes()[:700],
}
