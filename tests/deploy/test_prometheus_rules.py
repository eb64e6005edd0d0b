from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import yaml
from prometheus_client.metrics import MetricWrapperBase

from kserve_wasm import metrics
from tests.deploy.manifests import EXAMPLES, SERVICES, read
from tests.support import require

(RULES,) = read(EXAMPLES / "prometheus-rules.yaml")
METRIC = re.compile(r"\bkserve_wasm_\w+")


def test_the_rules_fire_on_what_they_are_for_and_on_nothing_else(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    require(promtool, "promtool is not installed (Debian's package prometheus)")
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(RULES["spec"]))
    shutil.copy(Path(__file__).with_name("prometheus-rules.test.yaml"), tmp_path / "test.yaml")
    for arguments in (["check", "rules", "rules.yaml"], ["test", "rules", "test.yaml"]):
        done = subprocess.run(
            [str(promtool), *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_rules_and_autoscaling_ask_for_metrics_that_the_server_has() -> None:
    there = {
        name
        for metric in vars(metrics).values()
        if isinstance(metric, MetricWrapperBase)
        for described in metric.describe()
        for name in (f"{described.name}{suffix}" for suffix in ("", "_total", "_bucket", "_count"))
    }
    (scaling,) = SERVICES["standard"]["spec"]["predictor"]["autoScaling"]["metrics"]
    asked = [rule["expr"] for group in RULES["spec"]["groups"] for rule in group["rules"]]
    for expression in [*asked, scaling["external"]["metric"]["query"]]:
        names = set(METRIC.findall(expression))
        assert names
        assert names <= there
