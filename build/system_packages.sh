#!/usr/bin/env bash
# Installs the Debian/Ubuntu packages named on the command line, but only those that are missing.
# usage: build/system_packages.sh [--optional] PACKAGE...
#   --optional: where they cannot be installed, say so and go on (the tests that need them are then skipped)
set -euo pipefail
optional=no
if [ "${1:-}" = --optional ]; then optional=yes; shift; fi

missing=()
for package in "$@"; do
  dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0

give_up() {
  printf '%s: %s\n' "$1" "${missing[*]}" >&2
  if [ "$optional" = yes ]; then exit 0; else exit 1; fi
}

sudo=""
[ "$(id -u)" -eq 0 ] || sudo=$(command -v sudo || true)
if ! command -v apt-get >/dev/null || { [ "$(id -u)" -ne 0 ] && [ -z "$sudo" ]; }; then
  give_up "please install these system packages"
fi
printf 'installing system packages: %s\n' "${missing[*]}" >&2
$sudo apt-get update -qq || give_up "apt-get update failed; not installed"
DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null ||
  give_up "could not be installed"
