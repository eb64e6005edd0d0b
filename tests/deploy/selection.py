"""How KServe 0.21 picks a runtime for an InferenceService, and which runtimes it refuses beside others."""

from __future__ import annotations

from collections.abc import Sequence

from tests.deploy.manifests import Manifest


def supporting(runtimes: Sequence[Manifest], service: Manifest) -> list[str]:
    """Names of the runtimes that KServe would take, the one it takes first.

    A runtime that the service names is not searched for, only checked: ``autoSelect`` does not matter then.
    """
    model = service["spec"]["predictor"]["model"]
    wanted = model["modelFormat"]
    protocol = model.get("protocolVersion", "v1")
    named = model.get("runtime")
    fitting = [
        runtime
        for runtime in runtimes
        if named in (None, runtime["metadata"]["name"])
        and not runtime["spec"].get("disabled")
        and not runtime["spec"].get("multiModel")
        and protocol in runtime["spec"].get("protocolVersions", [protocol])
        and any(
            supported["name"] == wanted["name"]
            and wanted.get("version") in (None, supported.get("version"))
            and (named is not None or supported.get("autoSelect"))
            for supported in runtime["spec"]["supportedModelFormats"]
        )
    ]
    # Those of the service's own namespace come first; a runtime without a priority comes after those with one.
    fitting.sort(key=lambda r: (r["kind"] != "ServingRuntime", -_priority(r, wanted["name"])))
    return [runtime["metadata"]["name"] for runtime in fitting]


def conflicts(runtimes: Sequence[Manifest]) -> list[tuple[str, str, str]]:
    """Pairs of runtimes, with the format, that the webhook refuses beside each other.

    It compares format names without regard to case, and takes a shared protocol as enough.
    """
    found = []
    for index, one in enumerate(runtimes):
        for other in runtimes[:index]:
            if one["kind"] != other["kind"] or not _protocols(one) & _protocols(other):
                continue
            found += [
                (other["metadata"]["name"], one["metadata"]["name"], a["name"])
                for a in one["spec"]["supportedModelFormats"]
                for b in other["spec"]["supportedModelFormats"]
                if a.get("autoSelect") and b.get("autoSelect")
                if a["name"].casefold() == b["name"].casefold() and a.get("version") == b.get("version")
                if a.get("priority") is not None and a.get("priority") == b.get("priority")
            ]
    return found


def _protocols(runtime: Manifest) -> set[str]:
    return set(runtime["spec"].get("protocolVersions", []))


def _priority(runtime: Manifest, format_name: str) -> int:
    # The version plays no part: the first entry of that name counts.
    formats = runtime["spec"]["supportedModelFormats"]
    return next((f.get("priority") or 0 for f in formats if f["name"] == format_name), 0)
