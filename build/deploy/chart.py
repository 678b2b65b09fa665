"""What `chart.sh` asks of Python: objects against Kubernetes' schemas, and the chart's README from its values.

python chart.py check RENDERED.yaml | python chart.py readme
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import yaml

VERSIONS = ("1.33", "1.34", "1.35", "1.36", "1.37")
OTHERS = {"ServiceMonitor"}  # custom resources: their schema is the operator's
CHART = Path(__file__).parent / "chart"

INTRODUCTION = """\
# Helm chart

Servers (a Deployment, each pod with its sessions), gateways, and HAProxy between them; disruption budgets, network
policies, a scaler by open sessions, and the cost by which Kubernetes takes the emptiest pod first. `make chart` lints
it, renders it with each file of `../values`, checks every object against Kubernetes {first} to {last}, and writes this
page. Not yet run on a cluster.

```
helm install avatar build/deploy/chart --namespace avatars --values build/deploy/values/one-gpu.yaml
```

| value | default | |
|---|---|---|
"""


def check(path: Path) -> int:
    """Prints each object that a version of Kubernetes would refuse. 1 if there is one."""
    import kubernetes_validate

    objects = [found for found in yaml.safe_load_all(path.read_text()) if found]
    bad = 0
    for found in (found for found in objects if found["kind"] not in OTHERS):
        for version in VERSIONS:
            try:
                kubernetes_validate.validate(found, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                bad += 1
                print(f"{path}: {found['kind']} {found['metadata']['name']}, Kubernetes {version}: {error.message}")
    print(f"{path.name}: {len(objects)} objects, {f'{bad} errors' if bad else 'all good'}")
    return bool(bad)


def readme() -> str:
    """The page: a row for each value, with the comment above it. Comments in values.yaml begin with `# --`."""
    rows, path, said = [], [], []
    for line in (CHART / "values.yaml").read_text().splitlines():
        if comment := re.match(r"\s*# -- (.*)", line):
            said.append(comment[1])
        elif entry := re.match(r"(\s*)(\w+):\s*(.*)", line):
            path = [*path[: len(entry[1]) // 2], entry[2]]
            if entry[3] or said:
                rows.append(f"| `{'.'.join(path)}` | {f'`{entry[3]}`' if entry[3] else ''} | {' '.join(said)} |")
            said = []
    return INTRODUCTION.format(first=VERSIONS[0], last=VERSIONS[-1]) + "\n".join(rows) + "\n"


if __name__ == "__main__":
    if sys.argv[1:2] == ["readme"]:
        (CHART / "README.md").write_text(readme())
    else:
        sys.exit(check(Path(sys.argv[2])))
