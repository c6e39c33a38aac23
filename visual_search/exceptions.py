"""All exceptions of this package. This module imports no other module of it.

An error that a shopper can cause has a stable `code` and one sentence that they understand. An error that
the shop's staff must fix says what was found, what was expected and what to do.
"""


class VisualSearchError(Exception):
    """The base class of all errors raised by visual_search."""

    code = "visual_search_error"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code


class BadRequest(VisualSearchError):
    """The shopper's request is invalid; the message is written for the shopper."""

    code = "bad_request"


class PhotoRejected(BadRequest):
    """The uploaded photo can't be used for a search."""

    code = "photo_rejected"


class InvalidFilter(BadRequest):
    """The catalogue does not declare this filter, or the value is invalid for it."""

    code = "invalid_filter"


class InvalidQuery(BadRequest):
    """The query is empty, or a limit, offset, weight or text is outside the allowed range."""

    code = "invalid_query"


class ImageUnreadable(VisualSearchError):
    """A product's image can't be opened or decoded; its entry holds the reason."""

    code = "image_unreadable"


class ImageUnavailable(ImageUnreadable):
    """The storage did not return the file; it may do so later."""

    code = "image_unavailable"


class ConfigurationError(VisualSearchError):
    """The project's settings or catalogue are wrong; no product is the cause."""

    code = "misconfigured"


class InvalidLabels(VisualSearchError):
    """A file of labelled queries can't be read, or has no usable row."""

    code = "invalid_labels"


class CheckpointMissing(ConfigurationError):
    """The checkpoint's weights are not on this machine and can't be downloaded."""

    code = "checkpoint_missing"


class Unavailable(VisualSearchError):
    """The search can't answer now; the same request may succeed later."""

    code = "search_unavailable"


class IndexEmpty(Unavailable):
    """Nothing has been indexed yet."""

    code = "index_empty"


class IndexFilling(Unavailable):
    """This process's own store is being filled from the table."""

    code = "index_filling"


class IndexOutdated(Unavailable):
    """The checkpoint on this machine is not the one that the index was made with."""

    code = "index_outdated"


class VersionSuperseded(Unavailable):
    """Another index version became active while a worker indexed for this one; nothing was written."""

    code = "version_superseded"


class Busy(Unavailable):
    """This process already encodes as many queries as it may; try again in a moment."""

    code = "search_busy"


class StoreUnavailable(Unavailable):
    """The vector store does not respond, or responded with an error."""

    code = "store_unavailable"


class LeaseLost(StoreUnavailable):
    """Another process now feeds the store and writes what this one was about to write."""


class DimensionMismatch(Unavailable):
    """The vectors' length is not that of the store's vectors."""

    code = "dimension_mismatch"


class InvalidVector(VisualSearchError):
    """A vector passed to a store is not finite or not of unit length."""

    code = "invalid_vector"


class TrainingFailed(VisualSearchError):
    """Fine-tuning failed; nothing was written."""

    code = "training_failed"
