"""Truncated and doctored archives end in a typed error, never in a crash: so they run in a process of their own."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

import pytest

from tests.support import require

require(find_spec("torch"), "torch is not installed: pip install torch")

FUZZ = """
import io, json, math, random, resource, sys, time, warnings, zipfile
from collections import Counter

warnings.simplefilter("ignore")
import numpy as np
import torch

from kserve_wasm.backends import GraphSource, open_graph
from kserve_wasm.errors import BackendError, DeadlineExceeded, InvalidRequest, ModelLoadError
from kserve_wasm.tensors import Tensor
from tests.backends import torch_models as models
from tests.backends.torch_models import spec

# PyTorch takes what memory an archive asks for; without a limit the host's own would end this process.
resource.setrlimit(resource.RLIMIT_AS, (12 << 30, 12 << 30))
kind, seed, tries = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
rng = random.Random(seed)
options = {}
if kind == "exported":
    norm = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4), torch.nn.ReLU(inplace=True))
    archives = [
        models.exported(models.Mlp(), torch.zeros(2, 4)),
        models.exported(models.Pick(), torch.zeros(3), torch.zeros(2, dtype=torch.int64)),
        models.exported(models.ExportedCount(), torch.tensor(3)),
        models.exported(norm, torch.zeros(2, 4)),
    ]
else:
    archives = [models.traced(models.Mlp(), torch.zeros(2, 4)), models.traced(torch.nn.GELU(), torch.zeros(3))]
    options = {"optimize": False}

def noise(content):
    content = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        at = rng.randrange(len(content)) if content else None
        if at is not None:
            content[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256), content[at] + 1 & 255))
    return bytes(content)

def places(value, found):
    # every place in a JSON document that holds something
    for key in value if isinstance(value, dict) else range(len(value)):
        found.append((value, key))
        if isinstance(value[key], (dict, list)):
            places(value[key], found)
    return found

def reworded(content):
    # another value of the same document, or an odd one, in some place of a program
    document = json.loads(content)
    found = places(document, [])
    for _ in range(rng.choice((1, 1, 2, 5))):
        (where, key), (other, name) = rng.choice(found), rng.choice(found)
        odd = (other[name], None, -1, 0, 1 << 62, 1e300, "", "x", [], {}, True)
        where[key] = json.loads(json.dumps(rng.choice(odd[:1] * 5 + odd)))
    return json.dumps(document).encode()

def doctored(archive):
    how = rng.random()
    if how < 0.1:
        return archive[: rng.randrange(len(archive))]
    if how < 0.3:
        return noise(archive)
    result = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as source, zipfile.ZipFile(result, "w") as target:
        names = source.namelist()
        code = [n for n in names if n.endswith((".json", ".pkl", ".py")) and source.read(n)]
        chosen = rng.choice(code * 3 + names)
        for name in names:
            content = source.read(name)
            if name == chosen:
                if name.endswith(".json") and rng.random() < 0.9:
                    content = reworded(content)
                elif rng.random() < 0.05:
                    continue
                else:
                    content = noise(content)
            target.writestr(name, content)
    return result.getvalue()

def fitting(spec):
    shape = [d if isinstance(d, int) else 2 for d in spec.shape]
    if math.prod(shape) > 1 << 20:
        shape = [1] * len(shape)
    return Tensor.from_numpy(np.ones(shape).astype(spec.dtype.numpy))

outcomes = Counter()
for i in range(tries):
    archive = doctored(rng.choice(archives))
    try:
        graph = open_graph(GraphSource("g", "pytorch", data=archive, options=options), "cpu")
    except (BackendError, ModelLoadError):
        outcomes["refused"] += 1
        continue
    try:
        graph.run({s.name: fitting(s) for s in graph.inputs}, time.monotonic() + 0.5)
        outcomes["ran"] += 1
    except (BackendError, InvalidRequest, DeadlineExceeded):
        outcomes["failed"] += 1
print(tries, dict(outcomes))
"""


@pytest.mark.parametrize(("kind", "seed", "tries"), [("exported", 1, 800), ("traced", 1, 300)])
def test_doctored_archives_are_refused_or_run(kind: str, seed: int, tries: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FUZZ, kind, str(seed), str(tries)],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith(f"{tries} ")
    for outcome in ("refused", "ran"):
        assert outcome in done.stdout
    print(done.stdout)
