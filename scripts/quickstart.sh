#!/usr/bin/env bash
# Environment if it is missing, then the main job: speeches -> sentence vectors -> latent transformer -> text, with scores.
# At most 15 minutes on two cores after the downloads; --small at most 5; --full takes all speeches. Run it again to go on.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
cd "$root"

lsm doctor
exec python scripts/main_job.py "$@"
