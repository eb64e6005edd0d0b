#!/usr/bin/env python3
"""Build the demo's model: magika's graph with a C guest that reads raw files, in one ``.wasm`` file.

    python examples/magika/build.py -o build/magika/model.wasm

The package ``magika`` brings the graph and its labels; nothing of it is kept in this repository.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from building import compile_guest, convert, main, packages

HERE = Path(__file__).resolve().parent
TEXTS = ("label", "mime_type", "group", "description")
INTERFACE = ["--input=contents:BYTES:-1", "--output=label:BYTES:-1", "--output=score:FP32:-1"]
INTERFACE += [f"--output={name}:BYTES:-1" for name in TEXTS[1:]]

HEADER = """/* Made by build.py from magika's configuration. */
#ifndef LABELS_H
#define LABELS_H

#include <stdbool.h>
#include <stdint.h>

#define BEG_SIZE {beg_size}
#define END_SIZE {end_size}
#define BLOCK_SIZE {block_size}
#define PADDING {padding_token}
#define MIN_SIZE {min_file_size_for_dl}
#define MEDIUM_CONFIDENCE {medium_confidence_threshold!r}
#define MODEL_LABELS {model_labels} /* the first of kinds, in the order of the model's output */

enum {{ KIND_EMPTY = {empty}, KIND_TXT = {txt}, KIND_UNKNOWN = {unknown} }};
enum field {{ {fields}, N_FIELDS }};

struct text {{
  uint32_t length;
  const char *bytes;
}};

struct kind {{
  struct text texts[N_FIELDS];
  uint32_t instead; /* the kind to answer in its place, mostly itself */
  double threshold; /* the score from which on it is trusted */
  bool is_text;
}};

static const struct text field_names[N_FIELDS] = {{ {field_names} }};

static const struct kind kinds[] = {{
{rows}
}};

#endif
"""


def package() -> Path:
    """Return the folder of the package ``magika``, fetched when it is not there."""
    return packages(HERE / "requirements.txt")


def labels_header(source: Path) -> str:
    """Return the C header with the model's labels and rules, made from the package's JSON files."""
    (config_file,) = source.glob("magika/models/*/config.min.json")
    config = json.loads(config_file.read_text())
    knowledge = json.loads((source / "magika" / "config" / "content_types_kb.min.json").read_text())
    if config["mid_size"] or config["use_inputs_at_offsets"]:
        raise SystemExit(f"{config_file} wants more than a file's two ends, which magika.c does not read")
    labels = list(config["target_labels_space"])
    model_labels = len(labels)
    labels += [label for label in ("empty", "txt", "unknown") if label not in labels]
    return HEADER.format(
        **config,
        model_labels=model_labels,
        **{label: labels.index(label) for label in ("empty", "txt", "unknown")},
        fields=", ".join(name.upper() for name in TEXTS),
        field_names=", ".join(map(c_text, TEXTS)),
        rows=",\n".join(c_kind(label, knowledge[label], config, labels) for label in labels),
    )


def c_kind(label: str, info: dict[str, Any], config: dict[str, Any], labels: list[str]) -> str:
    """Return one row of the table. What the knowledge base leaves open is filled as magika fills it."""
    texts = (
        label,
        info["mime_type"] or ("text/plain" if info["is_text"] else "application/octet-stream"),
        info["group"] or "unknown",
        info["description"] or label,
    )
    instead = labels.index(config["overwrite_map"].get(label, label))
    threshold = config["thresholds"].get(label, config["medium_confidence_threshold"])
    is_text = "true" if info["is_text"] else "false"
    return f"  {{ {{ {', '.join(map(c_text, texts))} }}, {instead}, {threshold!r}, {is_text} }}"


def c_text(value: str) -> str:
    """Return a ``struct text``; bytes that C could read as something else are written in octal."""
    data = value.encode()
    literal = "".join(chr(b) if 32 <= b < 127 and b not in b'"\\?' else f"\\{b:03o}" for b in data)
    return f'{{ {len(data)}, "{literal}" }}'


def build(output: Path) -> None:
    """Write the model to ``output``."""
    (graph,) = package().glob("magika/models/*/model.onnx")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "labels.h").write_text(labels_header(package()))
        compile_guest(HERE / "magika.c", folder / "guest.wasm", folder)
        convert(graph, folder / "guest.wasm", output, "--name", "magika", *INTERFACE)


if __name__ == "__main__":
    main(__doc__, "magika", build)
