"""Which of a model's versions are served."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kserve_wasm.artifact import ModelConfig
from kserve_wasm.errors import ModelLoadError


def select_versions(configs: Sequence[ModelConfig]) -> list[ModelConfig]:
    """Choose the versions to serve, lowest first, by the ``version_policy`` of ``model.yaml``.

    It is ``all``, ``latest`` (the default: the highest), ``{latest: N}`` (the N highest) or
    ``{specific: [1, 3]}``.

    Raises:
        ModelLoadError: there is no version, the policy is none of these, or it names an absent version.
    """
    ordered = sorted(configs, key=lambda config: int(config.version) if config.version.isdecimal() else -1)
    if not ordered:
        raise ModelLoadError("the model directory holds no version")
    policy: Any = ordered[-1].raw.get("version_policy", "latest")
    match policy:
        case "all":
            return ordered
        case "latest":
            return ordered[-1:]
        case {"latest": int(count)} if len(policy) == 1 and count > 0:
            return ordered[-count:]
        case {"specific": [_, *_] as wanted} if len(policy) == 1:
            chosen = {str(version) for version in wanted}
            missing = chosen - {config.version for config in ordered}
            if missing:
                raise ModelLoadError(
                    f"model.yaml: version_policy names version {', '.join(sorted(missing))}, which is not there"
                )
            return [config for config in ordered if config.version in chosen]
    raise ModelLoadError(
        f"model.yaml: version_policy must be all, latest, {{latest: N}} or {{specific: [1, 3]}}, got {policy!r}"
    )
