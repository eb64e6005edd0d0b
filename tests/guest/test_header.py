"""The headers are the contract: every import, number and record in them is the host's, and the other way round."""

from __future__ import annotations

import re
import struct
from typing import Any

import pytest
import wasmtime

from kserve_wasm.guest import graph_abi, operator_abi, tensor_abi
from kserve_wasm.guest.building import FAILED
from kserve_wasm.guest.host_functions import HOST_FUNCTIONS
from kserve_wasm.tensors import DTYPES
from kserve_wasm.wasi_nn.host_function import ERRNO_NAMES
from kserve_wasm.webnn.operator import OPERATORS, Operator
from tests.support.guests import INCLUDE, compile_guest

HEADER = "".join((INCLUDE / name).read_text() for name in ("kserve_wasm.h", "kserve_wasm_ml.h"))
MODULES = {
    "KW_IMPORT": "kserve_wasm",
    "KW_NN_IMPORT": "wasi_ephemeral_nn",
    "ML_IMPORT": operator_abi.MODULE,
    "MLX_IMPORT": operator_abi.OWN_MODULE,
}
PROTOTYPE = re.compile(
    r'^(KW_IMPORT|KW_NN_IMPORT|ML_IMPORT|MLX_IMPORT)\("(\w+)"\)\s+'
    r"(?:kw_errno|kw_dtype|uint32_t|ml_builder|ml_operand)\s+(\w+)\(([^)]*)\);",
    re.MULTILINE,
)
HANDLES = {"kw_tensor", "kw_graph", "kw_context", "kw_dtype", "ml_builder", "ml_operand"}


def letter(parameter: str) -> str:
    if "*" in parameter:
        return "i"
    kind = parameter.split()[-2]
    if kind in ("uint64_t", "int64_t"):
        return "I"
    if kind == "double":
        return "F"
    assert kind in ("uint32_t", "int32_t") or kind in HANDLES, parameter
    return "i"


STRUCTURES = {
    name: body
    for body, name in re.findall(
        r"^typedef struct \w+ \{\n(.*?)\n\} (\w+);", HEADER, re.MULTILINE | re.DOTALL
    )
}
FIELD = re.compile(r"^\s+(\w+) (\w+)(?:\[(\d+)\])?;", re.MULTILINE)
FIELD_TYPES = {
    "u32": "uint32_t",
    "i32": "int32_t",
    "u32[]": "uint32_t",
    "f64": "double",
    "f64[]": "double",
    "optional": "ml_operand",
}

# (module, name) → C function, letters
IMPORTS: dict[tuple[str, str], tuple[str, str]] = {
    (MODULES[macro], name): (
        function,
        "".join(letter(p) for p in parameters.split(",") if p.strip() != "void"),
    )
    for macro, name, function, parameters in PROTOTYPE.findall(HEADER)
}
HOST = {(f.module, f.name): f.params for f in HOST_FUNCTIONS}
NUMBERS = {
    name: int(value) for name, value in re.findall(r"^#define KW_(\w+) (\d+)u\b", HEADER, re.MULTILINE)
}


def test_every_prototype_is_read_by_these_tests() -> None:
    assert len(IMPORTS) == len(re.findall(r"^(?:KW|KW_NN|MLX?)_IMPORT\(", HEADER, re.MULTILINE)) > 20


def test_host_functions_are_unique() -> None:
    assert len(HOST) == len(HOST_FUNCTIONS)


@pytest.mark.parametrize("key", IMPORTS, ids=lambda key: key[1])
def test_what_the_header_declares_the_host_offers_with_the_same_parameters(key: tuple[str, str]) -> None:
    assert HOST[key] == IMPORTS[key][1]


@pytest.mark.parametrize(
    "function",
    [*tensor_abi.FUNCTIONS, *graph_abi.FUNCTIONS, *operator_abi.FUNCTIONS],
    ids=lambda f: f"{f.module}.{f.name}",
)
def test_what_the_host_offers_the_header_declares(function: Any) -> None:
    assert (function.module, function.name) in IMPORTS
    assert function.has_result


def test_error_numbers_are_the_hosts() -> None:
    assert [NUMBERS[name.upper()] for name in ERRNO_NAMES] == list(range(9))


def test_element_types_are_the_hosts() -> None:
    assert {name: NUMBERS[name] for name in DTYPES} == {name: dtype.onnx for name, dtype in DTYPES.items()}


def test_no_other_numbers_are_declared() -> None:
    others = set(NUMBERS) - set(DTYPES) - {name.upper() for name in ERRNO_NAMES}
    assert others == {"LOG_DEBUG", "LOG_INFO", "LOG_WARNING", "LOG_ERROR", "FAIL_INPUT", "FAIL_INTERNAL"}
    severities = ("DEBUG", "INFO", "WARNING", "ERROR")
    assert [NUMBERS[f"LOG_{name}"] for name in severities] == list(range(tensor_abi._SEVERITIES))
    assert (NUMBERS["FAIL_INPUT"], NUMBERS["FAIL_INTERNAL"]) == (0, 1)


def test_structures_of_options_are_the_hosts() -> None:
    """Names, order and lengths of their fields; that C lays them out so, the guest below asserts."""
    checked = set()
    for operator in OPERATORS.values():
        params = [param for param in operator.params if param.in_options]
        structure = options_of(operator)
        assert bool(params) == bool(structure), operator.name
        if structure:
            assert [
                (name, int(length or 0), kind) for kind, name, length in FIELD.findall(STRUCTURES[structure])
            ] == [(snake(p.name), p.length, FIELD_TYPES[p.kind]) for p in params], operator.name
            checked.add(structure)
    assert checked == {name for name in STRUCTURES if name.endswith("_options")}


def options_of(operator: Operator) -> str | None:
    """The structure that the operator's prototype takes."""
    macro = "MLX_IMPORT" if operator.own else "ML_IMPORT"
    (parameters,) = (found[3] for found in PROTOTYPE.findall(HEADER) if found[:2] == (macro, operator.name))
    named = re.search(r"const (\w+_options) \*", parameters)
    return named[1] if named else None


def layouts() -> str:
    """Assertions on the sizes of structures of options."""
    lines = []
    for operator in OPERATORS.values():
        params = [param for param in operator.params if param.in_options]
        if params:
            structure = options_of(operator)
            assert structure
            layout = operator_abi.options_layout(params)
            # C rounds the size up to the alignment of a double.
            size = layout.size + (-layout.size % 8 if "d" in layout.format else 0)
            lines.append(f'_Static_assert(sizeof({structure}) == {size}, "{operator.name}");')
    return "\n".join(lines)


def snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])([A-Z])", lambda found: f"_{found[1].lower()}", name)


def caller_of_everything() -> str:
    """C that calls import n with the arguments 1000 * n + 1, + 2, …; i64 arguments get 2^40 besides."""
    calls = []
    for n, (function, letters) in enumerate(IMPORTS.values()):
        arguments = [
            f"(void *){1000 * n + i}"
            if pointer
            else f"{1000 * n + i}u"
            if kind == "i"
            else f"{1000 * n + i}.5"
            if kind == "F"
            else f"{(1 << 40) + 1000 * n + i}ull"
            for i, (kind, pointer) in enumerate(zip(letters, pointers(function), strict=True), 1)
        ]
        calls.append(f"  failed += {function}({', '.join(arguments)});")
    return f"""
#include "kserve_wasm_ml.h"
_Static_assert(sizeof(kw_tensor_info) == {struct.calcsize("<IIQQ")}, "kw_tensor_info");
_Static_assert(__builtin_offsetof(kw_tensor_info, elements) == 8, "elements");
_Static_assert(sizeof(ml_output) == {operator_abi._OUTPUT.size}, "ml_output");
{layouts()}
_Static_assert(ML_FAILED == {FAILED}u, "ML_FAILED");
KW_EXPORT("infer") uint32_t infer(void) {{
  uint32_t failed = 0;
{chr(10).join(calls)}
  return failed;
}}
"""


def pointers(function: str) -> list[bool]:
    (parameters,) = (found[3] for found in PROTOTYPE.findall(HEADER) if found[2] == function)
    return ["*" in p for p in parameters.split(",") if p.strip() != "void"]


def test_a_c_guest_that_calls_every_import_imports_what_the_header_says_and_passes_arguments_in_order() -> (
    None
):
    engine = wasmtime.Engine()
    module = wasmtime.Module.from_file(engine, str(compile_guest(caller_of_everything())))
    kinds = {"i": "i32", "I": "i64", "F": "f64"}
    imported = {}
    for one in module.imports:
        assert isinstance(one.type, wasmtime.FuncType)
        assert [str(r) for r in one.type.results] == ["i32"]
        imported[one.module, one.name] = [str(p) for p in one.type.params]
    assert imported == {key: [kinds[c] for c in letters] for key, (_, letters) in IMPORTS.items()}

    linker, store, seen = wasmtime.Linker(engine), wasmtime.Store(engine), {}
    for one in module.imports:

        def call(*arguments: float, key: tuple[str, str | None] = (one.module, one.name)) -> int:
            seen[key] = arguments
            return 1

        linker.define_func(one.module, one.name or "", one.type, call)
    infer = linker.instantiate(store, module).exports(store)["infer"]
    assert isinstance(infer, wasmtime.Func)
    assert infer(store) == len(IMPORTS)
    assert seen == {
        key: tuple(1000 * n + i + {"i": 0, "I": 1 << 40, "F": 0.5}[kind] for i, kind in enumerate(letters, 1))
        for n, (key, (_, letters)) in enumerate(IMPORTS.items())
    }
