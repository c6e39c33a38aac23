"""Run the checks that need a GPU: `make check-gpu`.

    CHECKPOINT=openai/clip-vit-large-patch14 python -m benchmarks.check_gpu    # the default is the starter

1. A django-q2 worker embeds on the GPU after the cluster has forked.
2. Half precision: every cosine to single precision on the CPU is at least .999, and the fingerprint is the same.
3. A batch too large for the memory is halved, gives the same embeddings and grows again.
4. Fine-tuning in mixed precision: the loss falls as on the CPU.
5. Images per second.
Exits with 1 if a check fails, or with 0 and "not run: no GPU" on a machine without one.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from visual_search.vision.encoder import GROW_AFTER, TransformersEncoder

ROOT = Path(__file__).resolve().parent.parent
COSINE_MIN = 0.999
LOSS_TOLERANCE = 0.05  # relative to single precision: bfloat16 has 8 bits
SMALL_BATCH, LARGE_BATCH = 4, 64
WORKER_SECONDS = 300  # importing torch and loading a large checkpoint from a cold disk


def main() -> int:
    if not has_gpu():
        print("not run: no GPU")
        return 0
    checkpoint = find_checkpoint()
    results = [
        check_worker(checkpoint, device_type="cuda"),
        check_half_precision(checkpoint),
        check_out_of_memory(checkpoint),
        check_fine_tuning(checkpoint),
    ]
    print_images_per_second(checkpoint)
    return 0 if all(results) else 1


def has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def find_checkpoint() -> str:
    if checkpoint := os.environ.get("CHECKPOINT"):
        return checkpoint
    from visual_search.vision.starter.build import build

    return str(build(ROOT / ".demo" / "starter"))


def report(claim: str, *, holds: bool, detail: str) -> bool:
    print(f"{'ok    ' if holds else 'FAILED'} {claim}: {detail}", flush=True)
    return holds


def check_worker(checkpoint: str, *, device_type: str) -> bool:
    """Embed in a worker of a real cluster, on a temporary database."""
    claim = "a django-q2 worker embeds after the fork"
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"DJANGO_SETTINGS_MODULE": "example_shop.settings", "SHOP_STATE_DIR": folder}
        import django

        django.setup()
        from django.core.management import call_command
        from django_q.tasks import async_task, fetch

        call_command("migrate", verbosity=0)
        options = {"cluster": "embedding", "timeout": WORKER_SECONDS}
        task_id = async_task("benchmarks.check_gpu.embed_in_worker", checkpoint, q_options=options)
        with running_cluster(Path(folder) / "cluster.log") as log:
            task = fetch(task_id, wait=WORKER_SECONDS * 1000)
            if task is None or not task.success:
                detail = task.result if task else f"no result after {WORKER_SECONDS} s"
                return report(claim, holds=False, detail=f"{detail}\n{log.read_text()[-3000:]}")
        found = task.result
        holds = found["device"].startswith(device_type) and found["daemon"] and abs(found["length"] - 1) < 1e-3
        return report(claim, holds=holds, detail=str(found))


def embed_in_worker(checkpoint: str) -> dict[str, Any]:
    """Run in the worker and return where the embedding was computed."""
    import multiprocessing

    import numpy as np

    encoder = TransformersEncoder(checkpoint)
    start = time.perf_counter()
    vector = encoder.embed_images(photos(1))[0]
    return {
        "device": str(encoder._load().device),
        "daemon": multiprocessing.current_process().daemon,  # a django-q2 worker is a forked daemon
        "length": float(np.linalg.norm(vector)),
        "seconds": round(time.perf_counter() - start, 1),
    }


@contextmanager
def running_cluster(log: Path) -> Iterator[Path]:
    with log.open("w") as output:
        cluster = subprocess.Popen(
            [sys.executable, "manage.py", "qcluster"],
            env=os.environ | {"Q_CLUSTER_NAME": "embedding"},  # not the option -n: it comes after the settings are read
            cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            yield log
        finally:
            cluster.terminate()
            try:
                cluster.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(cluster.pid, signal.SIGKILL)  # its own session, so only the guard and the workers
                cluster.wait()


def check_half_precision(checkpoint: str) -> bool:
    gpu, cpu = TransformersEncoder(checkpoint, device="cuda"), TransformersEncoder(checkpoint, device="cpu")
    images, texts = photos(16), ["a red shoe", "a bag with two handles", "", "green"]
    image_cosine = float((gpu.embed_images(images) * cpu.embed_images(images)).sum(axis=1).min())
    text_cosine = float((gpu.embed_texts(texts) * cpu.embed_texts(texts)).sum(axis=1).min())
    same = gpu.fingerprint == cpu.fingerprint
    return report(
        "half precision agrees with single precision",
        holds=min(image_cosine, text_cosine) >= COSINE_MIN and same,
        detail=f"lowest cosine {image_cosine:.5f} (images), {text_cosine:.5f} (texts), one fingerprint: {same}",
    )


def check_out_of_memory(checkpoint: str) -> bool:
    """Limit torch's allocator to the memory of a small batch, so that a larger one fails as on a full GPU."""
    import torch

    images = photos(LARGE_BATCH)
    small = TransformersEncoder(checkpoint, device="cuda", batch_size=SMALL_BATCH)
    wanted = small.embed_images(images)
    del small
    encoder = TransformersEncoder(checkpoint, device="cuda", batch_size=LARGE_BATCH)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    encoder.embed_images(images[:SMALL_BATCH])
    allowed = torch.cuda.max_memory_reserved() * 1.25 / torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(min(allowed, 1.0))
    try:
        found = encoder.embed_images(images)
        halved = encoder.batch.size
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    for _ in range(GROW_AFTER):
        encoder.embed_images(images[:halved])
    grown, cosine = encoder.batch.size, float((found * wanted).sum(axis=1).min())
    return report(
        "a batch that is too large is halved and grows again",
        holds=halved < LARGE_BATCH and grown > halved and cosine >= COSINE_MIN,
        detail=f"batch {LARGE_BATCH} -> {halved} -> {grown}, lowest cosine {cosine:.5f}",
    )


def check_fine_tuning(checkpoint: str, *, device: str = "cuda") -> bool:
    """Train on the same batches on both devices and compare the losses."""
    on_cpu, on_device = learn(checkpoint, "cpu"), learn(checkpoint, device)
    difference = max(abs(one - other) / one for one, other in zip(on_cpu, on_device, strict=True))
    return report(
        "fine-tuning in mixed precision learns as in single precision",
        holds=on_device[-1] < on_device[0] and difference <= LOSS_TOLERANCE,
        detail=f"loss {on_device[0]:.3f} -> {on_device[-1]:.3f}, at most {difference:.1%} from that on the CPU",
    )


def learn(checkpoint: str, device: str) -> list[float]:
    """Return the losses of five training steps."""
    from tests.drawings import photo_bytes
    from visual_search.training.batches import Batches, Example
    from visual_search.training.trainer import Recipe, Trainer
    from visual_search.vision.checkpoints import load_checkpoint

    def example(product: int, seed: int) -> Example:
        return Example(str(product), photo_bytes((256, 256), seed=seed))

    pictures = {str(product): [example(product, product)] for product in range(8)}
    shown = [example(product, product) for product in range(8)]
    captions = {product: f"thing number {product}" for product in pictures}
    trainer = Trainer(load_checkpoint(checkpoint), captions, Recipe(), steps=100, device=device)
    batches = Batches(shown, pictures, size=8, seed=0, strength=0.5)
    return [trainer.step(batches.draw(number, 0)) for number in range(5)]


def print_images_per_second(checkpoint: str) -> None:
    encoder = TransformersEncoder(checkpoint, device="cuda")
    images = photos(encoder.batch.size) * 8
    encoder.embed_images(images[: encoder.batch.size])
    start = time.perf_counter()
    encoder.embed_images(images)
    rate = len(images) / (time.perf_counter() - start)
    print(f"       {rate:.0f} images/s, batches of {encoder.batch.size}, preprocessing on one CPU core included")


def photos(count: int) -> list[Any]:
    from tests.drawings import draw_photo

    return [draw_photo(seed=seed) for seed in range(count)]


if __name__ == "__main__":
    sys.exit(main())
