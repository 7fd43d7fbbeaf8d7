#!/usr/bin/env bash
# The main job on generated pictures and on photographs: what a user would type, each command shown before it runs.
#
#   bash tests/demo/run.sh FOLDER                                FOLDER is made anew; `make demo` gives demo
#   CHECKPOINTS=~/sapiens_host SIZE=0.3b bash tests/demo/run.sh FOLDER      with weights that Meta released
#
# Without CHECKPOINTS the weights are annotator's own small models, which know mannequins, not people: the generated
# pictures show labels that are right, and by how much; on the photographs they may see anything.
# Ends with an error unless every picture got every label.
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

title "1. Pictures whose truth is known: mannequins, drawn by annotator from a seed"
run annotator demo make-images --count 24 --seed 1 --out "$demo/mannequins"

if [ -n "${CHECKPOINTS:-}" ]; then
    CHECKPOINTS=${CHECKPOINTS/#\~/$HOME}
    title "2. Weights: yours, of size ${SIZE:=0.3b}, below $CHECKPOINTS"
    run annotator models list "$CHECKPOINTS"
    person=$(find "$CHECKPOINTS" -name 'rtmdet*.pth' | head -n 1)
    seg="{root: $CHECKPOINTS, size: $SIZE}" depth="$seg" normal="$seg"
    pose="{root: $CHECKPOINTS, size: $SIZE, keypoints: ${KEYPOINTS:-308}}"
else
    title "2. Weights: small models that know mannequins, not people; annotator brings them"
    run annotator demo weights --out "$demo/weights"
    run annotator models inspect "$demo/weights/seg.safetensors"
    for task in person pose seg depth normal; do
        declare "$task=$demo/weights/$task.safetensors"
    done
fi

title "3. A manifest: a Parquet table with one row a picture; the photographs are appended to it"
run annotator manifest build "$demo/mannequins/images" --out "$demo/manifest"
run annotator manifest append tests/photos --out "$demo/manifest"

title "4. A job: what to label, with what, and where labels go"
cat > "$demo/job.yaml" << JOB
manifest: $demo/manifest
sources: {roots: [$demo/mannequins/images, tests/photos]}     # where pictures may be read from
output: $demo/output
tasks:                # all five in one pass
  person: {checkpoint: $person, score: 0.4, nms_iou: 0.6}      # two who stand close are two
  pose:   {checkpoint: $pose, boxes: person}
  seg:    {checkpoint: $seg}
  depth:  {checkpoint: $depth, background: zero}
  normal: {checkpoint: $normal, background: zero}
shard_rows: 4        # pictures a label file; a real job keeps the default of 128
workers: 2           # processes; with GPUs one a GPU
JOB
run cat "$demo/job.yaml"
run annotator plan "$demo/job.yaml"

title "5. Run it: a first part in one process, the rest on Ray with two workers, then there is nothing left to do"
run annotator run "$demo/job.yaml" --limit 8 --no-ray
run annotator run "$demo/job.yaml"
run annotator run "$demo/job.yaml"

title "6. Prove from storage alone that nothing is missing, twice or damaged"
run annotator verify "$demo/output"
run annotator status "$demo/output"
python - "$demo/output" << 'PYTHON'
import sys

import annotator

counts = {task.task: task.statuses for task in annotator.status(sys.argv[1]).tasks}
if any(not set(by_status) <= {"ok", "no_person"} for by_status in counts.values()):
    sys.exit(f"some pictures have no label, and all are sound: {counts}")
PYTHON

title "7. Read the labels with what you have; here pyarrow and pandas"
cat > "$demo/first_rows.py" << PYTHON
import pyarrow.dataset

labels = pyarrow.dataset.dataset("$demo/output/labels/seg")
rows = labels.head(5, columns=["row", "uri", "status", "width", "height", "confidence"]).to_pandas()
rows["uri"] = rows["uri"].str.rsplit("/").str[-1]
print(rows.to_string(index=False))
PYTHON
run cat "$demo/first_rows.py"
run python "$demo/first_rows.py"

title "8. Look at them"
run annotator preview "$demo/output" --limit 12 --out "$demo/sheet.png"

title "9. How right are they? Against the truth of the mannequins; depth and normals count as wrong where seg missed somebody"
run annotator demo accuracy "$demo/output" --truth "$demo/mannequins"

title "Where everything is, below $PWD (the demo took $SECONDS s)"
cat << WHERE
  $demo/sheet.png             the contact sheet: pictures beside their labels
  $demo/output/labels/        the labels: one folder a task, one Parquet file a shard
  $demo/output/_annotator/    what was pinned, and a record of each run
  $demo/mannequins/           the generated pictures, and truth.parquet, what is true of them
  $demo/manifest/             the manifest
  $demo/job.yaml              the job

What to do next
  source .venv/bin/activate                              puts the command \`annotator\` on your path
  CHECKPOINTS=~/sapiens_host make demo                   the same with weights that Meta released
  docs/how-to/checkpoints.md                             where to get them
  docs/tutorial.md                                       ten minutes: kill a run, go on, add a task, read labels
  notebooks/explore_labels.ipynb                         asks these labels questions and draws the answers
  jobs/laptop.yaml                                       a job with trained weights, every line explained
WHERE
