"""The grocery photos used for measurements, and how their products are split.

Grocery Store Dataset: Klasson, Zhang and Kjellström, WACV 2019, arXiv:1901.00711,
https://github.com/marcusklasson/GroceryStoreDataset (MIT). Its test photos are never used.
"""

from __future__ import annotations

import os
from pathlib import Path

DATA = Path(os.environ.get("DATA") or "data/grocery")
GETTING_THE_DATA = (
    "The grocery photos are not in {folder}. They are the Grocery Store Dataset (arXiv:1901.00711, MIT, "
    "https://github.com/marcusklasson/GroceryStoreDataset). Put there products.csv with product_id, name, category, "
    "image and description; photos.csv with photo, product_id and split (train or val); and the files they name. Or "
    "set another folder with DATA=folder."
)

# numpy.random.default_rng(0).permutation(81): the first 55, the next 10, the last 16. Written out, so that another
# version of numpy can't change the held-out products. Ids as in products.csv.
_LEARNED = (
    0, 1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 13, 16, 17, 18, 19, 20, 21, 22, 23, 24, 26, 27, 28, 30, 34, 35, 36, 37, 39,
    42, 43, 44, 45, 47, 50, 51, 52, 53, 55, 57, 61, 62, 64, 65, 66, 67, 68, 70, 73, 74, 75, 76, 77, 80,
)  # fmt: skip
_STOPPING = (
    12, 15, 25, 32, 40, 46, 49, 58, 60, 78,
)  # fmt: skip
_HELD_OUT = (
    7, 14, 29, 31, 33, 38, 41, 48, 54, 56, 59, 63, 69, 71, 72, 79,
)  # fmt: skip
LEARNED, STOPPING, HELD_OUT = (tuple(map(str, ids)) for ids in (_LEARNED, _STOPPING, _HELD_OUT))
