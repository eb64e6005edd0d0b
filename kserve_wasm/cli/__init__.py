"""The command ``kserve-wasm``. Each subcommand's module is imported when it is the one that runs."""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module

from kserve_wasm import __version__

COMMANDS = {
    "convert": "turn model.onnx into a verified model.wasm",
    "inspect": "show what a .wasm model holds",
    "validate": "check a model, one line per finding",
    "run": "answer one request without a server",
    "serve": "serve models over REST and gRPC",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a subcommand.

    Args:
        argv: the arguments; those of the process when None.

    Returns:
        0 when all went well, 1 when it did not, 2 (by SystemExit) for wrong usage, 130 after an interrupt.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv[:1] == ["serve"]:
        # The server has flags of its own, KServe's among them: they are its to read.
        from kserve_wasm.server.main import main as serve

        return serve(argv[1:])
    parser = argparse.ArgumentParser(
        prog="kserve-wasm", description="WebAssembly models for KServe.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"kserve-wasm {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in COMMANDS.items():
        command = commands.add_parser(
            name, help=text, description=f"{text[0].upper()}{text[1:]}.", allow_abbrev=False
        )
        if name in argv and name != "serve":
            import_module(f"kserve_wasm.cli.{name}").add_arguments(command)
            command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    arguments = parser.parse_args(argv)
    return _run(arguments)


def _run(arguments: argparse.Namespace) -> int:
    command = import_module(f"kserve_wasm.cli.{arguments.command}")
    try:
        return int(command.run(arguments))
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of the output has gone (… | head): nobody is left to tell.
        sys.stderr.close()
        return 1
    except Exception as error:
        if arguments.debug:
            traceback.print_exc()
        message = (
            "; ".join(" ".join(line.split()) for line in str(error).splitlines()) or type(error).__name__
        )
        print(f"error: {message}", file=sys.stderr)
        return 1
