"""`make quality`, on drawn pictures under the ids of the grocery products."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from benchmarks.grocery import HELD_OUT, LEARNED, STOPPING
from benchmarks.quality import query_photos
from tests.conftest import own_environment
from tests.drawings import draw_photo
from visual_search.quality.variants import phone_like

IDS = [str(number) for number in range(81)]


def run(*options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.quality", *options],
        env=own_environment(**environment),
        capture_output=True,
        text=True,
        timeout=600,
    )


def draw_data(folder: Path) -> Path:
    """Write a picture of each product, three photos to learn from and one to ask with."""
    products, photos = [("product_id", "name", "category", "image", "description")], [("photo", "product_id", "split")]
    for number in IDS:
        picture = draw_photo((96, 96), seed=int(number))
        picture.save(folder / f"{number}.jpg")
        products.append((number, f"Thing {number}", f"Kind {int(number) % 5}", f"{number}.jpg", "It is drawn."))
        for at, split in enumerate(("train", "train", "train", "val")):
            name = f"{number}_{at}.jpg"
            phone_like(picture, np.random.default_rng([int(number), at])).save(folder / name)
            photos.append((name, number, split))
    for name, rows in (("products.csv", products), ("photos.csv", photos)):
        with (folder / name).open("w", newline="") as lines:
            csv.writer(lines).writerows(rows)
    return folder


def test_products__are_divided_once_and_for_all() -> None:
    assert (len(LEARNED), len(STOPPING), len(HELD_OUT)) == (55, 10, 16)
    assert sorted([*LEARNED, *STOPPING, *HELD_OUT], key=int) == IDS
    drawn = [str(number) for number in np.random.default_rng(0).permutation(81)]
    assert (set(LEARNED), set(STOPPING), set(HELD_OUT)) == (set(drawn[:55]), set(drawn[55:65]), set(drawn[65:]))


def test_without_the_data__says_how_to_get_it(tmp_path: Path) -> None:
    done = run(DATA=str(tmp_path), SHOP_STATE_DIR=str(tmp_path / "state"))
    assert done.returncode == 2
    assert f"The grocery photos are not in {tmp_path}" in done.stderr
    assert "DATA=folder" in done.stderr
    assert not (tmp_path / "state").exists()


def test_photos_of_ones_own__are_asked_with_but_not_what_was_learned_from(tmp_path: Path) -> None:
    data, own = tmp_path / "data", tmp_path / "own"
    data.mkdir()
    own.mkdir()
    (own / "a.jpg").touch()
    (data / "photos.csv").write_text("photo,product_id,split\nb.jpg,1,train\nc.jpg,2,val\n")
    (own / "photos.csv").write_text("photo,product_id,split\na.jpg,1,test\nb.jpg,2,\nd.jpg,3,train\n")
    (own / "plain.csv").write_text("photo,product_id\na.jpg,1\n")
    assert query_photos(data, None) == [(data / "c.jpg", "2")]
    assert query_photos(data, data / "photos.csv") == [(data / "c.jpg", "2")]
    assert query_photos(data, own / "photos.csv") == [(own / "a.jpg", "1"), (data / "b.jpg", "2")]
    assert query_photos(data, own / "plain.csv") == [(own / "a.jpg", "1")]


def test_all_of_it__ends_with_a_line_of_json(tmp_path: Path, starter_folder: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "starter").symlink_to(starter_folder)
    (tmp_path / "data").mkdir()
    data = draw_data(tmp_path / "data")
    done = run("--epochs", "1", DATA=str(data), SHOP_STATE_DIR=str(tmp_path / "state"))
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    assert [answer[name]["n"] for name in ("zero_shot", "fine_tuned")] == [81, 81]
    assert [answer[name]["n"] for name in ("held_out_before", "held_out_after")] == [64, 64]
    for name in ("zero_shot", "fine_tuned", "held_out_before", "held_out_after"):
        assert 0 <= answer[name]["hit_at_1"] <= answer[name]["mrr"] <= 1
        assert answer[name]["hit_at_1"] <= answer[name]["hit_at_10"] <= 1
        assert len(answer[name]["hit_at_10_interval"]) == 2
    assert "$ python manage.py switch_version 2" in done.stdout
    assert (tmp_path / "state" / "quality" / "fine-tuned" / "model.safetensors").exists()
