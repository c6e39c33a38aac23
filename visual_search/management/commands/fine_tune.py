"""`manage.py fine_tune OUT`: make a checkpoint that knows this shop's products, from its own photos."""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from django.core.management.base import CommandError

from visual_search.catalog import get_catalog
from visual_search.conf import get_settings
from visual_search.exceptions import ConfigurationError
from visual_search.index.versions import find_active
from visual_search.management.base import IndexCommand
from visual_search.management.progress import Progress
from visual_search.models import IndexVersion

PROBLEMS_SHOWN = 20


class Command(IndexCommand):
    help = (
        "Fine-tune a checkpoint on labelled photos of this shop's products, or on its own pictures. The result is a "
        "folder; `build_version --checkpoint OUT` and `switch_version` put it live."
    )

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("out", type=Path, metavar="OUT", help="The folder to write.")
        parser.add_argument("--base", metavar="CHECKPOINT", help="To start from; the active version's if not given.")
        parser.add_argument(
            "--photos", type=Path, metavar="CSV", help="With photo and product_id; see evaluate_search."
        )
        parser.add_argument("--split", metavar="NAME", help="Of rows to learn from; `train` where the file has it.")
        parser.add_argument("--report-split", metavar="NAME", help="Of rows for the table alone; `val` likewise.")
        parser.add_argument("--epochs", type=int, help="3 if not given; 1 without photos.")
        parser.add_argument(
            "--lr", type=float, help="The highest learning rate. 2e-4 if not given; 2e-5 without photos."
        )
        parser.add_argument("--batch", type=int, default=64, help="Photos that are told apart at once.")
        parser.add_argument("--head-only", action="store_true", help="Only what stands above the last block learns.")
        parser.add_argument("--products-held-out", nargs="+", default=[], metavar="ID", help="Kept away to the end.")
        parser.add_argument("--products-stopping", nargs="+", default=[], metavar="ID", help="They say when to stop.")
        parser.add_argument("--seed", type=int, default=0)
        parser.add_argument("--memory-gb", type=float, default=3.0, help="What this process may take on a CPU.")
        parser.add_argument(
            "--text-margin", type=float, default=2.0, help="Points of hit@10 that text search may lose (%(default)g)."
        )
        parser.add_argument("--resume", action="store_true", help="Go on where a training was interrupted.")
        parser.add_argument("--force", action="store_true", help="Write although text search lost; replace OUT.")

    def run_from_argv(self, argv: list[str]) -> None:
        from visual_search.training.memory import keep_freed_memory

        keep_freed_memory()  # of a process that does nothing else
        super().run_from_argv(argv)

    def handle(self, *args: Any, **options: Any) -> None:
        # Imported here: only this command needs torch.
        from visual_search.training.comparison import lost_text, table
        from visual_search.training.fine_tuning import FineTuning
        from visual_search.training.output import drop_state, refuse_other_files, write_checkpoint

        folder = options["out"].expanduser().resolve()
        refuse_other_files(folder, force=options["force"])
        refuse_folder_in_use(folder)
        if not options["resume"]:
            drop_state(folder)
        try:
            tuning = FineTuning(self.make_job(folder, options), say=self.stdout.write, bar=Progress)
            changes = tuning.run(is_resumed=options["resume"])
            self.stdout.write("")
            for line in table(changes):
                self.stdout.write(line)
            lost = lost_text(changes, margin=options["text_margin"] / 100)
            if lost and not options["force"]:
                raise CommandError(
                    "Nothing was written, because text search got worse. "
                    + "; ".join(lost)
                    + ". Allow more by --text-margin, or write it all the same by --resume --force."
                )
            for sentence in lost:
                self.stderr.write(f"Text search got worse. {sentence}. Written all the same.")
            report = tuning.report() | {"changes": [asdict(change) for change in changes]}
            fingerprint = write_checkpoint(tuning.job.checkpoint, folder, report)
        except KeyboardInterrupt:
            raise CommandError(
                "Interrupted: no checkpoint was written. The same command with --resume goes on after the last epoch.",
                returncode=130,
            ) from None
        drop_state(folder)
        self.stdout.write(f"\nWrote {options['out']} (fingerprint {fingerprint}). Put it live, and back again:")
        self.stdout.write(f"  manage.py build_version --checkpoint {folder}")
        self.stdout.write("  manage.py switch_version VERSION\n  manage.py rollback_version")

    def make_job(self, folder: Path, options: dict[str, Any]) -> Any:
        """Read what is learned from, divide it, and say what that is."""
        from visual_search.quality.labelled import read_labelled
        from visual_search.training.data import gather
        from visual_search.training.fine_tuning import Job
        from visual_search.training.splits import split_products
        from visual_search.training.trainer import WITHOUT_PHOTOS, Recipe, check_recipe
        from visual_search.vision.checkpoints import load_checkpoint

        recipe = replace(
            Recipe() if options["photos"] else WITHOUT_PHOTOS,
            batch=options["batch"],
            seed=options["seed"],
            is_head_only=options["head_only"],
        )
        if options["epochs"] is not None:
            recipe = replace(recipe, epochs=options["epochs"])
        if options["lr"] is not None:
            recipe = replace(recipe, learning_rate=options["lr"])
        check_recipe(recipe)
        active = find_active()
        base = options["base"] or (active.checkpoint if active else get_settings().CHECKPOINT)
        path = options["photos"]
        split_name, report_split = choose_splits(path, options["split"], options["report_split"])
        photos = read_labelled(path, split=split_name) if path else None
        report_photos = read_labelled(path, split=report_split) if path and report_split else None
        checkpoint = load_checkpoint(base)
        data = gather(photos, report_photos, input_size_px=checkpoint.input_size_px, seed=recipe.seed)
        for problem in data.problems[:PROBLEMS_SHOWN]:
            self.stderr.write(f"  left out: {problem}")
        if len(data.problems) > PROBLEMS_SHOWN:
            self.stderr.write(f"  and {len(data.problems) - PROBLEMS_SHOWN} more")
        split = split_products(
            data.learnable(),
            seed=recipe.seed,
            held_out=keys_of(options["products_held_out"]),
            stopping=keys_of(options["products_stopping"]),
        )
        self.say_what(base, data, split)
        memory_bytes = int(options["memory_gb"] * 2**30)
        return Job(folder, checkpoint, data, split, recipe, device=get_settings().DEVICE, memory_bytes=memory_bytes)

    def say_what(self, base: str, data: Any, split: Any) -> None:
        counts = (
            f"{len(split.learned)} products to learn, {len(split.stopping)} to stop by, {len(split.held_out)} held out"
        )
        self.stdout.write(f"From {base}: {len(data.photos)} photos, {counts}.")
        for note in data.notes:
            self.stdout.write(note)
        if not data.photos:
            self.stdout.write(
                "There are no labelled photos: it learns from the catalogue's own pictures, made to look like phone "
                "photos. The table is of such variants too; only evaluate_search with real photos says what those gain."
            )


def choose_splits(path: Path | None, split: str | None, report_split: str | None) -> tuple[str | None, str | None]:
    """Return which rows to learn from and which to ask with: a file's own `train` and `val`, unless others are named.

    None is every row, and no row. Raises ConfigurationError if both are the same rows, InvalidLabels.
    """
    from visual_search.quality.labelled import read_rows

    if path is None:
        return None, None
    there = {row.get("split") for _, row in read_rows(path)}
    split = split or ("train" if "train" in there else None)
    report_split = report_split or ("val" if "val" in there and split not in (None, "val") else None)
    if report_split and split in (None, report_split):
        raise ConfigurationError(
            f"--report-split {report_split!r} would ask with photos that are learned from. Name another --split."
        )
    return split, report_split


def keys_of(product_ids: list[str]) -> list[str]:
    """Return the keys of the products that the shop's files call so. Raises ConfigurationError for an unknown one."""
    keys = get_catalog().keys_of(product_ids)
    if unknown := [name for name in product_ids if name not in keys]:
        raise ConfigurationError(f"No product of the catalogue is called {unknown[0]!r}.")
    return [keys[name] for name in product_ids]


def refuse_folder_in_use(folder: Path) -> None:
    """Raise ConfigurationError if an index version was made with what stands in `folder`: searches would break."""
    for version in IndexVersion.objects.using(get_catalog().database).exclude(state=IndexVersion.State.BUILDING):
        if Path(version.checkpoint).expanduser().resolve() == folder:
            raise ConfigurationError(
                f"Index version {version.pk} ({version.state}) uses the checkpoint in {str(folder)!r}. "
                "Name another folder."
            )
