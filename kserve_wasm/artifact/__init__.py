"""Models on disk: the ``.wasm`` file and the directory around it. Imports no framework and no KServe."""

from kserve_wasm.artifact.config import Instances, Limits, ModelConfig
from kserve_wasm.artifact.manifest import GraphEntry, Manifest
from kserve_wasm.artifact.model_dir import find_model_dirs, is_model_dir, load_model_dir
from kserve_wasm.artifact.read import Artifact, read_artifact

__all__ = [
    "Artifact",
    "GraphEntry",
    "Instances",
    "Limits",
    "Manifest",
    "ModelConfig",
    "find_model_dirs",
    "is_model_dir",
    "load_model_dir",
    "read_artifact",
]
