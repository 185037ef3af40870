"""What a child says that stands for a measured run."""

from __future__ import annotations

A100 = {
    "gpu": "NVIDIA A100-SXM4-80GB",
    "num_gpus": 1,
    "driver": "580.1",
    "cuda": "13.0",
    "total_bytes": 85899345920,
    "usable_bytes": 85094825984,
    "compute_capability": [8, 0],
}
ANSWER = {
    "outcome": "completed",
    "figures": {
        "allocated_bytes": 1_000_000_000,
        "reserved_bytes": 1_100_000_000,
        "device_bytes": 1_500_000_000,
        "device_total_bytes": 1_600_000_000,
        "context_bytes": 400_000_000,
        "moments": {"loaded": 500_000_000, "forward": 1_000_000_000},
        "categories": {"weights": 900_000_000, "blocks not split": 100_000_000},
        "resident": {"weights": 900_000_000},
        "activations_bytes": 10_000,
        "step_s_each": [0.5, 0.4, 0.6],
        "energy_j": 300.0,
    },
    "facts": {
        "num_params": 124_439_808,
        "num_trainable_params": 1_179_648,
        "num_matmul_params": 124_000_000,
        "num_trained_matmul_params": 1_000_000,
    },
    "libraries": {"torch": "2.13.0"},
    "notes": ["process memory: the driver's figure for the process"],
}

SCRIPT = """
import json, os, sys, time
hardware, answer, log, deed = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4]
sys.stdin.readline()
print("device " + json.dumps(hardware), flush=True)
task = sys.stdin.readline()
open(log, "a").write(task)
print('progress [0.5, "training"]', flush=True)
if deed == "die":
    sys.stderr.write("something native gave up\\n")
    os.kill(os.getpid(), 9)
if deed == "wait":
    time.sleep(60)
print("measured " + answer, flush=True)
time.sleep(60)
"""
