"""Configure gunicorn for a shop with search by photo: `gunicorn --config deploy/gunicorn.conf.py example_shop.wsgi`."""

from typing import Any

bind = "0.0.0.0:8000"  # inside a container or behind a proxy
threads = 4  # as many as ENCODE_CONCURRENCY; WEB_CONCURRENCY sets the number of processes
preload_app = False  # a model or a client that is created before the fork can hang after it
timeout = 120  # includes loading a large checkpoint: gunicorn kills a worker that takes longer


def post_worker_init(worker: Any) -> None:
    """Load the encoder and fill the store in each process, after its fork."""
    from visual_search.search import warm_up

    try:
        warm_up()
    except (
        Exception
    ):  # the shop starts even without its search; the health view answers 503, and the log has the reason
        worker.log.exception("Warming up the search failed")
