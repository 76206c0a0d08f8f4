# Sourced by the other scripts: makes .venv with the development environment and puts it on the PATH.
# It is made anew when pyproject.toml or constraints.txt changed. PYTHON chooses the interpreter (3.10 or newer).

environment="${RULEQUANT_VENV:-$PWD/.venv}"
wanted="$(cat pyproject.toml constraints.txt | cksum)"
if [ "$(cat "$environment/.made-from" 2>/dev/null || true)" != "$wanted" ]; then
    echo "Making $environment (a few minutes the first time)" >&2
    "${PYTHON:-python3}" -m venv --clear "$environment"
    "$environment/bin/python" -m pip install --quiet --disable-pip-version-check \
        --constraint constraints.txt --editable '.[torch,dev]' >&2
    echo "$wanted" > "$environment/.made-from"
fi
export PATH="$environment/bin:$PATH"
export HF_HUB_OFFLINE=1
