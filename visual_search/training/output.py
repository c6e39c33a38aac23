"""Write the fine-tuned checkpoint and the state of a training; each is written completely or not at all.

A running training keeps its state in a hidden folder beside its output folder.
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

REPORT = "fine_tuning.json"  # identifies a folder written by fine_tune


def state_path(folder: Path) -> Path:
    """Return the path of the state of the training that will write `folder`."""
    return folder.with_name(f".{folder.name}.training") / "state.pt"


def save_state(folder: Path, state: dict[str, Any]) -> None:
    """Save the state of a training; a process that is killed meanwhile leaves the previous state."""
    import torch

    path = state_path(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".new")
    torch.save(state, temporary)
    os.replace(temporary, path)


def load_state(folder: Path) -> dict[str, Any] | None:
    """Return the saved state, or None. Raises ConfigurationError if it can't be read."""
    import torch

    path = state_path(folder)
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # from pickle or zip, depending on the damage
        raise ConfigurationError(
            f"The saved training in {str(path)!r} can't be read: {type(error).__name__}: {error}. Leave out --resume."
        ) from error
    return state


def delete_state(folder: Path) -> None:
    """Delete the state of a training, and unfinished checkpoints that a killed process left."""
    shutil.rmtree(state_path(folder).parent, ignore_errors=True)
    for unfinished in folder.parent.glob(f".{folder.name}.*.writing"):
        shutil.rmtree(unfinished, ignore_errors=True)


def check_output_folder(folder: Path, *, force: bool) -> None:
    """Raise ConfigurationError unless `folder` is new, empty, or with `force` a fine-tuned checkpoint to replace."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        is_free = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    except OSError as error:
        raise ConfigurationError(f"{str(folder)!r} can't be written: {error.strerror}. Name another folder.") from error
    if is_free:
        return
    if not (folder / REPORT).is_file():
        raise ConfigurationError(f"{str(folder)!r} exists and holds no fine-tuned checkpoint. Name another folder.")
    if not force:
        raise ConfigurationError(f"{str(folder)!r} holds a fine-tuned checkpoint. Name another folder, or add --force.")


def write_checkpoint(checkpoint: Checkpoint, folder: Path, report: dict[str, Any]) -> str:
    """Write a folder that can be named in the CHECKPOINT setting, and return its fingerprint.

    The files are written beside `folder`, loaded again and compared; renaming them to `folder` is the last step.
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
                f"The written checkpoint loads as {fingerprint!r}, but {wanted!r} was trained: this version of "
                f"transformers does not save all of a {type(checkpoint.model).__name__}. Try another version."
            )
        (temporary / REPORT).write_text(json.dumps({"fingerprint": fingerprint} | report, indent=1), encoding="utf-8")
        for path in temporary.iterdir():
            path.chmod(
                0o644
            )  # safetensors writes files readable only by their owner; the web server is often another user
        _replace_folder(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return fingerprint


def _replace_folder(written: Path, folder: Path) -> None:
    old = written.with_name(f"{written.name}.old")
    if folder.exists():
        folder.rename(old)
    written.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
