"""`manage.py fine_tune OUT`: fine-tune a checkpoint on this shop's own photos."""

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
        "Fine-tune a checkpoint on labelled photos of this shop's products, or on its catalogue's pictures. The result "
        "is a folder; put it live with `build_version --checkpoint OUT` and `switch_version`."
    )

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("out", type=Path, metavar="OUT", help="The folder to write.")
        parser.add_argument(
            "--base", metavar="CHECKPOINT", help="The checkpoint to start from; by default the active version's."
        )
        parser.add_argument(
            "--photos", type=Path, metavar="CSV", help="A file with the columns photo,product_id; see evaluate_search."
        )
        parser.add_argument("--split", metavar="NAME", help="Rows to train on; by default `train` if the file has it.")
        parser.add_argument(
            "--report-split", metavar="NAME", help="Rows only for the table; by default `val` if the file has it."
        )
        parser.add_argument("--epochs", type=int, help="By default 3; 1 without photos.")
        parser.add_argument("--lr", type=float, help="The highest learning rate. By default 2e-4; 2e-5 without photos.")
        parser.add_argument("--batch", type=int, default=64, help="Photos in a batch (%(default)d).")
        parser.add_argument("--head-only", action="store_true", help="Train only the layers above the last block.")
        parser.add_argument(
            "--products-held-out", nargs="+", default=[], metavar="ID", help="Products held out to the end."
        )
        parser.add_argument(
            "--products-stopping", nargs="+", default=[], metavar="ID", help="Products for early stopping."
        )
        parser.add_argument("--seed", type=int, default=0)
        parser.add_argument(
            "--memory-gb", type=float, default=3.0, help="Memory for this process on a CPU (%(default)g)."
        )
        parser.add_argument(
            "--text-margin", type=float, default=2.0, help="Points of hit@10 that text search may lose (%(default)g)."
        )
        parser.add_argument("--resume", action="store_true", help="Resume an interrupted training.")
        parser.add_argument("--force", action="store_true", help="Write even if text search got worse; replace OUT.")

    def run_from_argv(self, argv: list[str]) -> None:
        from visual_search.training.memory import keep_freed_memory

        keep_freed_memory()  # only in a process of its own, not through call_command
        super().run_from_argv(argv)

    def handle(self, *args: Any, **options: Any) -> None:
        # Imported here: only this command needs torch.
        from visual_search.training.comparison import table, text_regressions
        from visual_search.training.fine_tuning import FineTuning
        from visual_search.training.output import check_output_folder, delete_state, write_checkpoint

        folder = options["out"].expanduser().resolve()
        check_output_folder(folder, force=options["force"])
        check_not_in_use(folder)
        if not options["resume"]:
            delete_state(folder)
        try:
            tuning = FineTuning(self.make_job(folder, options), write_line=self.stdout.write, bar=Progress)
            changes = tuning.run(is_resumed=options["resume"])
            self.stdout.write("")
            for line in table(changes):
                self.stdout.write(line)
            regressions = text_regressions(changes, margin=options["text_margin"] / 100)
            if regressions and not options["force"]:
                raise CommandError(
                    "Nothing was written, because text search got worse. "
                    + "; ".join(regressions)
                    + ". Allow more with --text-margin, or write the checkpoint anyway with --resume --force."
                )
            for regression in regressions:
                self.stderr.write(f"Text search got worse: {regression}. The checkpoint is written anyway.")
            report = tuning.report() | {"changes": [asdict(change) for change in changes]}
            fingerprint = write_checkpoint(tuning.job.checkpoint, folder, report)
        except KeyboardInterrupt:
            raise CommandError(
                "Interrupted: no checkpoint was written. Add --resume to continue after the last epoch.",
                returncode=130,
            ) from None
        delete_state(folder)
        self.stdout.write(f"\nWrote {options['out']} (fingerprint {fingerprint}). To put it live, or to go back:")
        self.stdout.write(f"  manage.py build_version --checkpoint {folder}")
        self.stdout.write("  manage.py switch_version VERSION\n  manage.py rollback_version")

    def make_job(self, folder: Path, options: dict[str, Any]) -> Any:
        """Read the training data, split it, and print a summary."""
        from visual_search.quality.labelled import read_labelled
        from visual_search.training.data import gather
        from visual_search.training.fine_tuning import Job
        from visual_search.training.splits import split_products
        from visual_search.training.trainer import RECIPE_WITHOUT_PHOTOS, Recipe, check_recipe
        from visual_search.vision.checkpoints import load_checkpoint

        recipe = replace(
            Recipe() if options["photos"] else RECIPE_WITHOUT_PHOTOS,
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
        self.print_summary(base, data, split)
        memory_bytes = int(options["memory_gb"] * 2**30)
        return Job(folder, checkpoint, data, split, recipe, device=get_settings().DEVICE, memory_bytes=memory_bytes)

    def print_summary(self, base: str, data: Any, split: Any) -> None:
        counts = (
            f"{len(split.learned)} products to learn, {len(split.stopping)} for early stopping, "
            f"{len(split.held_out)} held out"
        )
        self.stdout.write(f"From {base}: {len(data.photos)} photos, {counts}.")
        for note in data.notes:
            self.stdout.write(note)
        if not data.photos:
            self.stdout.write(
                "There are no labelled photos: the training uses phone-like variants of the catalogue's own pictures. "
                "The table is based on such variants, too; only evaluate_search can measure the gain on real photos."
            )


def choose_splits(path: Path | None, split: str | None, report_split: str | None) -> tuple[str | None, str | None]:
    """Return the splits to train on and to evaluate with: the file's own `train` and `val`, unless others are named.

    None for the first means every row, for the second no row. Raises InvalidLabels, or ConfigurationError if the two
    overlap.
    """
    from visual_search.quality.labelled import read_rows

    if path is None:
        return None, None
    known = {row.get("split") for _, row in read_rows(path)}
    split = split or ("train" if "train" in known else None)
    report_split = report_split or ("val" if "val" in known and split not in (None, "val") else None)
    if report_split and split in (None, report_split):
        raise ConfigurationError(
            f"--report-split {report_split!r} would evaluate with photos that are trained on. Name another --split."
        )
    return split, report_split


def keys_of(product_ids: list[str]) -> list[str]:
    """Return the keys of the products with these ids. Raises ConfigurationError for an unknown id."""
    keys = get_catalog().keys_of(product_ids)
    if unknown := [name for name in product_ids if name not in keys]:
        raise ConfigurationError(f"The catalogue has no product with the id {unknown[0]!r}.")
    return [keys[name] for name in product_ids]


def check_not_in_use(folder: Path) -> None:
    """Raise ConfigurationError if an index version uses the checkpoint in `folder`: replacing it breaks searches."""
    for version in IndexVersion.objects.using(get_catalog().database).exclude(state=IndexVersion.State.BUILDING):
        if Path(version.checkpoint).expanduser().resolve() == folder:
            raise ConfigurationError(
                f"Index version {version.pk} ({version.state}) uses the checkpoint in {str(folder)!r}. "
                "Name another folder."
            )
