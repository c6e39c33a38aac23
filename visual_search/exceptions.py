"""Every error of this package. Known to all modules; imports none of them.

An error that a shopper can cause carries a stable `code` and one sentence they understand. An error that
the shop's staff must mend says what was found, what was wanted and what to do.
"""


class VisualSearchError(Exception):
    """The base of all errors raised by visual_search."""

    code = "visual_search_error"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code


class BadRequest(VisualSearchError):
    """What the shopper sent can't be answered; the message is written for them."""

    code = "bad_request"


class PhotoRejected(BadRequest):
    """The uploaded photo is not one that can be searched with."""

    code = "photo_rejected"


class InvalidFilter(BadRequest):
    """A filter that the catalogue does not declare, or a value that it can't take."""

    code = "invalid_filter"


class InvalidQuery(BadRequest):
    """Nothing to search for, or a limit, offset, weight or text outside what is allowed."""

    code = "invalid_query"


class ImageUnreadable(VisualSearchError):
    """A product's image can't be opened or decoded; its entry says why."""

    code = "image_unreadable"


class ImageUnavailable(ImageUnreadable):
    """The storage did not give the file; it may later."""

    code = "image_unavailable"


class ConfigurationError(VisualSearchError):
    """The project's settings or catalogue are wrong; no product is to blame."""

    code = "misconfigured"


class InvalidLabels(VisualSearchError):
    """A file of labelled queries can't be read, or has not one row that can be used."""

    code = "invalid_labels"


class CheckpointMissing(ConfigurationError):
    """The checkpoint's weights are not on this machine and can't be fetched."""

    code = "checkpoint_missing"


class Unavailable(VisualSearchError):
    """The search can't answer now; the same request may succeed later."""

    code = "search_unavailable"


class IndexEmpty(Unavailable):
    """Nothing has been indexed yet."""

    code = "index_empty"


class IndexOutdated(Unavailable):
    """The checkpoint on this machine is not the one that the index was made with."""

    code = "index_outdated"


class VersionSuperseded(Unavailable):
    """Another index version became the active one while a worker indexed for this one; nothing was written."""

    code = "version_superseded"


class Busy(Unavailable):
    """This process encodes as many queries as it may; try again in a moment."""

    code = "search_busy"


class StoreUnavailable(Unavailable):
    """The vector store does not answer, or answered with an error."""

    code = "store_unavailable"


class LeaseLost(StoreUnavailable):
    """Another process feeds the store now; what this one was about to write is left to it."""


class DimensionMismatch(Unavailable):
    """Vectors of one length were given to a store that holds another."""

    code = "dimension_mismatch"


class InvalidVector(VisualSearchError):
    """A vector that is not finite or not of unit length reached the store's border."""

    code = "invalid_vector"


class TrainingFailed(VisualSearchError):
    """A fine-tuning went wrong on its way; nothing was written."""

    code = "training_failed"
