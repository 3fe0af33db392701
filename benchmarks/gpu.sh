#!/usr/bin/env bash
# Measures everything on a GPU in under nine minutes and writes one JSON:
#
#     benchmarks/gpu.sh [--device cuda] [--quick] [--output benchmarks/results/gpu.json]
#
# PYTHON names the interpreter, which needs this package's dependencies and, for the tests, pytest
# and hypothesis; hosts and peers are measured if they are installed. TESTS names what pytest
# collects. A step that takes too long is ended, and what it wrote by then is kept.
set -uo pipefail
cd "$(dirname "$0")/.."

device=cuda quick="" output=benchmarks/results/gpu.json
while [ $# -gt 0 ]; do
	case "$1" in
	--device) device="$2"; shift 2 ;;
	--output) output="$2"; shift 2 ;;
	--quick) quick=--quick; shift ;;
	*) echo "gpu.sh: unknown option: got '$1', expected --device, --quick or --output." >&2; exit 2 ;;
	esac
done
python="${PYTHON:-python3}"
export PYTHONPATH=".:adapters${PYTHONPATH:+:$PYTHONPATH}" OMP_NUM_THREADS=1 PYTHONUNBUFFERED=1
"$python" -c "import sys, torch; torch.zeros(1, device=sys.argv[1])" "$device" || {
	echo "gpu.sh: no device: got '$device', expected one that torch can use." >&2
	exit 1
}
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
SECONDS=0

# The limits add up to less than nine minutes, with some left for starting and ending.
step() {
	local limit="$1" name="$2"
	shift 2
	echo "== $name, at most $limit s, after $SECONDS s"
	timeout --kill-after=5 "$limit" "$python" -W ignore -m "benchmarks.$name" --device "$device" $quick \
		--output "$folder/$name.json" "$@" || echo "gpu.sh: $name ended with status $?" >&2
}
if [ -n "$quick" ]; then few="--rounds 2"; else few=""; fi
step 150 speed ${few:---rounds 15}
step 120 growth ${few:---rounds 5}
step 40 host_speed ${few:---rounds 7}
step 60 memory --rounds 1

echo "== tests, at most 120 s, after $SECONDS s"
# Without the project's pytest options, which name plugins that need not be there.
timeout --kill-after=5 120 "$python" -m pytest -c /dev/null --rootdir=. --import-mode=importlib \
	-p no:cacheprovider -q -m gpu "${TESTS:-tests}" >"$folder/tests.txt" 2>&1
status=$?
tail -n 25 "$folder/tests.txt"
# 5: nothing was collected.
[ $status -eq 0 ] || [ $status -eq 5 ] || echo "ended with status $status" >>"$folder/tests.txt"

"$python" -m benchmarks.performance --collect "$folder" --note "$SECONDS s in all" --output "$output"
echo "wrote $output after $SECONDS s"
