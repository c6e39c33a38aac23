"""The folder that comes out of a fine-tuning, and the state that it goes on from: each is whole or not there.

While a training runs, all it keeps stands in a hidden folder beside the one that it is to write.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visual_search.exceptions import CheckpointMissing, ConfigurationError

if TYPE_CHECKING:
    from visual_search.vision.checkpoints import Checkpoint

REPORT = "fine_tuning.json"  # what a folder that we wrote is known by


def state_path(folder: Path) -> Path:
    """Return where the state of the training that will write `folder` is kept."""
    return folder.with_name(f".{folder.name}.training") / "state.pt"


def save_state(folder: Path, state: dict[str, Any]) -> None:
    """Keep the state of a training; a process that is killed meanwhile leaves the one before."""
    import torch

    path = state_path(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".new")
    torch.save(state, temporary)
    os.replace(temporary, path)


def load_state(folder: Path) -> dict[str, Any] | None:
    """Return the state that was kept, or None. Raises ConfigurationError if it can't be read."""
    import torch

    path = state_path(folder)
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of pickle and zip, for whatever has become of the file
        raise ConfigurationError(
            f"The kept training in {str(path)!r} can't be read: {type(error).__name__}: {error}. Leave out --resume."
        ) from error
    return state


def drop_state(folder: Path) -> None:
    """Forget a training, and what one that was killed had begun to write."""
    shutil.rmtree(state_path(folder).parent, ignore_errors=True)
    for left in folder.parent.glob(f".{folder.name}.*.writing"):
        shutil.rmtree(left, ignore_errors=True)


def refuse_other_files(folder: Path, *, force: bool) -> None:
    """Raise ConfigurationError unless `folder` can be made or is empty, or may be replaced: fine-tuned, with force."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        is_free = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    except OSError as error:
        raise ConfigurationError(f"{str(folder)!r} can't be written: {error.strerror}. Name another folder.") from error
    if is_free:
        return
    if not (folder / REPORT).is_file():
        raise ConfigurationError(f"{str(folder)!r} is there and holds no fine-tuned checkpoint. Name another folder.")
    if not force:
        raise ConfigurationError(f"{str(folder)!r} holds a fine-tuned checkpoint. Name another folder, or add --force.")


def write_checkpoint(checkpoint: Checkpoint, folder: Path, report: dict[str, Any]) -> str:
    """Write a folder that the CHECKPOINT setting takes, and return its fingerprint.

    It is written beside `folder`, loaded again and compared, and takes its name as the last step.
    """
    from visual_search.vision.checkpoints import load_checkpoint, quiet_transformers

    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.writing")
    temporary.mkdir()
    try:
        with quiet_transformers():
            for part in (checkpoint.model, checkpoint.image_processor, checkpoint.tokenizer):
                part.save_pretrained(temporary)
        fingerprint = load_checkpoint(temporary).fingerprint()
        if fingerprint != (wanted := checkpoint.fingerprint()):
            raise CheckpointMissing(
                f"What was written loads as {fingerprint!r}, not as {wanted!r}, which was trained: this version of "
                "transformers does not save a "
                f"{type(checkpoint.model).__name__} whole. Another version may."
            )
        (temporary / REPORT).write_text(json.dumps({"fingerprint": fingerprint} | report, indent=1), encoding="utf-8")
        for path in temporary.iterdir():
            path.chmod(0o644)  # safetensors writes for its owner alone; the web server is often another user
        _take_place(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return fingerprint


def _take_place(written: Path, folder: Path) -> None:
    old = written.with_name(f"{written.name}.old")
    if folder.exists():
        folder.rename(old)
    written.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
