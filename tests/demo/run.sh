#!/usr/bin/env bash
# The main job on real photographs: what a user would type, each command shown before it runs.
#
#   bash tests/demo/run.sh FOLDER      FOLDER is made anew; `make demo` gives demo
#
# Weights are random, in Sapiens' architecture and at a small size: the maps show that every part works,
# not what a trained model sees.
set -euo pipefail

if [ $# -ne 1 ] || [ "$1" = / ]; then
    echo "usage: bash tests/demo/run.sh FOLDER" >&2
    exit 2
fi
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
PATH="$PWD/.venv/bin:$PATH"
demo=$1
# Only a folder that an earlier demo made is cleared.
if [ -e "$demo" ] && [ ! -e "$demo/.made-by-demo" ]; then
    echo "$demo exists and is not an earlier demo's; move it away, or name another folder" >&2
    exit 2
fi
rm -rf "$demo"
mkdir -p "$demo"
touch "$demo/.made-by-demo"

title() { printf '\n== %s\n' "$1"; }
run() {
    printf '\n$ %s\n' "$*"
    "$@"
}

title "1. Weights: random ones, small, so that they are made on the spot (a real job names released checkpoints)"
seed=0
for task in seg depth normal; do
    run annotator models random --task "$task" --embed 64 --layers 2 --heads 4 --input 256x192 --seed "$seed" \
        "$demo/weights/$task.safetensors"
    seed=$((seed + 1))
done

title "2. A manifest of the photographs"
run annotator manifest build tests/photos --out "$demo/manifest"

title "3. The job"
cat > "$demo/job.yaml" << JOB
manifest: $demo/manifest
output: $demo/output
tasks:
  seg:    {checkpoint: $demo/weights/seg.safetensors}
  depth:  {checkpoint: $demo/weights/depth.safetensors}
  normal: {checkpoint: $demo/weights/normal.safetensors}
shard_rows: 2
workers: 2
JOB
run cat "$demo/job.yaml"
run annotator plan "$demo/job.yaml"

title "4. Run it, over Ray with two workers; then again: there is nothing left to do"
run annotator run "$demo/job.yaml"
run annotator run "$demo/job.yaml"

title "5. Prove it from storage alone"
run annotator verify "$demo/output"
run annotator status "$demo/output"

title "6. Read labels with any Arrow reader; here the first rows of seg"
cat > "$demo/first_rows.py" << PYTHON
import pyarrow.dataset

labels = pyarrow.dataset.dataset("$demo/output/labels/seg")
rows = labels.head(5, columns=["shard", "row", "status", "width", "height", "map_width", "map_height", "confidence"])
print(rows.to_pandas().to_string())
PYTHON
run cat "$demo/first_rows.py"
run python "$demo/first_rows.py"

title "7. Look at them"
run annotator preview "$demo/output" --out "$demo/sheet.png"

title "Where everything is"
cat << WHERE
  $demo/job.yaml              the job; edit it, then: annotator run $demo/job.yaml
  $demo/manifest/             the manifest: one row a photograph of tests/photos
  $demo/weights/              checkpoints with random weights, marked so for good
  $demo/output/labels/        one folder a task, one Parquet file a shard: the labels
  $demo/output/_annotator/    what was pinned, and a record of each run
  $demo/sheet.png             the contact sheet: photographs beside their maps
  .venv/bin/annotator        the command; notebooks/explore_labels.ipynb queries these labels
WHERE
