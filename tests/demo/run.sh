#!/usr/bin/env bash
# The main job on real photographs: what a user would type, each command shown before it runs.
#
#   bash tests/demo/run.sh FOLDER      FOLDER is made anew; `make demo` gives demo
#
# Weights are random, in Sapiens' architecture and at a small size: the maps show that every part works,
# not what a trained model sees. Ends with an error unless every photograph got every label.
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
SECONDS=0

title() { printf '\n== %s\n' "$1"; }
run() {
    printf '\n$ %s\n' "$*"
    "$@"
}
quietly() {
    printf '\n$ %s\n' "$*"
    "$@" > /dev/null
}

title "1. Weights: small and random, made on the spot. A real job names checkpoints that Meta released"
seed=0
for task in seg depth normal; do
    quietly annotator models random --task "$task" --embed 64 --layers 2 --heads 4 --input 64x48 --seed "$seed" \
        "$demo/weights/$task.safetensors"
    seed=$((seed + 1))
done
quietly annotator models random --task pose --channels 17 --embed 64 --layers 2 --heads 4 --input 64x48 \
    "$demo/weights/pose.safetensors"
quietly annotator models random --task person --embed 16 --layers 1 "$demo/weights/person.safetensors"
run annotator models inspect "$demo/weights/seg.safetensors"

title "2. A manifest: a Parquet table with one row a photograph"
run annotator manifest build tests/photos --out "$demo/manifest"

title "3. A job: what to label, with what, and where labels go"
cat > "$demo/job.yaml" << JOB
manifest: $demo/manifest
output: $demo/output
tasks:
  person: {checkpoint: $demo/weights/person.safetensors, score: 0.1, max_people: 2}
  pose:   {checkpoint: $demo/weights/pose.safetensors, boxes: person}
  seg:    {checkpoint: $demo/weights/seg.safetensors}
  depth:  {checkpoint: $demo/weights/depth.safetensors}
  normal: {checkpoint: $demo/weights/normal.safetensors}
shard_rows: 2        # photographs a label file; a real job keeps the default of 128
workers: 2           # processes; with GPUs one a GPU
JOB
run cat "$demo/job.yaml"
run annotator plan "$demo/job.yaml"

title "4. Run it: a first part in one process, the rest on Ray with two workers, then there is nothing left to do"
run annotator run "$demo/job.yaml" --limit 4 --no-ray
run annotator run "$demo/job.yaml"
run annotator run "$demo/job.yaml"

title "5. Prove from storage alone that nothing is missing, twice or damaged"
run annotator verify "$demo/output"
run annotator status "$demo/output"
python - "$demo/output" << 'PYTHON'
import sys

import annotator

counts = {task.task: task.statuses for task in annotator.status(sys.argv[1]).tasks}
if any(not set(by_status) <= {"ok", "no_person"} for by_status in counts.values()):
    sys.exit(f"some photographs have no label, and all are sound: {counts}")
PYTHON

title "6. Read the labels with what you have; here pyarrow and pandas"
cat > "$demo/first_rows.py" << PYTHON
import pyarrow.dataset

labels = pyarrow.dataset.dataset("$demo/output/labels/seg")
rows = labels.head(5, columns=["row", "uri", "status", "width", "height", "confidence"]).to_pandas()
rows["uri"] = rows["uri"].str.rsplit("/").str[-1]
print(rows.to_string(index=False))
PYTHON
run cat "$demo/first_rows.py"
run python "$demo/first_rows.py"

title "7. Look at them"
run annotator preview "$demo/output" --out "$demo/sheet.png"

title "Where everything is, below $PWD (the demo took $SECONDS s)"
cat << WHERE
  $demo/sheet.png             the contact sheet: photographs beside their maps. The weights are random, so is what they show
  $demo/output/labels/        the labels: one folder a task, one Parquet file a shard
  $demo/output/_annotator/    what was pinned, and a record of each run
  $demo/manifest/             the manifest
  $demo/job.yaml              the job
  $demo/weights/              checkpoints, marked as random for good

What to do next
  source .venv/bin/activate                              puts the command \`annotator\` on your path
  annotator run --images YOUR_PHOTOS --output try/mine --task seg=$demo/weights/seg.safetensors
                                                         the same with your own photographs
  docs/tutorial.md                                       ten minutes: kill a run, go on, add a task, read labels
  notebooks/explore_labels.ipynb                         asks these labels questions and draws the answers
  jobs/laptop.yaml                                       a job with trained weights, every line explained
WHERE
