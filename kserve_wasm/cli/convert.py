"""``kserve-wasm convert``."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from kserve_wasm.cli.progress import progress
from kserve_wasm.cli.specs import named_shape, tensor_spec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("model", type=Path, help="the ONNX file; its external data lies beside it")
    parser.add_argument(
        "-o", "--out", type=Path, required=True, metavar="MODEL.wasm", help="the file to write"
    )
    parser.add_argument(
        "--guest", type=Path, metavar="GUEST.wasm", help="your own module; by default one is made"
    )
    parser.add_argument("--name", default="", help="the model's name; by default the file's")
    parser.add_argument("--version", default="", help="the model's version")
    parser.add_argument(
        "--graph-name", default="default", metavar="NAME", help="what the guest calls the graph"
    )
    parser.add_argument(
        "--input",
        action="append",
        default=[],
        type=tensor_spec,
        metavar="NAME:DTYPE:SHAPE",
        help="with --guest: what a client sends, e.g. image:UINT8:-1,224,224,3 (repeat for more)",
    )
    parser.add_argument(
        "--output",
        action="append",
        default=[],
        type=tensor_spec,
        metavar="NAME:DTYPE:SHAPE",
        help="with --guest: what a client gets",
    )
    parser.add_argument(
        "--shape",
        action="append",
        default=[],
        type=named_shape,
        metavar="NAME=SHAPE",
        help="shape of the random input to verify with, where not any size will do",
    )


def run(arguments: argparse.Namespace) -> int:
    """Converts."""
    from kserve_wasm.convert import Conversion, convert

    # A terminated conversion must clean up as an interrupted one does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    job = Conversion(
        model=arguments.model,
        output=arguments.out,
        guest=arguments.guest,
        name=arguments.name,
        version=arguments.version,
        graph=arguments.graph_name,
        inputs=tuple(arguments.input),
        outputs=tuple(arguments.output),
        shapes=dict(arguments.shape),
    )
    with progress() as report:
        rounds = convert(job, report)
    size = arguments.out.stat().st_size
    verified = f"verified against ONNX Runtime on {rounds} random inputs"
    if arguments.guest is None:
        print(f"{arguments.out}: {size:,} bytes, {verified}")
        return 0
    print(f"{arguments.out}: {size:,} bytes, the graph {verified}; the guest was started, and not asked")
    for option, specs in (("input", arguments.input), ("output", arguments.output)):
        if not specs:
            print(
                f"warning: no --{option} given: clients do not learn the model's {option}s", file=sys.stderr
            )
    return 0
