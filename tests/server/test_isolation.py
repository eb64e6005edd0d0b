"""One model's guests and one client's requests against everybody else's, in one running server."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import requests
import tritonclient.grpc as triton
import wasmtime
from tritonclient.utils import InferenceServerException

from kserve_wasm.convert import Conversion, convert
from kserve_wasm.tensors import DTYPES, TensorSpec
from tests.backends import models as onnx_models
from tests.server import models
from tests.server.process import Server
from tests.support.counts import count

# Answers its input as y; spins when the first element is 1, traps when it is 2, refuses with a message when it is 3,
# and when it is 4 grows its memory to the limit before it traps.
MOODY = """(module
  (import "kserve_wasm" "input_by_index" (func $input (param i32 i32) (result i32)))
  (import "kserve_wasm" "output_set" (func $output (param i32 i32 i32) (result i32)))
  (import "kserve_wasm" "tensor_read" (func $read (param i32 i64 i32 i32) (result i32)))
  (import "kserve_wasm" "fail" (func $fail (param i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "y") (data (i32.const 8) "not that one")
  (func (export "infer") (result i32) (local $x f32)
    (drop (call $input (i32.const 0) (i32.const 64)))
    (drop (call $read (i32.load (i32.const 64)) (i64.const 0) (i32.const 68) (i32.const 4)))
    (local.set $x (f32.load (i32.const 68)))
    (if (f32.eq (local.get $x) (f32.const 1)) (then (loop (br 0))))
    (if (f32.eq (local.get $x) (f32.const 2)) (then unreachable))
    (if (f32.eq (local.get $x) (f32.const 3))
      (then (drop (call $fail (i32.const 0) (i32.const 8) (i32.const 12))) (return (i32.const 1))))
    (if (f32.eq (local.get $x) (f32.const 4))
      (then (loop (br_if 0 (i32.ne (memory.grow (i32.const 64)) (i32.const -1)))) unreachable))
    (call $output (i32.const 0) (i32.const 1) (i32.load (i32.const 64)))))"""

STATUS = {0: 200, 1: 504, 2: 500, 3: 422, 4: 500}
CODE = {0: "", 1: "DEADLINE_EXCEEDED", 2: "INTERNAL", 3: "INVALID_ARGUMENT", 4: "INTERNAL"}


@pytest.fixture(scope="module")
def moody(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("moody")
    for name in ("honest", "moody"):
        models.write_guest(
            MOODY, folder / "models" / name, "limits: {timeout: 1.0}\ninstances: {workers: 2}\n"
        )
    flags = (f"--model_dir={folder / 'models'}", f"--cache_dir={folder / 'cache'}", "--drain_seconds=0")
    server = Server(folder / "log", *flags)
    try:
        server.wait_ready()
        yield server
        assert server.stop() == 0, server.log
        assert "Traceback" not in server.log, server.log
    finally:
        server.process.kill()
        server.wait()


def ask(session: requests.Session, server: Server, model: str, values: list[float]) -> requests.Response:
    tensor = {"name": "x", "datatype": "FP32", "shape": [len(values)], "data": values}
    return session.post(f"{server.http}/v2/models/{model}/infer", json={"inputs": [tensor]}, timeout=30)


def test_every_mood_has_its_status_over_both_protocols_and_leaves_no_trace(moody: Server) -> None:
    session = requests.Session()
    with triton.InferenceServerClient(moody.grpc) as client:
        for mood, status in STATUS.items():
            answer = ask(session, moody, "moody", [mood, 7])
            assert answer.status_code == status, answer.text
            tensor = triton.InferInput("x", [2], "FP32")
            tensor.set_data_from_numpy(np.array([mood, 7], np.float32))
            if CODE[mood]:
                with pytest.raises(triton.InferenceServerException) as error:
                    client.infer("moody", [tensor])
                assert error.value.status() == f"StatusCode.{CODE[mood]}"
            else:
                np.testing.assert_array_equal(client.infer("moody", [tensor]).as_numpy("y"), [0, 7])
            np.testing.assert_array_equal(
                ask(session, moody, "honest", [5, 6]).json()["outputs"][0]["data"], [5, 6]
            )
    assert "not that one" in ask(session, moody, "moody", [3]).json()["error"]


def test_a_guests_words_forge_no_line_of_the_log(start_server, tmp_path: Path) -> None:
    """Whatever it gives as the reason of its failure stands in one line, escaped."""
    forged = "2026-01-01 00:00:00 kserve INFO forged"
    words = f"oops\n{forged}\x1b[31m"
    data = "".join("\\" + f"{byte:02x}" for byte in words.encode())
    wat = f"""(module (import "kserve_wasm" "fail" (func $fail (param i32 i32 i32) (result i32)))
      (import "kserve_wasm" "log" (func $log (param i32 i32 i32) (result i32)))
      (memory (export "memory") 1)
      (data (i32.const 0) "{data}")
      (func (export "infer") (result i32)
        (drop (call $log (i32.const 3) (i32.const 0) (i32.const {len(words)})))
        (drop (call $fail (i32.const 1) (i32.const 0) (i32.const {len(words)}))) (i32.const 1)))"""
    models.write_guest(wat, tmp_path / "forger")
    server = start_server(f"--model_dir={tmp_path / 'forger'}", "--model_name=forger")
    server.wait_ready()
    answer = ask(requests.Session(), server, "forger", [0])
    assert (answer.status_code, answer.json()) == (500, {"error": words})
    assert forged in server.log
    assert not any(line.startswith(forged) for line in server.log.splitlines())
    assert "\x1b" not in server.log


def test_the_log_tells_which_model_failed_and_why_over_either_protocol(moody: Server) -> None:
    before = moody.log.count("model moody version 1: GuestTrap: the guest trapped")
    assert ask(requests.Session(), moody, "moody", [2]).status_code == 500
    x = triton.InferInput("x", [2], "FP32")
    x.set_data_from_numpy(np.array([2, 0], np.float32))
    client = triton.InferenceServerClient(moody.grpc)
    with client, pytest.raises(InferenceServerException, match="INTERNAL"):
        client.infer("moody", [x])
    assert moody.log.count("model moody version 1: GuestTrap: the guest trapped") == before + 2


def test_a_model_that_was_always_quick_cannot_hold_the_server_with_one_slow_request(moody: Server) -> None:
    """Quick models run on the event loop. One that then spins is moved to a thread; the loop goes on meanwhile."""
    session, probe = requests.Session(), requests.Session()
    for turn in range(200):
        assert ask(session, moody, "moody", [0, turn]).status_code == 200
    answers: list[int] = []
    spinning = [
        threading.Thread(
            target=lambda: answers.append(ask(requests.Session(), moody, "moody", [1]).status_code)
        )
        for _ in range(2)
    ]
    for thread in spinning:
        thread.start()
    alive = 0
    while any(thread.is_alive() for thread in spinning):
        assert probe.get(f"{moody.http}/v2/health/live", timeout=5).ok
        assert ask(session, moody, "honest", [5]).status_code == 200
        alive += 1
    assert answers == [504, 504]
    # A server that the two guests held for their second would have answered once.
    assert alive >= 3, alive


# Runs its graph; when that fails it says so in its own words, and does not pass the failure on.
PROUD = """(module
  (import "kserve_wasm" "run_graph" (func $run (param i32 i32) (result i32)))
  (import "kserve_wasm" "fail" (func $fail (param i32 i32 i32) (result i32)))
  (memory (export "memory") 1) (data (i32.const 0) "defaultgave up")
  (func (export "infer") (result i32)
    (if (call $run (i32.const 0) (i32.const 7))
      (then (drop (call $fail (i32.const 1) (i32.const 7) (i32.const 7))) (return (i32.const 9))))
    (i32.const 0)))"""


def test_a_request_that_outgrows_the_event_loop_is_answered_by_a_thread(start_server, tmp_path: Path) -> None:
    """The time that a request may take on the loop is not its deadline, whatever the guest makes of it."""
    graph, guest = tmp_path / "count.onnx", tmp_path / "proud.wasm"
    onnx.save(onnx_models.count(), graph)
    guest.write_bytes(wasmtime.wat2wasm(PROUD))
    (tmp_path / "count").mkdir()
    scalar, one = (TensorSpec("n", DTYPES["INT64"], ()),), (TensorSpec("y", DTYPES["INT64"], (1,)),)
    convert(Conversion(graph, tmp_path / "count" / "model.wasm", guest=guest, inputs=scalar, outputs=one))
    server = start_server(f"--model_dir={tmp_path / 'count'}", "--model_name=count")
    server.wait_ready()
    session = requests.Session()

    def ask_count(n: int) -> requests.Response:
        tensor = {"name": "n", "datatype": "INT64", "shape": [], "data": [n]}
        return session.post(f"{server.http}/v2/models/count/infer", json={"inputs": [tensor]}, timeout=30)

    for _ in range(3):
        for _ in range(100):
            assert ask_count(2).json()["outputs"][0]["data"] == [2]
        answer = ask_count(200_000)  # some tenths of a second
        assert (answer.status_code, answer.json().get("outputs", [{}])[0].get("data")) == (200, [200_000])


def test_answers_are_each_clients_own_while_others_fail_in_every_way(moody: Server) -> None:
    """Many clients with data of their own, good and bad requests mixed: nobody gets another's answer or error."""
    wrong: list[object] = []

    def client(number: int) -> None:
        session = requests.Session()
        rng = np.random.default_rng(number)
        for turn in range(60):
            mood = int(rng.choice([0, 0, 0, 2, 3, 4]))
            values = [float(mood), number + 1000.0, turn + 5000.0]
            answer = ask(session, moody, "moody" if turn % 2 else "honest", values)
            count("requests of good and bad clients at once")
            if answer.status_code != STATUS[mood]:
                wrong.append((values, answer.status_code, answer.text))
            elif mood == 0 and answer.json()["outputs"][0]["data"] != values:
                wrong.append((values, answer.text))

    started = time.monotonic()
    threads = [threading.Thread(target=client, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert time.monotonic() - started < 120


def test_a_model_whose_guests_all_hang_does_not_stop_another(moody: Server) -> None:
    """Both workers of one model are busy until their deadline, and more wait: the other model answers all the same."""
    hang = [threading.Thread(target=ask, args=(requests.Session(), moody, "moody", [1])) for _ in range(6)]
    for thread in hang:
        thread.start()
    session = requests.Session()
    answered = 0
    while any(thread.is_alive() for thread in hang):
        assert ask(session, moody, "honest", [8]).status_code == 200
        answered += 1
    assert answered >= 3


def test_a_gone_clients_waiting_request_is_not_run(moody: Server, tmp_path: Path) -> None:
    """What waits for a worker is taken back when its client goes away."""
    del tmp_path
    key = ("kserve_wasm_instances_started_total", frozenset({"model": "moody", "version": "1"}.items()))
    hang = [threading.Thread(target=ask, args=(requests.Session(), moody, "moody", [1])) for _ in range(2)]
    for thread in hang:
        thread.start()
    depth = ("kserve_wasm_requests_in_flight", frozenset({"model": "moody", "version": "1"}.items()))
    end = time.monotonic() + 10
    while moody.metrics().get(depth) != 2:
        assert time.monotonic() < end
    before = moody.metrics()[key]
    for _ in range(5):
        with pytest.raises(requests.Timeout):
            requests.post(
                f"{moody.http}/v2/models/moody/infer",
                json={"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [0]}]},
                timeout=0.05,
            )
    for thread in hang:
        thread.join()
    end = time.monotonic() + 10
    while moody.metrics().get(depth) != 0:
        assert time.monotonic() < end
    assert moody.metrics()[key] == before
