#!/usr/bin/env bash
# Containers: images, engines, a server with a gateway. Reads TARGET, CHECKPOINT, ENGINES, BUILD_FLAGS, COMPOSE_FLAGS and
# TRITON_IMAGE, PYTHON_IMAGE (other base images, such as a digest that was checked).
# usage: build/container.sh image | engine | up | down
set -euo pipefail
cd "$(dirname "$0")/.."
export TARGET=${TARGET:-onnxruntime} CHECKPOINT=${CHECKPOINT:-checkpoints/tutor}
ENGINES=$(realpath -m "${ENGINES:-build/engines/tutor}")
TOKEN_FILE=$(realpath -m "${TOKEN_FILE:-build/secrets/gateway_token}")
export ENGINES TOKEN_FILE
DOCKER=${DOCKER:-docker}

say() { printf '%s\n' "$*" >&2; }

# Says what is missing and what works without it.
need_docker() {
  local missing=""
  if ! command -v "$DOCKER" >/dev/null; then missing="the command \"$DOCKER\" is not installed"
  elif ! "$DOCKER" version >/dev/null 2>&1; then missing="the Docker daemon cannot be reached (is it running, may you use it?)"
  elif ! "$DOCKER" compose version >/dev/null 2>&1; then missing="the Compose plugin is not installed (docker compose)"
  elif ! "$DOCKER" buildx version >/dev/null 2>&1; then missing="the Buildx plugin is not installed (docker buildx)"
  else return 0; fi
  say "container: $missing."
  say "  Docker Engine 23 or newer: https://docs.docker.com/engine/install/ (GPU targets: the NVIDIA Container Toolkit too)"
  say "  Without Docker the same server runs from the wheel: make serve, make web"
  exit 1
}

compose() {
  local files=(--file build/compose.yaml)
  [ "$TARGET" = onnxruntime ] || files+=(--file build/compose.gpu.yaml)
  # COMPOSE_FLAGS is a list of words, such as --profile observability.
  # shellcheck disable=SC2086
  "$DOCKER" compose "${files[@]}" ${COMPOSE_FLAGS:-} "$@"
}

# Engines of CHECKPOINT in ENGINES, made in a container that sees nothing else and has no network.
engine() {
  local gpu=()
  [ "$TARGET" != tensorrt ] || gpu=(--gpus all)
  mkdir -p "$(dirname "$ENGINES")"
  "$DOCKER" build --file build/Dockerfile --target builder --build-arg "TARGET=$TARGET" --build-arg TRITON_IMAGE \
    --tag "wan-streamer-triton/builder:$TARGET" .
  # shellcheck disable=SC2086
  "$DOCKER" run --rm --network none --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges \
    --user "$(id -u):$(id -g)" "${gpu[@]}" \
    --volume "$(realpath "$CHECKPOINT"):/checkpoint:ro" --volume "$(dirname "$ENGINES"):/engines" \
    "wan-streamer-triton/builder:$TARGET" build /checkpoint "/engines/$(basename "$ENGINES")" --target "$TARGET" ${BUILD_FLAGS:-}
}

# A new secret, unless there is one. UID 10001 of the container reads the file: it gets it where that is allowed, else
# anybody who gets through the directory may, and that is nobody.
secret() {
  [ ! -s "$TOKEN_FILE" ] || return 0
  (umask 077 && mkdir -p "$(dirname "$TOKEN_FILE")")
  (umask 077 && head -c 24 /dev/urandom | base64 >"$TOKEN_FILE")
  chown 10001 "$TOKEN_FILE" 2>/dev/null || chmod 444 "$TOKEN_FILE"
}

need_docker
case "${1:-}" in
  image) compose build ;;
  engine) engine ;;
  up)
    [ -f "$ENGINES/manifest.json" ] || engine
    secret
    compose up --detach --build --wait --wait-timeout 330
    say "gateway http://127.0.0.1:8080/  gRPC 127.0.0.1:8001  secret $TOKEN_FILE"
    compose logs --no-log-prefix gateway | grep '^page' >&2 || true
    ;;
  down) compose down ;;
  *) say "usage: build/container.sh image | engine | up | down"; exit 2 ;;
esac
