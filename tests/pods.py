"""The pods of deploy/kubernetes.yaml as processes of this machine."""

from typing import Any

import yaml
from people import ROOT

MANIFEST = ROOT / "deploy/kubernetes.yaml"


def read_manifest() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the Service and the Job."""
    service, job = yaml.safe_load_all(MANIFEST.read_text())
    return service, job


def pod_variables(index: int, port: int) -> dict[str, str]:
    """Return the variables of the pod of an index, which meets the others at a port of this machine instead."""
    _, job = read_manifest()
    (container,) = job["spec"]["template"]["spec"]["containers"]
    variables = {}
    for each in container["env"]:
        if "value" in each:
            variables[each["name"]] = each["value"].replace("nrsrd-0.nrsrd:4567", f"127.0.0.1:{port}")
        else:
            path = each["valueFrom"]["fieldRef"]["fieldPath"]
            assert path == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
            variables[each["name"]] = str(index)
    return variables
