"""What one process compiled, the next one takes from the machine's cache."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.models.support import tiny

_RUN = """
import json, os, sys, time
import torch
from annotator.models.checkpoint import load_model
from annotator.models.runtime import compile_model, prepare

torch.manual_seed(0)
cpu = torch.device("cpu")
image = torch.randn(1, 3, 64, 48)
with torch.inference_mode():
    plain = prepare(load_model(sys.argv[1]), device=cpu)(image)
    model = load_model(sys.argv[1])
    compile_model(model, device=cpu, mode="max")
    start = time.perf_counter()
    compiled = model(image)
    seconds = time.perf_counter() - start
from torch._dynamo.utils import counters
print(json.dumps({
    "seconds": seconds,
    "hits": counters["inductor"]["fxgraph_cache_hit"] + counters["aot_autograd"]["autograd_cache_hit"],
    "apart": float((plain - compiled).abs().max() / plain.abs().max()),
    "folder": os.environ["TORCHINDUCTOR_CACHE_DIR"],
}))
"""


@pytest.mark.slow
def test_the_second_process_compiles_nothing_and_gives_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TORCHINDUCTOR_FX_GRAPH_CACHE", "TORCHINDUCTOR_AUTOGRAD_CACHE"):
        monkeypatch.delenv(name, raising=False)
    info = tiny(tmp_path / "seg.safetensors")
    first, second = (_run(info.uri) for _ in range(2))
    assert first["folder"] == str(tmp_path / "cache" / "annotator" / "compiled")
    assert first["hits"] == 0 and second["hits"] > 0
    assert second["seconds"] < first["seconds"]
    assert max(one["apart"] for one in (first, second)) < 1e-4


def _run(uri: str) -> dict[str, Any]:
    command = [sys.executable, "-W", "ignore", "-c", _RUN, uri]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
