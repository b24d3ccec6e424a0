# The environment that the scripts of this folder share; source it. Makes .venv when it is missing, and installs again only
# when pyproject.toml or constraints.txt changed since. Afterwards `python` and `lsm` are those of .venv.
# Set LSM_EXTRAS (default: dev) for other extras, PYTHON (default: python3) for the interpreter that .venv is made with.

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
environment="$root/.venv"
extras="${LSM_EXTRAS:-dev}"

if [ ! -x "$environment/bin/python" ]; then
    interpreter="${PYTHON:-python3}"
    if ! "$interpreter" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        echo "$interpreter is missing or older than Python 3.11; set PYTHON to a newer one" >&2
        exit 2
    fi
    echo "making $environment" >&2
    "$interpreter" -m venv "$environment" || { rm -rf "$environment"; exit 2; }
fi

# The stamp is written last: an installation that broke off is done again.
stamp="$environment/installed-from"
wanted="$(cat "$root/pyproject.toml" "$root/constraints.txt" | cksum) $extras $root"
if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$wanted" ]; then
    echo "installing lsm[$extras] and what it needs (some minutes when nothing is cached)" >&2
    install=("$environment/bin/python" -m pip install --quiet --disable-pip-version-check -c "$root/constraints.txt")
    # torch first and alone: when an index offers a CPU build it is taken here, and what follows finds it already there.
    "${install[@]}" torch && "${install[@]}" -e "$root[$extras]" || exit 1
    printf '%s' "$wanted" >"$stamp"
fi

export PATH="$environment/bin:$PATH"
export TOKENIZERS_PARALLELISM=false
