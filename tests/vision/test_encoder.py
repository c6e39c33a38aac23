"""The encoder with real weights (the starter) and real formats (tiny CLIP, SigLIP and SigLIP 2 checkpoints)."""

from __future__ import annotations

import csv
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests import ROOT
from tests.drawings import draw_photo
from tests.tiny_checkpoints import tiny_clip, tiny_siglip, tiny_siglip2
from visual_search.exceptions import CheckpointMissing, ConfigurationError, InvalidVector, Unavailable
from visual_search.vision.checkpoints import load_checkpoint
from visual_search.vision.encoder import GROW_AFTER, BatchSize, TransformersEncoder

GROCERY = ROOT / os.environ.get("DATA", "data/grocery")


def run_python(code: str, *arguments: str, **environment: str) -> str:
    """Run code in a new process and return its output."""
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip(tmp_path_factory.mktemp("checkpoints") / "clip")


@pytest.fixture(params=[tiny_clip, tiny_siglip, tiny_siglip2], ids=["clip", "siglip", "siglip2"])
def tiny_encoder(request: pytest.FixtureRequest, tmp_path: Path) -> TransformersEncoder:
    return TransformersEncoder(request.param(tmp_path / "checkpoint"))


def test_embed_images__returns_unit_float32_rows(starter: TransformersEncoder) -> None:
    vectors = starter.embed_images([draw_photo(seed=1), draw_photo(seed=2), draw_photo(seed=3)])
    assert vectors.shape == (3, starter.dim) == (3, 1024)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_embed_texts__returns_unit_float32_rows(starter: TransformersEncoder) -> None:
    vectors = starter.embed_texts(["a red shoe", "", "word " * 200])
    assert vectors.shape == (3, 1024)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_embed__nothing_gives_no_rows(starter: TransformersEncoder) -> None:
    assert starter.embed_images([]).shape == starter.embed_texts([]).shape == (0, 1024)


def test_embed_images__rows_keep_order_and_do_not_depend_on_the_batch(starter_folder: Path) -> None:
    encoder = TransformersEncoder(starter_folder, batch_size=2)
    images = [draw_photo(seed=seed) for seed in range(5)]
    together = encoder.embed_images(images)
    for image, row in zip(images, together, strict=True):
        assert float(encoder.embed_images([image])[0] @ row) > 0.99999
    cosines = together @ together.T
    assert cosines[~np.eye(5, dtype=bool)].max() < 0.99


def test_embed_texts__padding_to_a_longer_neighbour_changes_nothing(starter: TransformersEncoder) -> None:
    short, long = "a red shoe", "a bag of many colours with two long handles, made for weekends at the sea"
    assert float(starter.embed_texts([short])[0] @ starter.embed_texts([short, long])[0]) > 0.99999


@pytest.mark.parametrize("size", [(1, 1), (3, 3), (3, 4000), (4000, 3)])
def test_embed_images__any_size_works(starter: TransformersEncoder, size: tuple[int, int]) -> None:
    assert starter.embed_images([Image.new("RGB", size, "red")]).shape == (1, 1024)


def test_image_inputs__a_strip_is_cut_to_what_the_centre_crop_keeps(starter_folder: Path) -> None:
    checkpoint = load_checkpoint(starter_folder)
    strip = draw_photo((3000, 240), seed=4)
    middle = strip.crop((1020, 0, 1980, 240))  # four times as wide as high
    cut, whole = (checkpoint.image_inputs([image])["pixel_values"] for image in (strip, middle))
    assert torch.equal(cut, whole)


def test_embed_images__a_grey_image_counts_as_rgb(tiny_encoder: TransformersEncoder) -> None:
    grey = draw_photo(seed=5).convert("L")
    np.testing.assert_array_equal(tiny_encoder.embed_images([grey]), tiny_encoder.embed_images([grey.convert("RGB")]))


def test_input_size_px__is_the_side_the_model_sees(
    starter: TransformersEncoder, tiny_encoder: TransformersEncoder
) -> None:
    assert starter.input_size_px == 224
    assert tiny_encoder.input_size_px == 32


def test_embed__photos_and_words_find_grocery_pictures(starter: TransformersEncoder) -> None:
    if not (GROCERY / "photos.csv").exists():
        pytest.skip("the Grocery Store pictures are missing; name their folder in DATA")
    products = list(csv.DictReader((GROCERY / "products.csv").open()))[:20]  # row n is product n
    gallery = starter.embed_images([Image.open(GROCERY / row["image"]).convert("RGB") for row in products])
    bananas = [number for number, row in enumerate(products) if row["category"] == "Banana"]
    assert int(np.argmax(gallery @ starter.embed_texts(["a banana"])[0])) in bananas
    photos = [row for row in csv.DictReader((GROCERY / "photos.csv").open()) if row["split"] == "val"]
    photos = [row for row in photos if int(row["product_id"]) < len(products)][::4]
    queries = starter.embed_images([Image.open(GROCERY / row["photo"]).convert("RGB") for row in photos])
    top = np.argsort(-queries @ gallery.T, axis=1)[:, :5]
    found = [
        row["product_id"] in {products[n]["product_id"] for n in ranks} for row, ranks in zip(photos, top, strict=True)
    ]
    assert np.mean(found) > 0.5  # chance is 0.25


def test_tiny_checkpoints__embed_images_and_texts_in_one_space(tiny_encoder: TransformersEncoder) -> None:
    images = tiny_encoder.embed_images([draw_photo(seed=1), draw_photo(seed=2)])
    texts = tiny_encoder.embed_texts(["a red shoe", "green bag", "word"])
    assert images.shape == (2, tiny_encoder.dim)
    assert texts.shape == (3, tiny_encoder.dim)
    np.testing.assert_allclose(np.linalg.norm(np.concatenate([images, texts]), axis=1), 1, atol=1e-5)
    assert float(texts[0] @ texts[1]) < 0.999


def test_embed_texts__200_words_lose_their_end(tiny_encoder: TransformersEncoder) -> None:
    long = "a red shoe " + "word " * 200
    np.testing.assert_allclose(tiny_encoder.embed_texts([long]), tiny_encoder.embed_texts([long + "bag"]), atol=1e-6)


def test_embed_texts__clip_reads_77_tokens(clip_folder: Path) -> None:
    inputs = load_checkpoint(clip_folder).text_inputs(["word " * 200, "bag"])
    assert inputs["input_ids"].shape == (2, 77)
    assert inputs["attention_mask"].sum(dim=1).tolist() == [77, 2]


@pytest.mark.parametrize(("save", "tokens"), [(tiny_siglip, 3), (tiny_siglip2, 7)])
def test_embed_texts__siglip_gets_64_lower_case_tokens_and_no_mask(save: Any, tokens: int, tmp_path: Path) -> None:
    folder = save(tmp_path)
    checkpoint, encoder = load_checkpoint(folder), TransformersEncoder(folder)
    inputs = checkpoint.text_inputs(["Red bag"])
    assert list(inputs) == ["input_ids"]
    assert torch.equal(inputs["input_ids"], checkpoint.text_inputs(["red bag"])["input_ids"])
    assert (inputs["input_ids"][0] != 0).tolist() == [True] * tokens + [False] * (64 - tokens)
    with torch.inference_mode():
        unmasked = checkpoint.model.get_text_features(**inputs).pooler_output
        masked = checkpoint.model.get_text_features(**inputs, attention_mask=(inputs["input_ids"] != 0).long())
    embedding = torch.from_numpy(encoder.embed_texts(["RED bag"]))
    assert float(torch.cosine_similarity(embedding, unmasked)) > 0.99999
    assert float(torch.cosine_similarity(embedding, masked.pooler_output)) < 0.999


def test_fingerprint__same_wherever_the_folder_is(clip_folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(clip_folder, tmp_path / "elsewhere")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"transformers_version": "4.40.0"}))
    fingerprint = TransformersEncoder(clip_folder).fingerprint
    assert TransformersEncoder(copy).fingerprint == fingerprint
    assert len(fingerprint) == 16
    assert int(fingerprint, 16)


def test_fingerprint__changes_with_one_weight(clip_folder: Path) -> None:
    checkpoint = load_checkpoint(clip_folder)
    before = checkpoint.fingerprint()
    with torch.no_grad():
        checkpoint.model.visual_projection.weight[0, 0] += 1e-3
    assert checkpoint.fingerprint() != before


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("preprocessor_config.json", {"image_mean": [0.5, 0.5, 0.5]}),
        ("preprocessor_config.json", {"resample": 2}),
        ("config.json", {"model_type": "clip", "projection_dim": 8, "text_config": {"hidden_act": "relu"}}),
    ],
)
def test_fingerprint__changes_with_preprocessing_and_settings(
    clip_folder: Path, tmp_path: Path, file: str, change: dict[str, Any]
) -> None:
    copy = shutil.copytree(clip_folder, tmp_path / "changed")
    values = json.loads((copy / file).read_text())
    nested = {key: values[key] | item if isinstance(item, dict) else item for key, item in change.items()}
    (copy / file).write_text(json.dumps(values | nested))
    assert TransformersEncoder(copy).fingerprint != TransformersEncoder(clip_folder).fingerprint


def test_load__missing_folder_is_not_taken_for_a_hub_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: pytest.fail("asked the network"))
    for name in (str(tmp_path / "absent"), "./absent", "../absent/checkpoint"):
        with pytest.raises(CheckpointMissing, match=r"no checkpoint folder .*absent.* build_starter_checkpoint DIR"):
            _ = TransformersEncoder(name).dim


def test_load__hub_name_offline_says_what_to_do() -> None:
    code = """if True:
        from visual_search.vision.encoder import TransformersEncoder
        from visual_search.exceptions import CheckpointMissing
        try:
            TransformersEncoder("openai/no-such-checkpoint").dim
        except CheckpointMissing as error:
            print(error)
    """
    message = run_python(code, HF_HUB_OFFLINE="1")
    assert "'openai/no-such-checkpoint'" in message
    assert "manage.py build_starter_checkpoint DIR" in message


def test_load__folder_needs_no_network(monkeypatch: pytest.MonkeyPatch, clip_folder: Path) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: pytest.fail("asked the network"))
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("opened a connection"))
    TransformersEncoder(clip_folder).warm_up()


@pytest.mark.parametrize("absent", ["config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json"])
def test_load__incomplete_folder(clip_folder: Path, tmp_path: Path, absent: str) -> None:
    copy = shutil.copytree(clip_folder, tmp_path / "incomplete")
    (copy / absent).unlink()
    with pytest.raises(CheckpointMissing, match="can't be loaded on this machine"):
        _ = TransformersEncoder(copy).dim


def test_load__truncated_weights(clip_folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(clip_folder, tmp_path / "truncated")
    weights = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(CheckpointMissing, match="can't be loaded on this machine"):
        _ = TransformersEncoder(copy).dim


def test_load__missing_weights_are_not_initialised_at_random(clip_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    copy = shutil.copytree(clip_folder, tmp_path / "partial")
    state = load_file(copy / "model.safetensors")
    del state["visual_projection.weight"]
    save_file(state, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointMissing, match=r"lacks 1 .*'visual_projection.weight'"):
        _ = TransformersEncoder(copy).dim


def test_load__not_a_dual_encoder(clip_folder: Path, tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    copy = shutil.copytree(clip_folder, tmp_path / "bert")
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=10, **size)).save_pretrained(copy)
    with pytest.raises(ConfigurationError, match="BertModel, which does not embed images and texts"):
        _ = TransformersEncoder(copy).dim


def test_load__unknown_device(clip_folder: Path) -> None:
    with pytest.raises(ConfigurationError, match="can't be moved to the device 'warp'"):
        _ = TransformersEncoder(clip_folder, device="warp").dim


def test_load__without_torch_names_the_pip_command(monkeypatch: pytest.MonkeyPatch, clip_folder: Path) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ConfigurationError, match=r"pip install \"django-visual-search\[encoder\]\""):
        _ = TransformersEncoder(clip_folder).dim


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_embed_images__damaged_weights_make_no_embedding(clip_folder: Path, value: float) -> None:
    encoder = TransformersEncoder(clip_folder)
    with torch.no_grad():
        model_of(encoder).visual_projection.weight.fill_(value)
    with pytest.raises(InvalidVector, match="2 of 2 embeddings that are zero or not finite, the first at index 0"):
        encoder.embed_images([draw_photo(seed=1), draw_photo(seed=2)])


def model_of(encoder: TransformersEncoder) -> Any:
    return encoder._load().checkpoint.model


def test_import__loads_nothing_heavy() -> None:
    code = """if True:
        import sys
        from visual_search.vision import checkpoints, encoder
        encoder.TransformersEncoder("openai/clip-vit-large-patch14")
        print(sorted({"torch", "transformers", "numpy", "PIL"} & set(sys.modules)))
    """
    assert run_python(code).strip() == "[]"


def test_load__once_however_many_threads_ask(clip_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    encoder, start, results = TransformersEncoder(clip_folder), threading.Barrier(8), []

    def work() -> None:
        start.wait()
        results.append((encoder.embed_images([draw_photo(seed=1)])[0], encoder.embed_texts(["a red shoe", "bag"])[0]))

    with caplog.at_level(logging.INFO, logger="visual_search.vision.encoder"):
        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [record.message.startswith("Loaded") for record in caplog.records] == [True]
    assert len(results) == 8
    for image, text in results:
        np.testing.assert_allclose(image, results[0][0], atol=1e-6)
        np.testing.assert_allclose(text, results[0][1], atol=1e-6)


def test_embed__in_a_forked_child_of_a_process_that_embedded(starter_folder: Path) -> None:
    code = """if True:
        import os, sys
        from PIL import Image
        from visual_search.vision.encoder import TransformersEncoder
        encoder = TransformersEncoder(sys.argv[1])
        image = Image.new("RGB", (300, 300), "red")
        parents = encoder.embed_images([image] * 4)
        encoder._lock.acquire()  # as another thread of the parent may do
        reader, writer = os.pipe()
        if os.fork() == 0:
            childs = encoder.embed_images([image] * 4)
            others = TransformersEncoder(sys.argv[1]).embed_texts(["red"])  # made after the fork
            os.write(writer, f"{(childs * parents).sum(axis=1).min():.4f} {others.shape}".encode())
            os._exit(0)
        os.close(writer)
        print(os.read(reader, 100).decode())
    """
    assert run_python(code, str(starter_folder), OMP_NUM_THREADS="2").strip() == "1.0000 (1, 1024)"


def limit_memory(encoder: TransformersEncoder, images: int) -> list[int]:
    """Make the vision tower run out of memory above this many images. Return a list that records its batch sizes."""
    sizes: list[int] = []

    def check(module: Any, arguments: Any, options: dict[str, Any]) -> None:
        sizes.append(len(options["pixel_values"]))
        if sizes[-1] > images:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    model_of(encoder).vision_model.register_forward_pre_hook(check, with_kwargs=True)
    return sizes


def test_embed_images__out_of_memory_halves_the_batch(clip_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    images = [draw_photo(seed=seed) for seed in range(9)]
    wanted = TransformersEncoder(clip_folder).embed_images(images)
    encoder = TransformersEncoder(clip_folder, batch_size=8)
    sizes = limit_memory(encoder, 2)
    np.testing.assert_allclose(encoder.embed_images(images), wanted, atol=1e-5)
    assert sizes == [8, 4, 2, 2, 2, 2, 1]
    assert "Out of memory with a batch of 8" in caplog.text


def test_embed_images__one_image_too_many_raises(clip_folder: Path) -> None:
    encoder = TransformersEncoder(clip_folder, batch_size=4)
    sizes = limit_memory(encoder, 0)
    with pytest.raises(Unavailable, match="does not fit in the memory of cpu: CUDA out of memory"):
        encoder.embed_images([draw_photo(seed=1), draw_photo(seed=2)])
    assert sizes == [2, 1]


def test_batch_size__recovers_after_a_run_of_full_batches() -> None:
    batch = BatchSize(8)
    batch.shrink(8)
    for _ in range(GROW_AFTER):
        batch.succeeded(1)  # not a full batch: does not count
    assert batch.size == 4
    for _ in range(GROW_AFTER):
        batch.succeeded(4)
    assert batch.size == 8
    batch.succeeded(8)
    assert batch.size == 8


def test_batch_size__below_one_is_rejected() -> None:
    with pytest.raises(ConfigurationError, match="batch size is 0"):
        BatchSize(0)


def test_device__the_cpu_computes_in_single_precision(clip_folder: Path) -> None:
    assert model_of(TransformersEncoder(clip_folder, device="cpu")).dtype == torch.float32
