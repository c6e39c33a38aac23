"""Set up and serve a complete shop with search by photo, with a real encoder, queue worker and store."""

from __future__ import annotations

import argparse
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError
from PIL import Image

from example_shop.models import Product
from visual_search.index import read_status
from visual_search.quality.variants import phone_like

QUERY_PRODUCT = "Camera"  # part of a name; if no product matches, the first one is used
QUERY_TEXT = "something to sit on"
PHOTO_PX = 1024  # the longer side: nearly a megapixel
PHOTO_SEED = 6  # this seed's variant shows every effect of phone_like


class Command(BaseCommand):
    help = "Build the starter checkpoint, load the sample catalogue, index it, search it, and serve the shop."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--source", default="vendure", help="A source for load_catalog; by default the Vendure sample."
        )
        parser.add_argument("--port", type=int, default=8000)
        parser.add_argument("--no-serve", action="store_true", help="Exit after the two searches.")

    def handle(self, *args: Any, **options: Any) -> None:
        # On SIGTERM, too, the demo stops its worker.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        if not options["no_serve"]:
            check_port(options["port"])
        settings.STATE_DIR.mkdir(parents=True, exist_ok=True)
        self.print_heading("1. Checkpoint: a small dual encoder from published weights")
        call_command("build_starter_checkpoint", settings.VISUAL_SEARCH["CHECKPOINT"])
        self.print_heading("2. Database and catalogue")
        call_command("migrate", verbosity=0)
        if count := Product.objects.count():  # keep what was changed in the admin
            self.stdout.write(f"The shop already has {count} products; `manage.py load_catalog SOURCE` loads others.")
        else:
            call_command("load_catalog", options["source"])
        with self.worker():
            self.print_heading("3. Indexing, by the queue worker")
            started, waiting = time.perf_counter(), read_status().marks
            call_command("reindex_products", "--missing", "--wait")
            if waiting:
                self.stdout.write(f"{read_status().indexed} images in {time.perf_counter() - started:.1f} s")
            call_command("verify_index")
            self.search()
            if not options["no_serve"]:
                self.serve(options["port"])

    def print_heading(self, text: str) -> None:
        self.stdout.write(self.style.MIGRATE_HEADING(f"\n{text}"))

    @contextmanager
    def worker(self) -> Iterator[None]:
        """Run the embedding cluster, as a shop would, with its output in a log file."""
        log = settings.STATE_DIR / "qcluster.log"
        command = [sys.executable, "manage.py", "qcluster"]
        environment = os.environ | {"Q_CLUSTER_NAME": "embedding"}
        with log.open("ab") as out:
            process = subprocess.Popen(  # noqa: S603
                command,
                cwd=settings.BASE_DIR,
                env=environment,
                stdout=out,
                stderr=out,
                # A Ctrl-C in the terminal must reach only this process: django-q2 hangs if it is told twice to stop.
                start_new_session=True,
            )
        try:
            yield
            if process.poll() is not None:
                raise CommandError(f"The queue worker ended with {process.returncode}; see {log}.")
        finally:
            process.terminate()
            try:
                process.wait(timeout=30)
            except (subprocess.TimeoutExpired, KeyboardInterrupt):
                os.killpg(process.pid, signal.SIGKILL)

    def search(self) -> None:
        products = Product.objects.filter(is_published=True, images__isnull=False)
        product = products.filter(name__icontains=QUERY_PRODUCT).first() or products.first()
        if product is None:
            raise CommandError("The catalogue has no product with a picture.")
        photo = Path(settings.STATE_DIR) / "photo.jpg"
        with product.images.all()[0].image.open() as picture:
            image = Image.open(picture).convert("RGB")
            image.thumbnail((PHOTO_PX, PHOTO_PX))
            phone_like(image, np.random.default_rng(PHOTO_SEED)).save(photo, quality=80)
        self.print_heading(f"4. Search by photo: the picture of “{product.name}”, as a phone would see it:")
        self.stdout.write("   further away, turned, in other light, blurred, before another background\n")
        call_command("search_by_photo", str(photo), "--limit", "5")
        self.print_heading(f"5. Search by text: “{QUERY_TEXT}”")
        call_command("search_by_photo", "--text", QUERY_TEXT, "--limit", "5")

    def serve(self, port: int) -> None:
        address = f"http://127.0.0.1:{port}"
        self.print_heading(f"6. The shop: {address}   search by photo: {address}/search-by-photo/   Ctrl-C to stop")
        self.stdout.write(f"   admin: {address}/admin/   user admin, password {self.admin_password()}")
        call_command("runserver", f"127.0.0.1:{port}", "--noreload")

    def admin_password(self) -> str:
        """Return the password of the demo's administrator; it is created once and stored beside the database."""
        path = settings.STATE_DIR / "admin-password.txt"
        users = get_user_model().objects
        if not path.exists() or not users.filter(username="admin").exists():
            password = secrets.token_urlsafe(9)
            user, _ = users.get_or_create(username="admin", defaults={"is_staff": True, "is_superuser": True})
            user.set_password(password)
            user.save()
            path.write_text(password)
            path.chmod(0o600)
        return path.read_text()


def check_port(port: int) -> None:
    """Raise CommandError if the port is taken. Call it first: runserver would exit without stopping the worker."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            advice = "Name another one: `make demo PORT=8001`."
            raise CommandError(f"Port {port} can't be used: {error.strerror}. {advice}") from error
